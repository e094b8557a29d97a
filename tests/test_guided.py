"""The model finds a smooth law, the expected gain is the real one, and guided search beats chance by far."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from integer_space import IntegerSpace, Point
from test_evolution import OBJECTIVES, distance_from_front, some_records

from codenas_hf.engine.evolution import RandomPolicy
from codenas_hf.engine.gaussian import GaussianProcess, _covariance
from codenas_hf.engine.guided import GuidedPolicy, Model
from codenas_hf.engine.improvement import expected_improvement
from codenas_hf.engine.objectives import Objectives
from codenas_hf.engine.pareto import hypervolume
from codenas_hf.engine.records import Evaluation, TrialRecord

SPACE = IntegerSpace()


class KnownSpace(IntegerSpace):
    """One objective of the square is certain before any evaluation."""

    def known_objectives(self, genome: Point) -> Mapping[str, float]:
        return {"b": float(self.side - 1 - genome.x + genome.y)}


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_smooth_function_is_learned_with_an_honest_deviation(noise: float) -> None:
    rng = np.random.default_rng(0)
    inputs, fresh = rng.normal(size=(80, 3)), rng.normal(size=(300, 3))

    def law(x: Any) -> Any:
        return np.sin(x[:, 0]) + 0.3 * x[:, 1] ** 2 - 0.5 * x[:, 2]

    process = GaussianProcess.fit(inputs, law(inputs) + rng.normal(0, noise, 80))
    mean, deviation = process.predict(fresh)
    error = np.abs(mean - law(fresh))
    assert np.corrcoef(mean, law(fresh))[0, 1] > 0.95
    assert 0.85 < (error < 2 * deviation + 1e-9).mean()
    near = process.predict(inputs)[1].mean()
    assert near < 0.6 * deviation.mean()


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 3 rows or more, got 2"):
        GaussianProcess.fit(np.zeros((2, 1)), np.zeros(2))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_expected_improvement_is_the_mean_of_real_improvements(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    front, reference = rng.random((9, objectives)) * 0.8 + 0.2, np.full(objectives, 0.9)
    mean, deviation = rng.random(4) * 0.4, np.array([1e-9, 0.1, 0.2, 0.3])
    known = rng.random((4, objectives - 1)) * 0.6
    gains = expected_improvement(mean, deviation, known, front=front, reference=reference)
    before = hypervolume(front, reference=reference)
    for at in range(4):
        draws = rng.normal(mean[at], deviation[at], 3000)
        volumes = [hypervolume(np.vstack([front, [d, *known[at]]]), reference=reference) for d in draws]
        assert gains[at] == pytest.approx(np.mean(volumes) - before, rel=0.06, abs=1e-6)


def test_points_that_are_dominated_change_no_gain_however_many_they_are() -> None:
    rng = np.random.default_rng(0)
    front, reference = rng.dirichlet(np.ones(3), 12), np.full(3, 1.2)
    worse = np.minimum(front[rng.integers(12, size=600)] + 0.1 * rng.random((600, 3)), 1.1)
    mean, deviation, known = rng.random(30) * 0.3, np.full(30, 0.05), rng.random((30, 2)) * 0.5

    def gains(points: Any) -> Any:
        return expected_improvement(mean, deviation, known, front=points, reference=reference)

    assert gains(np.vstack([worse, front, front])) == pytest.approx(gains(front), rel=1e-9)


def test_members_of_a_very_large_front_still_cover_what_is_theirs() -> None:
    """Else a batch would take the twin of somebody that it has chosen."""
    rng = np.random.default_rng(0)
    front, reference = rng.dirichlet(np.ones(3), 300), np.full(3, 1.1)
    again = expected_improvement(front[:, 0], np.full(300, 1e-9), front[:, 1:], front=front, reference=reference)
    whole = hypervolume(front, reference=reference)
    alone = [whole - hypervolume(np.delete(front, at, axis=0), reference=reference) for at in range(300)]
    assert again.sum() < 0.2 * sum(alone)
    better = expected_improvement(
        front[:, 0] - 0.05, np.full(300, 1e-9), front[:, 1:], front=front, reference=reference
    )
    real = [hypervolume(np.vstack([front, p - [0.05, 0, 0]]), reference=reference) - whole for p in front]
    assert (better >= np.array(real) - 1e-9).all(), "a coarser grid only makes gains look larger"
    assert better.sum() < 1.1 * sum(real)


def test_no_front_and_points_beyond_the_reference_are_fine() -> None:
    none = np.zeros((0, 2))
    gain = expected_improvement(np.array([0.5, 2.0]), np.full(2, 1e-9), np.array([[0.5], [0.5]]), front=none,
                                reference=np.ones(2))  # fmt: skip
    assert gain == pytest.approx([0.25, 0.0], abs=1e-6)


@pytest.mark.parametrize("space", [SPACE, KnownSpace()], ids=["all learned", "one known"])
def test_proposals_lie_near_the_front(space: IntegerSpace) -> None:
    records = some_records()
    guided, chance = GuidedPolicy(objectives=OBJECTIVES, explore=0.0), RandomPolicy()
    found, drawn = (
        [g for seed in range(3) for g in p.propose(records, space=space, n=6, rng=np.random.default_rng(seed))]
        for p in (guided, chance)
    )
    assert distance_from_front(found) < distance_from_front(drawn) / 3


def test_a_pure_function_of_its_arguments_and_nothing_twice() -> None:
    records = some_records()
    policy = GuidedPolicy(objectives=OBJECTIVES)
    first, again = (policy.propose(records, space=SPACE, n=10, rng=np.random.default_rng(5)) for _ in range(2))
    assert first == again
    ids = {genome.genome_id for genome in first}
    assert len(ids) == 10
    assert not ids & {record.genome.genome_id for record in records}


def test_what_waits_is_not_proposed_beside_itself() -> None:
    """A batch is spread out: what was chosen, and what others train just now, counts as known."""
    records = some_records()
    policy = GuidedPolicy(objectives=OBJECTIVES, explore=0.0)
    first = policy.propose(records, space=SPACE, n=8, rng=np.random.default_rng(0))
    columns = [genome.x for genome in first]
    assert len(set(columns)) >= 5  # the front of the square has one point for each x; one place may push its edge
    pending = [TrialRecord(number=-1, genome=g, rung=0, state="waiting") for g in first]
    second = policy.propose([*records, *pending], space=SPACE, n=8, rng=np.random.default_rng(1))
    assert not {g.genome_id for g in first} & {g.genome_id for g in second}


@pytest.mark.parametrize("mix", [0.0, 0.2, 1.0])
def test_how_sure_a_model_will_be_is_known_before_it_is(mix: float) -> None:
    """What three observations will leave uncertain is what a process that has them as well says."""
    rng = np.random.default_rng(0)
    seen, asked = rng.normal(size=(12, 3)), rng.normal(size=(9, 3))

    def process(points: Any) -> GaussianProcess:
        covariance = _covariance(points, points, mix=mix, length=1.5) + 0.01 * np.eye(len(points))
        factor = np.linalg.cholesky(covariance)
        return GaussianProcess(
            np.zeros(3), np.ones(3), points, mix, 1.5, np.zeros(len(points)), factor, 0.0, variance=4.0, noise=0.01
        )

    outlook = process(seen).outlook(asked)
    assert outlook.deviation == pytest.approx(process(seen).predict(asked)[1])
    for at in (4, 0, 7):
        outlook.observe(at)
    assert outlook.deviation == pytest.approx(process(np.vstack([seen, asked[[4, 0, 7]]])).predict(asked)[1])


def test_a_batch_is_not_one_genome_and_its_copies() -> None:
    """Most genes of a real space hardly matter: what differs in nothing else is learned with its like."""

    class Copies(KnownSpace):
        def known_objectives(self, genome: Point) -> Mapping[str, float]:
            return {"b": float(genome.x)}

    rng, space = np.random.default_rng(0), Copies()
    records = []
    for number in range(20):
        point = Point(3 * number % 32, int(rng.integers(32)))
        value = {"a": 30.0 - point.x + 3 * float(rng.normal()), "b": float(point.x)}
        records.append(TrialRecord(number, point, 0, "complete", evaluation=Evaluation(objectives=value)))
    policy = GuidedPolicy(objectives=OBJECTIVES, explore=0.0)
    batches = [policy.propose(records, space=space, n=12, rng=np.random.default_rng(seed)) for seed in range(4)]
    assert min(len({genome.x for genome in batch}) for batch in batches) >= 10  # 4 where the others stay as unsure


def test_before_enough_is_known_genomes_are_spread() -> None:
    policy = GuidedPolicy(objectives=OBJECTIVES)
    spread = policy.propose([], space=SPACE, n=9, rng=np.random.default_rng(0))
    drawn = RandomPolicy().propose([], space=SPACE, n=9, rng=np.random.default_rng(0))

    def closest(points: Any) -> int:
        return min(abs(a.x - b.x) + abs(a.y - b.y) for i, a in enumerate(points) for b in points[:i])

    assert closest(spread) > closest(drawn)


def test_the_first_genomes_are_those_that_could_dominate_much() -> None:
    """Known to be cheap counts, far apart too: the cheapest is among them, and most lie in the cheaper half."""
    policy = GuidedPolicy(objectives=OBJECTIVES)
    first, again = (policy.propose([], space=KnownSpace(), n=8, rng=np.random.default_rng(0)) for _ in range(2))
    assert first == again
    costs = [KnownSpace().known_objectives(genome)["b"] for genome in first]
    rng = np.random.default_rng(0)
    sampled = [KnownSpace().known_objectives(KnownSpace().sample(rng))["b"] for _ in range(64)]
    assert costs[0] == min(sampled)
    assert np.mean(costs) < np.mean(sampled) - 2
    assert len({genome.y for genome in first}) >= 4


def test_the_first_genomes_keep_the_limits_that_are_known() -> None:
    limited = Objectives(scales=OBJECTIVES.scales, limits={"b": 20.0})
    first = GuidedPolicy(objectives=limited).propose([], space=KnownSpace(), n=8, rng=np.random.default_rng(0))
    assert max(KnownSpace().known_objectives(genome)["b"] for genome in first) <= 22.0  # and the margin


def test_the_higher_rung_is_what_counts() -> None:
    """Rung 0 likes small x, rung 1 measures the opposite: after enough promotions the model believes rung 1."""
    objectives = Objectives(scales={"a": "linear", "b": "linear"})
    rng = np.random.default_rng(0)
    points = list({(int(x), int(y)) for x, y in rng.integers(32, size=(60, 2))})
    records = []
    for number, (x, y) in enumerate(points):
        low = Evaluation(objectives={"a": x / 4 + y, "b": 10.0 + y})
        records.append(TrialRecord(number, Point(x, y), 0, "complete", low))
    for number, (x, y) in enumerate(points[::3]):
        high = Evaluation(objectives={"a": 31 - x + y, "b": 10.0 + y})
        records.append(TrialRecord(number, Point(x, y), 1, "complete", high, parent=3 * number))
    policy = GuidedPolicy(objectives=objectives, explore=0.0)
    first_with_both, first_with_one = (
        policy.propose(known, space=SPACE, n=6, rng=np.random.default_rng(0))[0]
        for known in (records, records[: len(points)])
    )
    assert first_with_both == Point(31, 0)
    assert first_with_one == Point(0, 0)


def test_a_reference_that_nobody_reaches_does_not_hide_the_front() -> None:
    # At the first rung every model is worse than the n-gram model whose bits per byte are a search's reference.
    space, records = KnownSpace(), some_records(20)
    lowest = min(r.evaluation.objectives["a"] for r in records if r.evaluation is not None)

    def proposed(policy: GuidedPolicy) -> list[str]:
        found = policy.propose(records, space=space, n=6, rng=np.random.default_rng(1))
        return [genome.genome_id for genome in found]

    plain = proposed(GuidedPolicy(objectives=OBJECTIVES))
    assert proposed(GuidedPolicy(objectives=OBJECTIVES, reference={"a": lowest / 2})) == plain
    limited = Objectives(scales=OBJECTIVES.scales, limits={"a": lowest / 2})
    assert proposed(GuidedPolicy(objectives=limited)) == plain


def test_who_just_keeps_a_limit_still_adds_something() -> None:
    # Searches ask for the best model within a limit: it must not be worth nothing because it lies at the limit.
    objectives = Objectives(scales=OBJECTIVES.scales, limits={"b": 40.0})
    model = Model.fit(some_records(20), space=KnownSpace(), objectives=objectives)
    at = model.order.index("b")
    best = float(model.seen[:, at].min())
    assert model.reference({})[at] == pytest.approx(40.0 + 0.1 * (40.0 - best))
    assert model.reference({"b": 50.0})[at] == pytest.approx(50.0 + 0.1 * (50.0 - best))


def test_a_small_space_is_exhausted_without_error() -> None:
    space = IntegerSpace(side=4)
    records = [
        TrialRecord(i, Point(i % 4, i // 4), 0, "complete", Evaluation(objectives={"a": i % 4 + i // 4, "b": 3.0 + i}))
        for i in range(15)
    ]
    found = GuidedPolicy(objectives=OBJECTIVES).propose(records, space=space, n=5, rng=np.random.default_rng(0))
    assert [(g.x, g.y) for g in found] == [(3, 3)]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="`explore` must lie between 0 and 1"):
        GuidedPolicy(objectives=OBJECTIVES, explore=1.5)
    with pytest.raises(ValueError, match="`brood` must be 1 or more"):
        GuidedPolicy(objectives=OBJECTIVES, brood=0)
