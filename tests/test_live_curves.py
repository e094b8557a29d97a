"""What a person sees of a search and of a training while they run, and what another program reads of them."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from integer_space import Evaluate, IntegerSpace
from rich.console import Console

from codenas_hf.engine import SearchResult, SearchSettings, run_search, two_stage
from codenas_hf.engine.dots import plot
from codenas_hf.engine.progress import Progress, Status
from codenas_hf.engine.study import Snapshot
from codenas_hf.report.curve import CurvePoint, LiveCurve, curve_json

PRELOAD = ["light_codenas", "integer_space"]
SETTINGS = SearchSettings(
    objectives=("a", "b"),
    population=6,
    generations=2,
    rungs=two_stage(population=6, keep=2),
    workers_per_rank=2,
    ideal={"a": 0.0, "b": 0.0},
    reference={"a": 100.0, "b": 100.0},
)


def dots(lines: list[str]) -> list[int]:
    """How many characters of each line are drawn on."""
    return [sum(0x2800 < ord(character) <= 0x28FF for character in line) for line in lines]


def terminal() -> Console:
    return Console(record=True, width=100, height=40, force_terminal=True, file=open(os.devnull, "w"))


def run(folder: Path, **more: Any) -> SearchResult:
    return run_search(
        IntegerSpace(),
        Evaluate(),
        folder=folder,
        settings=SETTINGS,
        preload=["light_codenas", "integer_space"],
        **more,
    )


def test_a_curve_in_characters() -> None:
    rising = plot([0.0, 0.5, 1.0], [0.0, 1.0, 2.0], width=20, height=4)
    assert [len(line) for line in rising] == [30] * 4
    assert (rising[0][:8].strip(), rising[-1][:8].strip()) == ("2.000", "0.000")
    assert ord(rising[0][-1]) > 0x2800, "the last point is at the right, in the first line"
    assert ord(rising[-1][10]) > 0x2800
    falling = [9.0, *[1.0] * 40]
    assert plot([i / 41 for i in range(41)], falling, width=20, height=4, cut=0.05)[0].split()[0] == "1.000"
    assert plot([i / 41 for i in range(41)], falling, width=20, height=4)[0].split()[0] == "9.000"


def test_a_search_is_followed_one_evaluation_at_a_time(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    result = run(tmp_path, follow=lambda status: told.append(json.loads(json.dumps(status.to_dict()))))
    counts = [sum(status["done"]) for status in told]
    assert counts[0] == 0
    assert counts == sorted(set(counts))
    assert counts[-1] == len(result.records) == sum(told[-1]["planned"])
    volumes = [status["hypervolume"] for status in told]
    assert volumes == sorted(volumes), "what was reached stays reached"
    assert volumes[-1] >= result.hypervolume() > 0
    assert set(told[-1]["best"]) == {"a", "b"}
    assert "best" not in told[0], "nothing is known yet"
    assert run(tmp_path, follow=lambda status: pytest.fail("a finished search has no news")).finished


def test_a_terminal_shows_how_the_front_has_grown(tmp_path: Path) -> None:
    snapshots = []
    result = run(tmp_path)
    facts = {"frame": {"ideal": dict(SETTINGS.ideal), "reference": dict(SETTINGS.reference)}}
    for count in (2, 5, 9, 12):
        snapshots.append(Snapshot((result.records[:count], ()), (), facts))
    console = terminal()
    with Progress(SETTINGS, shown=True, console=console) as progress:
        progress.update(snapshots[0])
        assert "hypervolume" not in console.export_text(clear=False), "one point is no curve"
        for snapshot in snapshots[1:]:
            progress._last = -float("inf")
            progress.update(snapshot)
    text = console.export_text()
    assert "hypervolume of the front" in text
    assert sum(dots(text.splitlines())) >= 4


def test_figures_without_fixed_points_have_no_hypervolume(tmp_path: Path) -> None:
    result = run(tmp_path)
    open_ended = dataclasses.replace(SETTINGS, ideal={}, reference={})
    progress = Progress(open_ended, shown=True)
    status: Status = progress.status(Snapshot((result.records[:3], ()), (), {}), now=1.0)
    assert status.volume is None
    assert "hypervolume" not in status.to_dict()


def test_a_training_is_drawn_and_written_as_json() -> None:
    points = [
        CurvePoint(step=i, tokens=100 * i, seconds=float(i), bits_per_byte=4.0 - 0.02 * i, share=i / 100)
        for i in range(10, 101, 10)
    ]
    console = terminal()
    with LiveCurve(console=console) as curve:
        for point in points:
            curve(point)
    assert sum(dots(console.export_text().splitlines())) >= 10
    said: list[str] = []
    watch = curve_json(said.append)
    for point in points:
        watch(point)
    found = [json.loads(line) for line in said]
    assert [line.pop("event") for line in found] == ["point"] * 10
    assert CurvePoint(**found[3]) == points[3]
