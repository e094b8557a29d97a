"""The ridge is exact where it can be, its leave-one-out error is the real one, and screening helps."""

import numpy as np
import pytest
from integer_space import Evaluate, IntegerSpace, Point
from test_evolution import OBJECTIVES, RUNGS, distance_from_front, some_records

from codenas_hf.engine.evolution import RandomPolicy
from codenas_hf.engine.records import Evaluation, Genome, TrialRecord
from codenas_hf.engine.surrogate import Features, Ridge, Screened

SPACE = IntegerSpace()


def test_ridge_recovers_a_linear_law() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 3)) * [1, 100, 0.01] + [0, 5, 1]
    targets = np.stack([inputs @ [1, 0.02, 300] + 4, inputs @ [-2, 0, 0]], axis=1)
    ridge = Ridge.fit(inputs, targets)
    fresh = rng.normal(size=(10, 3)) * [1, 100, 0.01] + [0, 5, 1]
    assert ridge.predict(fresh)[:, 0] == pytest.approx(fresh @ [1, 0.02, 300] + 4, abs=0.01)
    assert ridge.loo_error.max() < 0.01


def test_a_genome_may_say_itself_what_it_is_judged_by() -> None:
    class Described(Point):
        def features(self) -> dict[str, float]:
            return {"sum": self.x + self.y}

    genomes = [Described(x, y) for x, y in ((1, 2), (3, 0), (5, 4))]
    found = Features.of(genomes)
    assert found.numeric == ("sum",)
    assert len({tuple(row) for row in found.plain(genomes).tolist()}) == 2, "of equal sums no other gene is seen"


def test_leave_one_out_error_is_what_leaving_one_out_gives() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(15, 2))
    targets = (inputs @ [1.0, -1.0] + rng.normal(size=15))[:, None]
    ridge = Ridge.fit(inputs, targets)
    # The penalty that was chosen, found again from the weights; then fifteen fits without one row each.
    design = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    errors = []
    for penalty in 10.0 ** np.arange(-4, 5) * 15:
        full = np.linalg.solve(design.T @ design + penalty * np.eye(2), design.T @ (targets - targets.mean()))
        if not np.allclose(full, ridge.weights):
            continue
        for i in range(15):
            keep = np.arange(15) != i
            ones = np.hstack([np.ones((15, 1)), design])
            shrink = np.diag([0.0, penalty, penalty])
            fit = np.linalg.solve(ones[keep].T @ ones[keep] + shrink, ones[keep].T @ targets[keep])
            errors.append(float((targets[i] - ones[i] @ fit)[0]))
    assert ridge.loo_error[0] == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_noise_is_shrunk() -> None:
    rng = np.random.default_rng(2)
    ridge = Ridge.fit(rng.normal(size=(20, 15)), rng.normal(size=(20, 1)))
    assert np.abs(ridge.predict(rng.normal(size=(50, 15)))).mean() < 0.6


def test_features_of_numbers_flags_and_nested_genes() -> None:
    class Plain:
        genome_id = "x"

        def __init__(self, **genes: object) -> None:
            self.genes = genes

        def to_dict(self) -> dict[str, object]:
            return self.genes

    rows = [Plain(width=4, tie=True, at={"kind": "a"}), Plain(width=8, tie=False, at={"kind": "b"})]
    features = Features.of(rows)
    assert features.numeric == ("width",)
    matrix = features.matrix(rows)
    assert matrix[:, :2].tolist() == [[2, 4], [3, 9]]
    assert matrix[:, 2:].sum(axis=1).tolist() == [2, 2]  # one flag for each of the two others
    assert features.matrix([Plain(width=2, tie=None, at={})])[0, 2:].sum() == 0


def test_screening_proposes_what_is_more_promising() -> None:
    records = some_records()
    plain = RandomPolicy()
    screened = Screened(policy=plain, objectives=OBJECTIVES, explore=0.0)
    chosen, chance = (
        [g for seed in range(4) for g in p.propose(records, space=SPACE, n=6, rng=np.random.default_rng(seed))]
        for p in (screened, plain)
    )
    assert distance_from_front(chosen) < distance_from_front(chance) - 4
    ids = [genome.genome_id for genome in screened.propose(records, space=SPACE, n=6, rng=np.random.default_rng(0))]
    assert len(set(ids)) == 6


def test_nothing_is_screened_before_enough_is_known() -> None:
    evaluation = Evaluation(objectives={"a": 1.0, "b": 1.0})
    records = [TrialRecord(0, Point(1, 1), 0, "complete", evaluation)]
    screened = Screened(policy=RandomPolicy(), objectives=OBJECTIVES)
    expected = RandomPolicy().propose(records, space=SPACE, n=4, rng=np.random.default_rng(0))
    assert screened.propose(records, space=SPACE, n=4, rng=np.random.default_rng(0)) == expected
    assert Evaluate()(Point(1, 1), RUNGS[0], None).objectives


def test_where_nothing_is_proposed_nothing_is_screened() -> None:
    class Silent(RandomPolicy):
        def propose(self, *known: object, **named: object) -> list[Genome]:
            return []

    for policy, n in ((Silent(), 6), (RandomPolicy(), 0)):
        screened = Screened(policy=policy, objectives=OBJECTIVES)
        assert screened.propose(some_records(), space=SPACE, n=n, rng=np.random.default_rng(0)) == []


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 3 rows"):
        Ridge.fit(np.zeros((2, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="`factor` must be 1 or more"):
        Screened(policy=RandomPolicy(), objectives=OBJECTIVES, factor=0)
