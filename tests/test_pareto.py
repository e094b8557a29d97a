"""Ranks, crowding, fronts and hypervolume against closed forms and against brute force."""

import numpy as np
import pytest

from codenas_hf.engine.pareto import crowding_distance, front, hypervolume, non_domination_rank, survival_order


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


def peeled_ranks(values: np.ndarray) -> np.ndarray:
    """By definition: take the points that nothing dominates away, again and again."""
    rank, left, level = np.zeros(len(values), dtype=int), list(range(len(values))), 0
    while left:
        best = [i for i in left if not any(dominates(values[j], values[i]) for j in left)]
        rank[best] = level
        left, level = [i for i in left if i not in best], level + 1
    return rank


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_equal_peeling(objectives: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(6, size=(40, objectives)).astype(float)  # many ties and duplicates
    assert non_domination_rank(values).tolist() == peeled_ranks(values).tolist()
    assert front(values).tolist() == np.flatnonzero(peeled_ranks(values) == 0).tolist()


def test_constrained_domination() -> None:
    values = [[5.0, 5.0], [1.0, 1.0], [0.0, 0.0], [6.0, 6.0], [0.0, 9.0]]
    violation = [0.0, 2.0, 3.0, 0.0, 2.0]
    # Feasible points first, by domination; then by violation alone, equal violations sharing a rank.
    assert non_domination_rank(values, violation).tolist() == [0, 2, 3, 1, 2]
    assert front(values, violation).tolist() == [0]
    assert front(values, [1.0] * 5).tolist() == []
    assert non_domination_rank(values, [1.0, 1.0, 2.0, 1.0, 1.0]).tolist() == [0, 0, 1, 0, 0]


def test_crowding_prefers_the_ends_and_the_lonely() -> None:
    values = np.array([[0.0, 10.0], [1.0, 6.0], [2.0, 5.0], [10.0, 0.0]])
    distance = crowding_distance(values, np.zeros(4))
    assert np.isinf(distance[[0, 3]]).all()
    assert distance[1] == pytest.approx(2 / 10 + 5 / 10)
    assert distance[2] == pytest.approx(9 / 10 + 6 / 10)
    assert survival_order(values).tolist() == [0, 3, 2, 1]


def test_crowding_of_a_constant_objective_and_of_equal_points() -> None:
    assert np.isinf(crowding_distance([[1.0, 2.0]] * 3, [0, 0, 0])).all()
    distance = crowding_distance([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]], [0, 0, 0])
    assert distance.tolist() == [np.inf, 1.0, np.inf]


def test_survival_breaks_ties_by_position() -> None:
    assert survival_order([[1.0, 1.0], [0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])[:2].tolist() == [1, 3]
    assert survival_order([[1.0]] * 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_hypervolume_of_a_staircase(n: int) -> None:
    points = np.array([[i, n - 1 - i] for i in range(n)], dtype=float)
    points = np.random.default_rng(n).permutation(np.concatenate([points, points, points + 0.5]))
    assert hypervolume(points, reference=[n, n]) == pytest.approx(n**2 - n * (n - 1) / 2)


def test_hypervolume_in_closed_form() -> None:
    assert hypervolume(np.zeros((0, 3)), reference=[1, 1, 1]) == 0
    assert hypervolume([[0.5, 0.25, 0.0]], reference=[1, 1, 1]) == pytest.approx(0.5 * 0.75)
    assert hypervolume([[2.0, 0.0, 0.0]], reference=[1, 1, 1]) == 0
    assert hypervolume([[3.0], [1.5]], reference=[2.0]) == pytest.approx(0.5)
    assert hypervolume([[3.0]], reference=[2.0]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_raises(bad: float) -> None:
    for function in (non_domination_rank, front, survival_order, lambda v: hypervolume(v, reference=[1, 1])):
        with pytest.raises(ValueError, match="must be finite"):
            function([[0.0, 0.0], [bad, 0.0]])
    with pytest.raises(ValueError, match="`violation` must be finite"):
        front([[0.0, 0.0]], [bad])
    with pytest.raises(ValueError, match="reference point must be finite"):
        hypervolume([[0.0, 0.0]], reference=[1.0, bad])


def test_wrong_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"shape \[points, objectives\]"):
        front([1.0, 2.0])
    with pytest.raises(ValueError, match="one value per point"):
        front([[1.0, 2.0]], [0.0, 0.0])
    with pytest.raises(ValueError, match="must have 2 values"):
        hypervolume([[1.0, 2.0]], reference=[3.0])
