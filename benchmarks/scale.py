"""How busy do 2 to 1,024 workers stay, and what does the storage have to write for it?

The engine's own schedule and its record run in virtual time: workers are replaced by a clock that says when each
evaluation ends, everything else (proposals, promotions, the lag, the queue, every write) is the real code. Durations
are drawn from a recorded study when `--study` names one, else from a lognormal distribution with sigma 0.6; the end of
the search, when workers run out of work, counts as well.

    python -m benchmarks.scale [--smoke] [--study runs/...]
"""

import argparse
import heapq
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from benchmarks.results_file import protocol, target, write
from codenas_hf.engine import Evaluation, RandomPolicy, SearchSettings, two_stage
from codenas_hf.engine.schedule import Schedule
from codenas_hf.engine.study import Claim, Study

GENERATIONS = 12
LAG = (2, 4)  # for many workers; the default reads fresher results, and a generation waits for the one before
CASES = [
    (2, 2),
    (2, 4),
    (2, 12),
    (8, 2),
    (8, 12),
    (64, 2),
    (64, 12),
    (256, 12),
    (1024, 12),
]  # workers, population per worker
DEFAULT_LAG = [(2, 12), (8, 12), (64, 12)]  # the same with the default lag
TARGETS = {(2, 2): 0.97, (8, 2): 0.90, (64, 12): 0.95, (256, 12): 0.95, (1024, 12): 0.95}


@dataclass(frozen=True)
class Number:
    value: int

    @property
    def genome_id(self) -> str:
        return f"{self.value:016x}"

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value}


class Numbers:
    """A space without structure: proposing costs nothing, so that the schedule is what is measured."""

    def sample(self, rng: np.random.Generator) -> Number:
        return Number(int(rng.integers(2**62)))

    def validate(self, genome: Number) -> None:
        return None

    def size(self) -> int:
        return 2**62

    def genome_from_dict(self, data: dict[str, Any]) -> Number:
        return Number(**data)


class CountingStorage(InMemoryStorage):
    """Counts what a real storage would have to write; lists only the first waiting trial, of thousands."""

    writes = 0

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        if states != (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        trials, first = self._studies[study_id].trials, self._prev_waiting_trial_number[study_id]
        while first < len(trials) and trials[first].state is not TrialState.WAITING:
            first += 1
        self._prev_waiting_trial_number[study_id] = first
        return trials[first : first + 1]

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("set_", "create_new_trial")):
            CountingStorage.writes += 1
        return super().__getattribute__(name)


def recorded_durations(study: Path | None) -> np.ndarray:
    """Seconds of rung 0 of a recorded study, relative to their median; a lognormal sample without one."""
    if study is None:
        return np.random.default_rng(0).lognormal(0, 0.6, size=512)
    lines = [json.loads(line) for line in (study / "study.journal").read_text().splitlines()]
    evaluations = [line["user_attr"]["evaluation"] for line in lines if "evaluation" in line.get("user_attr", {})]
    seconds = np.array([sum(evaluation["seconds"].values()) for evaluation in evaluations])
    relative: np.ndarray = seconds[seconds > 0] / np.median(seconds[seconds > 0])
    return relative


