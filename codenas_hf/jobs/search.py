"""The main job: from Python files to a winner. One function, which the recipe and `codenas search` call."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..architecture.genome_file import read_genome
from ..architecture.space import SearchSpace
from ..engine import (
    IdentityError,
    Objectives,
    Policy,
    Rung,
    SearchResult,
    SearchSettings,
    Seeded,
    TrialRecord,
    check_local,
    run_search,
)
from ..engine.driver import LOCK_FILE
from ..engine.journal import JobLock
from ..engine.progress import Status
from ..folders import Release, StudyFolder, keep_sockets_short
from ..hardware import Hardware, alone, free_gpu_memory, is_main_process
from ..measure.candidate import CandidateEvaluator
from ..measure.checkpoints import brought
from ..measure.confirm import LatencyConfirmer
from ..quantities import OBJECTIVES, quantity
from ..release.hub import Published, publish
from ..report.curve import Watch
from ..report.study_view import StudyView
from ..report.texts import Flattery
from ..strict_yaml import SettingsError, to_mapping
from .cost import cost_lines
from .elsewhere import leave_facts, share_of, take_facts
from .finish import finish_seconds, finish_winner
from .latency import latency_identity, study_latency, timed_elsewhere, timed_on, timer_of
from .plan import read_plan, study_plan
from .policies import POLICIES
from .release import LostWeightsError, release_trial
from .settings import RunSettings
from .spaces import limit_lines, with_space
from .study import (
    check_format,
    corners,
    forget_waiting,
    keep_facts,
    report_study,
    screened,
    ship_identity,
    silent,
    study_data,
    study_precision,
)
from .text import load_space
from .wanted import objective_limits
from .winner import advice

Say = Callable[[str], None]
Follow = Callable[[Status], None]
WAIT_S = 3600.0  # for the process that begins a study, which prepares its text first
SCALES = {name: quantity(name).scale for name in OBJECTIVES}


@dataclass(frozen=True)
class SearchOutcome:
    """Where a search left things.

    Args:
        result: the record.
        folder: of the study.
        winner: the release folder; None when nothing was feasible, or in another than the main process.
        report: `index.html` of the report; None in another than the main process.
        published: what was pushed to the Hub, where `publish.repo_id` is set.
    """

    result: SearchResult
    folder: Path
    winner: Path | None = None
    report: Path | None = None
    published: tuple[Published, ...] = ()

    def more_seconds(self) -> int:
        """A budget, which is a total, that trains the winner on for a while."""
        had = 0.0 if self.winner is None else Release(self.winner).read_record().training.seconds or 0.0
        return max(3600, round(2 * had))

    def advice(self) -> list[str]:
        """What to say of a search without any limit: the members that limits would have taken."""
        return advice(self.folder, self.result)


def search(
    settings: RunSettings | None = None,
    *,
    fresh: bool = False,
    worker: bool = False,
    say: Say = print,
    watch: Watch | None = None,
    follow: Follow | None = None,
) -> SearchOutcome:
    """Searches, trains the winner on, and releases it.

    The same call goes on with an unfinished study, or shows a finished one.

    Under `accelerate launch` every process calls it: all evaluate, the main one reports. A call that is refused
    changes nothing in the study's folder.

    Args:
        settings: everything; None takes those of `RunSettings.of()`.
        fresh: put an existing study of that name aside and start anew.
        worker: only take part in a study on a server that another process begins, which this one waits for: evaluate,
            propose where that one is gone, and release nothing.
        say: told what is going on, a line at a time, by the main process.
        watch: told every point of the curve of the winner's training; None says some of them.
        follow: told the figures of the search whenever one more evaluation is finished, by the main process.

    Raises:
        SettingsError: settings that cannot be used.
        codenas_hf.data.DataError: no usable training text.
        codenas_hf.engine.IdentityError: the folder holds another study; its text says what differs.
        codenas_hf.engine.SingleJobError: another job works on the study.
        codenas_hf.engine.JournalError: its journal is damaged, or would lie on a network file system.
    """
    settings = with_space(settings or RunSettings.of())
    main, started = is_main_process(), time.monotonic()
    if not main:
        say = silent
    hardware = Hardware.discover(settings.device)
    folder = settings.folder / settings.study
    if fresh and settings.search.storage is not None:
        raise SettingsError(
            f"--fresh puts a folder aside, but this study lies on a server: begin another, study={settings.study}_2"
        )
    if settings.search.storage is None:
        check_local(folder)  # the engine looks too, but only once the text has been prepared
    if worker and (fresh or settings.search.storage is None):
        raise SettingsError("--worker joins a study on a server: give its search.storage=URL, and no --fresh")
    say(f"device    {hardware.count} x {hardware.name} ({hardware.device})")
    space = load_space(settings.space)
    take_facts(settings, folder=folder, wait_s=WAIT_S if worker else 0, say=say)
    with aside(folder, say=say) if fresh and main else contextlib.nullcontext():
        try:
            result, evaluator = _searched(
                settings, space, folder=folder, hardware=hardware, started=started, say=say, follow=follow
            )
        finally:
            forget_waiting(folder)
    if not main or worker:
        return SearchOutcome(result, folder)
    winner = None
    if result.winner is not None:
        winner = _finished(
            result,
            evaluator,
            settings=settings,
            folder=folder,
            hardware=hardware,
            started=started,
            say=say,
            watch=watch,
        )
    flattery = Flattery.of(StudyView(name=settings.study, result=result))
    if flattery is not None:
        say(f"texts     {flattery.line()}")
    report = report_study(result, folder=folder, winner=winner)
    published: tuple[Published, ...] = ()
    if winner is not None and settings.publish.repo_id is not None:
        published = tuple(publish(folder, **to_mapping(settings.publish)))
    return SearchOutcome(result, folder, winner, report, published)


def _finished(
    result: SearchResult,
    evaluator: CandidateEvaluator,
    *,
    settings: RunSettings,
    folder: Path,
    hardware: Hardware,
    started: float,
    say: Say,
    watch: Watch | None,
) -> Path:
    """The release of the winner, trained on for as long as the settings say."""
    winner = result.winner
    assert winner is not None
    assert winner.evaluation is not None
    problem = brought(winner.evaluation, share=evaluator.share)
    if problem is not None:
        say(f"again     the winner's weights are not here and are trained again: {problem}")
    seconds = finish_seconds(
        result,
        settings,
        plan=read_plan(folder) if settings.search.time is not None else None,
        elapsed_s=time.monotonic() - started,
        workers=settings.search.workers_per_rank or hardware.share,
    )
    if not seconds:
        return _released(result, folder, settings=settings, evaluator=evaluator, say=say)
    return finish_winner(
        winner, folder=folder, settings=settings, seconds=seconds, hardware=hardware, say=say, watch=watch
    )


def _released(
    result: SearchResult, folder: Path, *, settings: RunSettings, evaluator: CandidateEvaluator, say: Say
) -> Path:
    """The release of the winner as its trial left it."""
    winner = result.winner
    assert winner is not None
    try:
        return release_trial(winner, study=folder, settings=settings, data=evaluator.data)
    except LostWeightsError as error:
        say(f"again     {error}")
        trial = _with_weights(winner, rungs=result.rungs, evaluator=evaluator)
        return release_trial(trial, study=folder, settings=settings, data=evaluator.data)


def _searched(
    settings: RunSettings,
    space: SearchSpace,
    *,
    folder: Path,
    hardware: Hardware,
    started: float,
    say: Say,
    follow: Follow | None,
) -> tuple[SearchResult, CandidateEvaluator]:
    """The record of the finished search, and what evaluated it."""
    check_format(space, settings, say=say)
    data = study_data(settings, folder=folder, vocab_sizes=space.vocab_sizes, say=say)
    latency = study_latency(settings, folder=folder, space=space, hardware=hardware, say=say)
    space = screened(space, settings, data=data, latency=latency)
    decided = study_precision(settings, folder=folder, hardware=hardware)
    for line in limit_lines(settings, space=space, device=hardware.device):
        say(line)
    decided, plan = study_plan(
        decided, folder=folder, space=space, data=data, hardware=hardware, started=started, say=say
    )
    settings = replace(settings, search=decided.search)
    engine = engine_settings(
        settings,
        hardware=hardware,
        corners=corners(space, settings, data=data, latency=latency),
        identity={
            "data": data.digest,
            # What is off is left out: studies of before knew nothing of it.
            "train": {
                name: value for name, value in to_mapping(settings.train).items() if name != "quantize" or value
            },
            "score": to_mapping(settings.candidate),
            **ship_identity(settings),
            **latency_identity(settings, latency),
        },
    )
    trials = StudyFolder(folder).trials.resolve()

    def on_open() -> None:
        keep_facts(settings, folder=folder, space=space, data=data, latency=latency)
        leave_facts(settings, folder=folder, data=data)
        if plan is None:
            for line in cost_lines(decided, space=space, data=data, hardware=hardware):
                say(line)

    keep_sockets_short()
    if hardware.device == "cuda":
        free_gpu_memory()  # of what was measured before
    timed: Any = timed_on(settings.ship, hardware.device)
    evaluator = CandidateEvaluator(
        data=data,
        train=decided.train,
        settings=settings.candidate,
        ship=settings.ship,
        latency=latency,
        timer=timer_of(settings.ship),
        folder=trials,
        device=hardware.device,
        share=share_of(settings),
    )
    try:
        result = run_search(
            space,
            evaluator,
            folder=folder,
            settings=engine,
            policy=_policy(settings, space, reference=engine.reference),
            confirm=None if timed_elsewhere(settings) else LatencyConfirmer(evaluator=evaluator, device=timed),
            preload=("torch", "transformers", "codenas_hf.measure.confirm"),
            on_open=on_open,
            follow=follow,
        )
    except IdentityError as error:
        raise IdentityError(
            f"{error}. To go on with it: --config {shlex.quote(str(StudyFolder(folder).settings))}; to begin another: "
            f"study=NAME, or --fresh, which puts this one aside"
        ) from None
    return result, evaluator


def _with_weights(record: TrialRecord, *, rungs: Sequence[Rung], evaluator: CandidateEvaluator) -> TrialRecord:
    """The record of a winner whose checkpoint is gone, its weights trained again."""
    assert record.evaluation is not None
    with alone():
        restored = evaluator.restored(record.genome, rungs[record.rung], record.evaluation)  # type: ignore[arg-type]
    return replace(record, evaluation=restored)


@contextlib.contextmanager
def aside(folder: Path, *, say: Say) -> Iterator[None]:
    """Renames an existing study: a fresh start loses nothing. One that does not come to start puts it back.

    Raises:
        SingleJobError: a job searches in that folder now.
    """
    if not folder.exists():
        yield
        return
    number = 1
    while (target := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    lock = JobLock(folder / LOCK_FILE)
    if lock.path.exists():  # else no job ever searched there
        lock.acquire()
    try:
        folder.rename(target)  # the lock goes with it, and the new search makes one of its own
    finally:
        lock.release()
    say(f"fresh     the earlier study is now {target}")
    try:
        yield
    except BaseException:
        if not StudyFolder(folder).settings.exists():
            shutil.rmtree(folder, ignore_errors=True)
            target.rename(folder)
            say(f"fresh     nothing was started: the earlier study is {folder} again")
        raise


def engine_settings(
    settings: RunSettings,
    *,
    hardware: Hardware,
    corners: Mapping[str, tuple[float, float]],
    identity: Mapping[str, Any],
) -> SearchSettings:
    """The engine's settings of a run; the user's limits take the place of the reference."""
    ladder = settings.search
    limits = objective_limits(settings.limits)
    reference = {name: limits.get(name, high) for name, (_, high) in corners.items()}
    return SearchSettings(
        objectives=SCALES,
        population=ladder.population,
        generations=ladder.generations,
        rungs=ladder.rungs,
        weights=to_mapping(settings.weights),
        limits=limits,
        ideal={n: low if low < reference[n] else reference[n] / 2 for n, (low, _) in corners.items()},
        reference=reference,
        seed=ladder.seed,
        lag=ladder.lag,
        audit=ladder.audit,
        adaptive=ladder.stages == "adaptive",
        price="num_parameters",
        identity=identity,
        name=None if ladder.storage is None else settings.study,
        storage=ladder.storage,
        workers_per_rank=ladder.workers_per_rank or (hardware.share if hardware.device == "cuda" else None),
        time_limit_s=ladder.time_limit_s,
        memory_limit_bytes=ladder.memory_limit_bytes,
    )


def _policy(settings: RunSettings, space: SearchSpace, *, reference: Mapping[str, float]) -> Policy:
    """The policy by name, started from the user's genomes where there are any."""
    ladder = settings.search
    objectives = Objectives(
        scales=SCALES,
        weights=to_mapping(settings.weights),
        limits=objective_limits(settings.limits),
    )
    seeds = tuple(read_genome(path) for path in ladder.seeds)
    for path, genome in zip(ladder.seeds, seeds, strict=True):
        reason = space.validate(genome)
        if reason is not None:
            raise SettingsError(f"`search.seeds`: {path} is not in the space `{settings.space}`: {reason}")
    policy = POLICIES[ladder.policy](objectives, reference, ladder.population)
    return Seeded(policy=policy, genomes=seeds) if seeds else policy
