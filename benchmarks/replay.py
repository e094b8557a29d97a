"""Searches answered from the search table: no model is trained, and the seconds charged are those that it took.

A search runs in virtual time. Its workers take trials from the queue of a real study, in the engine's own schedule,
and each is busy for the processor seconds that the table's training of that genome to that budget took. The table
went through all five budgets; a ladder that leaves some out is charged the steps that it needs at the seconds a step
of its own budget. What is found is judged on the report text, which no search reads.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.storages import InMemoryStorage

from benchmarks.search_table import BUDGETS, CHOICES, OPTIM, load
from codenas_hf.engine import Budget, Evaluation, Frame, Objectives, Rung, SearchSettings, front, hypervolume
from codenas_hf.engine.schedule import Schedule
from codenas_hf.engine.study import Snapshot, Study

Floats = NDArray[np.float64]
Stages = Literal["single", "two", "adaptive"]
STAGES: tuple[Stages, ...] = ("single", "two", "adaptive")
SHORT, LONG = 80, BUDGETS[-1]
POPULATION, KEEP, WORKERS = 12, 3, 2  # of a generation, and how many of it go on: the defaults of `codenas search`


@dataclass(frozen=True)
class Entry:
    """A genome of the table: one value for each of its genes."""

    values: tuple[Any, ...]

    @functools.cached_property
    def genome_id(self) -> str:
        """Canonical hash."""
        return sha256(json.dumps(self.values).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(zip(CHOICES, self.values, strict=True))


@dataclass(frozen=True)
class TableSpace:
    """The genomes of the table that have the values given.

    Args:
        fixed: gene to the only value that it may have.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def genes(self) -> dict[str, tuple[Any, ...]]:
        """The values of each gene."""
        return {gene: (self.fixed[gene],) if gene in self.fixed else values for gene, values in CHOICES.items()}

    @functools.cached_property
    def genomes(self) -> list[Entry]:
        """All of them."""
        return [Entry(values) for values in itertools.product(*self.genes.values())]

    def sample(self, rng: np.random.Generator) -> Entry:
        """One of all with equal chance."""
        return self.genomes[int(rng.integers(len(self.genomes)))]

    def mutate(self, genome: Entry, rng: np.random.Generator) -> Entry:
        """Another value of one gene."""
        values, free = list(genome.values), [at for at, each in enumerate(self.genes.values()) if len(each) > 1]
        at = free[int(rng.integers(len(free)))]
        others = [value for value in [*self.genes.values()][at] if value != values[at]]
        values[at] = others[int(rng.integers(len(others)))]
        return Entry(tuple(values))

    def crossover(self, first: Entry, second: Entry, rng: np.random.Generator) -> Entry:
        """Each gene of either."""
        return Entry(tuple(pair[int(rng.integers(2))] for pair in zip(first.values, second.values, strict=True)))

    def validate(self, genome: Entry) -> str | None:
        """None when it belongs to the space."""
        inside = all(value in choices for value, choices in zip(genome.values, self.genes.values(), strict=True))
        return None if inside else f"{genome.to_dict()} is not in the space"

    def size(self) -> int:
        """How many there are."""
        return len(self.genomes)

    def genome_from_dict(self, data: Mapping[str, Any]) -> Entry:
        """Inverse of `Entry.to_dict`."""
        return Entry(tuple(data[gene] for gene in CHOICES))

    def known_objectives(self, genome: Entry) -> dict[str, float]:
        """All but the quality: bytes are counted, and the latency model is taken to be right."""
        return {name: value for name, value in truth(genome).items() if name != "bits_per_byte"}

    @functools.cached_property
    def frame(self) -> Frame:
        """Between the best and the worst of each objective of all its genomes, report text."""
        every = [Evaluation(objectives=truth(genome)) for genome in self.genomes]
        return Frame.derive(objectives(), every, ideal={}, reference={})

    def volume(self, found: Sequence[tuple[Entry, float]]) -> float:
        """Hypervolume on the report text of the front that a search would name, over that of all genomes.

        Args:
            found: genomes after the last budget, and their bits per byte on the search text, which names the front.
        """
        return self._volume(found) / self._whole

    @functools.cached_property
    def _whole(self) -> float:
        return self._volume([(genome, truth(genome)["bits_per_byte"]) for genome in self.genomes])

    def _volume(self, found: Sequence[tuple[Entry, float]]) -> float:
        if not found:
            return 0.0
        points = np.array([self._place[genome.values] for genome, _ in found])
        seen = points.copy()
        seen[:, 0] = [bits for _, bits in found]
        named = points[front(seen)]
        return float(hypervolume(named, reference=np.ones(points.shape[1])))

    @functools.cached_property
    def _place(self) -> dict[tuple[Any, ...], list[float]]:
        return {g.values: [*self.frame.distances(Evaluation(objectives=truth(g))).values()] for g in self.genomes}


@functools.cache
def table() -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The rows of the table by genome, a row a seed."""
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in load():
        rows.setdefault(tuple(row["genes"][gene] for gene in CHOICES), []).append(row)
    return rows


@functools.cache
def objectives() -> Objectives:
    """Bits per byte and bytes: the latencies of the table are of another machine than its trainings."""
    return Objectives(scales={"bits_per_byte": "linear", "artifact_bytes": "log2"})


@functools.cache
def truth(genome: Entry) -> dict[str, float]:
    """Raw objectives after the last budget on the report text, the mean of the genome's seeds."""
    rows = table()[genome.values]
    ends = [row["budgets"][-1] for row in rows]
    return {
        "bits_per_byte": float(np.mean([end["report"]["bits_per_byte"] for end in ends])),
        "artifact_bytes": float(ends[0]["artifact_bytes"]),
    }


