"""The durable record of a search, which is also its work queue: one Optuna study per rung in one storage.

A trial is added WAITING, claimed by the storage's atomic WAITING -> RUNNING switch, told once: COMPLETE, or FAIL with
the reason. A further study `<name>/confirmed` holds the confirmations of the front, `<name>/members` the processes at
work. Facts about the whole search (identity, frame, which generations are proposed and promoted) are attributes of
`<name>/rung0`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from .objectives import Objectives
from .parameters import is_choice, shown_genes
from .places import found_place, stored_place
from .records import Evaluation, Genome, Space, State, TrialRecord, WrittenGenome
from .settings import different
from .storage import take_first

logger = logging.getLogger(__name__)

_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "fail",
}


class IdentityError(ValueError):
    """The folder holds another search."""


@dataclass(frozen=True)
class Claim:
    """A trial that this process has claimed and must finish, fail or release.

    Args:
        record: the trial, running.
        trial_id: its identifier in the storage.
        queue: index of the study it lies in: its rung, or one past the last rung for a confirmation.
        previous: the outcome at the rung below; for a confirmation the earlier one, else the one at its own rung.
        member: the claiming process's number among the members; once another one stands there, the trial is lost.
    """

    record: TrialRecord
    trial_id: int
    queue: int
    previous: Evaluation | None
    member: int


@dataclass(frozen=True)
class Snapshot:
    """Everything the storage knew at one moment.

    Args:
        rungs: the records of each rung, by number.
        confirmed: confirmations of members of the front; `parent` is the trial's number at its rung.
        facts: what is known about the whole search.
    """

    rungs: tuple[tuple[TrialRecord, ...], ...]
    confirmed: tuple[TrialRecord, ...]
    facts: Mapping[str, Any]

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """All records of the rungs, by rung, then number."""
        return tuple(record for rung in self.rungs for record in rung)


class Study:
    """One search in a storage.

    Args:
        storage: where it lies.
        name: prefix of the names of its Optuna studies.
        space: rebuilds genomes; where it has `genes`, their values are shown as Optuna parameters. None leaves genomes
            as they are written.
        rungs: number of rungs.
        objectives: gives the order of the values.
        folder: of the study; checkpoints are recorded relative to it. None records them as they come.
    """

    def __init__(
        self,
        storage: BaseStorage,
        *,
        name: str,
        space: Space | None,
        rungs: int,
        objectives: Objectives,
        folder: Path | None = None,
    ) -> None:
        self.storage = storage
        self.name = name
        self.rungs = rungs
        self.confirmations = rungs
        self.objectives = objectives
        self._folder = folder
        self._space = space
        self._distributions = shown_genes(space)
        self._shown: dict[tuple[str, ...], dict[str, BaseDistribution]] = {}
        names = [f"{name}/rung{index}" for index in range(rungs)] + [f"{name}/confirmed"]
        self._studies = [self._open(study, objectives.names) for study in names]
        self.members_study = self._open(f"{name}/members", ("unused",))
        self._cache: dict[int, tuple[FrozenTrial, TrialRecord]] = {}
        self._genomes: dict[str, Genome] = {}

    def _open(self, name: str, metrics: Sequence[str]) -> int:
        with suppress(KeyError):  # looking first: opening a study again writes nothing
            return self.storage.get_study_id_from_name(name)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study_id = self.storage.create_new_study([StudyDirection.MINIMIZE] * len(metrics), name)
        except DuplicatedStudyError:  # another process was faster
            return self.storage.get_study_id_from_name(name)
        finally:
            optuna.logging.set_verbosity(verbosity)
        self.storage.set_study_system_attr(study_id, "study:metric_names", list(metrics))
        return study_id

    # Facts about the whole search

    def facts(self) -> dict[str, Any]:
        """All facts."""
        return self.storage.get_study_user_attrs(self._studies[0])

    def set_fact(self, key: str, value: Any) -> None:
        """Stores a JSON value under `key`."""
        self.storage.set_study_user_attr(self._studies[0], key, value)

    @staticmethod
    def name_in_journal(storage: BaseStorage) -> str | None:
        """The name under which a journal keeps its search, whatever its folder is called now; None when it is new."""
        first = [s.study_name for s in storage.get_all_studies() if s.study_name.endswith("/rung0")]
        return first[0].removesuffix("/rung0") if len(first) == 1 else None

    @staticmethod
    def stored_fact(storage: BaseStorage, name: str, key: str) -> Any:
        """A fact of a search that is in the storage; None when there is none."""
        try:
            study = storage.get_study_id_from_name(f"{name}/rung0")
        except KeyError:
            return None
        return storage.get_study_user_attrs(study).get(key)

    @staticmethod
    def store_fact(storage: BaseStorage, name: str, key: str, value: Any) -> None:
        """Stores a JSON value about a search that is in the storage; a value that is there stays."""
        if Study.stored_fact(storage, name, key) is None:
            storage.set_study_user_attr(storage.get_study_id_from_name(f"{name}/rung0"), key, value)

    def check_identity(self, identity: Mapping[str, Any], *, create: bool) -> bool:
        """Compares `identity` with the stored one; stores it when there is none and `create` is set.

        Returns:
            True when an identity is stored now.

        Raises:
            IdentityError: another identity is stored; the message names what differs.
        """
        given = json.loads(json.dumps(identity))
        stored = self.facts().get("identity")
        if stored is None:
            if create:
                self.set_fact("identity", given)
            return create
        differences = different(stored, given)
        if differences:
            raise IdentityError(
                f"the study {self.name!r} belongs to another search ({'; '.join(differences)}): go on with the stored "
                "values, or use another folder; only generations, workers and limits of time and memory may change"
            )
        return True

    # The queue

    def add(
        self,
        queue: int,
        genome: Genome,
        *,
        generation: int,
        parent: int | None = None,
        rung: int | None = None,
        audit: bool = False,
        turn: int = 0,
        forecast: Mapping[str, float] | None = None,
    ) -> None:
        """Adds a waiting trial to a queue (a rung's index, or `confirmations`: there once for each turn)."""
        data = genome.to_dict()
        params = {
            gene: data[gene]
            for gene, values in self._distributions.items()
            if is_choice(data.get(gene), values.choices)
        }
        attributes = {
            "genome": json.dumps(data, sort_keys=True, separators=(",", ":")),
            "genome_id": genome.genome_id,
            "generation": generation,
            "parent": parent,
            "rung": queue if rung is None else rung,
        }
        if audit:
            attributes["audit"] = True
        if turn:
            attributes["turn"] = turn
        if forecast is not None:
            attributes["forecast"] = dict(forecast)
        distributions: dict[str, BaseDistribution] = {gene: self._distributions[gene] for gene in params}
        trial = create_trial(
            state=TrialState.WAITING, params=params, distributions=distributions, user_attrs=attributes
        )
        self.storage.create_new_trial(self._studies[queue], template_trial=trial)

    def claim(self, *, member: int, worker: str, queues: Sequence[int] | None = None) -> Claim | None:
        """Claims the next trial: higher rungs first, then older trials. None when nothing waits.

        Args:
            member: the claiming process's number among the members.
            worker: how it is called in records, host:pid.
            queues: where to look, in this order; all rungs from the highest when None.
        """
        for queue in reversed(range(self.rungs)) if queues is None else queues:
            while (trial_id := take_first(self.storage, self._studies[queue])) is not None:
                if self._sign(trial_id, member, worker):
                    record = self._record(self.storage.get_trial(trial_id))
                    return Claim(record, trial_id, queue, self._previous(queue, record), member)
        return None

    def _previous(self, queue: int, record: TrialRecord) -> Evaluation | None:
        if record.parent is None:
            return None
        if queue == self.confirmations:
            complete = self.storage.get_all_trials(self._studies[queue], deepcopy=False, states=(TrialState.COMPLETE,))
            same = [
                t for t in complete if (t.user_attrs["rung"], t.user_attrs["parent"]) == (record.rung, record.parent)
            ]
            if same:
                return self._record(same[-1]).evaluation
        below = self._studies[record.rung if queue == self.confirmations else record.rung - 1]
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(below, record.parent)
        return self._record(self.storage.get_trial(trial_id)).evaluation

    def finish(self, claim: Claim, evaluation: Evaluation) -> None:
        """Records the outcome of a claimed trial, once; does nothing where somebody else has or had it meanwhile."""
        if not self._held(claim):
            return
        outcome = evaluation.to_dict()
        if self._folder is not None and evaluation.checkpoint is not None:
            outcome["checkpoint"] = stored_place(evaluation.checkpoint, self._folder)
        self._finish(claim.trial_id, "evaluation", outcome)

    def fail(self, claim: Claim, reason: str) -> None:
        """Records that a claimed trial failed, with the reason; as `finish`."""
        if self._held(claim):
            self._finish(claim.trial_id, "failure", reason)

    def release(self, claim: Claim) -> None:
        """Gives a claimed trial back to the queue, unless it was given to somebody else meanwhile."""
        if self.runner(self.storage.get_trial(claim.trial_id)) == claim.member:
            self._requeue(claim.trial_id)

    def _held(self, claim: Claim) -> bool:
        """Whether the trial is still this claim's. A process that stood still for long, or whose network was down, was
        taken for dead, and its trial belongs to another; while it only waits again, it is taken back."""
        trial = self.storage.get_trial(claim.trial_id)
        if trial.state is TrialState.WAITING and self._take(claim.trial_id, claim.member, claim.record.worker):
            return True
        if self.runner(trial) == claim.member:
            return True
        logger.warning("Trial %d is finished, or another process has it now: what it records counts.", claim.trial_id)
        return False

    @staticmethod
    def runner(trial: FrozenTrial) -> int | None:
        """The member that runs a trial; None when nobody does, or has not said so yet."""
        member: int | None = trial.user_attrs.get("claim", {}).get("member")
        return member if trial.state is TrialState.RUNNING else None

    def _take(self, trial_id: int, member: int, worker: str | None) -> bool:
        with suppress(UpdateFinishedTrialError):
            taken = self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            return taken and self._sign(trial_id, member, worker)
        return False

    def _sign(self, trial_id: int, member: int, worker: str | None) -> bool:
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(trial_id, "claim", {"member": member, "worker": worker})
            return True
        return False

    def recover(self, dead: Callable[[FrozenTrial], bool]) -> int:
        """Gives the running trials of dead processes back to their queues; outcomes that are already there are kept.

        Args:
            dead: says whether whoever runs this trial is gone.

        Returns:
            How many trials were given back.
        """
        count = 0
        for study in self._studies:
            for trial in self.storage.get_all_trials(study, deepcopy=False, states=(TrialState.RUNNING,)):
                if not dead(trial):
                    continue
                for kind in ("evaluation", "failure"):
                    if kind in trial.user_attrs:
                        self._finish(trial._trial_id, kind, trial.user_attrs[kind])
                        break
                else:
                    self._requeue(trial._trial_id)
                    count += 1
        return count

    def _finish(self, trial_id: int, kind: str, outcome: Any) -> None:
        # The outcome is written before the state: a crash in between leaves a running trial with an outcome, which
        # `recover` finishes without repeating the evaluation.
        try:
            self.storage.set_trial_user_attr(trial_id, kind, outcome)
            if kind == "failure":
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                return
            for name, value in outcome["constraints"].items():
                self.storage.set_trial_system_attr(trial_id, f"constraints:{name}", value)
            values = [float(outcome["objectives"][name]) for name in self.objectives.names]
            self.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, values)
        except UpdateFinishedTrialError:
            logger.warning("Trial %d was finished by another process meanwhile; its outcome there counts.", trial_id)

    def _requeue(self, trial_id: int) -> None:
        with suppress(UpdateFinishedTrialError):  # finished meanwhile
            # Without its old claim: who takes it next may die before it has written its own.
            self.storage.set_trial_user_attr(trial_id, "claim", {})
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    # Reading

    def snapshot(self) -> Snapshot:
        """All records and facts now. A genome that stands twice at one rung counts once, by its first trial."""
        rungs = []
        for queue in range(self.rungs + 1):
            seen: dict[tuple[int, str, int], TrialRecord] = {}
            for trial in self.storage.get_all_trials(self._studies[queue], deepcopy=False):
                known = trial.user_attrs
                seen.setdefault((known["rung"], known["genome_id"], known.get("turn", 0)), self._record(trial))
            rungs.append(tuple(seen.values()))
        return Snapshot(rungs=tuple(rungs[:-1]), confirmed=rungs[-1], facts=self.facts())

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        cached = self._cache.get(trial._trial_id)
        if cached is not None and (cached[0] is trial or cached[0].state.is_finished()):
            return cached[1]
        if cached is None:  # each trial brings choices of its own: the memory of thousands goes there
            shown = {name: self._distributions.get(name, each) for name, each in trial.distributions.items()}
            trial.distributions = self._shown.setdefault(tuple(shown), shown)
        attributes, state = trial.user_attrs, _STATES[trial.state]
        record = TrialRecord(
            number=trial.number,
            genome=self._genome(attributes["genome"], attributes["genome_id"]),
            rung=attributes["rung"],
            state=state,
            evaluation=self._evaluation(attributes["evaluation"]) if state == "complete" else None,
            failure=attributes.get("failure", "no reason was recorded") if state == "fail" else None,
            parent=attributes["parent"],
            generation=attributes["generation"],
            worker=None if state == "waiting" else attributes.get("claim", {}).get("worker"),
            audit=attributes.get("audit", False),
            forecast=attributes.get("forecast"),
        )
        self._cache[trial._trial_id] = (trial, record)
        return record

    def _evaluation(self, data: Mapping[str, Any]) -> Evaluation:
        if self._folder is not None and data.get("checkpoint") is not None:
            data = {**data, "checkpoint": found_place(data["checkpoint"], self._folder)}
        return Evaluation.from_dict(data)

    def _genome(self, text: str, genome_id: str) -> Genome:
        if text not in self._genomes:
            data, space = json.loads(text), self._space
            self._genomes[text] = WrittenGenome(genome_id, data) if space is None else space.genome_from_dict(data)
        return self._genomes[text]
