"""Policies: pure, valid, without duplicates, and better than chance."""

import functools
from typing import Any

import numpy as np
import optuna
import pytest
from integer_space import Evaluate, IntegerSpace, Point

from codenas_hf.engine.evolution import (
    GeneticPolicy,
    RandomPolicy,
    RegularizedEvolution,
    Seeded,
    draw_new,
)
from codenas_hf.engine.objectives import Objectives
from codenas_hf.engine.optuna_policy import OptunaPolicy
from codenas_hf.engine.records import Budget, Rung, TrialRecord

OBJECTIVES = Objectives(scales={"a": "linear", "b": "linear"})
RUNGS = (Rung(0, Budget("steps", 50), keep=4), Rung(1, Budget("steps", 300)))
SPACE = IntegerSpace()
TPE = functools.partial(optuna.samplers.TPESampler, constant_liar=True)
POLICIES = [
    RandomPolicy(),
    GeneticPolicy(objectives=OBJECTIVES),
    RegularizedEvolution(objectives=OBJECTIVES),
    OptunaPolicy(name="tpe", sampler=lambda seed: TPE(seed=seed), objectives=OBJECTIVES),
    OptunaPolicy(name="nsga2", sampler=lambda seed: optuna.samplers.NSGAIISampler(seed=seed), objectives=OBJECTIVES),
]
each_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda p: getattr(p, "name", type(p).__name__))


def record(x: int, y: int, number: int, *, rung: int = 0, generation: int = 0) -> TrialRecord:
    point = Point(x, y)
    evaluation = Evaluate()(point, RUNGS[0], None)
    if rung:
        evaluation = Evaluate()(point, RUNGS[1], evaluation)
    return TrialRecord(number, point, rung, "complete", evaluation, generation=generation)


def some_records(n: int = 40) -> list[TrialRecord]:
    rng = np.random.default_rng(5)
    points = sorted({(int(x), int(y)) for x, y in rng.integers(8, 32, size=(n, 2))})
    rows = [record(x, y, i) for i, (x, y) in enumerate(points)]
    rows += [record(*points[i], i, rung=1) for i in range(4)]
    failed = TrialRecord(len(points), Point(0, 31), 0, "fail", failure="no good")
    waiting = TrialRecord(len(points) + 1, Point(1, 31), 0, "waiting", generation=1)
    return [*rows, failed, waiting]


@each_policy
@pytest.mark.parametrize("records", [[], some_records()], ids=["empty", "some"])
def test_proposals_are_new_valid_and_the_same_again(policy: Any, records: list[TrialRecord]) -> None:
    first, again = (policy.propose(records, space=SPACE, n=12, rng=np.random.default_rng(3)) for _ in range(2))
    assert first == again
    assert len(first) == 12
    assert all(SPACE.validate(genome) is None for genome in first)
    ids = [genome.genome_id for genome in first]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {r.genome.genome_id for r in records}
    other = policy.propose(records, space=SPACE, n=12, rng=np.random.default_rng(4))
    assert other != first


@each_policy
def test_proposals_do_not_look_at_time_or_place(policy: Any) -> None:
    import dataclasses

    records = some_records()
    moved = [dataclasses.replace(r, worker="elsewhere:1") for r in records]
    first, again = (policy.propose(r, space=SPACE, n=5, rng=np.random.default_rng(3)) for r in (records, moved))
    assert first == again


def distance_from_front(genomes: list[Any]) -> float:
    return float(np.mean([genome.y for genome in genomes]))


@pytest.mark.parametrize("policy", POLICIES[1:4], ids=lambda p: type(p).__name__)
def test_children_lie_nearer_to_the_front_than_chance(policy: Any) -> None:
    records = some_records()
    children, chance = (
        [g for seed in range(8) for g in p.propose(records, space=SPACE, n=10, rng=np.random.default_rng(seed))]
        for p in (policy, RandomPolicy())
    )
    assert distance_from_front(children) < distance_from_front(chance) - 2


def test_parents_are_compared_at_the_highest_rung_that_both_reached() -> None:
    """A candidate that rung 0 flattered and rung 1 saw through is no better parent than rung 1 says."""
    from codenas_hf.engine.evolution import _Pool

    def with_values(point: Point, number: int, rung: int, a: float) -> TrialRecord:
        evaluation = Evaluate()(point, RUNGS[0], None)
        evaluation = type(evaluation)(objectives={"a": a, "b": a})
        return TrialRecord(number, point, rung, "complete", evaluation)

    flattered, modest, low = Point(0, 0), Point(1, 0), Point(2, 0)
    records = [
        with_values(flattered, 0, 0, 1.0),
        with_values(modest, 1, 0, 2.0),
        with_values(low, 2, 0, 1.5),
        with_values(flattered, 0, 1, 0.9),
        with_values(modest, 1, 1, 0.5),
    ]
    pool = _Pool.of(records, OBJECTIVES, size=8)
    place = {genome: index for index, genome in enumerate(pool.genomes)}
    assert pool._better(place[flattered], place[modest]) == place[modest]
    assert pool._better(place[low], place[modest]) == place[low]  # rung 0 is all that both have
    assert pool._better(place[low], place[flattered]) == place[flattered]


def test_infeasible_parents_lose() -> None:
    objectives = Objectives(scales={"a": "linear", "b": "linear"}, limits={"a": 20})
    rows = [record(x, y, i) for i, (x, y) in enumerate([(0, 15), (1, 15), (2, 16), (30, 0), (29, 0), (31, 1)])]
    rows = [
        TrialRecord(r.number, r.genome, 0, "complete", objectives.checked(r.evaluation)) for r in rows if r.evaluation
    ]
    policy = GeneticPolicy(objectives=objectives, parents=3, immigrants=0)
    children = policy.propose(rows, space=SPACE, n=20, rng=np.random.default_rng(0))
    assert max(genome.x for genome in children if isinstance(genome, Point)) < 20


