"""A ridge regression on genes that screens proposals before anything is trained.

Inside a budget window the number of parameters alone ranks architectures poorly; a ridge regression on a few dozen
trained ones ranks them well, and costs microseconds. It never replaces an evaluation: it only chooses among proposals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .objectives import Objectives
from .pareto import Floats, survival_order
from .records import Genome, Policy, TrialRecord

_PENALTIES = 10.0 ** np.arange(-4, 5)


@dataclass(frozen=True)
class Ridge:
    """Ridge regression of several targets, its penalty chosen for each by exact leave-one-out error.

    Golub, Heath and Wahba 1979, https://doi.org/10.1080/00401706.1979.10489751.

    Args:
        mean: of the inputs, `[features]`.
        scale: of the inputs, `[features]`.
        weights: `[features, targets]`.
        intercept: `[targets]`.
        loo_error: root mean squared leave-one-out error, `[targets]`, in units of the targets.
    """

    mean: Floats
    scale: Floats
    weights: Floats
    intercept: Floats
    loo_error: Floats

    @classmethod
    def fit(cls, inputs: Floats, targets: Floats) -> Ridge:
        """Fits `[n, features]` to `[n, targets]`.

        Raises:
            ValueError: fewer than 3 rows, or not as many targets as inputs.
        """
        if len(inputs) != len(targets) or len(inputs) < 3:
            raise ValueError(f"a ridge needs at least 3 rows of both, got {len(inputs)} and {len(targets)}")
        mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        left, values, right = np.linalg.svd((inputs - mean) / scale, full_matrices=False)
        intercept = targets.mean(axis=0)
        centred = targets - intercept
        projected = left.T @ centred
        best = np.full(targets.shape[1], np.inf)
        weights = np.zeros((inputs.shape[1], targets.shape[1]))
        for penalty in _PENALTIES * len(inputs):
            shrink = values**2 / (values**2 + penalty)
            leverage = (left**2) @ shrink + 1 / len(inputs)
            residual = centred - left @ (shrink[:, None] * projected)
            error = np.sqrt(((residual / np.maximum(1e-9, 1 - leverage)[:, None]) ** 2).mean(axis=0))
            better = error < best
            best = np.where(better, error, best)
            candidate = right.T @ ((values / (values**2 + penalty))[:, None] * projected)
            weights[:, better] = candidate[:, better]
        return cls(mean, scale, weights, intercept, best)

    def predict(self, inputs: Floats) -> Floats:
        """`[n, features]` to `[n, targets]`."""
        return np.asarray(self.intercept + ((inputs - self.mean) / self.scale) @ self.weights)


@dataclass(frozen=True)
class Features:
    """Numbers from genomes: log2 of positive genes, products of the numeric ones, one column per value of any other.

    Args:
        numeric: genes that are numbers in every genome.
        positive: those of them that are always positive.
        levels: the values of each other gene, as JSON-like text.
    """

    numeric: tuple[str, ...]
    positive: frozenset[str]
    levels: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, genomes: Sequence[Genome]) -> Features:
        """Learns the columns from some genomes."""
        rows = [_flat(_told(genome)) for genome in genomes]
        names = sorted({name for row in rows for name in row})
        numeric = tuple(name for name in names if all(_is_number(row.get(name)) for row in rows))
        positive = frozenset(name for name in numeric if all(row[name] > 0 for row in rows))
        levels = {name: tuple(sorted({repr(row.get(name)) for row in rows})) for name in names if name not in numeric}
        return cls(numeric, positive, levels)

    def plain(self, genomes: Sequence[Genome]) -> Floats:
        """`[n, columns]` without products."""
        rows = [_flat(_told(genome)) for genome in genomes]
        numbers = [[self._number(row, name) for name in self.numeric] for row in rows]
        flags = [
            [float(repr(row.get(name)) == level) for name, levels in self.levels.items() for level in levels]
            for row in rows
        ]
        return np.hstack([np.array(part, dtype=float).reshape(len(rows), -1) for part in (numbers, flags)])

    def matrix(self, genomes: Sequence[Genome]) -> Floats:
        """`[n, columns]`: the plain ones, and after the numbers the products of every two of them."""
        plain = self.plain(genomes)
        numbers, flags = plain[:, : len(self.numeric)], plain[:, len(self.numeric) :]
        first, second = np.triu_indices(len(self.numeric))
        return np.hstack([numbers, numbers[:, first] * numbers[:, second], flags])

    def _number(self, row: Mapping[str, Any], name: str) -> float:
        value = row.get(name)
        if value is None or not _is_number(value):
            return 0.0
        number = float(value)
        return float(np.log2(max(number, 1e-12))) if name in self.positive else number


@dataclass(frozen=True, kw_only=True)
class Screened:
    """Another policy, of whose proposals only the most promising are evaluated.

    Args:
        policy: proposes `factor` times as many.
        objectives: scales of the study.
        factor: how many proposals compete for each place.
        explore: share of the places that go to proposals as they come, unscreened.
        least: evaluated genomes at rung 0 below which nothing is screened.

    Raises:
        ValueError: a factor below 1, or a share outside 0 to 1.
    """

    policy: Policy
    objectives: Objectives
    factor: int = 8
    explore: float = 0.25
    least: int = 12

    def __post_init__(self) -> None:
        if self.factor < 1 or not 0 <= self.explore <= 1:
            raise ValueError(
                f"`factor` must be 1 or more and `explore` between 0 and 1, got {self.factor} and {self.explore}"
            )

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """At most `n` new genomes, the most promising first."""
        known = [record for record in records if record.rung == 0 and record.evaluation is not None]
        if len(known) < self.least:
            return self.policy.propose(records, space=space, n=n, rng=rng)
        proposals = self.policy.propose(records, space=space, n=n * self.factor, rng=rng)
        if not proposals:
            return []
        genomes = [record.genome for record in known]
        features = Features.of([*genomes, *proposals])
        targets = self.objectives.matrix([record.evaluation for record in known if record.evaluation is not None])
        predicted = Ridge.fit(features.matrix(genomes), targets).predict(features.matrix(proposals))
        free = round(n * self.explore)
        chosen = list(range(min(free, len(proposals))))
        chosen += [int(i) for i in survival_order(predicted) if i >= free][: n - len(chosen)]
        return [proposals[index] for index in chosen]


def _told(genome: Genome) -> Mapping[str, Any]:
    """What a genome says of itself to a model of its objectives: its `features`, where it has such; else its genes."""
    features = getattr(genome, "features", None)
    found: Mapping[str, Any] = genome.to_dict() if features is None else features()
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and value and all(_is_number(each) for each in value):
            # A value for each block: how much in all, and where.
            flat[prefix + name] = sum(value) / len(value)
            flat |= {
                f"{prefix}{name}.sum": sum(value),
                f"{prefix}{name}.first": value[0],
                f"{prefix}{name}.last": value[-1],
            }
        else:
            flat[prefix + name] = value
    return flat
