"""`run_search` as its users call it: deterministic, resumable, with every kind of failure, on one or more ranks."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from integer_space import Confirm, Evaluate, IntegerSpace, Interrupting, Keeping, Passes, Point
from rich.console import Console
from test_workers import answered

from codenas_hf.engine import (
    Evaluation,
    IdentityError,
    JournalError,
    Patience,
    RandomPolicy,
    RanksError,
    SearchResult,
    SearchSettings,
    SingleJobError,
    TrialRecord,
    driver,
    run_search,
    single_stage,
    two_stage,
)
from codenas_hf.engine.journal import JobLock
from codenas_hf.engine.progress import Progress, Status, duration
from codenas_hf.engine.schedule import superseded
from codenas_hf.engine.study import Snapshot

SPACE = IntegerSpace()
SETTINGS = SearchSettings(
    objectives=("a", "b"), population=6, generations=3, rungs=two_stage(population=6, keep=2), workers_per_rank=2
)
PRELOAD = ["light_codenas", "integer_space"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CODENAS_WORLD"):
        monkeypatch.delenv(name, raising=False)


def search(folder: Path, evaluator: Any = None, settings: SearchSettings = SETTINGS, **more: Any) -> SearchResult:
    return run_search(SPACE, evaluator or Evaluate(), folder=folder, settings=settings, preload=PRELOAD, **more)


def plain(records: Any) -> list[dict[str, Any]]:
    return [{**record.to_dict(), "worker": None} for record in records]


def test_records_are_the_same_for_1_2_and_8_workers(tmp_path: Path) -> None:
    results = [
        search(tmp_path / str(n), Evaluate(seconds=0.02), dataclasses.replace(SETTINGS, workers_per_rank=n))
        for n in (1, 2, 8)
    ]
    first = plain(results[0].records)
    assert len(first) == 3 * 6 + 3 * 3
    assert plain(results[1].records) == first
    assert plain(results[2].records) == first
    assert [r.finished for r in results] == [True] * 3
    workers = {record.worker for record in results[0].records}
    assert workers == {f"{os.uname().nodename}:{os.getpid()}"}


def test_the_front_that_is_known_in_closed_form_is_found(tmp_path: Path) -> None:
    space = IntegerSpace(side=5)
    settings = SearchSettings(objectives=("a", "b"), population=10, generations=40, rungs=single_stage())
    result = run_search(space, Evaluate(side=5), folder=tmp_path, settings=settings, preload=PRELOAD)
    assert {record.genome for record in result.front} == {Point(x, 0) for x in range(5)}
    assert len(result.records) == 25  # exhausted: every genome once, then the search ends by itself
    assert result.winner in result.front


def test_a_finished_search_returns_at_once_and_can_be_extended(tmp_path: Path) -> None:
    evaluator = Evaluate(log=tmp_path / "log")
    first = search(tmp_path / "s", evaluator)
    lines = len((tmp_path / "log").read_text().splitlines())
    assert lines == len(first.records)
    again = search(tmp_path / "s", evaluator)
    assert plain(again.records) == plain(first.records)
    assert len((tmp_path / "log").read_text().splitlines()) == lines
    opened = SearchResult.open(tmp_path / "s", space=SPACE)
    assert dataclasses.replace(opened, rungs=again.rungs) == again
    longer = search(tmp_path / "s", evaluator, dataclasses.replace(SETTINGS, generations=4))
    fresh = search(tmp_path / "t", settings=dataclasses.replace(SETTINGS, generations=4))
    assert plain(longer.records) == plain(fresh.records)
    assert len((tmp_path / "log").read_text().splitlines()) == len(longer.records)
    with pytest.raises(FileNotFoundError, match="no search in"):
        SearchResult.open(tmp_path / "nowhere", space=SPACE)
    with pytest.raises(FileNotFoundError, match="no search called 'other'"):
        SearchResult.open(tmp_path / "s", space=SPACE, name="other")


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    opened: list[int] = []
    search(tmp_path, on_open=lambda: opened.append(1))
    with pytest.raises(IdentityError, match=r"seed: stored 0, given 1"):
        search(tmp_path, settings=dataclasses.replace(SETTINGS, seed=1), on_open=lambda: opened.append(2))
    search(tmp_path, settings=dataclasses.replace(SETTINGS, weights={"a": 1.0}), on_open=lambda: opened.append(3))
    assert opened == [1, 3], "nothing is written beside a search that is refused"
    with pytest.raises(IdentityError, match=r'policy: stored .*given "RandomPolicy'):
        search(tmp_path, policy=RandomPolicy())


def test_a_journal_on_a_network_file_system_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise JournalError("nfs")

    monkeypatch.setattr(driver, "check_local", refuse)
    with pytest.raises(JournalError, match="nfs"):
        search(tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_second_job_is_refused(tmp_path: Path) -> None:
    lock = JobLock(tmp_path / "study.lock")
    lock.acquire()
    with pytest.raises(SingleJobError, match=rf"process {os.getpid()}\) works on"):
        search(tmp_path, on_open=lambda: pytest.fail("somebody else works on it"))
    lock.release()
    search(tmp_path)


@pytest.mark.parametrize("spoil", ["raise", "kill", "names", "nan", "memory", "hang"])
def test_failures_are_records_and_the_search_goes_on(tmp_path: Path, spoil: str) -> None:
    limits = {"hang": {"time_limit_s": 1.5}, "memory": {"memory_limit_bytes": 500 << 20}}.get(spoil, {})
    settings = dataclasses.replace(SETTINGS, patience=Patience(kills=0), **limits)
    result = search(tmp_path, Evaluate(spoil=spoil), settings)
    spoilt = [record for record in result.records if record.genome.x % 4 == 3]  # type: ignore[attr-defined]
    assert spoilt
    assert all(record.state == "fail" and record.evaluation is None for record in spoilt)
    assert set(result.failures) == set(spoilt)
    assert not [record for record in spoilt if record.rung == 1]
    expected = {
        "raise": "ArithmeticError: no good: ",
        "kill": "killed by SIGKILL",
        "names": "returned the objectives a, c; the study minimises a, b",
        "nan": "objective 'a' must be finite, got nan",
        "memory": "the memory limit of 500 MiB was exceeded",
        "hang": "the time limit of 1.5 s was exceeded",
    }[spoil]
    assert all(expected in (record.failure or "") for record in spoilt)
    assert result.winner is not None


def test_what_ends_together_with_a_full_disk_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, log = driver.Pool.poll, tmp_path / "log"

    def when_all_have_answered(pool: driver.Pool, timeout: float) -> Any:
        answered(pool)
        return real(pool, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(driver.Pool, "poll", when_all_have_answered)
        with pytest.raises(OSError, match="the disk is full"):
            search(tmp_path / "s", Evaluate(spoil="full disk", log=log))
    states = [record.state for record in SearchResult.open(tmp_path / "s", space=SPACE).records]
    lines = log.read_text().splitlines()
    assert states.count("complete") == len(lines) > 0
    assert "running" not in states
    result = search(tmp_path / "s", Evaluate(log=log))
    lines = [" ".join(line.split()[:3]) for line in log.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == len(result.records)


def test_limits_decide_who_may_win(tmp_path: Path) -> None:
    result = search(tmp_path, settings=dataclasses.replace(SETTINGS, limits={"a": 20.0, "b": 25.0}))
    assert result.front
    for record in result.front:
        assert record.evaluation is not None
        assert record.evaluation.objectives["a"] <= 20
        assert record.evaluation.objectives["b"] <= 25
    nobody = search(tmp_path / "n", settings=dataclasses.replace(SETTINGS, limits={"a": -1.0}))
    assert (nobody.front, nobody.winner) == ((), None)


def confirmed_lines(folder: Path) -> list[str]:
    return (folder / "confirmed").read_text().splitlines()


def test_the_front_is_confirmed_until_all_of_it_is(tmp_path: Path) -> None:
    plain_front = {record.genome for record in search(tmp_path / "plain").front}
    result = search(tmp_path / "s", confirm=Confirm(tmp_path / "confirmed"))
    known = {(trial.rung, trial.parent) for trial in result.confirmed}
    assert all((record.rung, record.number) in known for record in result.front)
    lines = confirmed_lines(tmp_path)
    assert len(lines) == len(set(lines)) == len(result.confirmed)
    assert {line.split()[0] for line in lines} == {"1"}
    # Points with x > 20 lost 40 at their confirmation, so others took their places, and were confirmed in turn.
    front = {record.genome for record in result.front}
    assert front != plain_front
    assert max(point.x for point in plain_front) > 20  # type: ignore[attr-defined]
    assert max(point.x for point in front) <= 20  # type: ignore[attr-defined]
    again = search(tmp_path / "s", confirm=Confirm(tmp_path / "confirmed"))
    assert plain(again.front) == plain(result.front)
    assert confirmed_lines(tmp_path) == lines


def test_a_search_that_was_finished_without_is_confirmed_later(tmp_path: Path) -> None:
    first = search(tmp_path / "s")
    result = search(tmp_path / "s", confirm=Confirm(tmp_path / "confirmed"))
    assert not first.confirmed
    assert result.confirmed


def test_who_cannot_be_confirmed_leaves_the_front(tmp_path: Path) -> None:
    before = search(tmp_path / "plain").front
    chosen: Any = next(record.genome for record in before if record.genome.x <= 20)  # type: ignore[attr-defined]
    result = search(tmp_path / "s", confirm=Confirm(tmp_path / "confirmed", fail_at=chosen.x))
    assert chosen not in {record.genome for record in result.front}
    assert {trial.failure for trial in result.failures} == {"ArithmeticError: not confirmed"}


def test_the_front_is_confirmed_in_passes_over_all_of_it(tmp_path: Path) -> None:
    before = {record.genome for record in search(tmp_path / "plain").front}
    assert {int(point.genome_id, 16) % 2 for point in before} == {0, 1}
    result = search(tmp_path / "s", confirm=Passes(tmp_path / "confirmed"))
    lines = [line.split() for line in confirmed_lines(tmp_path)]
    first = {(x, y) for turn, x, y in lines[: len(before)]}
    assert first == {(str(p.x), str(p.y)) for p in before}, "all of the front once"  # type: ignore[attr-defined]
    # Nobody is confirmed a second time before all others were once; who failed once after a success stays.
    assert before <= {record.genome for record in result.front}
    assert {line for line in map(tuple, lines)} >= {("2", x, y) for x, y in first}
    by_member = [(trial.rung, trial.parent) for trial in result.confirmed]
    assert set(by_member.count(key) for key in by_member) == {3}
    assert {trial.failure for trial in result.failures} == {"ArithmeticError: not this time"}
    again = search(tmp_path / "s", confirm=Passes(tmp_path / "confirmed"))
    assert plain(again.front) == plain(result.front)
    assert len(confirmed_lines(tmp_path)) == len(lines)


def test_checkpoints_are_continued_and_then_deleted(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    result = search(tmp_path / "s", Keeping(files))
    assert result.front
    left = {path.name for path in files.iterdir()}
    assert left == {f"{record.genome.genome_id}-1" for record in result.front}
    assert all(path.read_text() == "01" for path in files.iterdir())


@pytest.mark.parametrize("how", ["moved", "renamed", "copied"])
def test_a_study_that_lies_elsewhere_now_goes_on(tmp_path: Path, how: str) -> None:
    settings = dataclasses.replace(SETTINGS, generations=2)
    old = tmp_path / "runs" / "s"
    (old / "trials").mkdir(parents=True)
    search(old, Keeping(old / "trials"), settings)
    new = {"moved": tmp_path / "other" / "s", "renamed": tmp_path / "runs" / "s.old1"}.get(how, tmp_path / "copy")
    new.parent.mkdir(exist_ok=True)
    if how == "copied":
        shutil.copytree(old, new)
    else:
        old.rename(new)
    opened = SearchResult.open(new, space=SPACE)
    places = [r.evaluation.checkpoint for r in opened.front if r.evaluation is not None]
    assert places
    assert all(place is not None and place.parent == new / "trials" and place.exists() for place in places)
    longer = search(new, Keeping(new / "trials"))
    straight = tmp_path / "straight"
    (straight / "trials").mkdir(parents=True)
    expected = search(straight, Keeping(straight / "trials"))

    def without_places(result: SearchResult) -> str:
        return json.dumps(plain(result.records)).replace(str(new), "").replace(str(straight), "")

    assert without_places(longer) == without_places(expected)
    assert not longer.failures


def test_what_is_superseded() -> None:
    def trial(number: int, a: float, b: float, rung: int, parent: int | None = None, state: Any = "complete") -> Any:
        evaluation = Evaluation(objectives={"a": a, "b": b}, checkpoint=Path(f"{rung}-{number}"))
        evaluation = evaluation if state == "complete" else None  # type: ignore[assignment]
        return TrialRecord(number, Point(number, 0), rung, state, evaluation, parent=parent)

    low = tuple(trial(n, n, n, 0) for n in range(4))
    high = (trial(0, 1, 1, 1, 0), trial(1, 2, 2, 1, 1), trial(2, 0, 0, 1, 2, "running"))
    facts = {"promoted:1:0": 3}

    def given_up(rungs: Any, facts: Any, *, confirming: bool = False) -> list[tuple[int, int]]:
        snapshot = Snapshot(rungs, (), facts)
        found = superseded(snapshot, confirming=confirming, objectives=SETTINGS.build_objectives())
        return [(record.rung, record.number) for record, _ in found]

    assert given_up((low, high), facts) == [(0, 0), (0, 1), (0, 3), (1, 1)]  # 2 is still running from its checkpoint
    assert given_up((low, high), facts, confirming=True) == [(0, 0), (0, 1), (0, 3)]
    assert given_up((low, high), {}) == [(1, 1)]  # nobody has been left behind yet
    assert given_up((low, high[2:]), facts) == []  # nothing above could win yet


PROGRAM = [sys.executable, str(Path(__file__).parent / "search_program.py")]


def started(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, str(folder), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_log(folder: Path, lines: int) -> None:
    deadline = time.monotonic() + 60
    while not (folder / "log").exists() or len((folder / "log").read_text().splitlines()) < lines:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c(tmp_path: Path, presses: int) -> None:
    with started(tmp_path, "seconds=1.0", "generations=2") as process:
        wait_for_log(tmp_path, 2)
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        start = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "run the same command to go on from there" in errors
    assert time.monotonic() - start < 20
    result = SearchResult.open(tmp_path / "study", space=SPACE, name="killed")
    assert not result.finished
    states = [record.state for record in result.records]
    lines = (tmp_path / "log").read_text().splitlines()
    if presses == 1:  # a second press may come while a trial is claimed; the next start puts that one back
        assert "running" not in states
        assert states.count("complete") == len(lines)  # what ran was finished and kept
        assert "Press Ctrl-C again" in errors
    with started(tmp_path, "seconds=0", "generations=2") as process:
        assert process.communicate(timeout=60)[0] == "done\n"
    lines = [" ".join(line.split()[:3]) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(lines) == len(set(lines))


def test_one_ctrl_c_ends_confirmations_as_well(tmp_path: Path) -> None:
    interrupting = Interrupting(tmp_path / "confirmed", pid=os.getpid())
    with pytest.raises(KeyboardInterrupt, match="run the same command to go on from there"):
        search(tmp_path / "s", confirm=interrupting)
    assert len(confirmed_lines(tmp_path)) == 1, "what ran was finished, nothing new began"
    result = search(tmp_path / "s", confirm=interrupting)
    lines = confirmed_lines(tmp_path)
    assert len(lines) == len(set(lines)) == len(result.confirmed) > 1


def test_ctrl_c_at_the_end_is_not_swallowed(tmp_path: Path) -> None:
    """Else the caller's next work would begin: the training of the winner, hours of it."""

    def press(status: Status) -> None:
        if status.share == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="run the same command"):
        search(tmp_path, follow=press)
    assert SearchResult.open(tmp_path, space=SPACE).finished


