"""The winner trains on after the search, on all cores; `python -m codenas_hf.jobs.finish STUDY` is one process of it.

On two cores, two processes with one thread each took 0.27 to 0.36 s for a step of a model of 0.9M parameters where one
thread took 0.44 to 0.52 s and two threads 1.6 to 2.1 s (other programs ran beside it: OpenMP threads wait for the
slowest at every product). So cores are used as processes, whose gradients are averaged.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import Any

from ..architecture.genome import Genome
from ..data import PreparedData
from ..engine import Budget, SearchResult, TrialRecord
from ..engine.progress import duration
from ..folders import Release, StudyFolder, read_json, write_json
from ..folders.record import Trial, trial_and_training
from ..hardware import Hardware, alone, is_main_process
from ..measure.checkpoints import TRAINING
from ..report.curve import CurvePoint, Watch, curve_json, curve_lines
from ..training.checkpoint import CONSTANT, damage, read_progress
from .durations import Duration
from .plan import Plan
from .release import trial_origin
from .settings import RunSettings
from .study import open_study, study_data, study_precision
from .text import load_space
from .train import train_genome

Say = Callable[[str], None]

AUTO_S = 180.0  # the most that `search.finish=auto` takes without `search.time`
WORTH_STARTING_S = 20.0  # below, starting more processes costs more than they bring
PARENT = "CODENAS_PARENT"  # environment: the process without which a finishing training has no purpose


class FinishError(RuntimeError):
    """A process of the training of the winner failed; the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """How a winner trains on: decided once, a fact of the study.

    Args:
        genome_id, rung, number: the trial.
        seconds: of this training.
        budget: the total, with what the trial had.
        processes: that train together.
        time_s: `search.time` when that was decided; None without one, and where it was not kept yet.
    """

    genome_id: str
    rung: int
    number: int
    seconds: float
    budget: str
    processes: int
    time_s: float | None = None


def finish_seconds(
    result: SearchResult, settings: RunSettings, *, plan: Plan | None, elapsed_s: float, workers: int
) -> float:
    """How long the winner trains on; 0 for not at all.

    Args:
        result: of the search.
        settings: `search.finish`.
        plan: by the clock; the training takes what it left, at least 0.4 and at most 2 times what was planned.
        elapsed_s: since this command began.
        workers: candidates at a time in each process.
    """
    ladder = settings.search
    if ladder.finish is None:
        return 0.0
    if ladder.finish != "auto":
        return ladder.finish.seconds
    spent = [(r.rung, sum(r.evaluation.seconds.values())) for r in result.records if r.evaluation is not None]
    workers *= _processes(result)
    if plan is None:
        top = max(rung for rung, _ in spent)
        promoted = sum(seconds for rung, seconds in spent if rung > 0 or top == 0)
        return min(promoted / workers, AUTO_S)
    # After a restart this command's clock says too little, the record knows better.
    elapsed_s = max(elapsed_s, plan.spent_s + sum(seconds for _, seconds in spent) / workers)
    return min(max(plan.time_s - elapsed_s - plan.final_s, 0.4 * plan.finish_s), 2 * plan.finish_s)


def _processes(result: SearchResult) -> int:
    """How many worked on the study at a time: as many as evaluated one generation, the median of all.

    Not as many as ever did, for one that is started again has another name.
    """
    found: dict[int, set[str]] = defaultdict(set)
    for record in result.records:
        if record.worker is not None:
            found[record.generation].add(record.worker)
    return median_low([len(workers) for workers in found.values()] or [1])


def finish_winner(
    winner: TrialRecord,
    *,
    folder: Path,
    settings: RunSettings,
    seconds: float,
    hardware: Hardware,
    say: Say,
    watch: Watch | None = None,
) -> Path:
    """Trains the winner of a study on, from the state that its trial left, and releases it.

    The same call goes on where it was killed, and returns at once when it is done.

    Args:
        winner: its trial.
        folder: of the study.
        settings: of the study.
        seconds: how long, unless that was decided before.
        hardware: all of which is used.
        say: told how it goes.
        watch: told every point of the curve; None says some of them.

    Returns:
        The release folder.

    Raises:
        FinishError: a process of the training failed; its last words, and where the others are.
    """
    study = StudyFolder(folder)
    decided = _decided(winner, study=study, settings=settings, seconds=seconds, hardware=hardware)
    if _is_released(study.winner, decided):
        return study.winner.folder
    say(
        f"finish    {decided.genome_id} trains on for {duration(decided.seconds)} "
        f"in {decided.processes} process{'es' if decided.processes > 1 else ''}"
    )
    if decided.processes == 1:
        with alone():
            return finish_here(folder, say=say, watch=watch)
    return _launched(study, decided, device=hardware.device, say=say, watch=watch or curve_lines(say))