def test_only_the_young_are_parents_in_regularized_evolution() -> None:
    old = [record(x, 0, x) for x in range(5)]
    young = [record(20 + x, 20, 5 + x) for x in range(5)]
    policy = RegularizedEvolution(objectives=OBJECTIVES, population=5, sample=2)
    children = policy.propose([*old, *young], space=SPACE, n=10, rng=np.random.default_rng(0))
    assert min(genome.y for genome in children if isinstance(genome, Point)) > 10


def test_given_genomes_come_first_and_only_once() -> None:
    given = tuple(Point(x, 31) for x in range(14, 20))
    policy = Seeded(policy=RandomPolicy(), genomes=given)
    first = policy.propose([], space=SPACE, n=4, rng=np.random.default_rng(0))
    assert first == list(given[:4])
    known = [TrialRecord(i, genome, 0, "waiting") for i, genome in enumerate(first)]
    then = policy.propose(known, space=SPACE, n=4, rng=np.random.default_rng(0))
    assert then[:2] == list(given[4:])
    assert not set(then[2:]) & set(given)
    assert len(then) == 4


def test_a_small_space_ends() -> None:
    space = IntegerSpace(side=2)
    for policy in POLICIES[:3]:
        genomes = policy.propose([], space=space, n=10, rng=np.random.default_rng(0))
        assert len(genomes) == 4
    assert draw_new(lambda: Point(0, 0), [], n=0) == []


def test_optuna_sees_waiting_trials_and_constraints() -> None:
    seen: list[list[optuna.trial.FrozenTrial]] = []

    class Watching(optuna.samplers.RandomSampler):
        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            seen.append(study.get_trials(deepcopy=False))
            return {}

    objectives = Objectives(scales={"a": "linear", "b": "linear"}, limits={"a": 0})
    rows = some_records()
    rows[0] = TrialRecord(0, rows[0].genome, 0, "complete", objectives.checked(rows[0].evaluation))  # type: ignore[arg-type]
    policy = OptunaPolicy(name="w", sampler=lambda seed: Watching(seed=seed), objectives=objectives)
    policy.propose(rows, space=SPACE, n=1, rng=np.random.default_rng(0))
    states = [trial.state.name for trial in seen[0]]
    assert states.count("RUNNING") == 2  # what waits, and the one that is asked for
    assert states.count("FAIL") == 1
    assert seen[0][0].constraints["limit.a"] > 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="`mutation` must lie between 0 and 1"):
        GeneticPolicy(objectives=OBJECTIVES, mutation=2)
    with pytest.raises(ValueError, match="`parents` must be 2 or more"):
        GeneticPolicy(objectives=OBJECTIVES, parents=1)
    with pytest.raises(ValueError, match="`sample` must lie between 1 and the population"):
        RegularizedEvolution(objectives=OBJECTIVES, population=5, sample=6)
    policy = OptunaPolicy(name="x", sampler=lambda seed: optuna.samplers.RandomSampler(seed), objectives=OBJECTIVES)
    with pytest.raises(TypeError, match="needs a space with `genes`"):
        policy.propose([], space=object(), n=1, rng=np.random.default_rng(0))


def searched(policy: OptunaPolicy, *, evaluations: int, batch: int) -> list[TrialRecord]:
    """As the engine asks, at lag 1: a batch, all of it evaluated, the next batch."""
    records: list[TrialRecord] = []
    for generation in range(evaluations // batch):
        rng = np.random.default_rng([1, generation])
        for genome in policy.propose(records, space=SPACE, n=batch, rng=rng):
            records.append(record(genome.x, genome.y, len(records), generation=generation))  # type: ignore[attr-defined]
    return records


@pytest.mark.parametrize("batch", [4, 12])
def test_a_genetic_sampler_leaves_its_first_generation(batch: int) -> None:
    asked: list[int] = []

    class Watched(optuna.samplers.NSGAIISampler):
        def select_parent(self, study: optuna.Study, generation: int) -> list[optuna.trial.FrozenTrial]:
            asked.append(generation)
            parents = super().select_parent(study, generation)
            assert len(parents) == 12
            return parents

    policy = OptunaPolicy(name="w", sampler=lambda seed: Watched(seed=seed, population_size=12), objectives=OBJECTIVES)
    records = searched(policy, evaluations=96, batch=batch)
    assert max(asked) == 7
    assert {1, 2, 3, 4, 5, 6, 7} <= set(asked)
    assert distance_from_front([r.genome for r in records[-36:]]) < 15.5 - 1, "15.5 is chance"


def test_a_failed_trial_counts_for_no_generation() -> None:
    seen: list[list[Any]] = []

    class Watching(optuna.samplers.NSGAIISampler):
        def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
            key = self._get_generation_key()
            seen.append([t.system_attrs.get(key) for t in study.get_trials(deepcopy=False)][:5])
            return super().sample_relative(study, trial, search_space)

    policy = OptunaPolicy(name="w", sampler=lambda s: Watching(seed=s, population_size=2), objectives=OBJECTIVES)
    failed = TrialRecord(1, Point(9, 9), 0, "fail", failure="no good")
    rows = [record(1, 1, 0), failed, record(2, 1, 2), record(3, 1, 3), record(4, 1, 4)]
    policy.propose(rows, space=SPACE, n=1, rng=np.random.default_rng(0))
    assert seen[0] == [0, None, 0, 1, 1]
