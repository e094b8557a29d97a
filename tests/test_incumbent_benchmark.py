"""benchmarks.incumbent compares shares of right answers task by task, and says what the squeezed model loses."""

from typing import Any

import pytest

from benchmarks.incumbent import INCUMBENT, SQUEEZED, compare, targets_of

TASKS = [f"HumanEval/{number}" for number in range(40)]


def row(name: str, right: list[int], **others: Any) -> dict[str, Any]:
    return {"model": name, "right": dict(zip(TASKS, ([count, 20] for count in right), strict=False)), **others}


KNOWN = {"humaneval/greedy/pass@1": 0.04, "humaneval_first_40/bits_per_byte_after_first_token": 0.726}


def test_the_difference_is_of_the_same_tasks() -> None:
    parent = row(INCUMBENT, [20, 10, *[0] * 38], **KNOWN)
    less, unanswered = row(SQUEEZED, [10, 10, *[0] * 30]), {"model": "no samples"}
    compare([parent, less, unanswered])
    assert less["humaneval/t0.2/less_incumbent"] == pytest.approx(-0.5 / 32)
    low, high = less["humaneval/t0.2/less_incumbent_interval"]
    assert low < -0.5 / 32 <= high <= 0
    assert unanswered == {"model": "no samples"}


@pytest.mark.parametrize(("right", "met"), [([20, 10], True), ([0, 0], False)])
def test_the_lower_end_decides(right: list[int], met: bool) -> None:
    rows = [row(INCUMBENT, [20, 10, *[0] * 38], **KNOWN), row(SQUEEZED, [*right, *[0] * 38])]
    compare(rows)
    goal = targets_of(rows)[-1]
    assert SQUEEZED in goal["name"]
    assert goal["met"] is met
    assert all(each["met"] for each in targets_of(rows)[:-1])


def test_without_samples_nothing_is_said_of_the_squeezed_model() -> None:
    rows = [{"model": INCUMBENT, **KNOWN}, {"model": SQUEEZED}]
    compare(rows)
    assert len(targets_of(rows)) == 3
