"""Who is better when there are several objectives: ranks, crowding, fronts, hypervolume. Pure numpy, all minimised.

Constrained domination and crowding follow NSGA-II (Deb et al. 2002, https://doi.org/10.1109/4235.996017); ranks and
hypervolume are computed by moocore.
"""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def non_domination_rank(values: ArrayLike, violation: ArrayLike | None = None) -> Ints:
    """Rank of each point under constrained domination; 0 is the front.

    A feasible point beats every infeasible one; among infeasible points the smaller violation wins, equal violations
    share a rank.

    Args:
        values: `[n, m]` objectives, minimised.
        violation: `[n]` total constraint violation, 0 for feasible points; None means that all are feasible.

    Returns:
        `[n]` ranks.

    Raises:
        ValueError: wrong shape, or a value that is not finite.
    """
    points = _points(values)
    excess = _violation(violation, len(points))
    rank = np.zeros(len(points), dtype=np.int64)
    feasible = excess <= 0
    if feasible.any():
        rank[feasible] = moocore.pareto_rank(points[feasible])
    if not feasible.all():
        first = int(rank[feasible].max()) + 1 if feasible.any() else 0
        rank[~feasible] = first + np.unique(excess[~feasible], return_inverse=True)[1]
    return rank


def crowding_distance(values: ArrayLike, rank: ArrayLike) -> Floats:
    """Distance between a point's two neighbours of equal rank, summed over the objectives.

    Args:
        values: `[n, m]` objectives.
        rank: `[n]`; distances are taken within a rank.

    Returns:
        `[n]`; infinite for the extreme points of a rank. An objective that is constant within a rank adds nothing.

    Raises:
        ValueError: wrong shape, or a value that is not finite.
    """
    points, ranks = _points(values), np.asarray(rank)
    distance = np.zeros(len(points))
    for level in np.unique(ranks):
        members = np.flatnonzero(ranks == level)
        for column in points[members].T:
            order = np.argsort(column, kind="stable")
            ordered = column[order]
            span = ordered[-1] - ordered[0]
            if span == 0:
                continue
            gaps = np.full(len(members), np.inf)
            gaps[1:-1] = (ordered[2:] - ordered[:-2]) / span
            distance[members[order]] += gaps
        if len(members) == 1 or (points[members] == points[members[0]]).all():
            distance[members] = np.inf
    return distance


def survival_order(values: ArrayLike, violation: ArrayLike | None = None) -> Ints:
    """Indices from best to worst: by rank, then the less crowded, then the earlier. The first k survive.

    Args:
        values: `[n, m]` objectives.
        violation: `[n]` total constraint violation, 0 for feasible points.

    Returns:
        `[n]` a permutation of the indices.

    Raises:
        ValueError: wrong shape, or a value that is not finite.
    """
    points = _points(values)
    rank = non_domination_rank(points, violation)
    crowding = crowding_distance(points, rank)
    return np.lexsort((np.arange(len(points)), -crowding, rank)).astype(np.int64)


def front(values: ArrayLike, violation: ArrayLike | None = None) -> Ints:
    """Indices, ascending, of the feasible points that no feasible point dominates; equal points are all kept.

    Args:
        values: `[n, m]` objectives.
        violation: `[n]` total constraint violation, 0 for feasible points.

    Raises:
        ValueError: wrong shape, or a value that is not finite.
    """
    points = _points(values)
    feasible = np.flatnonzero(_violation(violation, len(points)) <= 0)
    if len(feasible) == 0:
        return feasible.astype(np.int64)
    kept = moocore.is_nondominated(points[feasible], keep_weakly=True)
    return np.asarray(feasible[kept], dtype=np.int64)


def hypervolume(values: ArrayLike, *, reference: ArrayLike) -> float:
    """Volume that the points dominate below the reference point; what lies beyond the reference adds nothing.

    Args:
        values: `[n, m]` objectives.
        reference: `[m]`.

    Raises:
        ValueError: wrong shape, or a value that is not finite.
    """
    points, corner = _points(values), np.asarray(reference, dtype=float)
    if not np.isfinite(corner).all():
        raise ValueError(f"the reference point must be finite, got {corner.tolist()}")
    if len(points) == 0:
        return 0.0
    if corner.shape != points.shape[1:]:
        raise ValueError(f"the reference point must have {points.shape[1]} values, got {corner.size}")
    if points.shape[1] == 1:
        return float(max(0.0, corner[0] - points.min()))
    return float(moocore.hypervolume(points, ref=corner))


def _points(values: ArrayLike) -> Floats:
    points = np.asarray(values, dtype=float)
    if points.ndim != 2:
        raise ValueError(f"objectives must have the shape [points, objectives], got {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError("objectives must be finite: record a NaN or an infinity as a failed trial instead")
    return points


def _violation(violation: ArrayLike | None, n: int) -> Floats:
    excess = np.zeros(n) if violation is None else np.asarray(violation, dtype=float)
    if excess.shape != (n,):
        raise ValueError(f"`violation` must have one value per point ({n}), got shape {list(excess.shape)}")
    if not np.isfinite(excess).all():
        raise ValueError("`violation` must be finite")
    return excess