def test_an_extended_search_is_finished_when_it_is_finished_again(tmp_path: Path) -> None:
    def press(status: Status) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    search(tmp_path)
    longer = dataclasses.replace(SETTINGS, generations=5)
    assert SearchResult.open(tmp_path, space=SPACE).finished
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, settings=longer, follow=press)
    assert not SearchResult.open(tmp_path, space=SPACE).finished
    search(tmp_path, settings=longer)
    assert SearchResult.open(tmp_path, space=SPACE).finished


def ranks_of(folder: Path, *options: str, world: int = 2) -> list[subprocess.Popen[str]]:
    return [
        started(folder, *options, f"records=records{rank}.json", RANK=str(rank), WORLD_SIZE=str(world))
        for rank in range(world)
    ]


def test_two_ranks_share_a_search_and_agree_on_it(tmp_path: Path) -> None:
    alone = search(tmp_path / "alone")
    processes = ranks_of(tmp_path, "workers=1", "seconds=0.1", "population=6", "keep=2", "generations=3")
    for process in processes:
        output, errors = process.communicate(timeout=100)
        assert output == "done\n", errors
    first, second = (json.loads((tmp_path / f"records{rank}.json").read_text()) for rank in range(2))
    assert first == second == json.loads(json.dumps(plain(alone.records)))
    result = SearchResult.open(tmp_path / "study", space=SPACE, name="killed")
    per_rank = [
        sum(record.worker.endswith(f":{p.pid}") for record in result.records if record.worker) for p in processes
    ]
    assert sum(per_rank) == len(result.records)
    assert min(per_rank) > 3


