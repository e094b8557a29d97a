"""How the benchmark of distillation shares out the time, and what it says of a difference."""

import argparse
from typing import Any

import pytest

from benchmarks.distillation import ALONE, GIVEN, TAUGHT, TEACHING, Run, rows_of, steps_of, targets_of


def outcome(arm: str, seed: int, bits: float) -> dict[str, Any]:
    by_project = {"bits": [1000 * (bits + spread) for spread in (-0.2, -0.1, 0.1, 0.2)], "bytes": [1000] * 4}
    return {Run(arm, seed).name: {"arm": arm, "seed": seed, "bits_per_byte": bits, "by_project": by_project}}


def test_a_teacher_and_its_student_have_the_time_of_one_alone() -> None:
    options = argparse.Namespace(minutes=2.0, share=0.25)
    seconds = {ALONE: 0.1, TEACHING: 0.5, TAUGHT: 0.3}
    steps = {arm: steps_of(arm, options, seconds) for arm in (ALONE, TEACHING, TAUGHT, GIVEN)}
    assert steps == {ALONE: 1200, TEACHING: 60, TAUGHT: 300, GIVEN: 400}


@pytest.mark.parametrize(
    ("taught", "said"), [((1.1, 1.12, 1.11), "pays"), ((1.5, 1.52, 1.51), "costs"), ((1.1, 1.5, 1.2), "no difference")]
)
def test_the_sign_is_said_with_its_interval(taught: tuple[float, ...], said: str) -> None:
    done: dict[str, Any] = {}
    for seed, bits in enumerate(taught):
        done |= outcome(TAUGHT, seed, bits) | outcome(ALONE, seed, 1.3) | outcome(TEACHING, seed, 1.2)
    rows = rows_of(done)
    assert [row["arm"] for row in rows] == [TEACHING] * 3 + [ALONE] * 3 + [TAUGHT] * 3
    assert [row["less"] for row in rows[6:]] == pytest.approx([bits - 1.3 for bits in taught])
    assert rows[6]["less_interval"] == pytest.approx([taught[0] - 1.3] * 2)  # what is hard for both is no part of it
    (goal,) = targets_of(done)
    assert f": {said}" in goal["name"]
    assert goal["value"] == pytest.approx(sum(taught) / 3 - 1.3)
    assert goal["interval"][0] < goal["value"] < goal["interval"][1]
