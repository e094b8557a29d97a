"""Who of a generation goes on to the next rung: those that are expected to add most to what the study wants.

Crowding, which keeps a population apart, is no measure of that: with three objectives the members at the ends of the
front, each the worst of all in something, have an infinite distance and would take most of a few places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .objectives import Frame, Objectives
from .pareto import Floats, hypervolume, survival_order
from .records import Evaluation

# Beyond the reference, in units of ideal to reference: a member that just keeps a limit is worth something.
_MARGIN = 0.1


def promoted_indices(
    evaluations: Sequence[Evaluation],
    *,
    frame: Frame,
    improves: str,
    keep: int,
) -> list[int]:
    """Indices of those that go on, the most wanted first.

    The first is the best within the limits in the objective that training improves. Each further one adds most
    hypervolume to those before it. Where nobody adds anything, and where nobody is within the limits, non-domination
    and crowding decide. Earlier generations are not counted in: their luckiest went on, and to ask for more than their
    values at the lower rung measured no better on simulated studies.

    Args:
        evaluations: of the generation at the lower rung.
        frame: the study's fixed points; the hypervolume is taken below its reference.
        improves: the objective that training improves. At a lower rung all may still lie beyond its reference, so the
            reference moves to the worst of them there.
        keep: how many go on, at most.
    """
    objectives = frame.objectives
    values, violation = objectives.matrix(evaluations), objectives.violation(evaluations)
    order = [int(index) for index in survival_order(values, violation)] if len(values) else []
    left = [index for index in order if violation[index] <= 0]
    if not left or keep < 1:
        return order[:keep]
    quality = objectives.names.index(improves)
    corner = corner_of(frame, values[left], quality)
    first = min(left, key=lambda index: values[index, quality])  # of equals the first in order
    rest = [index for index in left if index != first]
    chosen = [first, *_adding_most(values, rest, [first], corner=corner, most=keep - 1)]
    return list(dict.fromkeys([*chosen, *order]))[:keep]


def _adding_most(
    values: Floats, left: Sequence[int], chosen: Sequence[int], *, corner: Floats, most: int
) -> list[int]:
    """Greedily those of `left` that add most hypervolume to `chosen`, of equals the first, until nobody adds anything.

    What a point alone dominates lies in a box that begins at the point. The volume of that box, and what the point
    added earlier, are upper bounds, so only those near the top are asked for what they add; and each is asked again
    only once its box has met that of somebody chosen since.
    """
    points, rows = values[list(left)], values[list(chosen)]
    ends = np.tile(corner, (len(points), 1))
    for row in rows:
        ends = _shortened(ends, points, row)
    volume = hypervolume(rows, reference=corner)
    gains, known = _boxes(points, ends), np.zeros(len(points), dtype=bool)
    added: list[int] = []
    while len(added) < min(most, len(points)) and (top := gains.max()) > 1e-9 * volume:  # below that it is rounding
        near = gains >= (1 - 1e-9) * top  # nor does rounding decide between equals
        if unknown := np.flatnonzero(near & ~known).tolist():
            for at in unknown:
                inside = np.maximum(rows[(rows < ends[at]).all(axis=1)], points[at])
                gains[at] = float(_boxes(points[at], ends[at])) - hypervolume(inside, reference=ends[at])
                known[at] = True
            continue
        best = int(near.argmax())
        known &= ~(np.maximum(points, points[best]) < np.minimum(ends, ends[best])).all(axis=1)
        volume += gains[best]
        gains[best] = -np.inf
        added.append(best)
        rows = np.vstack([rows, points[best]])
        ends = _shortened(ends, points, points[best])
        gains = np.minimum(gains, _boxes(points, ends))
    return [left[at] for at in added]


def _shortened(ends: Floats, points: Floats, row: Floats) -> Floats:
    """Far ends of the boxes that begin at `points`, `[n, objectives]`, now that `row` `[objectives]` is chosen.

    Along an axis a box ends where somebody begins who is as good in all other objectives.
    """
    worse = row > points
    alone = worse == worse.sum(axis=1, keepdims=True)  # worse nowhere but there
    return np.where(alone, np.minimum(ends, row), ends)


def _boxes(points: Floats, ends: Floats) -> Floats:
    return np.asarray(np.maximum(ends - points, 0.0).prod(axis=-1))


def corner_of(frame: Frame, points: Floats, quality: int) -> Floats:
    """The reference with its margin, scaled `[objectives]`.

    Args:
        frame: the study's fixed points.
        points: scaled, `[n, objectives]`; where the worst of them in `quality` lies beyond the reference, that moves.
        quality: index of the objective that training improves.
    """
    objectives = frame.objectives
    ideal = _scaled(objectives, frame.ideal)
    corner = _scaled(objectives, frame.reference)
    worst, best = points[:, quality].max(), points[:, quality].min()
    if worst > corner[quality]:
        corner[quality], ideal[quality] = worst, best
    return np.asarray(corner + _MARGIN * np.maximum(0.0, corner - ideal))


def _scaled(objectives: Objectives, point: Mapping[str, float]) -> Floats:
    return np.array([objectives.scaled(name, point[name]) for name in objectives.names])
