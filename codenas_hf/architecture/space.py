"""The search space: which genes there are and which values each may take; sampling, variation, membership, size."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..configuration_codenas import nearest_name
from ..strict_yaml import SettingsError, read_yaml
from .choices import DERIVED_GENES, build_genome, check_choice, count_genomes, find_choice, not_counted
from .genes import LAYER_LETTERS, plain
from .genome import GENES, Genome
from .stock import stock_architecture

_GENE_NAMES = tuple(field.name for field in dataclasses.fields(Genome))
# What a linked choice (a mapping) may set together: genes that always act, and that a space may leave out.
LINKABLE_GENES = tuple(
    name
    for name, gene in GENES.items()
    if gene.where in ("model", "network")
    and not gene.needs
    and Genome.__dataclass_fields__[name].default is not dataclasses.MISSING
)
_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers")
_DRAWS = 20_000
_ENUMERABLE = 50_000


class SearchSpace:
    """All genomes that can be made from the given choices.

    A gene of the space is a gene of `Genome`, or `intermediate_ratio` (feed-forward width over hidden size, rounded to
    a multiple of 32 where the hidden size is one, else of 8), or `query_groups` (query heads per key-value head).
    Without `num_attention_heads` the heads are `hidden_size // head_dim`. A gene whose choices are mappings sets
    several genes at once, and may have any name.

    Args:
        genes: gene to its choices. Genes that are not named have their default.
        per_block: genes that are drawn anew for every stored block (for `layer_pattern`: one letter each).
        export: `stock` asserts that every member equals a stock architecture of transformers; `any` does not.

    Raises:
        ValueError: an unknown gene or one that nobody counts, no, repeated or impossible choices, a needed gene that
            is missing, or `stock` with a combination that no stock architecture has.
    """

    def __init__(
        self,
        genes: Mapping[str, Sequence[Any]],
        *,
        per_block: Sequence[str] = (),
        export: str = "any",
    ) -> None:
        self.genes: dict[str, tuple[Any, ...]] = {
            name: _listed(f"gene `{name}`", choices) for name, choices in genes.items()
        }
        self.per_block = _listed("`per_block`", per_block)
        self.export = export
        self._limits: dict[str, int | None] = {}
        self._extra: Callable[[Genome], str | None] | None = None
        self._known: Callable[[Genome], Mapping[str, float]] | None = None
        self._check_genes()
        if export == "stock":
            self._check_stock()

    @classmethod
    def from_yaml(cls, path: str | Path) -> SearchSpace:
        """Reads a space from a YAML file with the keys `genes`, `per_block` and `export`.

        Raises:
            SettingsError: another key (the nearest is named), or as in `read_yaml` and here; names the file.
        """
        data = read_yaml(Path(path), kind="genes")
        if not isinstance(data.get("genes"), dict):
            raise SettingsError(f"{path} must hold `genes`, a mapping from gene to a list of choices")
        for key in data:
            if key not in (known := ("genes", "per_block", "export")):
                raise SettingsError(f"{path}: unknown key `{key}`" + nearest_name(key, known))
        try:
            return cls(**data)
        except ValueError as error:
            raise SettingsError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """JSON form of the space and its limits, for a study's identity. An `extra` check is not part of it."""
        limits = {name: value for name, value in self._limits.items() if value is not None}
        genes = {name: list(choices) for name, choices in self.genes.items()}
        return {"genes": genes, "per_block": list(self.per_block), "export": self.export, "limits": limits}

    def with_limits(
        self,
        *,
        max_weights_bytes: int | None = None,
        min_weights_bytes: int | None = None,
        max_parameters: int | None = None,
        min_parameters: int | None = None,
        extra: Callable[[Genome], str | None] | None = None,
        known: Callable[[Genome], Mapping[str, float]] | None = None,
    ) -> SearchSpace:
        """The same space, screened: genomes outside the limits are no members. Bytes are those of bfloat16 weights.

        Args:
            extra: a further check: None when the genome is fine, else the reason; a predicted latency, say.
            known: objectives that are certain before any training, by name; see `known_objectives`.
        """
        space = copy.copy(self)
        space._limits = {
            "max_weights_bytes": max_weights_bytes,
            "min_weights_bytes": min_weights_bytes,
            "max_parameters": max_parameters,
            "min_parameters": min_parameters,
        }
        space._extra = extra
        space._known = known
        return space

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """All vocabulary sizes, ascending: the tokenizers that a study needs."""
        return tuple(sorted(self.genes["vocab_size"]))

    def sample(self, rng: np.random.Generator) -> Genome:
        """A member, its choices drawn uniformly.

        Raises:
            ValueError: no member in 20,000 draws; names the last reason.
        """
        reason = "none"
        for _ in range(_DRAWS):
            choices = {name: self._draw(name, rng) for name in self.genes}
            self._fit_blocks(choices, rng)
            genome, reason = self._try(choices)
            if genome is not None:
                return genome
        raise ValueError(f"no valid genome in {_DRAWS} draws; the last was refused because {reason}; widen the limits")

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """A member that differs from `genome` in one gene, or in two (one time in four).

        Raises:
            ValueError: `genome` is not a member.
        """
        start = self.choices_of(genome)
        for _ in range(200):
            choices = dict(start)
            for _ in range(1 + (rng.random() < 0.25)):
                name = list(self.genes)[rng.integers(len(self.genes))]
                if name in self.per_block and isinstance(choices[name], tuple):
                    values = list(choices[name])
                    values[rng.integers(len(values))] = self._draw_value(name, rng)
                    choices[name] = tuple(values)
                else:
                    choices[name] = self._draw(name, rng)
            self._fit_blocks(choices, rng)
            mutant, _ = self._try(choices)
            if mutant is not None and mutant != genome:
                return mutant
        return self._another(genome, rng)

    def crossover(self, first: Genome, second: Genome, rng: np.random.Generator) -> Genome:
        """A member each of whose choices comes from one of the parents; a parent where no mix is a member.

        Raises:
            ValueError: a parent is not a member.
        """
        one, two = self.choices_of(first), self.choices_of(second)
        for _ in range(50):
            choices = {name: (one if rng.random() < 0.5 else two)[name] for name in self.genes}
            for name in self.per_block:
                pairs = itertools.zip_longest(one[name], two[name])
                mixed = [b if a is None or (b is not None and rng.random() < 0.5) else a for a, b in pairs]
                choices[name] = tuple(mixed)
            self._fit_blocks(choices, rng)
            child, _ = self._try(choices)
            if child is not None:
                return child
        return first if rng.random() < 0.5 else second

    def validate(self, genome: Genome) -> str | None:
        """None when the genome is a member, else the reason why not."""
        try:
            self.choices_of(genome)
        except ValueError as error:
            return str(error)
        return self._refusal(genome)

    def genome_from_dict(self, data: Mapping[str, Any]) -> Genome:
        """Inverse of `Genome.to_dict`; membership is `validate`'s question."""
        return Genome.from_dict(data)

    def genome_from_choices(self, choices: Mapping[str, Any]) -> Genome:
        """Inverse of `choices_of`; a tuple may be longer than the genome has blocks.

        Raises:
            ValueError: the choices contradict each other.
        """
        blocks = self._num_blocks(choices)
        return build_genome({name: v[:blocks] if name in self.per_block else v for name, v in choices.items()})

    @property
    def max_blocks(self) -> int:
        """Stored blocks of the deepest genome: as many values a gene drawn per block has at most."""
        return int(max(self.genes["num_hidden_layers"])) // int(min(self.genes.get("layer_repeats", (1,))))

    def known_objectives(self, genome: Genome) -> Mapping[str, float]:
        """Raw values of the objectives that need no training, so that nobody has to learn them; empty without any."""
        return {} if self._known is None else self._known(genome)

    def size(self) -> int:
        """How many distinct genomes there are.

        Exact. With limits it is exact for spaces of at most 50,000 genomes; beyond, the limits are not counted in.
        """
        total = count_genomes(self.genes, self.per_block)
        screened = self._extra is not None or any(limit is not None for limit in self._limits.values())
        if screened and total <= _ENUMERABLE:
            return sum(1 for _ in self.enumerate())
        return total

    def enumerate(self) -> Iterator[Genome]:
        """Every member once. For small spaces: it goes through all combinations of choices."""
        seen: set[str] = set()
        free = [name for name in self.genes if name not in self.per_block]
        for values in itertools.product(*(self.genes[name] for name in free)):
            fixed = dict(zip(free, values, strict=True))
            blocks = self._num_blocks(fixed)
            for rows in itertools.product(*(itertools.product(self.genes[n], repeat=blocks) for n in self.per_block)):
                genome, _ = self._try(fixed | dict(zip(self.per_block, rows, strict=True)))
                if genome is not None and genome.genome_id not in seen:
                    seen.add(genome.genome_id)
                    yield genome

    def _check_genes(self) -> None:
        known = (*_GENE_NAMES, *DERIVED_GENES)
        for name, choices in self.genes.items():
            if not choices:
                raise ValueError(f"gene `{name}` has no choices")
            if all(isinstance(choice, Mapping) for choice in choices):
                self._check_linked(name, choices)
            elif name not in known:
                raise ValueError(f"unknown gene `{name}`" + nearest_name(name, known))
            else:
                self._check_single(name, choices)
            if any(choice in choices[:i] for i, choice in enumerate(choices)):
                raise ValueError(f"gene `{name}` has a choice twice: {list(choices)}")
        linked = [n for choices in self.genes.values() if isinstance(choices[0], Mapping) for n in choices[0]]
        for name in linked:
            if name in self.genes:
                raise ValueError(f"gene `{name}` stands alone and in a linked gene; keep one")
            if linked.count(name) > 1:
                raise ValueError(f"gene `{name}` stands in two linked genes; keep one")
        for name in self.per_block:
            if name not in self.genes or name not in (
                allowed := (*Genome.PER_BLOCK_GENES, *DERIVED_GENES, "layer_pattern")
            ):
                raise ValueError(f"`per_block` names `{name}`, allowed are those of {', '.join(allowed)} in `genes`")
        if "layer_pattern" in self.per_block and any(len(str(letter)) != 1 for letter in self.genes["layer_pattern"]):
            raise ValueError("a `layer_pattern` drawn per block takes single letters, got a longer choice")
        for derived, gene in DERIVED_GENES.items():
            if derived in self.genes and gene in self.genes:
                raise ValueError(f"`{derived}` and `{gene}` say the same; keep one")
        missing = [name for name in _NEEDED if name not in self.genes]
        missing += [] if self.genes.keys() & {"num_attention_heads", "head_dim"} else ["num_attention_heads"]
        missing += [] if self.genes.keys() & {"intermediate_size", "intermediate_ratio"} else ["intermediate_size"]
        if missing:
            raise ValueError(f"a space needs `{'`, `'.join(missing)}`, got only {', '.join(self.genes)}")
        if self.export not in ("stock", "any"):
            raise ValueError(f"`export` must be stock or any, got {self.export!r}")

    def _check_single(self, name: str, choices: tuple[Any, ...]) -> None:
        if reason := not_counted(DERIVED_GENES.get(name, name)):
            raise ValueError(
                f"gene `{name}` cannot be searched: {reason}, so `size()` would be wrong; see architecture/genes.py"
            )
        for choice in choices:
            check_choice(name, choice)
            if choice is None and name in self.per_block:
                raise ValueError(f"gene `{name}` is drawn for each block, so each choice is a value, got null")

    def _check_linked(self, name: str, choices: tuple[Any, ...]) -> None:
        if name in (*_GENE_NAMES, *DERIVED_GENES):
            raise ValueError(f"a linked gene needs a name of its own, got `{name}`")
        for choice in choices:
            if choice.keys() != choices[0].keys():
                raise ValueError(f"all choices of `{name}` must set the same genes, got {list(choices)}")
            for inner in choice:
                if inner not in LINKABLE_GENES:
                    raise ValueError(f"`{name}` sets `{inner}`; it may set {', '.join(LINKABLE_GENES)}")
                self._check_single(inner, (choice[inner],))

    def _check_stock(self) -> None:
        """Each combination of the genes that decide the architecture, at one choice of all others."""
        # A depth decides only in what it makes of a pattern, and which repeats it allows.
        deep = {"num_hidden_layers"} if not self.genes.keys() & {"layer_pattern", "layer_repeats"} else set()
        deciding = {name for name, gene in GENES.items() if gene.decides} - deep
        deciding |= {derived for derived, gene in DERIVED_GENES.items() if gene in deciding}
        if self.per_block:
            raise ValueError(f"`export: stock` and `per_block` ({', '.join(self.per_block)}) exclude each other")
        varied = [n for n in self.genes if n in deciding or isinstance(self.genes[n][0], Mapping)]
        fixed = {name: choices[-1] for name, choices in self.genes.items() if name not in varied}
        for values in itertools.product(*(self.genes[name] for name in varied)):
            genome, _ = self._try(fixed | dict(zip(varied, values, strict=True)))
            if genome is None:
                continue
            name, reasons = stock_architecture(stock_view(genome))
            if name is None:
                shown = dict(zip(varied, values, strict=True))
                raise ValueError(f"`export: stock`, but {shown} is no stock architecture: {'; '.join(reasons)}")

    def _draw_value(self, name: str, rng: np.random.Generator) -> Any:
        return self.genes[name][rng.integers(len(self.genes[name]))]

    def _draw(self, name: str, rng: np.random.Generator) -> Any:
        return () if name in self.per_block else self._draw_value(name, rng)

    @staticmethod
    def _num_blocks(choices: Mapping[str, Any]) -> int:
        return int(choices["num_hidden_layers"]) // int(choices.get("layer_repeats", 1))

    def _fit_blocks(self, choices: dict[str, Any], rng: np.random.Generator) -> None:
        """Per-block genes get exactly one value for each block: cut, or drawn anew."""
        blocks = self._num_blocks(choices)
        for name in self.per_block:
            values = list(choices[name])[:blocks]
            choices[name] = tuple(values + [self._draw_value(name, rng) for _ in range(blocks - len(values))])

    def _try(self, choices: Mapping[str, Any]) -> tuple[Genome | None, str]:
        try:
            genome = build_genome(choices)
        except ValueError as error:
            return None, str(error)
        reason = self._refusal(genome)
        return (genome, "") if reason is None else (None, reason)

    def _refusal(self, genome: Genome) -> str | None:
        limits = {name: limit for name, limit in self._limits.items() if limit is not None}
        for name, limit in limits.items():
            what = name[4:]
            value = genome.weights_bytes() if what == "weights_bytes" else genome.num_parameters()
            if value > limit if name.startswith("max_") else value < limit:
                return f"`{what}` is {value:,}, the limit `{name}` is {limit:,}"
        return None if self._extra is None else self._extra(genome)

    def _another(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """Where no neighbour is a member: any other member, if there is one."""
        for _ in range(200):
            other = self.sample(rng)
            if other != genome:
                return other
        if count_genomes(self.genes, self.per_block) <= _ENUMERABLE:
            others = [other for other in self.enumerate() if other != genome]
            if others:
                return others[rng.integers(len(others))]
        return genome

    def choices_of(self, genome: Genome) -> dict[str, Any]:
        """The choices that make the genome, by gene; of a gene drawn per block a tuple.

        Raises:
            ValueError: there are none; names the gene.
        """
        found: dict[str, Any] = {}
        for name, choices in self.genes.items():
            if isinstance(choices[0], Mapping):
                fits = [c for c in choices if all(getattr(genome, inner) == value for inner, value in c.items())]
                if not fits:
                    values = {inner: getattr(genome, inner) for inner in choices[0]}
                    raise ValueError(f"no choice of `{name}` sets {values}")
                found[name] = fits[0]
            elif name in self.per_block:
                found[name] = tuple(find_choice(name, choices, genome, block) for block in range(genome.num_blocks))
            else:
                found[name] = find_choice(name, choices, genome, None)
        rebuilt = build_genome(found)
        if rebuilt != genome:
            ours, theirs = rebuilt.to_dict(), genome.to_dict()
            wrong = {name: value for name, value in theirs.items() if value != ours[name]}
            raise ValueError(f"the space cannot make {wrong}")
        return found


def _listed(what: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"{what} needs a list, got {values!r}")
    return tuple(plain(value) for value in values)


def stock_view(genome: Genome) -> SimpleNamespace:
    """The fields of the configuration that decide, without per-block values; a config takes 5 ms to make."""
    types = [LAYER_LETTERS[letter] for letter in genome.block_letters]
    return SimpleNamespace(**genome.to_dict(), layer_types=types, is_heterogeneous=False)
