"""What does the engine itself cost? A search whose evaluations take 0.1 s, with two workers, against 0.1 s each.

Everything is real: fresh processes, the journal with its fsync, proposals, promotions. `sleep` leaves the cores to the
engine, `compute` keeps both busy.

    python -m benchmarks.workers [--smoke]
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from benchmarks.results_file import protocol, target, write
from benchmarks.scale import Number, Numbers
from codenas_hf.engine import Evaluation, Rung, SearchSettings, run_search, two_stage
from codenas_hf.engine.evolution import RandomPolicy
from codenas_hf.engine.storage import open_storage

SECONDS, WORKERS = 0.1, 2


@dataclass(frozen=True)
class Takes:
    """Takes 0.1 s, asleep or computing."""

    kind: str

    def __call__(self, genome: Number, rung: Rung, previous: Evaluation | None) -> Evaluation:
        if self.kind == "sleep":
            time.sleep(SECONDS)
        else:
            begin = time.thread_time()
            while time.thread_time() - begin < SECONDS:
                sum(range(1000))
        value = float(genome.value % 10007)
        return Evaluation(objectives={"a": value, "b": 10007 - value + rung.index})


def measure(kind: str, *, population: int, generations: int, seed: int) -> dict[str, Any]:
    """One search; the time from the first start of an evaluation to the last end, start-up apart."""
    settings = SearchSettings(
        objectives=("a", "b"),
        population=population,
        generations=generations,
        rungs=two_stage(population=population, keep=population // 4),
        workers_per_rank=WORKERS,
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
        "trials": len(trials),
        "wall_s": wall,
        "ideal_s": ideal,
        "overhead": 1 - ideal / wall,
        "overhead_ms_per_trial": 1000 * (wall - ideal) * WORKERS / len(trials),
        "start_s": total - wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a short search, nothing is written")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for kind in ("sleep", "compute"):
        sizes = {"population": 8, "generations": 2} if arguments.smoke else {"population": 24, "generations": 8}
        repeats = 1 if arguments.smoke else arguments.repeats
        runs = [measure(kind, **sizes, seed=seed) for seed in range(repeats)]
        numbers = {name: float(np.median([run[name] for run in runs])) for name in runs[0] if name != "evaluator"}
        rows.append({"evaluator": kind, **numbers, "repeats": repeats})
        print(rows[-1], flush=True)
    if not arguments.smoke:
        overhead = float(rows[0]["overhead"])
        name = "share of the time that the engine costs, 0.1 s evaluations, 2 workers"
        goal = target(name, overhead, 0.05, better="lower")
        write("workers", protocol=protocol(workers=WORKERS, statistic="median"), rows=rows, targets=[goal])


if __name__ == "__main__":
    main()
