"""The contract between all parts: what the engine hands out, and what comes back.

Frozen values with a JSON form, and the protocols that the engine asks of a search space, an evaluator and a policy.
The engine knows nothing of transformers: whatever satisfies these protocols can be searched.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np

BudgetKind = Literal["steps", "tokens", "bytes", "flops", "seconds"]
State = Literal["waiting", "running", "complete", "fail"]


@dataclass(frozen=True)
class Budget:
    """How much training a candidate has had in total once it leaves a rung.

    Args:
        kind: unit of `amount`: optimiser steps, training tokens, UTF-8 bytes of training text, floating point
            operations, or seconds of wall clock.
        amount: the total at that rung, not the increment: rungs of 50 and 300 steps train 50, then 250 more. 0 is for
            what is scored as it is, without any training.

    Raises:
        ValueError: unknown kind, or an amount that is not a finite number, 0 or more.
    """

    kind: BudgetKind
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(BudgetKind):
            raise ValueError(f"`kind` must be one of {', '.join(get_args(BudgetKind))}, got {self.kind!r}")
        if not (math.isfinite(self.amount) and self.amount >= 0):
            raise ValueError(f"`amount` must be a finite number of {self.kind}, 0 or more, got {self.amount!r}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `"300 steps"`, `"2e6 tokens"`, `"90 seconds"`.

        Raises:
            ValueError: the text is not `<number> <kind>`.
        """
        words = text.split()
        try:
            amount, kind = words
            return cls(kind=kind, amount=float(amount))  # type: ignore[arg-type]  # __post_init__ checks the kind
        except ValueError as error:
            raise ValueError(f"a budget reads like '300 steps' or '90 seconds', got {text!r}: {error}") from error

    def __str__(self) -> str:
        return f"{self.amount:g} {self.kind}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"kind": self.kind, "amount": self.amount}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Budget:
        """Inverse of `to_dict`."""
        return cls(kind=data["kind"], amount=data["amount"])


@dataclass(frozen=True)
class Rung:
    """One level of the fidelity ladder.

    Args:
        index: 0 is stage 1.
        budget: total training at this rung.
        keep: how many candidates of a generation go on to the next rung; None at the last rung.

    Raises:
        ValueError: negative index, or `keep` below 1.
    """

    index: int
    budget: Budget
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.index < 0:
            raise ValueError(f"`index` must be 0 or more, got {self.index}")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"`keep` must be at least 1, or None at the last rung, got {self.keep}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"index": self.index, "budget": self.budget.to_dict(), "keep": self.keep}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rung:
        """Inverse of `to_dict`."""
        return cls(index=data["index"], budget=Budget.from_dict(data["budget"]), keep=data["keep"])


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one candidate at one rung.

    Args:
        objectives: name to value, all minimised, in the study's order.
        constraints: name to violation; a constraint holds when its value is <= 0.
        measurements: whatever else was measured, JSON values. What was not measured is absent, never 0.
        seconds: where the time went: `train`, `evaluate`, `measure`, `build`, ...
        checkpoint: training state that the next rung continues; readable by any process of the study.
        provenance: what is needed to repeat it: seed, versions, device, data hash.

    Raises:
        ValueError: no objective, or an objective or constraint that is not finite.
    """

    objectives: Mapping[str, float]
    constraints: Mapping[str, float] = field(default_factory=dict)
    measurements: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("an evaluation needs at least one objective, got none")
        for what, values in (("objective", self.objectives), ("constraint", self.constraints)):
            for name, value in values.items():
                if not math.isfinite(value):
                    raise ValueError(f"{what} {name!r} must be finite, got {value!r}")

    @property
    def feasible(self) -> bool:
        """True when every constraint holds."""
        return all(value <= 0 for value in self.constraints.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data = {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
        data["checkpoint"] = None if self.checkpoint is None else str(self.checkpoint)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Inverse of `to_dict`."""
        checkpoint = data.get("checkpoint")
        return cls(**{**data, "checkpoint": None if checkpoint is None else Path(checkpoint)})


@runtime_checkable
class Genome(Protocol):
    """An immutable candidate. Equal meaning gives an equal `genome_id`, in every process."""

    @property
    def genome_id(self) -> str:
        """Canonical hash."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `Space.genome_from_dict` is its inverse."""
        ...


@dataclass(frozen=True)
class WrittenGenome:
    """A genome as a record holds it, for readers who need no space to rebuild it.

    Args:
        genome_id: canonical hash.
        data: JSON form.
    """

    genome_id: str
    data: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(self.data)


G = TypeVar("G", bound=Genome)


@dataclass(frozen=True)
class TrialRecord:
    """What the study knows of one candidate at one rung.

    Args:
        number: position within its rung's study.
        genome: the candidate.
        rung: index of the rung.
        state: waiting, running, complete or fail.
        evaluation: present exactly when complete.
        failure: the reason, present exactly when failed.
        parent: number of the trial of the rung below that was promoted; None at rung 0.
        generation: the generation that proposed the genome.
        worker: who evaluated it (host:pid), None before that.
        audit: whether it was promoted by lot, so that rungs can be compared fairly.
        forecast: with adaptive stages, what it was expected to come out at after the last rung in the objective that
            training improves, scaled: `mean`, `low` and `high` (90 %), and its `chance` of entering the front.
    """

    number: int
    genome: Genome
    rung: int
    state: State
    evaluation: Evaluation | None = None
    failure: str | None = None
    parent: int | None = None
    generation: int = 0
    worker: str | None = None
    audit: bool = False
    forecast: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["genome"] = self.genome.to_dict()
        data["evaluation"] = None if self.evaluation is None else self.evaluation.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, space: Space) -> TrialRecord:
        """Inverse of `to_dict`; the space rebuilds the genome."""
        evaluation = data["evaluation"]
        return cls(
            **{
                **data,
                "genome": space.genome_from_dict(data["genome"]),
                "evaluation": None if evaluation is None else Evaluation.from_dict(evaluation),
            }
        )


class Space(Protocol):
    """A search space: all valid genomes. Every random draw takes an explicit `numpy.random.Generator`."""

    def sample(self, rng: np.random.Generator) -> Genome:
        """A valid genome."""
        ...

    def mutate(self, genome: Any, rng: np.random.Generator) -> Genome:
        """A valid genome that differs from `genome` where the space has more than one."""
        ...

    def crossover(self, first: Any, second: Any, rng: np.random.Generator) -> Genome:
        """A valid genome whose genes come from the two parents."""
        ...

    def validate(self, genome: Any) -> str | None:
        """None when the genome belongs to the space, else the reason why not."""
        ...

    def size(self) -> int:
        """How many distinct genomes there are."""
        ...

    def genome_from_dict(self, data: Mapping[str, Any]) -> Genome:
        """Inverse of `Genome.to_dict`."""
        ...


class Evaluator(Protocol):
    """Evaluates one candidate at one rung in a fresh process; must be picklable.

    An exception becomes a failed trial whose reason is the exception's type and text.
    """

    def __call__(self, genome: Any, rung: Rung, previous: Evaluation | None) -> Evaluation:
        """`previous` is the outcome at the rung below; its checkpoint is readable by any process."""
        ...


class Policy(Protocol):
    """Proposes genomes: a pure function of its arguments, so that a resumed search is the same search."""

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """At most `n` genomes; fewer only where the space has no more."""
        ...
