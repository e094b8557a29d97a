"""Policies: where new genomes come from. Each is a pure function of the records, the space, n and the generator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .objectives import Objectives
from .pareto import survival_order
from .records import Evaluation, Genome, Policy, TrialRecord

_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class RandomPolicy:
    """Every genome is sampled afresh: the baseline that any other policy has to beat."""

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """At most `n` new genomes."""
        return draw_new(lambda: space.sample(rng), records, n=n)


@dataclass(frozen=True, kw_only=True)
class GeneticPolicy:
    """NSGA-II on a ladder of rungs (Deb et al. 2002, https://doi.org/10.1109/4235.996017).

    The parents are the survivors of each rung by constrained domination and crowding, so that elites stay parents for
    as long as nothing beats them, without being trained again. Two parents are compared at the highest rung that both
    have reached: values of different rungs are never compared.

    Args:
        objectives: scales and limits of the study.
        parents: survivors at rung 0; higher rungs give their best, at most as many.
        tournament: how many parents compete for each mating.
        crossover: probability that a child has two parents.
        mutation: probability that a child is mutated; one that would repeat a known genome always is.
        immigrants: share of children that are sampled afresh.

    Raises:
        ValueError: a probability outside 0 to 1, or fewer than 2 parents or 1 competitor.
    """

    objectives: Objectives
    parents: int = 24
    tournament: int = 2
    crossover: float = 0.9
    mutation: float = 0.7
    immigrants: float = 0.05

    def __post_init__(self) -> None:
        for name in ("crossover", "mutation", "immigrants"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, got {getattr(self, name)}")
        if self.parents < 2 or self.tournament < 1:
            raise ValueError(
                f"`parents` must be 2 or more and `tournament` 1 or more, got {self.parents}, {self.tournament}"
            )

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """At most `n` new genomes; sampled while nothing is evaluated."""
        pool = _Pool.of(records, self.objectives, size=self.parents)
        if len(pool.genomes) < 2:
            return draw_new(lambda: space.sample(rng), records, n=n)

        def child() -> Genome:
            if rng.random() < self.immigrants:
                sampled: Genome = space.sample(rng)
                return sampled
            first = pool.pick(rng, self.tournament)
            genome = first
            if rng.random() < self.crossover:
                second = pool.pick(rng, self.tournament, other_than=first)
                genome = space.crossover(first, second, rng)
            if rng.random() < self.mutation:
                genome = space.mutate(genome, rng)
            return genome

        return draw_new(child, records, n=n, again=lambda genome: space.mutate(genome, rng))


@dataclass(frozen=True, kw_only=True)
class RegularizedEvolution:
    """Aging evolution (Real et al. 2019, https://arxiv.org/abs/1802.01548): only the youngest may be parents.

    Args:
        objectives: scales and limits of the study.
        population: how many of the last evaluated genomes are alive.
        sample: how many of them compete for each mating; the best by rank and crowding is mutated.

    Raises:
        ValueError: a sample that is not between 1 and the population.
    """

    objectives: Objectives
    population: int = 50
    sample: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.sample <= self.population:
            raise ValueError(f"`sample` must lie between 1 and the population ({self.population}), got {self.sample}")

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """At most `n` new genomes; sampled while nothing is evaluated."""
        alive, evaluations = _evaluated(records, rung=0)
        alive, evaluations = alive[-self.population :], evaluations[-self.population :]
        if not alive:
            return draw_new(lambda: space.sample(rng), records, n=n)
        place = _places(self.objectives, evaluations)

        def child() -> Genome:
            chosen = rng.choice(len(alive), size=min(self.sample, len(alive)), replace=False)
            best = min(chosen.tolist(), key=lambda index: place[index])
            genome: Genome = space.mutate(alive[best].genome, rng)
            return genome

        return draw_new(child, records, n=n, again=lambda genome: space.mutate(genome, rng))


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """Another policy, after some given genomes.

    Args:
        policy: proposes once all of `genomes` are known.
        genomes: proposed first, in this order.
    """

    policy: Policy
    genomes: tuple[Genome, ...]

    @property
    def policy_name(self) -> str:
        """What a search keeps of it in its identity."""
        return f"Seeded {type(self.policy).__qualname__}"

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """At most `n` new genomes."""
        known = {record.genome.genome_id for record in records}
        given = [genome for genome in self.genomes if genome.genome_id not in known][:n]
        pending = [TrialRecord(number=-1, genome=genome, rung=0, state="waiting") for genome in given]
        return given + self.policy.propose([*records, *pending], space=space, n=n - len(given), rng=rng)


@dataclass(frozen=True)
class _Pool:
    """Parents, and who beats whom."""

    genomes: tuple[Genome, ...]
    places: tuple[Mapping[int, int], ...]  # for each parent: rung to its place among all evaluated there

    @classmethod
    def of(cls, records: Sequence[TrialRecord], objectives: Objectives, *, size: int) -> _Pool:
        genomes: dict[str, Genome] = {}
        places: dict[str, dict[int, int]] = {}
        survivors: set[str] = set()
        for rung in sorted({record.rung for record in records}):
            trials, evaluations = _evaluated(records, rung=rung)
            if not trials:
                continue
            for record, place in zip(trials, _places(objectives, evaluations), strict=True):
                key = record.genome.genome_id
                genomes[key] = record.genome
                places.setdefault(key, {})[rung] = place
                if place < size:
                    survivors.add(key)
        kept = [key for key in genomes if key in survivors]
        return cls(tuple(genomes[key] for key in kept), tuple(places[key] for key in kept))

    def pick(self, rng: np.random.Generator, competitors: int, *, other_than: Genome | None = None) -> Genome:
        candidates = [i for i, genome in enumerate(self.genomes) if genome is not other_than]
        chosen = rng.choice(len(candidates), size=min(competitors, len(candidates)), replace=False)
        return self.genomes[functools.reduce(self._better, (candidates[int(i)] for i in chosen))]

    def _better(self, first: int, second: int) -> int:
        common = self.places[first].keys() & self.places[second].keys()
        if not common:  # only where a rung was evaluated without the one below
            return first
        rung = max(common)
        return first if self.places[first][rung] <= self.places[second][rung] else second


def draw_new(
    draw: Callable[[], Genome],
    records: Sequence[TrialRecord],
    *,
    n: int,
    accept: Callable[[Genome], bool] = lambda genome: True,
    again: Callable[[Genome], Genome] | None = None,
) -> list[Genome]:
    """Draws until there are `n` genomes that no record and no earlier draw has, at most 100 times in a row in vain.

    Args:
        draw: a genome.
        records: what is known.
        n: how many.
        accept: says whether a drawn genome may be used.
        again: what to try instead of a genome that is known, such as its mutation; a new draw when None.
    """
    known = {record.genome.genome_id for record in records}
    genomes: list[Genome] = []
    if n < 1:
        return genomes
    for genome in _candidates(draw, again, known):
        if genome.genome_id not in known and accept(genome):
            known.add(genome.genome_id)
            genomes.append(genome)
            if len(genomes) == n:
                break
    return genomes


def _candidates(
    draw: Callable[[], Genome], again: Callable[[Genome], Genome] | None, known: set[str]
) -> Iterator[Genome]:
    vain, size = 0, len(known)
    while vain < _TRIES:
        genome = draw()
        if again is not None and genome.genome_id in known:
            genome = again(genome)
        yield genome
        vain = 0 if len(known) > size else vain + 1
        size = len(known)


def _evaluated(records: Sequence[TrialRecord], *, rung: int) -> tuple[list[TrialRecord], list[Evaluation]]:
    trials = [record for record in records if record.rung == rung and record.evaluation is not None]
    return trials, [record.evaluation for record in trials if record.evaluation is not None]


def _places(objectives: Objectives, evaluations: Sequence[Evaluation]) -> list[int]:
    order = survival_order(objectives.matrix(evaluations), objectives.violation(evaluations))
    places = np.empty(len(order), dtype=int)
    places[order] = np.arange(len(order))
    return [int(place) for place in places]
