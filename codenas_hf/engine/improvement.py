"""Expected hypervolume improvement where one objective is uncertain and the others are known: exact and fast.

A point adds the volume that it dominates and the front does not. Along the uncertain objective that volume is a sum
over the cells of the grid that the front spans in the other objectives, so its expectation has a closed form
(cf. Yang et al. 2019, https://doi.org/10.1007/s10898-019-00798-7, for the general case).
"""

from __future__ import annotations

import functools
import math

import moocore
import numpy as np

from .pareto import Floats

_MOST_CELLS = 20_000
_MOST_VALUES = 250_000


def expected_improvement(
    mean: Floats, deviation: Floats, known: Floats, *, front: Floats, reference: Floats
) -> Floats:
    """Expected gain in hypervolume of each candidate by itself.

    Args:
        mean: of the uncertain objective, `[n]`.
        deviation: its standard deviation, `[n]`.
        known: the other objectives, `[n, m - 1]`.
        front: evaluated points `[k, m]`, the uncertain objective first; dominated ones change nothing.
        reference: `[m]`, in the same order.

    Returns:
        `[n]`, 0 or more.
    """
    lower, upper, covered = _cells(front, reference)
    spread = np.maximum(deviation, 1e-12)
    gains = np.empty(len(mean))
    rows = max(1, _MOST_VALUES // len(covered))  # at a time: a large front would need much memory for a moment
    for first in range(0, len(mean), rows):
        some = slice(first, first + rows)
        # For each candidate and cell: the part of the cell at or beyond the candidate in all known objectives ...
        sizes = np.ones((len(mean[some]), len(covered)))
        for axis in range(known.shape[1]):
            start = np.maximum(lower[:, axis], known[some, axis : axis + 1])
            sizes *= np.maximum(0.0, upper[:, axis] - start)
        # ... times the expected length between the candidate and whatever covers the cell already.
        reach = spread[some, None] * _softened((covered - mean[some, None]) / spread[some, None])
        gains[some] = (sizes * reach).sum(axis=1)
    return gains


def _cells(front: Floats, reference: Floats) -> tuple[Floats, Floats, Floats]:
    """The grid of the front in the known objectives: lower and upper corners `[cells, m - 1]`, and from where on each
    cell is covered along the uncertain objective `[cells]`.

    Exact up to a front of about 140 members with three objectives. Beyond that the grid is coarser than the front, and
    each member covers only what begins at the next line of it: gains look a little larger, but no member vanishes.
    """
    inside = front[(front < reference).all(axis=1)]
    inside = inside[moocore.is_nondominated(inside)]  # of equals one: nobody else covers anything
    axes = reference.size - 1
    most = int(_MOST_CELLS ** (1 / max(1, axes)))
    marks = [_thinned(np.unique(inside[:, axis + 1]), most) for axis in range(axes)]
    starts = [np.concatenate([[-np.inf], m]) for m in marks]
    ends = [np.concatenate([m, [reference[axis + 1]]]) for axis, m in enumerate(marks)]
    covered = np.full([len(s) for s in starts], reference[0])
    for point in inside:
        at = tuple(int(np.searchsorted(m, point[axis + 1])) + 1 for axis, m in enumerate(marks))
        covered[at] = min(covered[at], point[0])
    for axis in range(axes):
        covered = np.minimum.accumulate(covered, axis=axis)
    grid = np.meshgrid(*starts, indexing="ij"), np.meshgrid(*ends, indexing="ij")
    lower, upper = (np.stack([g.ravel() for g in side], axis=1) if axes else np.zeros((1, 0)) for side in grid)
    return lower, upper, np.asarray(covered).ravel()


def _thinned(marks: Floats, most: int) -> Floats:
    """At most so many of the ascending marks, the last one among them."""
    if len(marks) <= most:
        return marks
    return np.asarray(marks[np.linspace(0, len(marks) - 1, most).round().astype(int)])


@functools.cache
def _table() -> tuple[Floats, Floats]:
    """z and z * Phi(z) + phi(z), the integral of the normal distribution function up to z."""
    z = np.linspace(-8.0, 8.0, 4001)
    phi = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
    return z, z * below + phi


def _softened(z: Floats) -> Floats:
    grid, values = _table()
    return np.where(z > grid[-1], z, np.interp(z, grid, values, left=0.0))
