"""benchmarks.incumbent compares shares of right answers task by task, and says what the squeezed model loses."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import incumbent
from benchmarks.incumbent import INCUMBENT, SQUEEZED, compare, kept_rows, targets_of
from codenas_hf.folders import write_json

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


def test_rows_that_are_kept_say_what_they_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's own commit where a row has none; a row that was measured anew keeps its own."""
    stored = {
        "name": "incumbent",
        "protocol": {"commit": "a", "date": "2026-01-01"},
        "rows": [{"model": INCUMBENT}, {"model": "new", "commit": "b", "date": "2026-02-02"}],
        "targets": [],
    }
    write_json(tmp_path / "incumbent.json", stored)
    monkeypatch.setattr(incumbent, "RESULTS", tmp_path)
    assert [(row["model"], row["commit"], row["date"]) for row in kept_rows(["new"])] == [
        (INCUMBENT, "a", "2026-01-01"),
        ("new", "b", "2026-02-02"),
    ]
    assert kept_rows(None) == []
