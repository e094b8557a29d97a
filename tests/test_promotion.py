"""Who goes on to the next rung: what the study wants, not who stands apart."""

import dataclasses
import itertools

import numpy as np
import pytest

from codenas_hf.engine.objectives import Frame, Objectives
from codenas_hf.engine.pareto import hypervolume, survival_order
from codenas_hf.engine.promotion import corner_of, promoted_indices
from codenas_hf.engine.records import Evaluation
from codenas_hf.engine.settings import SearchSettings, single_stage

SCALES = {"bits": "linear", "bytes": "log2", "ms": "log2"}
IDEAL = {"bits": 1.5, "bytes": 1e5, "ms": 0.25}
REFERENCE = {"bits": 2.0, "bytes": 4e6, "ms": 2.0}


def frame_of(**limits: float) -> Frame:
    return Frame(objectives=Objectives(scales=SCALES, limits=limits), ideal=IDEAL, reference=REFERENCE)


def generation(frame: Frame, rows: list[tuple[float, float, float]]) -> list[Evaluation]:
    return [frame.objectives.checked(Evaluation(objectives=dict(zip(SCALES, row, strict=True)))) for row in rows]


def chosen(frame: Frame, rows: list[tuple[float, float, float]], keep: int = 3, improves: str = "bits") -> list[int]:
    return promoted_indices(generation(frame, rows), frame=frame, improves=improves, keep=keep)


# A first generation as a default study has it: bits per byte, bytes, milliseconds.
FIRST = [
    (3.90, 2e5, 0.30),  # the smallest
    (3.30, 6e5, 0.40),
    (3.05, 1.0e6, 0.50),
    (2.90, 1.6e6, 0.60),
    (2.85, 2.4e6, 0.80),
    (2.84, 1.9e6, 1.90),  # the best in bits per byte, crowded in everything
    (4.20, 3.9e6, 0.28),  # the fastest, and the worst in the rest
    (3.60, 2.1e5, 1.95),  # the slowest
    (3.95, 2.05e5, 0.29),
    (2.845, 2.3e6, 1.0),
    (3.40, 5e5, 0.45),
    (3.20, 8e5, 0.45),
]


def test_the_best_goes_on_and_the_ends_of_the_front_do_not() -> None:
    frame = frame_of()
    values = frame.objectives.matrix(generation(frame, FIRST))
    crowded = survival_order(values)[:6].tolist()
    worst = {int(np.argmax(values[:, column])) for column in range(3)}
    assert worst & set(crowded), "what crowding would promote"
    for keep in (1, 2, 3, 4, 6):
        promoted = chosen(frame, FIRST, keep)
        assert promoted[0] == 5
        assert len(set(promoted)) == keep
        assert not worst & set(promoted)


def test_each_adds_most_hypervolume_to_those_before() -> None:
    frame = frame_of()
    values = frame.objectives.matrix(generation(frame, FIRST))
    promoted = chosen(frame, FIRST)
    # The reference of bits per byte moves to the worst, since all lie beyond it at so few steps; then the margin.
    known = [np.log2(REFERENCE[n]) + 0.1 * np.log2(REFERENCE[n] / IDEAL[n]) for n in ("bytes", "ms")]
    corner = [4.20 + 0.1 * (4.20 - 2.84), *known]
    for size in (2, 3):
        best = max(
            (i for i in range(len(FIRST)) if i not in promoted[: size - 1]),
            key=lambda i: hypervolume(values[[*promoted[: size - 1], i]], reference=corner),
        )
        assert promoted[size - 1] == best
    pairs = itertools.combinations([i for i in range(len(FIRST)) if i != 5], 2)
    whole = max(hypervolume(values[[5, *pair]], reference=corner) for pair in pairs)
    assert hypervolume(values[promoted], reference=corner) > 0.95 * whole  # greedy is near the best three


