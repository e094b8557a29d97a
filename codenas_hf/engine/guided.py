"""Model-guided evolution: a whole evolution inside a model of the space, and training only for the best batch of it.

Of the objectives of a code language model, bytes are counted and latency is predicted before anything is trained:
only quality has to be learned from the record. So the model is asked for quality alone: a Gaussian process on the
genes, at the highest rung that the record knows. Genomes evolve inside it, a thousand at no cost, and the batch that
is trained is the one expected to add most hypervolume, its uncertainty included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .evolution import draw_new
from .gaussian import GaussianProcess, Outlook
from .improvement import expected_improvement
from .objectives import Objectives
from .pareto import Floats, survival_order
from .records import Evaluation, Genome, TrialRecord
from .surrogate import Features

_MOST_RECORDS = 300  # of which a Gaussian process is fitted; its cost grows with the cube
_MARGIN = 0.1  # beyond the worst value known, in units of best to worst: whoever is worst in one may be best in others
_FEW = 6  # promoted genomes below which the higher rung says nothing


@dataclass(frozen=True, kw_only=True)
class GuidedPolicy:
    """Proposes what is expected to widen the front most.

    A space may offer `known_objectives(genome)`, a mapping from objective names to raw values that are certain before
    any training; all other objectives are learned.

    Args:
        objectives: scales and limits of the study.
        reference: name to raw value beyond which nothing counts; a tenth beyond the worst seen where a name is absent,
            or where less than half of what was seen reaches it.
        least: evaluated genomes below which genomes are spread over the space instead.
        explore: share of the places that go to genomes sampled by chance.
        generations: of the evolution inside the model.
        brood: genomes in each of them.

    Raises:
        ValueError: a share outside 0 to 1, or numbers below 1.
    """

    objectives: Objectives
    reference: Mapping[str, float] = field(default_factory=dict)
    least: int = 12
    explore: float = 0.1
    generations: int = 8
    brood: int = 120

    def __post_init__(self) -> None:
        if not 0 <= self.explore <= 1:
            raise ValueError(f"`explore` must lie between 0 and 1, got {self.explore}")
        for name in ("least", "generations", "brood"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}")

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """At most `n` new genomes, the most promising first."""
        if n < 1:
            return []
        known = [record for record in records if record.rung == 0 and record.evaluation is not None]
        if len(known) < max(self.least, 3):
            return self._spread(records, space=space, n=n, rng=rng)
        model = Model.fit(records, space=space, objectives=self.objectives)
        pool = self._evolved(model, records, space=space, rng=rng)
        free = int(rng.binomial(n, self.explore))
        chosen = self._batch(model, pool, records, n=n - free)
        pending = [TrialRecord(number=-1, genome=genome, rung=0, state="waiting") for genome in chosen]
        chosen += draw_new(lambda: space.sample(rng), [*records, *pending], n=n - len(chosen))
        return chosen

    def _spread(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """Of many sampled genomes, one after the other, those far from all others that could dominate much.

        Distance alone takes the corners of the space: the dearest genomes, which can add next to nothing to a front.
        So a squared distance counts as much as the volume that the known objectives leave to be dominated (a charge as
        in minimum energy designs, Joseph et al. 2015, https://doi.org/10.1080/00401706.2014.881749).
        """
        drawn = draw_new(lambda: space.sample(rng), records, n=8 * n)
        if len(drawn) <= n:
            return drawn
        met = [record.genome for record in records]
        known = _known(space, [*met, *drawn], self.objectives)
        points = _standard(np.hstack([Features.of([*met, *drawn]).plain([*met, *drawn]), known]))
        volume = self._possible(known[len(met) :], _certain(space, drawn[0]))
        nearest = np.ones(len(drawn))

        def apart(point: Floats) -> Floats:
            return np.asarray(((points[len(met) :] - point) ** 2).sum(axis=1))

        if met:
            nearest = np.min([apart(point) for point in points[: len(met)]], axis=0)
        chosen: list[int] = []
        for _ in range(n):
            value = volume * nearest
            value[chosen] = -1.0
            at = int(value.argmax())
            distance = apart(points[len(met) + at])
            nearest = np.minimum(nearest, distance) if met or chosen else distance
            chosen.append(at)
        return [drawn[at] for at in chosen]

    def _possible(self, known: Floats, certain: Mapping[str, float]) -> Floats:
        """Share of the volume that each genome would dominate if all that is to be learned came out best, `[n]`."""
        names = [name for name in self.objectives.names if name in certain]
        low, high = known.min(axis=0), known.max(axis=0)
        for at, name in enumerate(names):
            value = self.reference.get(name, self.objectives.limits.get(name))
            if value is not None:
                high[at] = self.objectives.scaled(name, value)
        reach = np.where(high - low > 1e-12, high - low, 1.0)
        return np.asarray(np.maximum(0.0, 1.0 + _MARGIN - (known - low) / reach).prod(axis=1))

    def _evolved(
        self, model: Model, records: Sequence[TrialRecord], *, space: Any, rng: np.random.Generator
    ) -> list[Genome]:
        """Genomes that no record has, the best that an evolution inside the model comes across."""
        met = {record.genome.genome_id: record.genome for record in records if record.evaluation is not None}
        fitted = {genome.genome_id for genome in model.fitted}
        parents = [genome for key, genome in met.items() if key in fitted]
        values = model.optimistic(parents)
        for _ in range(self.generations):
            order = survival_order(values)[: self.brood]
            parents, values = [parents[int(i)] for i in order], values[order]
            children: list[Genome] = []
            for _ in range(self.brood):
                first, second = (min(rng.integers(len(parents), size=2)) for _ in range(2))
                child: Genome = parents[int(first)]
                if rng.random() < 0.7:
                    child = space.crossover(child, parents[int(second)], rng)
                if rng.random() < 0.8 or child.genome_id in met:
                    child = space.mutate(child, rng)
                if child.genome_id not in met:
                    met[child.genome_id] = child
                    children.append(child)
            if children:
                parents, values = [*parents, *children], np.vstack([values, model.optimistic(children)])
        taken = {record.genome.genome_id for record in records}
        return [genome for key, genome in met.items() if key not in taken and space.validate(genome) is None]

    def _batch(self, model: Model, pool: Sequence[Genome], records: Sequence[TrialRecord], *, n: int) -> list[Genome]:
        """Greedily the genomes that add most; what was chosen counts as if it came out as predicted.

        It makes the model surer of what is like it (Ginsbourger et al. 2010, the Kriging believer,
        https://doi.org/10.1007/978-3-642-10701-6_6): without that a batch is one good genome and its near copies.
        """
        if not pool or n < 1:
            return []
        waiting = [r.genome for r in records if r.rung == 0 and r.state in ("waiting", "running")]
        points, _ = model.predict([*pool, *waiting])
        outlook = model.outlook([*pool, *waiting])
        for at in range(len(pool), len(points)):
            _observe(outlook, at)
        front = np.vstack([model.seen, points[len(pool) :]])
        reference = model.reference(self.reference)
        lowest = 0.05 * (np.ptp(model.seen[:, 0]) + 1e-12)  # the mean counts, however sure the model is of itself

        def gain(rows: Any) -> Floats:
            spread = np.zeros(len(rows)) if outlook is None else outlook.deviation[rows]
            spread = np.maximum(spread, 0.01 * lowest)
            return expected_improvement(points[rows, 0], spread, points[rows, 1:], front=front, reference=reference)

        gains = np.concatenate([gain(part) for part in np.array_split(np.arange(len(pool)), max(1, len(pool) // 256))])
        chosen: list[int] = []
        while len(chosen) < min(n, len(pool)):
            # A gain only falls while the front grows, so an old value is an upper bound: look again only at the top.
            while True:
                at = int(gains.argmax())
                fresh = float(gain([at])[0])
                rest = np.partition(gains, -2)[-2] if len(gains) > 1 else -np.inf
                gains[at] = fresh
                if fresh >= rest:
                    break
            chosen.append(at)
            gains[at] = -np.inf
            front = np.vstack([front, points[at]])
            _observe(outlook, at)
        return [pool[at] for at in chosen]


@dataclass(frozen=True)
class Model:
    """Scaled objectives of any genome, the one that is least certain first."""

    space: Any
    objectives: Objectives
    features: Features
    learned: Mapping[str, GaussianProcess]
    order: tuple[str, ...]
    fitted: Sequence[Genome]  # all that were evaluated, or of very many the best and the latest
    seen: Floats  # of these, without their noise: [k, m] in `order`

    @classmethod
    def fit(cls, records: Sequence[TrialRecord], *, space: Any, objectives: Objectives) -> Model:
        """Of all evaluated trials; where there are very many, of the best and the latest."""
        trials = [record for record in records if record.rung == 0 and record.evaluation is not None]
        if len(trials) > _MOST_RECORDS:
            best = set(survival_order(_matrix(trials, objectives))[: _MOST_RECORDS // 2].tolist())
            latest = set(range(len(trials) - _MOST_RECORDS // 2, len(trials)))
            trials = [trial for at, trial in enumerate(trials) if at in best | latest]
        genomes = [trial.genome for trial in trials]
        features = Features.of(genomes)
        certain = _certain(space, genomes[0])
        inputs = np.hstack([features.plain(genomes), _known(space, genomes, objectives)])
        targets = _matrix(trials, objectives)
        learned = {
            name: GaussianProcess.fit(inputs, _lifted(records, trials, inputs, targets[:, at], name, objectives))
            for at, name in enumerate(objectives.names)
            if name not in certain
        }
        uncertain = [*learned] or [objectives.names[0]]
        order = (uncertain[0], *(name for name in objectives.names if name != uncertain[0]))
        model = cls(space, objectives, features, learned, order, genomes, np.zeros((0, len(order))))
        seen, _ = model.predict(genomes)
        return replace(model, seen=seen)

    def predict(self, genomes: Sequence[Genome]) -> tuple[Floats, Floats]:
        """Scaled objectives `[n, m]` in `order`, and the standard deviation of the first `[n]`."""
        certain = _known(self.space, genomes, self.objectives)
        inputs = np.hstack([self.features.plain(genomes), certain])
        names = [name for name in self.objectives.names if name not in self.learned]
        columns = {name: certain[:, at] for at, name in enumerate(names)} if certain.size else {}
        deviation = np.zeros(len(genomes))
        for name, process in self.learned.items():
            columns[name], spread = process.predict(inputs)
            if name == self.order[0]:
                deviation = spread
        return np.stack([columns[name] for name in self.order], axis=1), deviation

    def outlook(self, genomes: Sequence[Genome]) -> Outlook | None:
        """The uncertainty of the first objective while some of the genomes are going to be evaluated; None without."""
        if not self.learned:
            return None
        inputs = np.hstack([self.features.plain(genomes), _known(self.space, genomes, self.objectives)])
        return self.learned[self.order[0]].outlook(inputs)

    def optimistic(self, genomes: Sequence[Genome]) -> Floats:
        """What a genome may reach: the mean less one standard deviation."""
        points, deviation = self.predict(genomes)
        points[:, 0] -= deviation
        return points

    def reference(self, given: Mapping[str, float]) -> Floats:
        """The corner beyond which nothing counts, `[m]` in `order`: as given, a limit, or the worst, and a tenth more.

        The tenth is of what lies between the corner and the best: at a limit itself a genome would add nothing, though
        the best model within the limit is what a search is asked for.

        What is learned may all lie beyond what is given: at a low rung every model is worse than the n-gram model of a
        search. Below such a corner nobody dominates anything, so one genome would be as good as another: it counts
        where half of the seen reach it, and a limit where anybody does.
        """
        worst = self.seen.max(axis=0) + _MARGIN * np.ptp(self.seen, axis=0)
        corner = []
        for at, name in enumerate(self.order):
            limit = self.objectives.limits.get(name)
            value = given.get(name, limit)
            if value is not None and name in self.learned:
                reached = float((self.seen[:, at] < self.objectives.scaled(name, value)).mean())
                value = value if reached >= 0.5 or (reached and value == limit) else None
            if value is None:
                corner.append(float(worst[at]))
                continue
            bound = self.objectives.scaled(name, value)
            beyond = 0.0 if name in self.learned else _MARGIN * max(0.0, bound - float(self.seen[:, at].min()))
            corner.append(bound + beyond)
        return np.array(corner)


def _observe(outlook: Outlook | None, at: int) -> None:
    if outlook is not None:
        outlook.observe(at)


def _lifted(
    records: Sequence[TrialRecord],
    trials: Sequence[TrialRecord],
    inputs: Floats,
    targets: Floats,
    name: str,
    objectives: Objectives,
) -> Floats:
    """Rung 0's values brought to the highest rung that has enough of them, a rung at a time.

    The difference between two rungs is smooth where both are noisy, so few promoted genomes teach it: it is a Gaussian
    process of its own on genes and the lower value (Kennedy and O'Hagan 2000, https://doi.org/10.1093/biomet/87.1.1).
    Genomes that were promoted keep what was measured of them.
    """
    values = targets.copy()
    row_of = {trial.genome.genome_id: at for at, trial in enumerate(trials)}
    for rung in range(1, max(record.rung for record in records) + 1):
        above = [r for r in records if r.rung == rung and r.evaluation is not None and r.genome.genome_id in row_of]
        if len(above) < _FEW:
            break
        rows = np.array([row_of[record.genome.genome_id] for record in above])
        measured = _matrix(above, objectives)[:, objectives.names.index(name)]
        with_value = np.hstack([inputs, values[:, None]])
        change = GaussianProcess.fit(with_value[rows], measured - values[rows])
        values = values + change.predict(with_value)[0]
        values[rows] = measured
    return values


def _matrix(trials: Sequence[TrialRecord], objectives: Objectives) -> Floats:
    evaluations: list[Evaluation] = [trial.evaluation for trial in trials if trial.evaluation is not None]
    return objectives.matrix(evaluations)


def _certain(space: Any, genome: Genome) -> Mapping[str, float]:
    """What the space says of a genome before any training."""
    ask = getattr(space, "known_objectives", None)
    found: Mapping[str, float] = ask(genome) if ask is not None else {}
    return found


def _known(space: Any, genomes: Sequence[Genome], objectives: Objectives) -> Floats:
    """Scaled known objectives `[n, known]`, in the study's order."""
    rows = []
    for genome in genomes:
        found = _certain(space, genome)
        rows.append([objectives.scaled(name, found[name]) for name in objectives.names if name in found])
    return np.array(rows, dtype=float).reshape(len(rows), -1)


def _standard(points: Floats) -> Floats:
    spread = points.std(axis=0)
    return np.asarray(
        (points - points.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0) / math.sqrt(points.shape[1])
    )
