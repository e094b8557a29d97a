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
    return [*chosen, *(index for index in order if index not in set(chosen))][:keep]


def _adding_most(
    values: Floats, left: Sequence[int], chosen: Sequence[int], *, corner: Floats, most: int
) -> list[int]:
    """Greedily those of `left` that add most hypervolume to `chosen`, until nobody adds anything.

    What a member adds only falls while more are chosen, so an earlier value is an upper bound, and only those near the
    top are asked again: a large generation would otherwise ask for all of them, once for each that goes on.
    """
    rows = [*chosen]
    volume = hypervolume(values[rows], reference=corner)
    gains = np.full(len(left), np.inf)
    asked = np.zeros(len(left), dtype=bool)  # since the last one was chosen
    while len(rows) - len(chosen) < min(most, len(left)):
        while True:
            best = int(gains.argmax())  # of equals the first in order
            near = np.flatnonzero(~asked & (gains >= gains[best] - 1e-9 * volume))  # rounding may lift what has fallen
            if not len(near):
                break
            for at in near.tolist():
                gains[at] = hypervolume(values[[*rows, left[at]]], reference=corner) - volume
                asked[at] = True
        if gains[best] <= 1e-9 * volume:  # rounding
            break
        rows.append(left[best])
        volume = hypervolume(values[rows], reference=corner)
        gains[best], asked[:] = -np.inf, False
    return rows[len(chosen) :]


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
