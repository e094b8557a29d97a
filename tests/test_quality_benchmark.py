"""How the benchmark of quality plans its runs and judges them."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import RATES, Run, step_speeds, summarise, wanted

ASKED = argparse.Namespace(
    arms=["trainer", "loop", "ours"], baselines=["llama_l8h512"], swept=None, size="4mb", minutes_per_arm=3.0,
    seeds=3, more_seeds=1, ours=[Path("ours.yaml")],
)  # fmt: skip


def outcome(run: Run, bits: float) -> dict[str, Any]:
    return {**vars(run), "bits_per_byte": bits, "artifact_bytes": 4, "steps": 7}


def finished(bits: Any) -> dict[str, Any]:
    """All runs that follow from each other, with bits per byte by run."""
    done: dict[str, Any] = {}
    while missing := [run for run in wanted(done, ASKED) if run.name not in done]:
        done |= {run.name: outcome(run, bits(run)) for run in missing}
    return done


def test_the_best_rate_of_the_sweep_and_its_neighbours_get_all_seeds() -> None:
    done = finished(lambda run: 2 + abs((run.rate or 0) - 0.004))
    seeds = {
        rate: {run["seed"] for run in done.values() if run["kind"] == "trainer" and run["rate"] == rate}
        for rate in RATES
    }
    assert seeds == {0.001: {0}, 0.002: {0, 1, 2}, 0.004: {0, 1, 2}, 0.008: {0, 1, 2}, 0.016: {0}}


def test_a_best_rate_at_the_edge_widens_the_sweep() -> None:
    done = finished(lambda run: 2 + abs((run.rate or 0) - 0.0005))
    assert {0.00025, 0.0005} <= {run["rate"] for run in done.values() if run["kind"] == "trainer"}


def test_gains_are_paired_by_seed() -> None:
    """Seeds differ by 0.1, ours is better by a tenth with each: the interval is narrow all the same."""
    kinds = {"trainer": 1.0, "loop": 0.95, "ours": 0.9}
    done = finished(lambda run: (2 + run.seed / 10) * kinds[run.kind] * (1 + abs((run.rate or 0.004) - 0.004)))
    rows, targets = summarise(done, ASKED)
    (both,) = [t for t in targets if t["name"].startswith("loop and architecture")]
    assert both["value"] == pytest.approx(0.1)
    assert "0.100 to 0.100" in both["name"]
    ours = next(row for row in rows if row["arm"] == "ours")
    assert (ours["seeds"], ours["bits_per_byte"]) == (4, pytest.approx(0.9 * 2.15))


def test_a_speed_is_measured_once_for_a_shape_in_its_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("benchmarks.quality.seconds_a_step", lambda run, data: asked.append(run.speed) or 0.5)
    for _ in range(2):
        speeds = step_speeds(wanted({}, ASKED), data=None, kept=tmp_path / "kept.json")  # type: ignore[arg-type]
    assert asked == ["trainer llama_l8h512_4mb", "loop llama_l8h512_4mb", "loop ours"]
    assert speeds == dict.fromkeys(asked, 0.5)
