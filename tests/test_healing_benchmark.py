"""How the benchmark of healing goes on and judges what it measured."""

import argparse
from typing import Any

import pytest

from benchmarks.healing import ARMS, Run, best_arm, rows_of, targets_of, wanted

OPTIONS = argparse.Namespace(arms=list(ARMS), short=100, long=1000, longer=[5000], check=["norms"], others=[75, 50])


def score(cost: float) -> dict[str, Any]:
    """Four projects of 1,000 bytes; every one costs the same more than the parent's 0.9 bits per byte."""
    bits = [1000 * (0.9 + cost + spread) for spread in (-0.2, -0.1, 0.1, 0.2)]
    by_project = {"bits": bits, "bytes": [1000] * 4}
    return {"bits_per_byte": 0.9 + cost, "interval": [0.5, 1.5], "by_project": by_project}


def outcome(run: Run, *, search: float, report: float | None = None) -> dict[str, dict[str, Any]]:
    facts = {"size": run.size, "arm": run.arm, "tokens": run.tokens, "seed": run.seed, "bytes": 59_000_000}
    found = facts | {"search": score(search), "unrounded": 0.9 + search - 0.004}
    return {run.name: found if report is None else found | {"report": score(report)}}


PARENT: dict[str, Any] = {
    "parent": {
        "size": None,
        "arm": "",
        "tokens": 0,
        "seed": 0,
        "bytes": 98_000_000,
        "search": score(0.0),
        "report": score(0.0),
    }
}


def test_long_trainings_follow_from_short_ones_by_search_text() -> None:
    arms = list(ARMS)
    first = wanted(OPTIONS, {})
    assert [run.name for run in first[:2]] == ["parent", "60-untrained"]
    assert {run.tokens for run in first[2:]} == {100}
    assert len({run.name for run in first}) == len(arms) + 2
    done: dict[str, Any] = {}
    for at, arm in enumerate(arms):
        assert best_arm(OPTIONS, done) is None
        done |= outcome(Run(60, arm, 100), search=0.5 - 0.01 * at)
    assert best_arm(OPTIONS, done) == arms[-1]
    more = wanted(OPTIONS, done)[len(first) :]
    assert [(run.size, run.tokens, run.seed) for run in more] == [
        *((60, 1000, seed) for seed in range(3)),
        *([] if arms[-1] == "norms" else [(60, 1000, 0)]),
        (None, 100, 0),
        *((75, 0, 0), (75, 1000, 0), (50, 0, 0), (50, 1000, 0), (60, 5000, 0)),
    ]
    assert {run.arm for run in more if run.tokens} == {arms[-1], "norms"}


def test_three_seeds_are_judged_and_the_longer_row_is_not_among_them() -> None:
    arm = next(iter(ARMS))
    done = PARENT | outcome(Run(60), search=0.08, report=0.07)
    assert targets_of(done, arm=arm, long=1000) == []
    for seed, cost in enumerate((0.04, 0.05, 0.075)):
        done |= outcome(Run(60, arm, 1000, seed), search=0.3, report=cost)
    done |= outcome(Run(60, list(ARMS)[1], 1000), search=0.3, report=0.01)
    done |= outcome(Run(60, arm, 5000), search=0.3, report=0.01) | outcome(Run(60, arm, 100), search=0.09)
    done |= outcome(Run(None, arm, 100), search=-0.03)
    rows = rows_of(done)
    assert rows.pop(1)["arm"] == f"parent, trained alike: {arm}"
    assert [row["arm"] for row in rows] == ["parent", "untrained", *[arm] * 4, list(ARMS)[1], arm]
    assert [row["text"] for row in rows] == ["report", "report", "search", *["report"] * 5]
    assert [row["cost"] for row in rows[1:]] == pytest.approx([0.07, 0.09, 0.04, 0.05, 0.075, 0.01, 0.01])
    assert rows[3]["cost_interval"] == pytest.approx([0.04, 0.04])  # what is hard for both is no part of it
    values = {goal["name"].split(", ", 2)[-1]: goal for goal in targets_of(done, arm=arm, long=1000)}
    mean = values["bits per byte above the parent, mean of 3 seeds"]
    assert (mean["value"], mean["met"]) == (pytest.approx(0.055), True)
    assert not values["bits per byte above the parent, worst seed"]["met"]
    gain = values["less untrained, upper end of the interval, worst seed"]
    assert (gain["value"], gain["met"]) == (pytest.approx(0.005), False)
    assert values["lost by rounding, worst seed"]["value"] == pytest.approx(0.004)