def test_within_the_limits() -> None:
    frame = frame_of(bytes=1.2e6, ms=1.0)
    promoted = chosen(frame, FIRST)
    assert promoted[0] == 2, "the best of those that keep the limits"
    assert all(FIRST[i][1] <= 1.2e6 and FIRST[i][2] <= 1.0 for i in promoted)
    nobody = chosen(frame_of(bytes=1e3), FIRST)
    excess = frame_of(bytes=1e3).objectives.violation(generation(frame_of(bytes=1e3), FIRST))
    assert set(nobody) == set(np.argsort(excess)[:3].tolist()), "else those that come nearest"
    one = chosen(frame_of(bytes=2.02e5), FIRST)
    assert one[0] == 0
    assert len(one) == 3


def greedy(values: np.ndarray, *, first: int, corner: np.ndarray, keep: int) -> list[int]:
    """By definition: whoever adds most to those before, of equals the first; ends where nobody adds anything."""
    going = [first]
    while len(going) < keep:
        before = hypervolume(values[going], reference=corner)
        gains = [hypervolume(values[[*going, at]], reference=corner) - before for at in range(len(values))]
        if max(gains) <= 1e-9 * before:
            break
        going.append(next(at for at, gain in enumerate(gains) if gain >= max(gains) - 1e-9 * before))
    return going


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("values", ["few", "many", "front"])
def test_the_quick_choice_is_the_plain_one(objectives: int, values: str) -> None:
    names = "abcd"[:objectives]
    frame = Frame(
        objectives=Objectives(scales=dict.fromkeys(names, "linear")),
        ideal=dict.fromkeys(names, 0.0),
        reference=dict.fromkeys(names, 0.8),  # some lie beyond it
    )
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = rng.random((40, objectives))
        if values == "few":  # many are equal, and many add the same
            rows = rows.round(1)
        if values == "front":
            rows = 1 - rows / np.linalg.norm(rows, axis=1, keepdims=True)
        evaluations = [Evaluation(objectives=dict(zip(names, row, strict=True))) for row in rows.tolist()]
        order = survival_order(rows)
        corner = corner_of(frame, rows, objectives - 1)
        ordered = rows[order]
        going = order[greedy(ordered, first=int(ordered[:, -1].argmin()), corner=corner, keep=20)].tolist()
        found = promoted_indices(evaluations, frame=frame, improves=names[-1], keep=20)
        assert found[: len(going)] == going
        assert found[len(going) :] == [at for at in order.tolist() if at not in going][: 20 - len(going)]


@pytest.mark.parametrize("seed", range(20))
def test_nobody_who_stays_behind_dominates_who_goes_on(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [tuple(row) for row in np.round(np.exp(rng.uniform(-1, 1, (12, 3))), 1).tolist()]
    rows = [(2 * q, 1e6 * b, ms) for q, b, ms in rows]
    frame = frame_of(**({"bytes": 1e6} if seed % 2 else {}))
    promoted = chosen(frame, rows, keep=5)
    assert promoted == chosen(frame, rows, keep=5)
    assert promoted[:2] == chosen(frame, rows, keep=2)
    within = [seed % 2 == 0 or row[1] <= 1e6 for row in rows]
    for index in promoted:
        for other in set(range(len(rows))) - set(promoted):
            dominates = (
                all(a <= b for a, b in zip(rows[other], rows[index], strict=True)) and rows[other] != rows[index]
            )
            assert not (dominates and within[other])


def test_any_objective_may_be_the_one_that_training_improves() -> None:
    assert chosen(frame_of(), FIRST, keep=1, improves="ms") == [6]
    one = Frame(objectives=Objectives(scales={"a": "linear"}), ideal={"a": 0}, reference={"a": 1})
    rows = [Evaluation(objectives={"a": a}) for a in (3.0, 1.0, 2.0, 1.0)]
    assert promoted_indices(rows, frame=one, improves="a", keep=3) == [1, 3, 2]
    assert promoted_indices([], frame=one, improves="a", keep=3) == []
    settings = SearchSettings(objectives=("a", "b"), rungs=single_stage())
    assert (settings.improved, dataclasses.replace(settings, improves="b").improved) == ("a", "b")
    identities = [
        s.identity_of(space=None, policy=None) for s in (settings, dataclasses.replace(settings, improves="b"))
    ]
    assert identities[0] != identities[1]
    with pytest.raises(ValueError, match="`improves` names c; the objectives are a, b"):
        SearchSettings(objectives=("a", "b"), rungs=single_stage(), improves="c")
