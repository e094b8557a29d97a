"""SIGKILL at random moments: the same records as the uninterrupted run, nothing finished lost or repeated."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from integer_space import IntegerSpace
from test_driver import started

from codenas_hf.engine import SearchResult
from codenas_hf.engine.members import process_started

SPACE = IntegerSpace()


def children_of(pid: int) -> list[int]:
    """All processes below `pid` that evaluate or wait to."""
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        try:
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except OSError:
            continue
        queue += (below := [int(word) for word in text.split()])
        found += below
    return found


def finished(folder: Path) -> set[str]:
    """What the record says is finished, as the evaluator's log writes it."""
    result = SearchResult.open(folder / "study", space=SPACE, name="killed")
    return {
        f"{record.rung} {record.genome.x} {record.genome.y}"  # type: ignore[attr-defined]
        for record in result.records
        if record.state == "complete"
    }


def log_of(folder: Path) -> list[str]:
    if not (folder / "log").exists():
        return []
    return [" ".join(line.split()[:3]) for line in (folder / "log").read_text().splitlines()]


def wait_until(condition: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def straight(folder: Path, *options: str) -> Any:
    folder.mkdir()
    with started(folder, *options) as process:
        output, errors = process.communicate(timeout=300)
        assert output == "done\n", errors
    return json.loads((folder / "records.json").read_text())


class Assault:
    """Starts a search again and again and kills parts of it at random moments, until there were enough kills.

    Args:
        folder: of the search.
        kills: how many.
        seed: of the moments and victims.
        ranks: one plain process, or the ranks of one launch.
        options: of the program.
    """

    def __init__(self, folder: Path, *, kills: int, seed: int, ranks: int, options: tuple[str, ...]) -> None:
        folder.mkdir()
        self.folder, self.kills, self.ranks, self.options = folder, kills, ranks, options
        self.rng = random.Random(seed)
        self.counts = {"everything": 0, "rank": 0, "child": 0}
        self.finished_then: list[tuple[set[str], int]] = []
        self.records: Any = None

    def run(self) -> None:
        while self.records is None:
            if self.ranks == 1:
                processes = [started(self.folder, *self.options)]
            else:
                processes = [
                    started(self.folder, *self.options, f"records={rank}.json", RANK=str(rank), WORLD_SIZE="2")
                    for rank in range(self.ranks)
                ]
            self.wait_for_lock(processes[0].pid)
            below: list[int] = []
            while sum(self.counts.values()) < self.kills and processes[0].poll() is None:
                time.sleep(self.rng.random() * 0.6)
                below = [pid for process in processes for pid in children_of(process.pid)]
                self.remember()
                self.kill(processes)
            self.end(processes, below)
        log = log_of(self.folder)
        for known, position in self.finished_then:
            assert not known & set(log[position:]), "a finished evaluation was repeated"

    def wait_for_lock(self, pid: int) -> None:
        lock = self.folder / "study" / "study.lock"
        wait_until(lambda: lock.exists() and lock.read_text() == f"{pid}\n")

    def remember(self) -> None:
        known = finished(self.folder)
        self.finished_then.append((known, len(log_of(self.folder))))

    def kill(self, processes: list[subprocess.Popen[str]]) -> None:
        what = self.rng.choice(list(self.counts))
        process = self.rng.choice(processes)
        below = children_of(process.pid)
        victims = {
            "everything": [process.pid, *below],
            "rank": [process.pid],
            "child": self.rng.sample(below, min(1, len(below))),
        }[what]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if victims:
            self.counts[what] += 1
        if what != "child":
            process.wait()

    def end(self, processes: list[subprocess.Popen[str]], below: list[int]) -> None:
        if processes[0].poll() is None:  # a rank 0 that lives finishes the search, also without the others
            output, errors = processes[0].communicate(timeout=300)
            assert output == "done\n", errors
        for process in processes[1:]:  # what a launcher does when one rank is gone
            if processes[0].returncode != 0:
                process.kill()
            process.communicate(timeout=300)
        wait_until(lambda: not any(process_started(pid) for pid in below))  # nothing of a dead rank lives on
        if processes[0].returncode == 0:
            name = "records.json" if self.ranks == 1 else "0.json"
            self.records = json.loads((self.folder / name).read_text())


@pytest.mark.timeout(400)  # seconds on a machine of its own, minutes on a crowded one
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_few_kills(tmp_path: Path, ranks: int) -> None:
    options = ("seconds=0.3", "generations=3", f"workers={3 - ranks}")
    expected = straight(tmp_path / "straight", "seconds=0", "generations=3")
    assault = Assault(tmp_path / "killed", kills=4, seed=ranks, ranks=ranks, options=options)
    assault.run()
    assert assault.records == expected
    assert sum(assault.counts.values()) == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("ranks", "stages"), [(1, ()), (2, ()), (1, ("adaptive=yes",))])
def test_many_kills(tmp_path: Path, ranks: int, stages: tuple[str, ...]) -> None:
    options = ("seconds=0.5", "generations=12", f"workers={3 - ranks}", "confirm=yes", *stages)
    expected = straight(tmp_path / "straight", "seconds=0", "generations=12", "confirm=yes", *stages)
    assault = Assault(tmp_path / "killed", kills=32, seed=ranks, ranks=ranks, options=options)
    assault.run()
    print(assault.counts)
    assert assault.records == expected
    assert sum(assault.counts.values()) >= 32
    confirmed = (tmp_path / "killed" / "confirmed").read_text().splitlines()
    assert len(confirmed) == len(set(confirmed))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_disk_that_fills_up_and_is_freed(tmp_path: Path) -> None:
    expected = straight(tmp_path / "straight", "seconds=0", "generations=3")
    folder = tmp_path / "full"
    (folder / "study").mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder / "study")]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        with started(folder, "seconds=0", "generations=3", "disk=0.2") as process:
            _, errors = process.communicate(timeout=100)
        assert process.returncode != 0
        assert "free some space and run the same command again" in errors
        known, at = finished(folder), len(log_of(folder))
        assert known
        with open(folder / "study" / "study.journal", "ab") as file:  # and a torn tail on top
            file.write(b'{"op_code":8,"wor')
        subprocess.run(["mount", "-o", "remount,size=4m", str(folder / "study")], check=True)
        with started(folder, "seconds=0", "generations=3") as process:
            output, errors = process.communicate(timeout=100)
        assert output == "done\n", errors
        assert not known & set(log_of(folder)[at:])
    finally:
        subprocess.run(["umount", str(folder / "study")], check=True)
    assert json.loads((folder / "records.json").read_text()) == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    """The search says so, what is finished can still be looked at, and the same command goes on once it may write."""
    expected = straight(tmp_path / "straight", "seconds=0", "generations=3")
    folder = tmp_path / "read"
    (folder / "study").mkdir(parents=True)
    place = str(folder / "study")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        with started(folder, "seconds=0", "generations=1") as process:
            assert process.communicate(timeout=100)[0] == "done\n"
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        with started(folder, "seconds=0", "generations=3") as process:
            _, errors = process.communicate(timeout=100)
        assert process.returncode != 0
        assert "Read-only file system" in errors
        known, at = finished(folder), len(log_of(folder))
        assert known
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        with started(folder, "seconds=0", "generations=3") as process:
            output, errors = process.communicate(timeout=100)
        assert output == "done\n", errors
        assert not known & set(log_of(folder)[at:])
    finally:
        subprocess.run(["umount", place], check=True)
    assert json.loads((folder / "records.json").read_text()) == expected
