"""From the choices of a space to genomes and back, and how many distinct genomes the choices make."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .genome import Genome

# Genes of a space that stand for a gene of the genome: relative to another one, so that crossing widths keeps shapes.
DERIVED_GENES = {"intermediate_ratio": "intermediate_size", "query_groups": "num_key_value_heads"}


def find_choice(name: str, choices: Sequence[Any], genome: Genome, block: int | None) -> Any:
    """The choice of a gene that gives what the genome has: in one block, or in all (`block` None).

    Raises:
        ValueError: there is none.
    """
    gene = DERIVED_GENES.get(name, name)
    blocks = range(genome.num_blocks) if block is None else (block,)
    for choice in choices:
        if name == "layer_pattern":
            letters = genome.block_letters
            if all(letters[i] == str(choice)[i % len(str(choice))] for i in blocks) or choice == letters:
                return choice
        elif all(_matches(name, choice, genome, i) for i in blocks):
            return choice
    value = getattr(genome, gene)
    if _has_no_effect(name, genome, block):
        return choices[0]
    raise ValueError(f"`{gene}` is {value!r}, which none of the choices of `{name}` gives: {list(choices)}")


def _matches(name: str, choice: Any, genome: Genome, block: int) -> bool:
    if name == "intermediate_ratio":
        return bool(genome.at("intermediate_size", block) == ratio_size(choice, genome.hidden_size))
    if name == "query_groups":
        return bool(genome.at("num_attention_heads", block) == choice * genome.at("num_key_value_heads", block))
    return bool(genome.at(name, block) == choice)


def _has_no_effect(name: str, genome: Genome, block: int | None) -> bool:
    attention = ("num_attention_heads", "num_key_value_heads", "query_groups", "head_dim")
    return (
        (name == "sliding_window" and genome.sliding_window is None)
        or (name == "conv_kernel_size" and "c" not in genome.block_letters)
        or (name == "rope_theta" and genome.position_embedding_type != "rope")
        or (name == "max_position_embeddings" and genome.position_embedding_type != "learned")
        or (name in attention and block is not None and genome.block_letters[block] == "c")
    )


def ratio_size(ratio: float, hidden_size: int) -> int:
    """Feed-forward width of a ratio: the nearest multiple of 8, at least 8."""
    return max(8, round(ratio * hidden_size / 8) * 8)


def build_genome(choices: Mapping[str, Any]) -> Genome:
    """The genome that a complete set of choices stands for.

    Raises:
        ValueError: the choices contradict each other.
    """
    genes: dict[str, Any] = {}
    for name, choice in choices.items():
        genes |= choice if isinstance(choice, Mapping) else {name: choice}
    hidden = genes["hidden_size"]
    if "num_attention_heads" not in genes:
        genes["num_attention_heads"] = _each(
            lambda dim: _whole(hidden, dim, "hidden_size", "head_dim"), genes["head_dim"]
        )
    if (ratio := genes.pop("intermediate_ratio", None)) is not None:
        genes["intermediate_size"] = _each(lambda value: ratio_size(value, hidden), ratio)
    if (groups := genes.pop("query_groups", None)) is not None:
        genes["num_key_value_heads"] = _each(
            lambda heads, group: _whole(heads, group, "num_attention_heads", "query_groups"),
            genes["num_attention_heads"],
            groups,
        )
    if isinstance(genes.get("layer_pattern"), tuple):
        genes["layer_pattern"] = "".join(genes["layer_pattern"])
    return Genome(**genes)


def _whole(value: int, divisor: int, name: str, divisor_name: str) -> int:
    if value % divisor:
        raise ValueError(f"`{name}` ({value}) must be a multiple of `{divisor_name}` ({divisor})")
    return value // divisor


def _each(function: Callable[..., Any], *values: Any) -> Any:
    """Applies a function to single values, or block by block where one of them is a tuple."""
    lengths = {len(value) for value in values if isinstance(value, tuple)}
    if not lengths:
        return function(*values)
    columns = [value if isinstance(value, tuple) else (value,) * max(lengths) for value in values]
    return tuple(function(*row) for row in zip(*columns, strict=True))


_ATTENTION = ("num_attention_heads", "num_key_value_heads", "query_groups", "head_dim")
_FEED_FORWARD = ("intermediate_size", "intermediate_ratio", "hidden_act", "mlp_type")
_INDEPENDENT = (
    "vocab_size",
    "norm_type",
    "tie_word_embeddings",
    "qk_norm",
    "residual_scalars",
    "final_logit_softcapping",
    "parallel_residual",
)


def count_genomes(genes: Mapping[str, Sequence[Any]], per_block: Sequence[str]) -> int:
    """How many distinct genomes the choices make, without making them.

    Genes that always have an effect multiply. The others are counted together: those of depth and pattern, then for
    each width the distinct settings of a block, raised to the number of blocks where they are drawn per block.
    """
    linked = [name for name, choices in genes.items() if isinstance(choices[0], Mapping)]
    plain = {name: choices for name, choices in genes.items() if name not in linked}
    total = 0
    for combination in itertools.product(*(genes[name] for name in linked)):
        fixed = {inner: (value,) for choice in combination for inner, value in choice.items()}
        total += _count_plain(plain | fixed, set(per_block))
    return total


def _count_plain(genes: Mapping[str, Sequence[Any]], per_block: set[str]) -> int:
    independent = math.prod(len(genes[name]) for name in _INDEPENDENT if name in genes)
    layouts = _layouts(genes, "layer_pattern" in per_block)
    total = 0
    for position in _choices_or_default(genes, "position_embedding_type"):
        matters = {"rope": "rope_theta", "learned": "max_position_embeddings"}.get(position, "")
        same = len(genes.get(matters, (None,)))
        for hidden in genes["hidden_size"]:
            attentions = _attention_settings(genes, per_block, hidden, rope=position == "rope")
            networks = _feed_forward_settings(genes, per_block, hidden)
            for (attention, blocks), count in layouts.items():
                total += same * count * _union_size(attentions, attention) * _union_size(networks, blocks)
    return independent * total


def _choices_or_default(genes: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(Genome)}
    return genes.get(name, (defaults[name],))


def _layouts(genes: Mapping[str, Sequence[Any]], per_block: bool) -> Counter[tuple[int, int]]:
    """(attention blocks, blocks) to the number of distinct depths, repeats, patterns, windows and kernels."""
    windows = sum(window is not None for window in _choices_or_default(genes, "sliding_window"))
    kernels = len(_choices_or_default(genes, "conv_kernel_size"))
    patterns = [str(pattern) for pattern in _choices_or_default(genes, "layer_pattern")]
    counts: Counter[tuple[int, int]] = Counter()
    for depth, repeats in itertools.product(genes["num_hidden_layers"], _choices_or_default(genes, "layer_repeats")):
        if depth % repeats:
            continue
        blocks = depth // repeats
        strings: Counter[tuple[int, int, int]] = Counter()
        if per_block:
            for sliding, conv in itertools.product(range(blocks + 1), repeat=2):
                numbers = {"f": blocks - sliding - conv, "s": sliding, "c": conv}
                if min(numbers.values()) >= 0 and all(n == 0 for k, n in numbers.items() if k not in patterns):
                    strings[numbers["f"], sliding, conv] = math.comb(blocks, sliding) * math.comb(
                        blocks - sliding, conv
                    )
        else:
            for letters in {"".join(p[i % len(p)] for i in range(blocks)) for p in patterns}:
                strings[letters.count("f"), letters.count("s"), letters.count("c")] += 1
        for (full, sliding, conv), number in strings.items():
            if full + sliding:
                counts[full + sliding, blocks] += number * (windows if sliding else 1) * (kernels if conv else 1)
    return counts


def _attention_settings(
    genes: Mapping[str, Sequence[Any]], per_block: set[str], hidden: int, *, rope: bool
) -> list[frozenset[Any]]:
    def make(values: dict[str, Any]) -> tuple[int, int, int]:
        if "num_attention_heads" not in values:
            values["num_attention_heads"] = _whole(hidden, values["head_dim"], "hidden_size", "head_dim")
        heads: int = values["num_attention_heads"]
        kv_heads = values.get("num_key_value_heads") or _whole(heads, values.get("query_groups", 1), "heads", "groups")
        head_dim = values.get("head_dim") or _whole(hidden, heads, "hidden_size", "num_attention_heads")
        if heads % kv_heads or (rope and head_dim % 2):
            raise ValueError("no such attention")
        return heads, kv_heads, head_dim

    return _settings(genes, per_block, _ATTENTION, make)


def _feed_forward_settings(
    genes: Mapping[str, Sequence[Any]], per_block: set[str], hidden: int
) -> list[frozenset[Any]]:
    def make(values: dict[str, Any]) -> tuple[Any, ...]:
        ratio = values.get("intermediate_ratio")
        size = values["intermediate_size"] if ratio is None else ratio_size(ratio, hidden)
        return size, values.get("hidden_act"), values.get("mlp_type")

    return _settings(genes, per_block, _FEED_FORWARD, make)


def _settings(
    genes: Mapping[str, Sequence[Any]],
    per_block: set[str],
    kind: Sequence[str],
    make: Callable[[dict[str, Any]], Any],
) -> list[frozenset[Any]]:
    """For each setting of the genes that all blocks share, the settings that a block may have."""
    shared = [name for name in kind if name in genes and name not in per_block]
    free = [name for name in kind if name in genes and name in per_block]
    found = []
    for values in itertools.product(*(genes[name] for name in shared)):
        settings = set()
        for more in itertools.product(*(genes[name] for name in free)):
            try:
                settings.add(make(dict(zip((*shared, *free), (*values, *more), strict=True))))
            except ValueError:
                continue
        found.append(frozenset(settings))
    return found


def _union_size(sets: Sequence[frozenset[Any]], power: int) -> int:
    """Size of the union of the sets' powers, by inclusion and exclusion."""
    distinct = [members for members in dict.fromkeys(sets) if members]
    if all(len(members) == 1 for members in distinct):
        return len(distinct)  # nothing is drawn per block

    def visit(start: int, common: frozenset[Any] | None, sign: int) -> int:
        total = 0
        for i in range(start, len(distinct)):
            members = distinct[i] if common is None else common & distinct[i]
            if members:
                total += sign * len(members) ** power + visit(i + 1, members, -sign)
        return total

    return visit(0, None, 1)
