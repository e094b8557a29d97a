"""From the choices of a space to genomes and back, and how many distinct genomes the choices make."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .genes import Gene
from .genome import GENES, Genome, check_gene

_LAYOUT = ("hidden_size", "num_hidden_layers", "layer_pattern", "layer_repeats")

# Genes of a space that stand for a gene of the genome: relative to another one, so that crossing widths keeps shapes.
DERIVED_GENES = {"intermediate_ratio": "intermediate_size", "query_groups": "num_key_value_heads"}


def check_choice(name: str, choice: Any) -> None:
    """Raises where a gene of a space cannot have the choice, whatever the other genes are.

    Raises:
        ValueError: names the gene, what is allowed and the choice.
    """
    if name not in DERIVED_GENES:
        check_gene(name, choice)
        return
    number = isinstance(choice, int if name == "query_groups" else int | float) and not isinstance(choice, bool)
    if not (number and 0 < choice < math.inf):
        kind = "whole number of 1 or more" if name == "query_groups" else "positive number"
        raise ValueError(f"`{name}` must be a {kind}, got {choice!r}")


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
    if choice is None and name in ("num_key_value_heads", "head_dim"):  # the usual number
        heads = genome.at("num_attention_heads", block)
        choice = heads if name == "num_key_value_heads" else genome.hidden_size / heads
    return bool(genome.at(name, block) == choice)


def _has_no_effect(name: str, genome: Genome, block: int | None) -> bool:
    gene = GENES[DERIVED_GENES.get(name, name)]
    if block is not None and gene.where == "attention" and genome.block_letters[block] == "c":
        return True
    return not gene.acts(genome.to_dict(), genome.block_letters)


def ratio_size(ratio: float, hidden_size: int) -> int:
    """Feed-forward width of a ratio: the nearest multiple of 32 where the model's width is one, else of 8.

    Formats in few bits store blocks of 32; a row that is no multiple of it cannot be stored in them.
    """
    unit = 8 if hidden_size % 32 else 32
    return max(unit, round(ratio * hidden_size / unit) * unit)


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


def not_counted(name: str) -> str | None:
    """Why nobody counts a gene of `Genome`, so that no space may have it; None where it is counted."""
    gene = GENES.get(name)
    if gene is None:
        return "it has no row in the table of genes"
    if gene.where == "layout" and name not in _LAYOUT:
        return "its row says `layout`, and `count_genomes` does not go through it"
    if (gene.where in ("attention", "network")) != (name in Genome.PER_BLOCK_GENES):
        return "exactly the genes of attention and network may differ between blocks (`PER_LAYER_FIELDS`)"
    other = gene.needs[0] if gene.needs else None
    if other not in (None, "layer_pattern") and (
        other not in GENES or GENES[other] != Gene(decides=GENES[other].decides)
    ):
        return f"it needs `{other}`, which is no gene of the whole model that always acts"
    return None


def count_genomes(genes: Mapping[str, Sequence[Any]], per_block: Sequence[str]) -> int:
    """How many distinct genomes the choices make, without making them.

    Genes that always act on the whole model multiply. The others are counted together: those that others need, those
    of depth and pattern, then for each width the distinct settings of a block, raised to the number of blocks where
    they are drawn per block.
    """
    linked = [name for name, choices in genes.items() if isinstance(choices[0], Mapping)]
    single = {name: choices for name, choices in genes.items() if name not in linked}
    total = 0
    for combination in itertools.product(*(genes[name] for name in linked)):
        fixed = {inner: (value,) for choice in combination for inner, value in choice.items()}
        total += _count_single(single | fixed, set(per_block))
    return total


def _count_single(genes: Mapping[str, Sequence[Any]], per_block: set[str]) -> int:
    whole = {name: GENES[name] for name in genes if name in GENES and GENES[name].where == "model"}
    needed = {gene.needs[0] for gene in GENES.values() if gene.needs} - {"layer_pattern"}
    needed |= {"position_embedding_type"}  # rope does not take every `head_dim`
    free = math.prod(len(genes[name]) for name, gene in whole.items() if not gene.needs and name not in needed)
    conditional = [name for name, gene in whole.items() if gene.needs and gene.needs[0] in needed]
    layouts = _layouts(genes, "layer_pattern" in per_block)
    total = 0
    for values in itertools.product(*(_choices_or_default(genes, name) for name in sorted(needed))):
        beside = dict(zip(sorted(needed), values, strict=True))
        same = math.prod(_number_of(name, genes[name]) for name in conditional if GENES[name].acts(beside, ""))
        rope = beside["position_embedding_type"] == "rope"
        for hidden in genes["hidden_size"]:
            attentions = _attention_settings(genes, per_block, hidden, rope=rope)
            networks = _feed_forward_settings(genes, per_block, hidden)
            for (attention, blocks), count in layouts.items():
                total += same * count * _union_size(attentions, attention) * _union_size(networks, blocks)
    return free * total


def _number_of(name: str, choices: Sequence[Any]) -> int:
    """Choices of a gene where it acts."""
    return sum(choice is not None or not GENES[name].filled for choice in choices)


def _choices_or_default(genes: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
    return genes.get(name, (Genome.__dataclass_fields__[name].default,))


def _layouts(genes: Mapping[str, Sequence[Any]], per_block: bool) -> Counter[tuple[int, int]]:
    """(attention blocks, blocks) to the number of distinct depths, repeats and patterns, with what only they need."""
    lettered = {
        name: (gene.needs[1], _number_of(name, _choices_or_default(genes, name)))
        for name, gene in GENES.items()
        if gene.needs and gene.needs[0] == "layer_pattern"
    }
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
        for numbers_of, number in strings.items():
            full, sliding, _ = numbers_of
            present = {letter for letter, n in zip("fsc", numbers_of, strict=True) if n}
            if full + sliding:
                same = math.prod(choices for letter, choices in lettered.values() if letter in present)
                counts[full + sliding, blocks] += number * same
    return counts


def _names(where: str) -> tuple[str, ...]:
    """The genes of a space that act there, also those that stand for others."""
    derived = tuple(name for name, gene in DERIVED_GENES.items() if GENES[gene].where == where)
    return tuple(name for name, gene in GENES.items() if gene.where == where) + derived


def _attention_settings(
    genes: Mapping[str, Sequence[Any]], per_block: set[str], hidden: int, *, rope: bool
) -> list[frozenset[Any]]:
    def make(values: dict[str, Any]) -> tuple[Any, ...]:
        if "num_attention_heads" not in values:
            values["num_attention_heads"] = _whole(hidden, values["head_dim"], "hidden_size", "head_dim")
        heads: int = values["num_attention_heads"]
        kv_heads = values.get("num_key_value_heads") or _whole(heads, values.get("query_groups", 1), "heads", "groups")
        head_dim = values.get("head_dim") or _whole(hidden, heads, "hidden_size", "num_attention_heads")
        if heads % kv_heads or (rope and head_dim % 2):
            raise ValueError("no such attention")
        known = ("num_attention_heads", "num_key_value_heads", "head_dim", "query_groups")
        return heads, kv_heads, head_dim, *(value for name, value in values.items() if name not in known)

    return _settings(genes, per_block, _names("attention"), make)


def _feed_forward_settings(
    genes: Mapping[str, Sequence[Any]], per_block: set[str], hidden: int
) -> list[frozenset[Any]]:
    def make(values: dict[str, Any]) -> tuple[Any, ...]:
        ratio = values.pop("intermediate_ratio", None)
        if ratio is not None:
            values["intermediate_size"] = ratio_size(ratio, hidden)
        return tuple(sorted(values.items()))

    return _settings(genes, per_block, _names("network"), make)


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