def test_a_rank_without_its_rank_zero_stops_and_says_so(tmp_path: Path) -> None:
    zero, one = ranks_of(tmp_path, "workers=1", "seconds=0.2", "generations=40")
    wait_for_log(tmp_path, 4)
    zero.kill()
    zero.communicate()
    _, errors = one.communicate(timeout=100)
    assert one.returncode != 0
    assert "RanksError: rank 0 is gone" in errors


def test_another_rank_count_than_asked_for_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODENAS_WORLD", "2")
    with pytest.raises(RanksError, match="CODENAS_WORLD asks for 2 ranks, but the launcher started 1"):
        search(tmp_path)
    monkeypatch.delenv("CODENAS_WORLD")
    with pytest.raises(RanksError, match="world_size asks for 4 ranks"):
        search(tmp_path, settings=dataclasses.replace(SETTINGS, world_size=4))


@pytest.mark.slow
def test_two_accelerate_cpu_ranks_really_are_two(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    command += ["--num_processes", "2", "--main_process_port", "0", PROGRAM[1], str(tmp_path), "workers=1"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CODENAS_WORLD": "2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.count("done") == 2, done.stderr
    result = SearchResult.open(tmp_path / "study", space=SPACE, name="killed")
    assert result.finished
    assert len({record.worker for record in result.records}) == 2
    # What looks like two and is one: `--cpu --num_processes 2` starts a single process.
    command[3:5] = ["--cpu", "--num_machines"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "CODENAS_WORLD asks for 2 ranks, but the launcher started 1" in done.stderr


def test_plain_lines_and_the_final_table(tmp_path: Path) -> None:
    result = search(tmp_path)
    console = Console(record=True, width=160, force_terminal=False, file=open(os.devnull, "w"))
    progress = Progress(SETTINGS, shown=True, console=console, every_s=0)
    half = Snapshot((result.records[:6], ()), (), {})
    with progress:
        progress.update(Snapshot(((), ()), (), {}))
        progress.update(half)
        progress.finish(result)
    text = console.export_text()
    assert "generation 1/3, rung 0: 6/18, rung 1: 0/9, 0 running, 0 failed, front" in text
    assert result.winner is not None
    assert f"Winner: {result.winner.genome.genome_id}" in text
    assert f"Front at rung 1: {len(result.front)} of 27 trials" in text


def test_time_left_follows_the_budgets(tmp_path: Path) -> None:
    result = search(tmp_path)
    progress = Progress(SETTINGS, shown=True)
    assert progress.status(Snapshot(((), ()), (), {}), now=100.0).seconds_left is None
    half = Snapshot((result.records[:9], ()), (), {})
    status = progress.status(half, now=110.0)
    # 9 of 18 at 50 steps took 10 s; 9 more, and 9 at 250 steps are left.
    assert status.seconds_left == pytest.approx(10 * (9 * 50 + 9 * 250) / (9 * 50))
    assert [duration(s) for s in (42, 200, 7500)] == ["42 s", "3 min", "2 h 5 min"]


def test_a_live_display_on_a_terminal(tmp_path: Path) -> None:
    console = Console(record=True, width=120, force_terminal=True, file=open(os.devnull, "w"))
    with Progress(SETTINGS, shown=True, console=console) as progress:
        progress.update(Snapshot(((), ()), (), {}))
        progress.finish(SearchResult.of(Snapshot(((), ()), (), {}), objectives=SETTINGS.build_objectives(), rungs=()))
    text = console.export_text()
    assert "none yet" in text
    assert "The search has no front: no trial is feasible." in text