def finish_here(folder: Path, *, say: Say, watch: Watch | None = None) -> Path:
    """What each process of the training does; reads everything from the study's folder."""
    study = StudyFolder(folder)
    decided = Finish(**read_json(study.finish))
    result, settings = open_study(folder)
    record = next(r for r in result.records if (r.rung, r.number) == (decided.rung, decided.number))
    genome, evaluation = record.genome, record.evaluation
    assert isinstance(genome, Genome)
    assert evaluation is not None
    space = load_space(settings.space)
    data: PreparedData = study_data(settings, folder=folder, vocab_sizes=space.vocab_sizes, say=lambda line: None)
    hardware = Hardware.discover(settings.device)
    known, _ = trial_and_training(evaluation.to_dict())
    return train_genome(
        genome,
        Budget.parse(decided.budget),
        folder=study.winner.folder,
        settings=study_precision(settings, folder=folder, hardware=hardware),
        data=data,
        say=say,
        begin=trial_state(record),
        origin=trial_origin(record, settings=settings),
        trial=Trial(rung=record.rung, number=record.number, **known),
        watch=watch,
    )


def trial_state(record: TrialRecord) -> Path | None:
    """The state before the decay that a trial left; None where it is gone or damaged."""
    if record.evaluation is None or record.evaluation.checkpoint is None:
        return None
    state = record.evaluation.checkpoint / TRAINING / CONSTANT
    return state if damage(state) is None else None


def _decided(
    winner: TrialRecord, *, study: StudyFolder, settings: RunSettings, seconds: float, hardware: Hardware
) -> Finish:
    """The fact of the study, made now where it is not there, or is of another winner."""
    trial = {"genome_id": winner.genome.genome_id, "rung": winner.rung, "number": winner.number}
    time_s = None if settings.search.time is None else settings.search.time.seconds
    if study.finish.exists():
        stored = Finish(**read_json(study.finish))
        same = {"genome_id": stored.genome_id, "rung": stored.rung, "number": stored.number} == trial
        wanted = _seconds_again(stored, settings.search.finish, time_s=time_s, seconds=seconds)
        if not same:
            shutil.rmtree(study.finish_training, ignore_errors=True)  # of another model
        elif wanted == stored.seconds:
            if time_s not in (None, stored.time_s):
                stored = replace(stored, time_s=time_s)
                write_json(study.finish, asdict(stored))
            return stored
        elif wanted < stored.seconds:
            shutil.rmtree(study.finish_training, ignore_errors=True)  # it may have had more already
    state = trial_state(winner)
    had = read_progress(state).seconds if state is not None else 0.0
    sequences = settings.train.tokens_per_step // settings.train.sequence_length
    fits = [n for n in range(1, hardware.count + 1) if sequences % n == 0]
    decided = Finish(
        **trial,  # type: ignore[arg-type]
        seconds=round(seconds, 1),
        budget=str(Budget("seconds", round(had + seconds, 1))),
        processes=max(fits) if seconds >= WORTH_STARTING_S else 1,
        time_s=time_s,
    )
    write_json(study.finish, asdict(decided))
    return decided


def _seconds_again(stored: Finish, asked: Any, *, time_s: float | None, seconds: float) -> float:
    """How long the same winner trains on: as decided before, unless another length or `search.time` is asked for.

    Another time never takes from it what it has had.
    """
    if isinstance(asked, Duration):
        return asked.seconds
    known = time_s is not None and stored.time_s is not None
    return max(stored.seconds, round(seconds, 1)) if known and time_s != stored.time_s else stored.seconds


def _is_released(release: Release, decided: Finish) -> bool:
    try:
        record = release.read_record()
    except (OSError, ValueError):
        return False
    there = record.trial and (record.genome_id, record.trial.rung, record.trial.number)
    return there == (decided.genome_id, decided.rung, decided.number) and record.training.budget == decided.budget


def _launched(study: StudyFolder, decided: Finish, *, device: str, say: Say, watch: Watch) -> Path:
    """Starts the processes, and hands on what the first of them says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(decided.processes), "--module", __name__, str(study.folder)]
    log = study.folder / "finish.log"
    with alone(), log.open("w", encoding="utf-8") as errors:
        threads = str(max(1, len(os.sched_getaffinity(0)) // decided.processes)) if device == "cpu" else "1"
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, PARENT: str(os.getpid())},
        )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            _hand_on(line.rstrip("\n"), say=say, watch=watch)
        if process.wait() != 0:
            last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "Error" in line]
            raise FinishError(
                f"the training of the winner ended with status {process.returncode}: "
                f"{last[0].strip() if last else 'no error was written'}; all of it is in {log}; the same command "
                "goes on"
            )
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    log.unlink(missing_ok=True)
    return study.winner.folder


def _hand_on(line: str, *, say: Say, watch: Watch) -> None:
    """A line of the first process: a point of the curve, or what it says."""
    try:
        found: dict[str, Any] = json.loads(line)
        kind = found.pop("event")
    except (ValueError, TypeError, AttributeError, KeyError):
        kind, found = "say", {"line": line}
    if kind == "point":
        watch(CurvePoint(**found))
    else:
        say(found["line"])


def _while_wanted(watch: Watch) -> Watch:
    """Stops a training whose starter is gone: started again, there would be two."""
    parent = int(os.environ[PARENT])

    def watched(point: CurvePoint) -> None:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            sys.exit("the job that wanted this training is gone")
        watch(point)

    return watched


if __name__ == "__main__":
    main = is_main_process()

    def told(line: str) -> None:
        """To the process that started this one."""
        if main:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    finish_here(
        Path(sys.argv[1]),
        say=lambda line: told(json.dumps({"event": "say", "line": line})),
        watch=_while_wanted(curve_json(told)),
    )
