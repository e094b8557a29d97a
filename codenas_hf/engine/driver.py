"""`run_search`: every rank calls it; rank 0 proposes and promotes, all ranks evaluate, the storage is the queue."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .evolution import GeneticPolicy
from .journal import JobLock, check_local
from .members import Members, parent_key
from .objectives import Objectives
from .progress import Progress, Status
from .records import Evaluator, Policy
from .result import SearchResult
from .schedule import Schedule, superseded, unconfirmed
from .settings import RanksError, SearchSettings, World, wait_for
from .stopping import Stop, stopping
from .storage import SERVER_ERRORS, ServerAway, open_storage, patiently
from .study import Claim, Snapshot, Study
from .surrogate import Screened
from .workers import THREAD_VARIABLES, Limits, Outcome, Pool

logger = logging.getLogger(__name__)

LOCK_FILE = "study.lock"
_IDLE_S, _BUSY_S = (0.02, 0.2), 0.2
_SHARE, _REST_S = 10, 2.0  # who does not lead asks for about a tenth of its time: the others need the server as well
T = TypeVar("T")


def run_search(
    space: Any,
    evaluator: Evaluator,
    *,
    folder: Path,
    settings: SearchSettings,
    policy: Policy | None = None,
    confirm: Evaluator | None = None,
    preload: Sequence[str] = (),
    on_open: Callable[[], None] | None = None,
    follow: Callable[[Status], None] | None = None,
) -> SearchResult:
    """Searches `space` until all generations are evaluated, or goes on where an earlier run stopped.

    The same call on a finished search returns its result at once. Under `accelerate launch` every rank calls it, and
    every rank gets the same result. Ctrl-C starts nothing new and waits for what runs; twice kills that as well.
    Nothing that is finished is ever lost or repeated, whatever is killed.

    Args:
        space: what is searched; see `Space`.
        evaluator: evaluates a candidate at a rung, each time in a fresh process. It may have a method
            `discard(evaluation)`, which is called, maybe more than once, when a candidate can no longer be promoted
            from that outcome or win with it, so that checkpoints can be deleted; what it raises is logged.
        folder: of the search; holds the journal and the lock. Another search in it raises.
        settings: everything else.
        policy: proposes; `GeneticPolicy`, screened by a surrogate, when None.
        confirm: called as `confirm(genome, rung, previous)` after the last rung while nothing else runs, one at a
            time, for each member of the front until all are confirmed. Its evaluation replaces the member's; where it
            has no checkpoint it keeps the previous one. A member whose confirmation fails leaves the front. It may
            have an attribute `passes`: each member is confirmed as often, all of them once before any a second time,
            and `previous` is then the earlier confirmation; one that fails after an earlier success changes nothing.
        preload: modules that are imported once for all evaluating processes, such as torch and transformers.
        on_open: called in rank 0 once the folder is known to hold this search and nobody else works on it, before
            anything is evaluated. What the caller keeps beside the search is written here: never for a refused one.
        follow: told the figures of the search in rank 0 whenever one more trial is finished.

    Raises:
        RanksError: not as many ranks as asked for, or rank 0 is gone.
        SingleJobError: another job works on the journal of this folder.
        IdentityError: the folder holds another search.
        KeyboardInterrupt: stopped; the same call goes on.
        OSError: the disk stayed full.
        JournalError: the journal is damaged; names the line. Or its folder lies on a network file system.
        StorageError: the database cannot be opened, or stayed away.
    """
    world = World.read()
    world.check(settings.world_size)
    folder = Path(folder).resolve()
    objectives = settings.build_objectives()
    if policy is None:
        genetic = GeneticPolicy(objectives=objectives, parents=max(2, settings.population))
        policy = Screened(policy=genetic, objectives=objectives)
    identity = settings.identity_of(space=space, policy=policy)
    with ExitStack() as stack:
        stop = stack.enter_context(stopping())
        study, members = _enter(stack, folder, space=space, settings=settings, world=world, identity=identity)
        if on_open is not None and world.rank == 0:
            on_open()
        search = _Search(
            study=study,
            members=members,
            schedule=Schedule(study, space=space, policy=policy, settings=settings, leads=members.leads),
            settings=settings,
            objectives=objectives,
            folder=folder,
            stop=stop,
            evaluator=evaluator,
            confirm=confirm,
            preload=preload,
            workers=world.workers(settings.workers_per_rank, threads=settings.threads_per_worker),
            progress=stack.enter_context(Progress(settings, shown=world.rank == 0, follow=follow)),
        )
        result = search.run()
        search.progress.finish(result)
    search._check_stop(idle=True)  # who stopped it must not see the caller's next work begin
    return result


def _enter(
    stack: ExitStack, folder: Path, *, space: Any, settings: SearchSettings, world: World, identity: Mapping[str, Any]
) -> tuple[Study, Members]:
    """Opens the study and takes part in it; raises when it is another search or somebody else's."""
    patience = settings.patience
    journal = settings.storage is None
    if journal:
        check_local(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if journal and world.rank == 0:
        lock = JobLock(folder / LOCK_FILE)
        lock.acquire()
        stack.callback(lock.release)
    storage = open_storage(
        settings.storage, folder=folder, full_disk_wait_s=patience.full_disk_s, lease_s=patience.lease_s
    )
    patient = partial(patiently, url=settings.storage, seconds=patience.server_s)
    study = patient(
        lambda: Study(
            storage,
            name=settings.name or (Study.name_in_journal(storage) if journal else None) or folder.name,
            space=space,
            rungs=len(settings.rungs),
            objectives=settings.build_objectives(),
            folder=folder,
        )
    )
    members = Members(
        storage,
        study.members_study,
        rank=world.rank,
        heartbeat_s=None if journal else patience.heartbeat_s,
        lease_s=patience.lease_s,
    )
    if journal and world.rank == 0:
        study.check_identity(identity, create=True)
        members.clear()
        study.recover(lambda trial: True)
        members.join()
        stack.callback(members.leave)
        return study, members
    if journal:
        wait_for(lambda: members.leader_of(parent_key()), patience.start_s, "rank 0 has not opened the study")
    patient(members.join)
    stack.callback(members.leave)
    wait_for(
        lambda: patient(lambda: study.check_identity(identity, create=members.leads())),
        patience.start_s,
        "nobody has created the study",
    )
    return study, members


@dataclasses.dataclass
class _Search:
    """One process's part in a search."""

    study: Study
    members: Members
    schedule: Schedule
    settings: SearchSettings
    objectives: Objectives
    folder: Path
    stop: Stop
    evaluator: Evaluator
    confirm: Evaluator | None
    preload: Sequence[str]
    workers: int
    progress: Progress
    queues: list[int] | None = None
    follows: bool = False
    look_at: float = -math.inf
    discarded: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    unrecorded: list[Outcome] = dataclasses.field(default_factory=list)

    def finished(self) -> bool:
        """Whether as many generations were finished before, and confirmed if that is asked for."""
        mark = self.study.facts().get("finished")
        if mark is None:
            return False
        return bool(mark["generations"] >= self.settings.generations and (mark["confirmed"] or self.confirm is None))

    def result(self, snapshot: Snapshot) -> SearchResult:
        return SearchResult.of(
            snapshot, objectives=self.objectives, rungs=tuple(self.settings.rungs), finished=self.finished()
        )

    def run(self) -> SearchResult:
        """Works until the search is finished."""
        if not self._patiently(self.finished):
            with self._pool(self.evaluator, self.workers) as pool:
                self._work(pool, self._turn)
        while not self._patiently(self.finished):
            if self._patiently(self.members.leads) and self._close():
                break
            self._check_stop(idle=True)
            self._patiently(self._check_leader)
            time.sleep(_IDLE_S[1])
        return self._patiently(lambda: self.result(self.study.snapshot()))

    def _close(self) -> bool:
        """Confirms the front and marks the search as finished; False when another process leads meanwhile."""
        if self.confirm is not None:
            with self._pool(self.confirm, 1) as pool:
                self._work(pool, self._confirm_turn)
        if not self._patiently(self.members.leads):
            return False
        mark = {"generations": self.settings.generations, "confirmed": self.confirm is not None}
        self._patiently(lambda: self.study.set_fact("finished", mark))
        return True

    @contextmanager
    def _pool(self, evaluator: Evaluator, workers: int) -> Iterator[Pool]:
        settings = self.settings
        threads = dict.fromkeys(THREAD_VARIABLES, str(settings.threads_per_worker))
        pool = Pool(
            evaluator,
            workers=workers,
            limits=Limits(
                seconds=settings.time_limit_s,
                memory_bytes=settings.memory_limit_bytes,
                kills=settings.patience.kills,
            ),
            preload=self.preload,
            environment={**threads, **settings.environment},
        )
        try:
            yield pool
        finally:
            steps: list[Callable[[], None]] = [partial(self.study.release, claim) for claim in pool.close()]
            for step in [self._record_all, *steps]:  # whatever ended the search: what is finished is kept
                try:
                    step()
                except (OSError, *SERVER_ERRORS) as error:  # what ended the search may be the storage itself
                    logger.warning("A trial was not recorded or given back, the next start does it again: %s", error)

    def _work(self, pool: Pool, turn: Callable[[Pool], bool]) -> None:
        """Takes turns until one says that nothing is left to do; waits for a server that is away."""
        idle = _IDLE_S[0]
        away = ServerAway(self.settings.storage, seconds=self.settings.patience.server_s)
        while True:
            self._check_stop(idle=not pool.busy and not self.unrecorded)
            began = time.monotonic()
            try:
                if away.gone:
                    self._settle(pool)
                    self.members.excuse(away.missed())
                if turn(pool):
                    return
                if not pool.busy:
                    self._check_leader()
                away.answered()
            except SERVER_ERRORS as error:
                away.wait(error)
            rest = min(_SHARE * (time.monotonic() - began), _REST_S) if self.follows else 0.0
            self.unrecorded += pool.poll(max(rest, idle if pool.free else _BUSY_S))
            idle = _IDLE_S[0] if self.unrecorded else min(2 * idle, _IDLE_S[1])

    def _settle(self, pool: Pool) -> None:
        """Gives back what is claimed in our name without our knowing: the server was gone before `claim` returned.

        Nobody else does, for we live: the trial would run for ever, and everybody wait for it.
        """
        held = {claim.trial_id for claim in (*pool.busy, *(outcome.task for outcome in self.unrecorded))}
        me = self.members.number
        self.study.recover(lambda trial: self.study.runner(trial) == me and trial._trial_id not in held)

    def _patiently(self, step: Callable[[], T]) -> T:
        """`step`, which may be done twice, again and again while the server is away."""
        return patiently(
            step,
            url=self.settings.storage,
            seconds=self.settings.patience.server_s,
            meanwhile=lambda: self._check_stop(idle=True),
        )

    def _record_all(self) -> None:
        while self.unrecorded:  # one that could not be recorded stays for the next turn
            self._record(self.unrecorded[0])
            self.unrecorded.pop(0)

    def _turn(self, pool: Pool) -> bool:
        """Records what is finished, decides what comes next, starts it; True when nothing is left to do."""
        self._claim(pool)  # what waits already starts first: a worker must not stand still while records are written
        if more := pool.poll(0):  # nor one that ends at the same time
            self.unrecorded += more
            self._claim(pool)
        self._record_all()
        self.follows, began = not self.members.leads(), time.monotonic()
        if self.follows and began < self.look_at:
            return self.finished()
        snapshot = self.study.snapshot() if self.follows else self._lead()
        self.look_at = time.monotonic() + _SHARE * (time.monotonic() - began)
        self.progress.update(snapshot, pool.busy)
        if self.schedule.done(snapshot) or self.finished():
            return True
        self.queues = self.schedule.queues(snapshot)
        self._claim(pool)
        return False

    def _claim(self, pool: Pool) -> None:
        while pool.free and not self.stop.count:
            claim = self.study.claim(member=self.members.number, worker=self.members.worker, queues=self.queues)
            if claim is None:
                return
            self._start(pool, claim)

    def _recover(self) -> None:
        living = self.members.living()
        self.study.recover(lambda trial: self.members.runner_is_dead(trial, living))

    def _lead(self) -> Snapshot:
        self._recover()
        snapshot = self.schedule.advance(self.study.snapshot())
        self._discard(snapshot)
        return snapshot

    def _start(self, pool: Pool, claim: Claim) -> None:
        pool.start(claim, claim.record.genome, rung=self.settings.rungs[claim.record.rung], previous=claim.previous)

    def _record(self, outcome: Outcome) -> None:
        claim: Claim = outcome.task
        if (evaluation := outcome.evaluation) is None:
            self.study.fail(claim, outcome.failure or "no reason was given")
            return
        if claim.queue == self.study.confirmations and evaluation.checkpoint is None and claim.previous is not None:
            evaluation = dataclasses.replace(evaluation, checkpoint=claim.previous.checkpoint)
        try:
            evaluation = self.objectives.checked(evaluation)
        except ValueError as error:
            self.study.fail(claim, str(error))
            return
        self.study.finish(claim, evaluation)

    def _confirm_turn(self, pool: Pool) -> bool:
        """Confirms members of the front, one at a time and pass by pass; True when all are, or another leads."""
        queue, passes = self.study.confirmations, getattr(self.confirm, "passes", 1)
        self._record_all()
        if pool.busy:
            return False
        self._check_stop(idle=True)  # between two of them, which follow each other at once
        if not self.members.leads():
            return True
        self._recover()  # one that was confirming when it died
        claim = self.study.claim(member=self.members.number, worker=self.members.worker, queues=[queue])
        if claim is not None:
            self._start(pool, claim)
            return False
        snapshot = self.study.snapshot()
        self.progress.update(snapshot, pool.busy)
        if any(trial.state == "running" for trial in snapshot.confirmed):  # by one who led before
            return False
        if (following := unconfirmed(snapshot, front=self.result(snapshot).front, passes=passes)) is None:
            return True
        turn, records = following
        for r in records:
            self.study.add(queue, r.genome, generation=r.generation, parent=r.number, rung=r.rung, turn=turn)
        return False

    def _check_stop(self, *, idle: bool) -> None:
        if self.stop.count >= 2 or (self.stop.count and idle):
            raise KeyboardInterrupt(
                f"stopped; everything finished is in {self.folder}: run the same command to go on from there"
            )

    def _check_leader(self) -> None:
        """Raises when this rank waits for a rank 0 that is gone. On a server database another one may come."""
        if self.settings.storage is not None or self.members.leads() or self.members.leader_of(parent_key()):
            return
        if not self.finished():  # looked at last: a rank 0 that has finished leaves
            raise RanksError("rank 0 is gone: start the same command again, it goes on from where it was")

    def _discard(self, snapshot: Snapshot) -> None:
        discard = getattr(self.evaluator, "discard", None)
        if discard is None:
            return
        found = superseded(snapshot, confirming=self.confirm is not None, objectives=self.objectives)
        for record, evaluation in found:
            if (record.rung, record.number) in self.discarded:
                continue
            self.discarded.add((record.rung, record.number))
            try:
                discard(evaluation)
            except Exception as error:
                logger.warning("Trial %d of rung %d was not discarded: %s", record.number, record.rung, error)
