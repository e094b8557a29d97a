"""What does the engine itself cost? A search whose evaluations take 0.1 s, with two workers, against 0.1 s each.

Everything is real: fresh processes, the journal with its fsync, proposals, promotions. `sleep` leaves the cores to the
engine, `compute` keeps both busy. With a lag of 2, 4 no generation waits for the one before, so that all time
beyond the evaluations is the engine's; with the default lag one worker stands idle while the other ends a generation.

With `--processes` it is many processes on a PostgreSQL server instead, each a `run_search` of its own with one worker,
as on so many machines, and evaluations that sleep for 0.2 s. The server is a private one, or that of `--storage`.

    python -m benchmarks.workers [--smoke]
    python -m benchmarks.workers --processes 64 [--storage postgresql+psycopg://user@host/database]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage

from benchmarks.postgres import Postgres
from benchmarks.results_file import protocol, target, write
from benchmarks.scale import LAG, Number, Numbers
from codenas_hf.engine import Evaluation, Rung, SearchSettings, driver, run_search, two_stage
from codenas_hf.engine.evolution import RandomPolicy
from codenas_hf.engine.storage import open_storage

SECONDS, WORKERS = 0.1, 2
SHARED_SECONDS = 0.2


@dataclass(frozen=True)
class Takes:
    """Takes so many seconds, asleep or computing.

    Args:
        kind: "sleep" or "compute".
        seconds: how long.
        start: a file of this process's own; until the folder has one of each of `processes`, evaluations wait there.
        processes: how many share the search.
    """

    kind: str
    seconds: float = SECONDS
    start: Path | None = None
    processes: int = 1

    def __call__(self, genome: Number, rung: Rung, previous: Evaluation | None) -> Evaluation:
        if self.start is not None and not self.start.exists():
            self.start.touch()
            while len(list(self.start.parent.glob(f"*{self.start.suffix}"))) < self.processes:
                time.sleep(0.05)
        if self.kind == "sleep":
            time.sleep(self.seconds)
        else:
            begin = time.thread_time()
            while time.thread_time() - begin < self.seconds:
                sum(range(1000))
        value = float(genome.value % 10007)
        return Evaluation(objectives={"a": value, "b": 10007 - value + rung.index})


def measure(kind: str, lag: tuple[int, ...], *, population: int, generations: int, seed: int) -> dict[str, Any]:
    """One search; the time from the first start of an evaluation to the last end, start-up apart."""
    settings = SearchSettings(
        objectives=("a", "b"),
        population=population,
        generations=generations,
        rungs=two_stage(population=population, keep=population // 4),
        workers_per_rank=WORKERS,
        lag=lag,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        begin = time.time()
        result = run_search(Numbers(), Takes(kind), folder=Path(folder), settings=settings, policy=RandomPolicy())
        total = time.time() - begin
        storage = open_storage(None, folder=Path(folder))
        trials = [
            trial
            for study in optuna.get_all_study_names(storage)
            if "/rung" in study
            for trial in optuna.load_study(storage=storage, study_name=study).trials
        ]
    assert not result.failures
    first = min(trial.datetime_start for trial in trials if trial.datetime_start)
    last = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    wall = (last - first).total_seconds()
    ideal = len(trials) * SECONDS / WORKERS
    return {
        "evaluator": kind,
        "lag": ", ".join(map(str, lag)),
        "trials": len(trials),
        "wall_s": wall,
        "ideal_s": ideal,
        "overhead": 1 - ideal / wall,
        "overhead_ms_per_trial": 1000 * (wall - ideal) * WORKERS / len(trials),
        "start_s": total - wall,
    }


class Timed:
    """A storage that notes each call of this thread, its begin and its end, and when it has claimed a trial."""

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage
        self.thread = threading.get_ident()  # the heartbeat has one of its own
        self.calls: list[tuple[float, float]] = []
        self.claims: list[float] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.storage, name)
        if name.startswith("_") or not callable(found):
            return found

        def call(*words: Any, **options: Any) -> Any:
            begin = time.time()
            answer = None
            try:
                answer = found(*words, **options)
                return answer
            finally:
                end = time.time()
                if threading.get_ident() == self.thread:
                    self.calls.append((begin, end))
                    if name == "take_first" and answer is not None:
                        self.claims.append(end)

        return call


def take_part(url: str, folder: Path, number: int, *, processes: int, population: int, generations: int) -> None:
    """One of many processes: its part in the search, and a file with its times."""
    timed: list[Timed] = []
    module: Any = driver
    plain: Callable[..., BaseStorage] = module.open_storage

    def opened(*words: Any, **options: Any) -> Any:
        timed.append(Timed(plain(*words, **options)))
        return timed[-1]

    module.open_storage = opened
    settings = SearchSettings(
        objectives=("a", "b"),
        population=population,
        generations=generations,
        rungs=two_stage(population=population, keep=population // 4),
        workers_per_rank=1,
        storage=url,
        name=folder.name,
    )
    evaluator = Takes("sleep", SHARED_SECONDS, start=folder / f"{number}.started", processes=processes)
    result = run_search(Numbers(), evaluator, folder=folder, settings=settings, policy=RandomPolicy())
    assert not result.failures
    known = {"calls": timed[0].calls, "claims": timed[0].claims}
    (folder / f"part{number}.json").write_text(json.dumps({**known, "trials": len(result.records)}))


def shared(url: str, *, processes: int, population: int, generations: int) -> dict[str, Any]:
    """A search by many processes; figures from the moment at which each has its first trial to the last claim."""
    with tempfile.TemporaryDirectory(prefix=f"shared{processes}-") as place:
        shape = ["--processes", str(processes), "--population", str(population), "--generations", str(generations)]
        words = ["-m", "benchmarks.workers", "--storage", url, "--folder", place, *shape]
        parts: list[subprocess.Popen[bytes]] = []
        try:
            for n in range(processes):
                part = [sys.executable, *words, "--part", str(n)]
                parts.append(subprocess.Popen(part, stdout=subprocess.DEVNULL))
            if any([each.wait() for each in parts]):
                raise SystemExit("a process failed; its error stands above")
        finally:  # an interrupted benchmark leaves none behind
            for each in parts:
                each.kill()
        found = [json.loads(path.read_text()) for path in Path(place).glob("part*.json")]
    claims = sorted(when for part in found for when in part["claims"])
    assert len(claims) == found[0]["trials"], "each trial is claimed once"
    begin, end = max(part["claims"][0] for part in found), claims[-1]
    calls = [(first, last) for part in found for first, last in part["calls"] if last > begin and first < end]
    spent = sum(min(last, end) - max(first, begin) for first, last in calls)
    within = sum(begin < when <= end for when in claims)
    present = processes * (end - begin)
    return {
        "processes": processes,
        "trials": within,
        "claims_per_s": within / (end - begin),
        "ideal_claims_per_s": processes / SHARED_SECONDS,
        "share_in_storage": spent / present,
        "share_evaluating": within * SHARED_SECONDS / present,
        "calls_per_trial": len(calls) / within,
        "ms_per_call": 1000 * spent / len(calls),
        "wall_s": end - begin,
    }


@contextmanager
def server(url: str | None, *, connections: int) -> Iterator[str]:
    """The URL of a database: the given one, or one of a private server that ends here."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as home:
        private = Postgres(Path(home), connections=connections)
        try:
            private.start()
            yield private.create("shared")
        finally:
            private.stop()


