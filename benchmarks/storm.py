"""Is anything lost or repeated, whatever is killed and whenever? A seeded storm of SIGKILLs over whole searches.

Each search has evaluations of at most 0.15 s and confirmations, and runs in two processes: two ranks on a journal, or
two launchers on a PostgreSQL server of its own. At random moments one of these dies, and is started again at once:
the main process, the other rank or launcher, a process below them (one that evaluates, one that waits, the server of
both), everything of a launch at the same time, the database or one of its backends. A search ends as itself: its
records must be those of the same search undisturbed, what was finished at any kill must never be evaluated again.

    python -m benchmarks.storm --kills 1000     # goes on from what the result file holds, --fresh starts anew
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.postgres import Postgres, binaries
from benchmarks.results_file import RESULTS, protocol, read, target, write
from codenas_hf.engine import SearchResult
from codenas_hf.engine.members import process_started

PROGRAM = Path(__file__).parent.parent / "tests" / "search_program.py"
VICTIMS = {  # and how often each is chosen: after most of them little happens for seconds, while everything starts
    "journal": {"main": 2, "rank": 2, "child": 16, "launch": 1},
    "postgresql": {"main": 2, "worker": 2, "child": 16, "launch": 1, "database": 2, "backend": 3},
}
SEEDS = 8  # of the searches; that of the kills is another for each of them
GENERATIONS = 16
OPTIONS = ("workers=1", "confirm=yes", "heartbeat=0.5", "lease=4")
_PAUSE_S = 0.3
_SECONDS = 1800  # one search, kills included


@dataclass
class Outcome:
    """What became of one search."""

    trials: int
    kills: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    repeated: int = 0
    other: int = 0
    orphans: int = 0


def below(pid: int) -> list[int]:
    """All processes below `pid`."""
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        try:
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except OSError:
            continue
        queue += (children := [int(word) for word in text.split()])
        found += children
    return found


def straight(seed: int, generations: int) -> list[Any]:
    """The records of the search undisturbed."""
    with tempfile.TemporaryDirectory() as name:
        words = ["seconds=0", f"seed={seed}", f"generations={generations}", *OPTIONS]
        command = [sys.executable, str(PROGRAM), name, *words]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found: list[Any] = json.loads((Path(name) / "records.json").read_text())
        return found


class Storm:
    """One search under kills.

    Args:
        folder: of everything that it writes.
        server: where its record lies; None is a journal.
        database: name of a database there.
        kills: how many at most; a search that is faster has fewer.
        seed: of the search.
        generations: its length.
        rng: of the moments and the victims.
    """

    def __init__(
        self,
        folder: Path,
        *,
        server: Postgres | None = None,
        database: str = "storm",
        kills: int,
        seed: int,
        generations: int,
        rng: random.Random,
    ) -> None:
        self.folder, self.server, self.kills, self.rng = folder, server, kills, rng
        self.words = (f"seed={seed}", f"generations={generations}", "seconds=0.15", *OPTIONS)
        self.url = server.create(database) if server is not None else None
        self.victims = VICTIMS["journal" if server is None else "postgresql"]
        self.counts: Counter[str] = Counter()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.done: set[str] = set()
        self.seen: dict[int, str] = {}
        self.finished: list[tuple[set[str], dict[str, int]]] = []
        self.server_was_away = False

    def run(self, expected: list[Any]) -> Outcome:
        """Runs it to its end.

        Raises:
            RuntimeError: a process ended with an error that no kill explains; or the search does not end.
        """
        deadline = time.monotonic() + _SECONDS
        try:
            while not self._tend():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the search does not end:\n{self._errors()}")
                self._watch()
                if self.counts.total() < self.kills:
                    self._pause()
                    self._remember()
                    self._strike()
                else:
                    time.sleep(0.05)
        finally:
            for process in self.running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return self._judge(expected)

    def _pause(self) -> None:
        """Until the next kill: often while everything still starts, else once there is something to lose."""
        at = len(self._log("log"))
        wait = self.rng.random() < 0.2
        end = time.monotonic() + 15
        while wait and len(self._log("log")) == at and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(self.rng.random() * _PAUSE_S)

    def _start(self, which: str) -> None:
        words = [*self.words, f"records={which}.json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if self.url is not None:
            words += [f"storage={self.url}", f"study={which}"]
        else:
            environment |= {"RANK": str(int(which != "main")), "WORLD_SIZE": "2"}
        with open(self.folder / f"{which}.err", "ab") as errors:
            self.running[which] = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(self.folder), *words],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )

    def _tend(self) -> bool:
        """Starts what is dead, as a launcher does; True when the search has ended everywhere."""
        second = "rank" if self.server is None else "worker"
        if self.server is not None and not self.server.answers():
            self.server_was_away = True
            self.server.start()
        for which in ("main", second):
            process = self.running.get(which)
            if which in self.done or (process is not None and process.poll() is None):
                continue
            if process is not None:
                self._explain(which, process.returncode)
            if which in self.done:
                continue
            if self.server is None and which == "main" and (other := self.running.get(second)) is not None:
                other.kill()  # what a launcher does with the other ranks when one is gone
                other.wait()
            self._start(which)
        if self.server is None and "main" in self.done:  # a rank that comes too late would wait for its rank 0
            if (other := self.running.get(second)) is not None and other.poll() is None:
                os.killpg(other.pid, signal.SIGKILL)
                other.wait()
            self.done.add(second)
        return {"main", second} <= self.done

    def _explain(self, which: str, code: int) -> None:
        if code == 0:
            self.done.add(which)
        elif code == -signal.SIGKILL or (self.server is None and which == "rank"):
            return  # killed, or its rank 0 was
        elif self.server_was_away and "is the server up?" in self._errors():
            return  # it was to start while there was no database, which it says; the same command again
        else:
            raise RuntimeError(f"{which} ended with {code}:\n{self._errors()}")

    def _errors(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.err")))

    def _watch(self) -> None:
        """Keeps in mind which processes there are: none of them may be left at the end."""
        for process in self.running.values():
            for pid in (process.pid, *below(process.pid)):
                if (begun := process_started(pid)) is not None:
                    self.seen[pid] = begun

    def _remember(self) -> None:
        """What is finished now, and how far the evaluators' logs are, in this order: no false alarm."""
        try:
            known = self._complete()
        except Exception:  # not created yet, or the database is dead
            return
        self.finished.append((known, {log: len(self._log(log)) for log in ("log", "confirmed")}))

    def _complete(self) -> set[str]:
        result = SearchResult.open(self.folder / "study", storage=self.url, name="killed")
        return {
            f"{log} {record.rung} {point['x']} {point['y']}"
            for log, records in (("log", result.records), ("confirmed", result.confirmed))
            for record in records
            if record.state == "complete" and (point := record.genome.to_dict())
        }

    def _log(self, log: str) -> list[str]:
        path = self.folder / log
        lines = path.read_text().splitlines() if path.exists() else []
        return [f"{log} {' '.join(line.split()[:3])}" for line in lines]

    def _strike(self) -> None:
        what = self.rng.choices(list(self.victims), weights=list(self.victims.values()))[0]
        living = [process for process in self.running.values() if process.poll() is None]
        if not living:
            return
        if what in ("database", "backend"):
            assert self.server is not None
            self.server_was_away = True
            pid = self.server.pid
            children = below(pid) if pid is not None else []
            if what == "database":
                self.server.kill()
            elif children:
                self._kill([self.rng.choice(children)])
            self.counts[what] += 1
            return
        process = self.running.get(what) or self.rng.choice(living)
        under = below(process.pid)
        victims = {"child": self.rng.sample(under, min(1, len(under))), "launch": [process.pid, *under]}
        if process.poll() is None and (chosen := victims.get(what, [process.pid])):
            self._kill(chosen)
            self.counts[what] += 1
            if what != "child":
                process.wait()

    @staticmethod
    def _kill(pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _judge(self, expected: list[Any]) -> Outcome:
        names = ["main.json"] if self.server is None else ["main.json", "worker.json"]
        records = [json.loads((self.folder / name).read_text()) for name in names]
        if self.server is not None:
            self.server.start()
        complete = self._complete()
        lost: set[str] = set()
        repeated: set[str] = set()
        logs = {log: self._log(log) for log in ("log", "confirmed")}
        for known, positions in self.finished:
            lost |= known - complete
            for log, position in positions.items():
                repeated |= known & set(logs[log][position:])
        end = time.monotonic() + 20
        while (orphans := [pid for pid, begun in self.seen.items() if process_started(pid) == begun]) and (
            time.monotonic() < end
        ):
            time.sleep(0.1)
        return Outcome(
            trials=len(records[0]),
            kills=self.counts,
            lost=len(lost),
            repeated=len(repeated),
            other=sum(each != expected for each in records),
            orphans=len(orphans),
        )


def search(
    number: int,
    *,
    kills: int,
    server: Postgres | None,
    expected: dict[int, list[Any]],
    generations: int = GENERATIONS,
) -> Outcome:
    """One search of the storm: `number` decides its seed, its kills and their moments."""
    seed = number % SEEDS
    if seed not in expected:
        expected[seed] = straight(seed, generations)
    with tempfile.TemporaryDirectory(prefix="codenas-storm-") as name:
        storm = Storm(
            Path(name),
            server=server,
            database=f"storm{number}",
            kills=kills,
            seed=seed,
            generations=generations,
            rng=random.Random(number),
        )
        return storm.run(expected[seed])


def row(storage: str, before: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """What one storage has stood, one search more."""
    kinds = {kind: before.get(kind, 0) + outcome.kills[kind] for kind in VICTIMS[storage]}
    more = {
        "searches": 1,
        "evaluations": outcome.trials,
        "kills": outcome.kills.total(),
        "lost": outcome.lost,
        "repeated": outcome.repeated,
        "other_records": outcome.other,
        "left_alive": outcome.orphans,
    }
    return {"storage": storage, **{key: before.get(key, 0) + value for key, value in more.items()}, **kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="in all, with those of this commit in the result file")
    parser.add_argument("--each", type=int, default=100, help="at most so many in one search")
    parser.add_argument("--searches", type=int, default=None, help="stop after so many; the next call goes on")
    parser.add_argument("--fresh", action="store_true", help="forget what the result file holds")
    arguments = parser.parse_args()
    path = RESULTS / "storm.json"
    known = read(path) if path.exists() and not arguments.fresh else None
    same = known is not None and known["protocol"]["commit"] == protocol()["commit"]  # of another state nothing counts
    rows = {each["storage"]: each for each in known["rows"]} if known and same else {}
    expected: dict[int, list[Any]] = {}
    with tempfile.TemporaryDirectory(prefix="codenas-storm-") as home, contextlib.ExitStack() as stack:
        server = None
        if binaries() is not None:
            server = Postgres(Path(home))
            stack.callback(server.stop)
        storages = list(VICTIMS) if server is not None else ["journal"]
        searches = arguments.searches
        while searches != 0 and (left := arguments.kills - sum(each["kills"] for each in rows.values())) > 0:
            number = sum(each["searches"] for each in rows.values())
            storage = storages[number % len(storages)]
            if server is not None:
                server.start()
            used = server if storage == "postgresql" else None
            outcome = search(number, kills=min(left, arguments.each), server=used, expected=expected)
            rows[storage] = row(storage, rows.get(storage, {}), outcome)
            searches = None if searches is None else searches - 1
            print(number, storage, outcome, flush=True)
            save(list(rows.values()))


def save(rows: list[dict[str, Any]]) -> None:
    """The result file so far."""
    kills = sum(row["kills"] for row in rows)
    wrong = {key: sum(row[key] for row in rows) for key in ("lost", "repeated", "other_records", "left_alive")}
    write(
        "storm",
        protocol=protocol(
            processes=2,
            workers_a_process=1,
            longest_evaluation_s=0.15,
            generations=GENERATIONS,
            options=" ".join(OPTIONS),
        ),
        rows=rows,
        targets=[
            target("SIGKILLs", kills, 1000, better="higher"),
            target("finished evaluations lost", wrong["lost"], 0, better="lower"),
            target("finished evaluations repeated", wrong["repeated"], 0, better="lower"),
            target("searches with other records than undisturbed", wrong["other_records"], 0, better="lower"),
            target("processes left alive", wrong["left_alive"], 0, better="lower"),
        ],
    )


if __name__ == "__main__":
    main()
