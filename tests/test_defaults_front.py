"""How two fronts are compared, and what a lead over three seeds is worth."""

import pytest

from benchmarks.defaults_front import ARMS, SEEDS, covered, lead, rows_of
from codenas_hf.engine import Evaluation
from codenas_hf.jobs.policies import POLICIES


def point(bits: float, size: float, ms: float = 1.0) -> Evaluation:
    return Evaluation(objectives={"bits_per_byte": bits, "artifact_bytes": size, "decode_ms": ms})


def test_a_front_that_is_better_everywhere_covers_the_other_and_leads() -> None:
    better, worse = [point(1.0, 2e6, 0.5), point(1.5, 1e6, 0.4)], [point(1.1, 2e6), point(1.6, 1e6), point(2.0, 5e5)]
    assert (covered(worse, better), covered(better, worse)) == (pytest.approx(2 / 3), 0.0)
    fronts = {(policy, seed): better if policy == "guided" else worse for policy in ARMS for seed in range(SEEDS)}
    rows = rows_of(fronts)
    assert [row["dominated_by_the_other"] for row in rows] == [0.0] * SEEDS + [pytest.approx(2 / 3)] * SEEDS
    mean, (low, high) = lead(rows)
    assert low == mean == high
    assert mean > 0


def test_three_seeds_that_disagree_show_nothing() -> None:
    rows = [
        {"policy": policy, "seed": seed, "hypervolume": 0.5 + (0.1 * (seed - 1) + 0.01) * (policy == "guided")}
        for policy in ARMS
        for seed in range(SEEDS)
    ]
    mean, (low, high) = lead(rows)
    assert mean == pytest.approx(0.01)
    assert low < 0 < high


def test_the_policies_compared_are_those_of_the_search() -> None:
    assert set(ARMS) <= set(POLICIES)
