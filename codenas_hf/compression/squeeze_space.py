"""The space of squeezes of one parent: sampled, mutated and crossed within exact bytes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import comb, prod
from typing import Any

import numpy as np

from .formats import BLOCKS
from .gguf import Layout
from .squeezing import ParentShape, SqueezeGenome, mixed_format, pieces

_TRIES = 200
_WIDTH = 32  # rows must be whole blocks


@dataclass(frozen=True, kw_only=True)
class SqueezeChoices:
    """What a squeeze may choose from; a file in configs/spaces.

    Args:
        vocab_sizes: entries that are kept; those beyond the parent's count as all.
        neuron_shares: shares of the feed-forward neurons, rounded to whole blocks.
        group_shares: shares of the key-value heads, rounded.
        embedding: storage formats of embedding and head.
        matrices: storage formats of all other matrices.
        sections: equal shares of the depth that have formats of their own.
        equal_layers: all layers keep as many neurons and groups, so that a stock architecture holds the result; else
            each section has its own.
        most_layers_out: layers that may be left out.

    Raises:
        ValueError: no choice, a share outside 0 to 1, or no such format.
    """

    vocab_sizes: tuple[int, ...] = (8192, 12288, 16384, 24576, 32768, 49152)
    neuron_shares: tuple[float, ...] = (0.5, 0.625, 0.75, 0.875, 1.0)
    group_shares: tuple[float, ...] = (1.0,)
    embedding: tuple[str, ...] = ("q8_0", "q4_0")
    matrices: tuple[str, ...] = ("q8_0", "q4_1", "iq4_nl")
    sections: int = 4
    equal_layers: bool = True
    most_layers_out: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_sizes", "neuron_shares", "group_shares", "embedding", "matrices"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` must name at least one choice")
        for share in (*self.neuron_shares, *self.group_shares):
            if not 0 < share <= 1:
                raise ValueError(f"a share that is kept must lie above 0 and be 1 or less, got {share}")
        for name in (*self.embedding, *self.matrices):
            if name not in BLOCKS:
                raise ValueError(f"a storage format of a tensor must be one of {', '.join(BLOCKS)}, got {name!r}")
        if self.sections < 1 or self.most_layers_out < 0:
            raise ValueError(f"`sections` must be 1 or more, got {self.sections}; `most_layers_out` 0 or more")


@dataclass(frozen=True, kw_only=True)
class SqueezeSpace:
    """All squeezes of a parent that keep the limits.

    Args:
        parent: its shape.
        choices: of each gene.
        layouts: vocabulary size to what the files of that vocabulary have in common.
        digest: of the parent as it was prepared.
        decode_ms: predicts milliseconds a token; None where nobody timed anything.
        limits: objective to the most that it may be.

    Raises:
        ValueError: more sections than layers.
    """

    parent: ParentShape
    choices: SqueezeChoices
    layouts: Mapping[int, Layout]
    digest: str
    decode_ms: Callable[[SqueezeGenome], float] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    _known: dict[SqueezeGenome, dict[str, float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.choices.sections > self.parent.layers:
            raise ValueError(
                f"`sections` ({self.choices.sections}) must not exceed the parent's layers ({self.parent.layers})"
            )

    @functools.cached_property
    def genes(self) -> dict[str, tuple[Any, ...]]:
        """What each gene may be; those of sections are numbered."""
        parent, choices = self.parent, self.choices
        step = next(k for k in range(1, _WIDTH + 1) if k * parent.queries * parent.head_dim % _WIDTH == 0)
        groups = {_whole(share * parent.groups, step, parent.groups) for share in choices.group_shares}
        if not parent.prunable:
            groups = {parent.groups}
        parts = 1 if choices.equal_layers else choices.sections
        found: dict[str, tuple[Any, ...]] = {"vocab_size": tuple(sorted(self.layouts))}
        found |= {f"neurons.{at}": neuron_counts(parent, choices) for at in range(parts)}
        found |= {f"groups.{at}": tuple(sorted(groups)) for at in range(parts)}
        found["embedding"] = choices.embedding
        found |= {f"{kind}.{at}": choices.matrices for kind in ("attention", "feed_forward")
                  for at in range(choices.sections)}  # fmt: skip
        return found

    def bytes_of(self, genome: SqueezeGenome) -> int:
        """Bytes of the file that ships, exactly.

        Raises:
            ValueError: rows that the format of a tensor cannot store.
        """
        found = pieces(genome, self.parent)
        for piece in found:
            if len(piece.shape) == 2:
                BLOCKS[piece.block].num_bytes(*piece.shape)
        layout = dataclasses.replace(self.layouts[genome.vocab_size], storage=mixed_format(found))
        left = self.parent.layers - len(genome.without_layers)
        return layout.file_bytes({piece.name: piece.shape for piece in found}, layers=left)

    def known_objectives(self, genome: SqueezeGenome) -> dict[str, float]:
        """Exact bytes and predicted latency, before anything is computed.

        Raises:
            ValueError: as `bytes_of`.
        """
        known = self._known.get(genome)
        if known is None:
            known = {"artifact_bytes": float(self.bytes_of(genome))}
            if self.decode_ms is not None:
                known["decode_ms"] = self.decode_ms(genome)
            self._known[genome] = known
        return known

    def sample(self, rng: np.random.Generator) -> SqueezeGenome:
        """A genome within the limits: drawn, then made smaller gene by gene until it keeps them.

        Raises:
            ValueError: even the smallest is beyond a limit; says by how much.
        """
        for _ in range(_TRIES):
            flat = {name: values[int(rng.integers(len(values)))] for name, values in self.genes.items()}
            out = int(rng.integers(self.choices.most_layers_out + 1))
            layers = rng.choice(self.parent.layers, size=out, replace=False).tolist()
            genome = self._shrunk(flat, layers, rng)
            if genome is not None:
                return genome
        smallest = self._genome({name: self._ordered(name)[0] for name in self.genes}, [])
        raise ValueError(
            f"no squeeze of this parent keeps the limits: the smallest has {self.bytes_of(smallest):,} bytes; "
            "raise limits.bytes, or give a space with smaller choices"
        )

    def mutate(self, genome: SqueezeGenome, rng: np.random.Generator) -> SqueezeGenome:
        """One to three genes changed, mostly to a neighbouring choice, and made to keep the limits."""
        for _ in range(_TRIES):
            flat, layers = self._flat(genome), list(genome.without_layers)
            for _ in range(int(rng.integers(1, 4))):
                names = [name for name, values in self.genes.items() if len(values) > 1]
                extra = int(self.choices.most_layers_out > 0)
                at = int(rng.integers(max(1, len(names) + extra)))
                if at >= len(names):
                    layers = self._other_layers(layers, rng)
                    continue
                values = self._ordered(names[at])
                here = values.index(flat[names[at]]) if flat[names[at]] in values else 0
                steps = [here - 1, here + 1] if rng.random() < 0.7 else list(range(len(values)))
                steps = [step for step in steps if 0 <= step < len(values) and step != here]
                flat[names[at]] = values[steps[int(rng.integers(len(steps)))]]
            found = self._shrunk(flat, layers, rng)
            if found is not None and found != genome:
                return found
        return self.sample(rng)

    def crossover(self, first: SqueezeGenome, second: SqueezeGenome, rng: np.random.Generator) -> SqueezeGenome:
        """Each gene from one of the two, made to keep the limits."""
        one, other = self._flat(first), self._flat(second)
        flat = {name: (one if rng.random() < 0.5 else other)[name] for name in one}
        layers = list((first if rng.random() < 0.5 else second).without_layers)
        found = self._shrunk(flat, layers, rng)
        return first if found is None else found

    def validate(self, genome: Any) -> str | None:
        """None when the genome belongs to the space, else the reason why not."""
        if not isinstance(genome, SqueezeGenome):
            return f"it is no squeeze genome but a {type(genome).__name__}"
        sections = self.choices.sections
        if {len(genome.attention), len(genome.feed_forward)} != {sections}:
            return f"attention and feed_forward must have a format for each of {sections} sections"
        if not {len(genome.neurons), len(genome.groups)} <= ({1} if self.choices.equal_layers else {1, sections}):
            return "neurons and groups differ between layers; the choices want equal ones"
        flat = self._flat(genome)
        for name, value in flat.items():
            if value not in self.genes[name]:
                return f"{name} must be one of {', '.join(map(str, self.genes[name]))}, got {value}"
        out = genome.without_layers
        if len(out) > self.choices.most_layers_out or any(not 0 <= at < self.parent.layers for at in out):
            return f"at most {self.choices.most_layers_out} of {self.parent.layers} layers may be left out, got {out}"
        return self._beyond(genome)

    def size(self) -> int:
        """How many distinct genomes there are, limits aside."""
        ways = sum(comb(self.parent.layers, out) for out in range(self.choices.most_layers_out + 1))
        return prod(len(values) for values in self.genes.values()) * ways

    def genome_from_dict(self, data: Mapping[str, Any]) -> SqueezeGenome:
        """Inverse of `SqueezeGenome.to_dict`."""
        return SqueezeGenome.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for a study's identity."""
        return {
            "squeeze": dataclasses.asdict(self.choices) | {"vocab_sizes": sorted(self.layouts)},
            "parent": self.digest,
            "limits": dict(self.limits),
        }

    def _beyond(self, genome: SqueezeGenome) -> str | None:
        try:
            known = self.known_objectives(genome)
        except ValueError as error:
            return str(error)
        over = [f"{name} {known[name]:,.4g} is over {most:,.4g}" for name, most in self.limits.items()
                if known.get(name, 0.0) > most]  # fmt: skip
        return "; ".join(over) or None

    def _shrunk(self, flat: dict[str, Any], layers: list[int], rng: np.random.Generator) -> SqueezeGenome | None:
        flat = dict(flat)
        while self._beyond(genome := self._genome(flat, layers)) is not None:
            larger = [name for name in self.genes if self._ordered(name).index(flat[name]) > 0]
            if not larger:
                return None
            name = larger[int(rng.integers(len(larger)))]
            values = self._ordered(name)
            flat[name] = values[values.index(flat[name]) - 1]
        return genome

    def _ordered(self, name: str) -> tuple[Any, ...]:
        """The choices of a gene, the one that takes least room first."""
        values = self.genes[name]
        if isinstance(values[0], str):
            return tuple(sorted(values, key=lambda value: (BLOCKS[value].bits, values.index(value))))
        return values

    def _other_layers(self, layers: list[int], rng: np.random.Generator) -> list[int]:
        out = int(rng.integers(self.choices.most_layers_out + 1))
        near = [at + step for at in layers for step in (-1, 0, 1) if 0 <= at + step < self.parent.layers]
        pool = sorted(set(near)) if len(set(near)) >= out and rng.random() < 0.5 else list(range(self.parent.layers))
        return [int(at) for at in rng.choice(pool, size=out, replace=False)]

    def _genome(self, flat: Mapping[str, Any], layers: list[int]) -> SqueezeGenome:
        def of(kind: str) -> tuple[Any, ...]:
            return tuple(value for name, value in flat.items() if name.split(".")[0] == kind)

        return SqueezeGenome(
            vocab_size=flat["vocab_size"],
            embedding=flat["embedding"],
            neurons=of("neurons"),
            groups=of("groups"),
            attention=of("attention"),
            feed_forward=of("feed_forward"),
            without_layers=tuple(layers),
        )

    def _flat(self, genome: SqueezeGenome) -> dict[str, Any]:
        def at(name: str) -> Any:
            kind, _, number = name.partition(".")
            values = getattr(genome, kind)
            return values if not number else values[int(number) if len(values) > 1 else 0]

        return {name: at(name) for name in self.genes}


def neuron_counts(parent: ParentShape, choices: SqueezeChoices) -> tuple[int, ...]:
    """How many feed-forward neurons of a layer may stay, ascending; all where none can leave."""
    shares = choices.neuron_shares if parent.prunable else (1.0,)
    return tuple(sorted({_whole(share * parent.neurons, _WIDTH, parent.neurons) for share in shares}))


def _whole(value: float, step: int, most: int) -> int:
    return most if value >= most else max(step, round(value / step) * step)