def simulate(
    workers: int,
    population: int,
    *,
    durations: np.ndarray,
    generations: int,
    seed: int,
    lag: tuple[int, ...] = LAG,
) -> dict[str, Any]:
    """One search in virtual time."""
    keep = max(1, population // 4)
    settings = SearchSettings(
        objectives=("a", "b"),
        population=population,
        generations=generations,
        seed=seed,
        audit=1,
        lag=lag,
        rungs=two_stage(population=population, keep=keep),
    )
    CountingStorage.writes = 0
    space: Any = Numbers()  # only what a random policy asks of a space
    study = Study(CountingStorage(), name="s", space=space, rungs=2, objectives=settings.build_objectives())
    schedule = Schedule(study, space=space, policy=RandomPolicy(), settings=settings, leads=lambda: True)
    rng = np.random.default_rng(seed)
    clock, busy, idle, ticket = 0.0, 0.0, workers, 0
    waited, ran_out = 0.0, 0.0  # idle time so far, and when the last trial was started
    running: list[tuple[float, int, Claim]] = []
    open_trials: dict[tuple[int, int], int] = {}  # rung and generation to unfinished trials
    began = time.process_time()
    snapshot = schedule.advance(study.snapshot())
    while True:
        while idle:
            claim = study.claim(member=0, worker="w", queues=schedule.queues(snapshot))
            if claim is None:
                break
            # rung 1 trains 250 steps more after 50
            seconds = float(rng.choice(durations)) * (5 if claim.record.rung else 1)
            heapq.heappush(running, (clock + seconds, ticket, claim))
            busy, idle, ticket = busy + seconds, idle - 1, ticket + 1
            ran_out, waited_then = clock, waited
        if not running:
            break
        end, _, claim = heapq.heappop(running)
        clock, waited = end, waited + idle * (end - clock)
        idle += 1
        value = float(claim.record.genome.value % 10007)  # type: ignore[attr-defined]
        study.finish(claim, Evaluation(objectives={"a": value, "b": 10007 - value + claim.record.rung}))
        key = (claim.record.rung, claim.record.generation)
        open_trials[key] = open_trials.get(key, 0) + 1
        full = population if claim.record.rung == 0 else keep + 1
        if open_trials[key] == full:  # only the end of a generation at a rung changes what may be done
            snapshot = schedule.advance(study.snapshot())
    assert schedule.done(study.snapshot())
    trials = sum(len(rung) for rung in snapshot.rungs)
    return {
        "workers": workers,
        "population": population,
        "lag": ", ".join(map(str, lag)),
        "trials": trials,
        "busy": busy / (workers * clock),
        "busy_until_work_ran_out": 1 - waited_then / (workers * ran_out),
        "writes_per_trial": CountingStorage.writes / trials,
        # when the median evaluation at rung 0 takes a minute
        "writes_per_s": CountingStorage.writes / (60 * clock / float(np.median(durations))),
        # of the processor
        "engine_ms_per_trial": 1000 * (time.process_time() - began) / trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="two small cases, nothing is written")
    parser.add_argument("--study", type=Path, help="folder of a recorded search")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    durations = recorded_durations(arguments.study)
    rows, targets = [], []
    cases = [(*case, LAG) for case in CASES] + [(*case, SearchSettings.lag) for case in DEFAULT_LAG]
    for workers, factor, lag in cases[:4] if arguments.smoke else cases:
        repeats = 1 if arguments.smoke or workers > 100 else arguments.repeats
        runs = [
            simulate(workers, factor * workers, durations=durations, generations=GENERATIONS, seed=seed, lag=lag)
            for seed in range(repeats)
        ]
        means = ("busy", "busy_until_work_ran_out", "writes_per_trial", "writes_per_s", "engine_ms_per_trial")
        row = {**runs[0], **{name: float(np.mean([run[name] for run in runs])) for name in means}}
        row |= {"population_per_worker": factor, "generations": GENERATIONS, "repeats": repeats}
        rows.append(row)
        print({n: round(value, 4) if isinstance(value, float) else value for n, value in row.items()}, flush=True)
        if (workers, factor) in TARGETS and lag == LAG:
            name = f"share of the time that {workers} workers are busy, population {factor} per worker"
            targets.append(target(name, row["busy"], TARGETS[workers, factor], better="higher"))
    if not arguments.smoke:
        source = "lognormal, sigma 0.6" if arguments.study is None else f"recorded: {arguments.study.name}"
        note = "virtual time; schedule, queue and record are the real code; the ramp at the end of the search counts"
        write(
            "scale",
            protocol=protocol(durations=source, rung_costs=[1, 5], note=note),
            rows=rows,
            targets=targets,
        )


if __name__ == "__main__":
    main()