def row_of(genome: Entry, *, seed: int) -> dict[str, Any]:
    """The training that a search with this seed gets: one of those that the table has of the genome."""
    rows = table()[genome.values]
    return rows[int(np.random.default_rng([seed, int(genome.genome_id, 16)]).integers(len(rows)))]


def evaluate(genome: Entry, budget: int, *, after: int = 0, seed: int) -> tuple[Evaluation, float]:
    """What a training to `budget` steps comes out at on the search text, and its seconds.

    Args:
        genome: of the table.
        budget: one of the table's.
        after: the budget that it goes on from; 0 is from nothing.
        seed: of the search.
    """
    row = row_of(genome, seed=seed)
    point = row["budgets"][BUDGETS.index(budget)]
    # A continued training starts at the state before the decay of the last budget, so these steps are made again.
    begun = round(after * (1 - OPTIM["decay_share"]))
    step = (point["cpu_seconds"] - point["scoring_cpu_seconds"]) / point["steps_run"]
    # The table has the last budget's curve: up to its own decay a shorter training has the same.
    constant = LONG if budget == LONG else budget * (1 - OPTIM["decay_share"])
    curve = [{"step": s, "loss": loss} for s, loss in row["budgets"][-1]["curve"] if s <= constant]
    known = {name: value for name, value in truth(genome).items() if name != "bits_per_byte"}
    evaluation = Evaluation(
        objectives={"bits_per_byte": point["search"]["bits_per_byte"], **known},
        measurements={"curve": curve, "num_parameters": row["num_parameters"]},
    )
    return evaluation, step * (budget - begun) + point["scoring_cpu_seconds"]


@dataclass
class Run:
    """What one search found, and when.

    Args:
        space: what was searched.
        seconds: virtual, at which each training to the last budget ended.
        found: its genome and bits per byte on the search text.
        volumes: relative hypervolume from that moment on.
        trials: evaluations of any budget that were charged.
        forecasts: low end, high end and what came, of every forecast whose trial went the whole way.
    """

    space: TableSpace
    seconds: list[float] = field(default_factory=list)
    found: list[tuple[Entry, float]] = field(default_factory=list)
    volumes: list[float] = field(default_factory=list)
    trials: int = 0
    forecasts: list[tuple[float, float, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What a stored run needs to be read again, in JSON: all but what was found."""
        names = ("seconds", "volumes", "trials", "forecasts")
        return {name: getattr(self, name) for name in names}

    def add(self, seconds: float, genome: Entry, bits: float) -> None:
        """One more training has reached the last budget."""
        self.seconds.append(seconds)
        self.found.append((genome, bits))
        self.volumes.append(self.space.volume(self.found))

    def at(self, seconds: Floats) -> Floats:
        """Relative hypervolume at each of the moments given."""
        places = np.searchsorted(self.seconds, seconds, side="right")
        return np.concatenate([[0.0], self.volumes])[places]


def rungs(stages: Stages) -> tuple[Rung, ...]:
    """The ladder."""
    if stages == "single":
        return (Rung(0, Budget("steps", LONG)),)
    return (Rung(0, Budget("steps", SHORT), keep=KEEP), Rung(1, Budget("steps", LONG)))


def replay(
    policy: Any,
    *,
    space: TableSpace,
    stages: Stages,
    seed: int,
    generations: int,
    limit: float = math.inf,
    population: int = POPULATION,
) -> Run:
    """One search with a policy of ours.

    Args:
        policy: proposes.
        space: what is searched.
        stages: who goes on.
        seed: of the search.
        generations: at most; a space that is exhausted ends it too.
        limit: virtual seconds after which nothing counts.
        population: genomes in a generation.
    """
    settings = SearchSettings(
        objectives=objectives().scales,
        population=population,
        generations=generations,
        rungs=rungs(stages),
        adaptive=stages == "adaptive",
        price="num_parameters",
        seed=seed,
    )
    study = Study(InMemoryStorage(), name="s", space=space, rungs=len(settings.rungs), objectives=objectives())
    schedule = Schedule(study, space=space, policy=policy, settings=settings, leads=lambda: True)
    budgets = [round(rung.budget.amount) for rung in settings.rungs]
    run, clock, busy, order = Run(space), 0.0, list[tuple[float, int, Any, Evaluation]](), itertools.count()
    while True:
        snapshot = schedule.advance(study.snapshot())
        if schedule.done(snapshot):
            break
        while len(busy) < WORKERS and (claim := study.claim(member=0, worker="w")) is not None:
            genome, rung = claim.record.genome, claim.record.rung
            assert isinstance(genome, Entry)
            after = budgets[rung - 1] if rung else 0
            evaluation, seconds = evaluate(genome, budgets[rung], after=after, seed=seed)
            heapq.heappush(busy, (clock + seconds, next(order), claim, evaluation))
        clock, _, claim, evaluation = heapq.heappop(busy)
        if clock > limit:
            break
        study.finish(claim, evaluation)
        run.trials += 1
        if claim.record.rung == len(budgets) - 1:
            run.add(clock, claim.record.genome, evaluation.objectives["bits_per_byte"])
    run.forecasts = _forecasts(study.snapshot())
    return run


def _forecasts(snapshot: Snapshot) -> list[tuple[float, float, float]]:
    """Of the trials at the last rung; bits per byte are linear, so scaled and raw are the same."""
    return [
        (record.forecast["low"], record.forecast["high"], record.evaluation.objectives["bits_per_byte"])
        for record in snapshot.rungs[-1]
        if record.forecast is not None and record.evaluation is not None
    ]
