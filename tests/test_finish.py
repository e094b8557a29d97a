"""The winner trains on after the search: how long, from where, by whom; and more training of it is one call."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_plan import planned
from test_search_job import words

from codenas_hf.engine import SearchResult
from codenas_hf.folders import StudyFolder
from codenas_hf.hardware import Hardware
from codenas_hf.jobs import finish as finish_module
from codenas_hf.jobs.durations import Duration
from codenas_hf.jobs.finish import Finish, finish_here, finish_seconds, finish_winner, trial_state
from codenas_hf.jobs.search import search
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.study import open_study
from codenas_hf.jobs.train import train
from codenas_hf.report.curve import CurvePoint
from codenas_hf.strict_yaml import load
from codenas_hf.training.checkpoint import read_progress

CPU = Hardware("cpu", "x", 2)


@pytest.fixture(scope="module")
def study(tiny_corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A search of seconds whose winner was trained on for two seconds."""
    folder = tmp_path_factory.mktemp("finish")
    said: list[str] = []
    settings = load(RunSettings, overrides=words(folder, tiny_corpus_folder, "search.finish=2s", "train.log_every=1"))
    outcome = search(settings, say=said.append)
    assert outcome.winner is not None
    assert any(line.startswith("finish    ") and "2 s" in line for line in said)
    return StudyFolder(outcome.folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_winner_is_what_trained_on(study: StudyFolder) -> None:
    result, settings = open_study(study.folder)
    assert result.winner is not None
    record = study.winner.read_record()
    decided = Finish(**json.loads(study.finish.read_text()))
    assert record.trial is not None
    assert (record.genome_id, record.trial.number) == (result.winner.genome.genome_id, result.winner.number)
    assert record.training.budget == decided.budget
    state = trial_state(result.winner)
    assert state is not None
    had = read_progress(state)
    assert record.training.steps is not None
    assert record.training.steps > had.step  # it went on, it did not begin anew
    assert record.measured.bits_per_byte is not None
    assert record.origin is not None
    assert record.origin.kind == "study"

    # Done is done: the same call returns at once, another length trains on.
    written = study.winner.record.stat().st_mtime_ns
    arguments: dict[str, Any] = {"folder": study.folder, "hardware": CPU, "say": lambda line: None}
    finish_winner(result.winner, settings=settings, seconds=99.0, **arguments)
    assert study.winner.record.stat().st_mtime_ns == written
    longer = dataclasses.replace(settings, search=dataclasses.replace(settings.search, finish=Duration(3.0)))
    finish_winner(result.winner, settings=longer, seconds=3.0, **arguments)
    more = study.winner.read_record().training
    assert more.steps is not None
    assert more.steps > record.training.steps
    shorter = dataclasses.replace(settings, search=dataclasses.replace(settings.search, finish=Duration(1.0)))
    finish_winner(result.winner, settings=shorter, seconds=1.0, **arguments)
    fewer = study.winner.read_record().training
    assert fewer.steps is not None
    assert had.step < fewer.steps < more.steps, "its state had had more already: it begins again from the trial's"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_more_training_of_the_winner_is_one_call(study: StudyFolder, tmp_path: Path) -> None:
    """It goes on from what the study left: from before the decay of the last training."""
    said: list[str] = []
    left = read_progress(study.finish_training / "constant")
    folder = train(str(study.folder), f"{left.step + 4} steps", out=tmp_path / "more", say=said.append)
    assert any("resume" in line and "winner.training" in line for line in said)
    assert StudyFolder(folder).winner.folder != study.winner.folder
    assert json.loads((folder / "record.json").read_text())["training"]["steps"] == left.step + 4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_train_one_winner(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish_module, "WORTH_STARTING_S", 0.0)
    result, settings = open_study(study.folder)
    assert result.winner is not None
    settings = dataclasses.replace(settings, search=dataclasses.replace(settings.search, finish=Duration(4.0)))
    said: list[str] = []
    points: list[CurvePoint] = []
    arguments: dict[str, Any] = {"folder": study.folder, "settings": settings, "seconds": 4.0, "hardware": CPU}
    finish_winner(result.winner, say=said.append, watch=points.append, **arguments)
    record = study.winner.read_record()
    assert record.training.processes == 2
    assert any("trains on for 4 s in 2 processes" in line for line in said)
    assert any(line.startswith("quality   ") for line in said)
    assert points
    assert points[-1].share > points[0].share
    assert not (study.folder / "finish.log").exists()

    # What ends badly says so, keeps the log, and leaves the release as it was.
    (study.folder / "finish.json").write_text(json.dumps({"genome_id": "x"}))
    with pytest.raises(TypeError):
        finish_here(study.folder, say=said.append)


def outcome(*rungs: tuple[int, float]) -> SearchResult:
    """A record of evaluations that took so many seconds."""
    records = [
        SimpleNamespace(rung=r, generation=0, worker="here:1", evaluation=SimpleNamespace(seconds={"train": s}))
        for r, s in rungs
    ]
    return SimpleNamespace(records=records)  # type: ignore[return-value]


def test_how_long_the_winner_trains_on() -> None:
    def seconds(result: SearchResult, *overrides: str, **changes: Any) -> float:
        arguments: dict[str, Any] = {"plan": None, "elapsed_s": 100.0, "workers": 2, **changes}
        return finish_seconds(result, load(RunSettings, overrides=overrides), **arguments)

    some = outcome((0, 50.0), (0, 50.0), (1, 60.0), (1, 100.0))
    assert seconds(some) == 80.0  # as long as the promoted rung took
    assert seconds(outcome((0, 10.0), (1, 9000.0))) == 180.0
    assert seconds(outcome((0, 100.0))) == 50.0  # one rung: that one
    assert seconds(some, "search.finish=10m") == 600.0
    assert seconds(some, "search.finish=null") == 0.0

    plan = planned(1800)
    left = seconds(some, plan=plan, elapsed_s=plan.spent_s + plan.search_s + plan.measure_s - plan.final_s)
    assert left == pytest.approx(plan.finish_s, rel=0.05)
    assert seconds(some, plan=plan, elapsed_s=1800.0) == 0.4 * plan.finish_s  # late: not without any training
    assert seconds(some, plan=plan, elapsed_s=60.0) == 2 * plan.finish_s
    restarted = outcome((0, 2 * 1100.0), (1, 0.0))
    expected = pytest.approx(1800 - plan.spent_s - 1100 - plan.final_s, rel=0.05)
    assert seconds(restarted, plan=plan, elapsed_s=5.0) == expected

    # Two processes of two workers each: as much work in half of the time, also where one was started again.
    shared = outcome(*3 * [(0, 1700.0), (0, 3400.0), (1, 1700.0)])
    for at, record in enumerate(shared.records):
        record.generation = at // 3  # type: ignore[misc]
        record.worker = ("here:1", "there:2", "there:2" if at != 2 else "here:3")[at % 3]  # type: ignore[misc]
    longer = planned(7200)
    found = seconds(shared, plan=longer, elapsed_s=5.0)
    assert found == pytest.approx(7200 - longer.spent_s - 5100 - longer.final_s)
    assert 0.4 * longer.finish_s < found < 2 * longer.finish_s


def test_a_winner_trains_on_when_the_time_of_its_study_is_extended(tmp_path: Path) -> None:
    winner: Any = SimpleNamespace(genome=SimpleNamespace(genome_id="a"), rung=1, number=3, evaluation=None)
    study = StudyFolder(tmp_path)
    study.finish_training.mkdir()

    def decided(seconds: float, *words: str) -> Finish:
        settings = load(RunSettings, overrides=words)
        return finish_module._decided(winner, study=study, settings=settings, seconds=seconds, hardware=CPU)

    first = decided(100.0, "search.time=30m")
    assert (first.seconds, first.time_s) == (100.0, 1800.0)
    assert decided(150.0, "search.time=30m") == first, "once decided, it stays"
    more = decided(300.0, "search.time=2h")
    assert (more.seconds, more.time_s, more.budget) == (300.0, 7200.0, "300 seconds")
    assert decided(500.0, "search.time=2h") == more
    less = decided(50.0, "search.time=1h")
    assert (less.seconds, less.budget) == (300.0, "300 seconds"), "nothing of its training is thrown away"
    assert decided(400.0, "search.time=1h") == less
    assert study.finish_training.exists()
    assert decided(400.0) == less

    # What was decided before the time was kept is no other time.
    stored = json.loads(study.finish.read_text())
    del stored["time_s"]
    study.finish.write_text(json.dumps(stored))
    assert decided(400.0, "search.time=1h") == less
    assert decided(400.0, "search.time=2h").seconds == 400.0