def on_server(url: str, *, processes: int, write_them: bool) -> None:
    """Some processes, up to as many as were asked for."""
    rows = []
    for count in sorted({1, 8, processes} if write_them else {2}):
        rows.append(shared(url, processes=count, population=max(12, 4 * count), generations=2))
        print({name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
    if write_them:
        about = protocol(
            server=url.partition("+")[0].partition(":")[0],
            evaluation_s=SHARED_SECONDS,
            generations=2,
            population="4 a process",
        )
        write("workers_shared", protocol=about, rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a short search, nothing is written")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, help="so many, at most, share a search in a database")
    parser.add_argument("--storage", help="with --processes: URL of that database (default: a private server)")
    for name in ("--part", "--population", "--generations"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)  # of one of those processes
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        sizes = {name: getattr(arguments, name) for name in ("processes", "population", "generations")}
        return take_part(arguments.storage, arguments.folder, arguments.part, **sizes)
    if arguments.processes is not None:
        with server(arguments.storage, connections=20 + 3 * arguments.processes) as url:
            return on_server(url, processes=arguments.processes, write_them=not arguments.smoke)
    rows = []
    for kind, lag in (("sleep", LAG), ("compute", LAG), ("sleep", SearchSettings.lag)):
        sizes = {"population": 8, "generations": 2} if arguments.smoke else {"population": 24, "generations": 8}
        repeats = 1 if arguments.smoke else arguments.repeats
        runs = [measure(kind, lag, **sizes, seed=seed) for seed in range(repeats)]
        same = {name: runs[0].pop(name) for name in ("evaluator", "lag")}
        numbers = {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
        rows.append({**same, **numbers, "repeats": repeats})
        print(rows[-1], flush=True)
    if not arguments.smoke:
        overhead = float(rows[0]["overhead"])
        name = "share of the time that the engine costs, 0.1 s evaluations, 2 workers"
        goal = target(name, overhead, 0.05, better="lower")
        write("workers", protocol=protocol(workers=WORKERS, statistic="median"), rows=rows, targets=[goal])


if __name__ == "__main__":
    main()
