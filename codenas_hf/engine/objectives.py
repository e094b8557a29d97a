"""What a study minimises: the scale of each objective, limits, and the one number that names a winner on the front."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from .pareto import Floats, hypervolume
from .records import Evaluation

Scale = Literal["linear", "log2"]
LIMIT_PREFIX = "limit."


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """The objectives of a study, in order, and how their values are compared.

    Args:
        scales: name to "linear" or "log2"; comparisons, crowding, fitness and hypervolume use the scaled values.
        weights: name to weight in `fitness`; all equal when empty. See `deciding`.
        limits: name to the maximum of the raw value; beyond it a candidate is infeasible.

    Raises:
        ValueError: no objective, an unknown scale, or a weight or limit that names no objective or is not usable.
    """

    scales: Mapping[str, Scale]
    weights: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("`objectives` needs at least one name, got none")
        for name, scale in self.scales.items():
            if scale not in get_args(Scale):
                raise ValueError(f"`objectives`: the scale of {name!r} must be 'linear' or 'log2', got {scale!r}")
        for what, values in (("weights", self.weights), ("limits", self.limits)):
            self.check_names(what, values)
            for name, value in values.items():
                if not math.isfinite(value):
                    raise ValueError(f"`{what}`: {name!r} must be finite, got {value!r}")
        if self.weights and (min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0):
            raise ValueError(f"`weights` must be 0 or more with a positive sum, got {dict(self.weights)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives, in the study's order."""
        return tuple(self.scales)

    @property
    def deciding(self) -> dict[str, float]:
        """The weights that pick a winner, with sum 1: inside a limit an objective is satisfied, so the others decide.

        Where none of the others has a weight, and where all objectives have limits, the first objective decides.
        """
        given = self.weights or dict.fromkeys(self.scales, 1.0)
        free = {name: given.get(name, 0.0) for name in self.scales if name not in self.limits}
        if not any(free.values()):
            free = {self.names[0]: 1.0}
        total = sum(free.values())
        return {name: weight / total for name, weight in free.items() if weight}

    def check_names(self, what: str, values: Mapping[str, Any]) -> None:
        """Raises ValueError when `values` names something that is not an objective."""
        unknown = [name for name in values if name not in self.scales]
        if unknown:
            raise ValueError(f"`{what}` names {', '.join(unknown)}; the objectives are {', '.join(self.scales)}")

    def scaled(self, name: str, value: float) -> float:
        """One raw value on its scale.

        Raises:
            ValueError: a value of a "log2" objective that is not positive.
        """
        if self.scales[name] == "linear":
            return float(value)
        if value <= 0:
            raise ValueError(f"objective {name!r} is compared on a log2 scale and must be positive, got {value!r}")
        return math.log2(value)

    def moved(self, name: str, value: float, by: float) -> float:
        """A raw value, moved by so much on its scale."""
        return value + by if self.scales[name] == "linear" else value * 2.0**by

    def checked(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with its objectives in the study's order and the limits added as constraints.

        Raises:
            ValueError: other objectives than the study's, or a value outside its scale.
        """
        if set(evaluation.objectives) != set(self.scales):
            raise ValueError(
                f"the evaluator returned the objectives {', '.join(evaluation.objectives)}; "
                f"the study minimises {', '.join(self.scales)}"
            )
        values = {name: float(evaluation.objectives[name]) for name in self.scales}
        for name, value in values.items():
            self.scaled(name, value)
        excess = {LIMIT_PREFIX + name: values[name] - limit for name, limit in self.limits.items()}
        return dataclasses.replace(evaluation, objectives=values, constraints={**evaluation.constraints, **excess})

    def matrix(self, evaluations: Sequence[Evaluation]) -> Floats:
        """Scaled objectives, `[n, objectives]`."""
        rows = [[self.scaled(name, evaluation.objectives[name]) for name in self.scales] for evaluation in evaluations]
        return np.array(rows, dtype=float).reshape(len(rows), len(self.scales))

    def violation(self, evaluations: Sequence[Evaluation]) -> Floats:
        """Total violation of each, `[n]`: every constraint is first divided by its worst violation among these.

        Bytes and milliseconds are added, so each is made relative first; 0 means feasible.
        """
        names = sorted({name for evaluation in evaluations for name in evaluation.constraints})
        rows = [[max(0.0, evaluation.constraints.get(name, 0.0)) for name in names] for evaluation in evaluations]
        excess = np.array(rows, dtype=float).reshape(len(rows), len(names))
        worst = excess.max(axis=0, initial=0.0)
        return np.asarray((excess / np.where(worst > 0, worst, 1.0)).sum(axis=1))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"scales": dict(self.scales), "weights": dict(self.weights), "limits": dict(self.limits)}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The two fixed points of a study: fitness and hypervolume are measured between them.

    Args:
        objectives: what is minimised.
        ideal: name to raw value; a candidate there has fitness 1.
        reference: name to raw value; a candidate there has fitness 0.
    """

    objectives: Objectives
    ideal: Mapping[str, float]
    reference: Mapping[str, float]

    @classmethod
    def derive(
        cls,
        objectives: Objectives,
        evaluations: Sequence[Evaluation],
        *,
        ideal: Mapping[str, float],
        reference: Mapping[str, float],
    ) -> Frame:
        """Takes what is given and derives the rest from `evaluations`, the first generation.

        A missing ideal is the best value seen. A missing reference is the limit where one is set and lies beyond the
        ideal, else the worst value seen. Where what was seen lies beyond the one point that is given, the other is as
        far on its right side as the best value seen is from the worst: fitness must not be turned over.
        """
        best, worst = {}, {}
        for name in objectives.names:
            values = [evaluation.objectives[name] for evaluation in evaluations]
            best[name] = ideal[name] if name in ideal else min(values)
            worst[name] = reference[name] if name in reference else max(values)
            limit = objectives.limits.get(name)
            if name not in reference and limit is not None and limit > best[name]:
                worst[name] = limit
            if best[name] >= worst[name] and (name in ideal) != (name in reference):
                span = objectives.scaled(name, max(values)) - objectives.scaled(name, min(values)) or 1.0
                if name in ideal:
                    worst[name] = objectives.moved(name, best[name], span)
                else:
                    best[name] = objectives.moved(name, worst[name], -span)
        return cls(objectives=objectives, ideal=best, reference=worst)

    def distances(self, evaluation: Evaluation) -> dict[str, float]:
        """Distance from the ideal by objective, in units of ideal to reference; never clipped."""
        result = {}
        for name in self.objectives.names:
            low, high, value = (
                self.objectives.scaled(name, source[name])
                for source in (self.ideal, self.reference, evaluation.objectives)
            )
            result[name] = (value - low) / (high - low if high != low else 1.0)
        return result

    def fitness(self, evaluation: Evaluation) -> float:
        """1 - the distance from the ideal by the deciding weights; only names a member of the front, never clipped."""
        distances = self.distances(evaluation)
        return 1.0 - sum(weight * distances[name] for name, weight in self.objectives.deciding.items())

    def hypervolume(self, evaluations: Sequence[Evaluation]) -> float:
        """Hypervolume of the feasible evaluations in units of the box between ideal and reference."""
        rows = [list(self.distances(evaluation).values()) for evaluation in evaluations if evaluation.feasible]
        width = len(self.objectives.names)
        return hypervolume(np.array(rows, dtype=float).reshape(len(rows), width), reference=np.ones(width))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"ideal": dict(self.ideal), "reference": dict(self.reference)}
