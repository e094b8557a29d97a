"""What came out of a search: the records, the front of the highest rung, and the member of it that fitness names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .objectives import LIMIT_PREFIX, Frame, Objectives
from .pareto import front
from .records import Evaluation, Rung, Space, TrialRecord
from .schedule import proposed
from .settings import comparable
from .storage import JOURNAL_FILE, open_storage
from .study import Snapshot, Study


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The outcome of a search.

    Args:
        records: every trial at every rung, by rung, then number. A member of the front that was confirmed carries the
            confirmed evaluation.
        front: feasible records that none dominates, from the highest rung with feasible ones, best fitness first.
        winner: the member of the front with the highest fitness; None when nothing is feasible.
        failures: failed trials and failed confirmations.
        confirmed: the confirmations; `parent` is the trial's number at its rung.
        objectives: what was minimised.
        frame: the fixed points of fitness and hypervolume; None before the first generation is finished.
        rungs: the ladder.
        finished: whether the search had nothing left to do.
    """

    records: tuple[TrialRecord, ...]
    front: tuple[TrialRecord, ...]
    winner: TrialRecord | None
    failures: tuple[TrialRecord, ...]
    confirmed: tuple[TrialRecord, ...]
    objectives: Objectives
    frame: Frame | None
    rungs: tuple[Rung, ...]
    finished: bool = field(default=True)

    @classmethod
    def of(
        cls, snapshot: Snapshot, *, objectives: Objectives, rungs: tuple[Rung, ...], finished: bool = True
    ) -> SearchResult:
        """From a study's record."""
        confirmed: dict[tuple[int, int | None], TrialRecord] = {}
        for trial in snapshot.confirmed:  # the last that succeeded counts, a failure only where none did
            key = (trial.rung, trial.parent)
            if trial.evaluation is not None or key not in confirmed:
                confirmed[key] = trial
        records = []
        for record in snapshot.records:
            check = confirmed.get((record.rung, record.number))
            if check is not None and check.evaluation is not None:
                record = dataclasses.replace(record, evaluation=check.evaluation)
            records.append(record)
        points = snapshot.facts.get("frame")
        return cls._ranked(
            records=tuple(records),
            failures=tuple(record for record in (*records, *snapshot.confirmed) if record.state == "fail"),
            confirmed=snapshot.confirmed,
            objectives=objectives,
            frame=None if points is None else Frame(objectives=objectives, **points),
            rungs=rungs,
            finished=finished,
        )

    @classmethod
    def _ranked(cls, *, records: tuple[TrialRecord, ...], **known: Any) -> SearchResult:
        """The result with the front and the winner of these records."""
        objectives, frame, rungs = known["objectives"], known["frame"], known["rungs"]
        succeeded = {(trial.rung, trial.parent) for trial in known["confirmed"] if trial.evaluation is not None}
        failed = {(trial.rung, trial.parent) for trial in known["confirmed"] if trial.state == "fail"}
        dropped = failed - succeeded
        members: list[TrialRecord] = []
        for rung in reversed(rungs):
            candidates = [
                record
                for record in records
                if record.rung == rung.index
                and record.evaluation is not None
                and record.evaluation.feasible
                and (record.rung, record.number) not in dropped
            ]
            if candidates:
                values = objectives.matrix([c.evaluation for c in candidates if c.evaluation is not None])
                members = [candidates[index] for index in front(values)]
                break
        if frame is not None:
            members.sort(key=lambda record: (-_fitness(frame, record), record.number))
        winner = members[0] if members and frame is not None else None
        return cls(records=records, front=tuple(members), winner=winner, **known)

    def asked(
        self, *, weights: Mapping[str, float] | None = None, limits: Mapping[str, float] | None = None
    ) -> SearchResult:
        """The same record under another question: other weights or limits, so another front and winner.

        Args:
            weights: name to weight, in place of the present ones; None keeps them.
            limits: name to the maximum of the raw value, in place of the present ones; None keeps them.

        Raises:
            ValueError: a name that is no objective, or a value that cannot be used.
        """
        objectives = dataclasses.replace(
            self.objectives,
            weights=self.objectives.weights if weights is None else weights,
            limits=self.objectives.limits if limits is None else limits,
        )
        records = tuple(
            record
            if record.evaluation is None
            else dataclasses.replace(record, evaluation=objectives.checked(_without_limits(record.evaluation)))
            for record in self.records
        )
        return self._ranked(
            records=records,
            failures=self.failures,
            confirmed=self.confirmed,
            objectives=objectives,
            frame=None if self.frame is None else dataclasses.replace(self.frame, objectives=objectives),
            rungs=self.rungs,
            finished=self.finished,
        )

    def best_within(self, objective: str, share: float) -> TrialRecord | None:
        """The member of the front that is best in the first objective among those that take no more of another one.

        Args:
            objective: its name.
            share: of the largest value on the front.
        """
        members = [(record, record.evaluation) for record in self.front if record.evaluation is not None]
        most = share * max((evaluation.objectives[objective] for _, evaluation in members), default=0.0)
        within = [(record, e) for record, e in members if e.objectives[objective] <= most]
        quality = self.objectives.names[0]
        return min(within, key=lambda pair: (pair[1].objectives[quality], pair[0].number))[0] if within else None

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        space: Space | None = None,
        storage: str | None = None,
        name: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> SearchResult:
        """Reads the record of a search without going on with it.

        Args:
            folder: of the search.
            space: rebuilds the genomes; None leaves them as they are written.
            storage: as in the settings of the search.
            name: likewise; None takes the only one that a journal holds.
            weights: name to weight in the fitness; None takes equal ones.

        Raises:
            FileNotFoundError: there is no search.
            JournalError: its journal is damaged.
        """
        folder = Path(folder).resolve()
        if storage is None and not (folder / JOURNAL_FILE).exists():
            raise FileNotFoundError(f"no search in {folder}: expected the file {JOURNAL_FILE}")
        opened = open_storage(storage, folder=folder)
        name = name or (Study.name_in_journal(opened) if storage is None else None) or folder.name
        identity = Study.stored_fact(opened, name, "identity")
        if identity is None:
            raise FileNotFoundError(f"no search called {name!r} in the storage")
        stored = comparable(identity)["objectives"]
        objectives = Objectives(scales=stored["scales"], limits=stored["limits"], weights=weights or {})
        rungs = tuple(Rung.from_dict(rung) for rung in identity["rungs"])
        study = Study(opened, name=name, space=space, rungs=len(rungs), objectives=objectives, folder=folder)
        snapshot = study.snapshot()
        mark = snapshot.facts.get("finished")  # an extended search has it from before, and further generations
        finished = mark is not None and proposed(snapshot.facts) <= mark["generations"]
        return cls.of(snapshot, objectives=objectives, rungs=rungs, finished=finished)

    def fitness(self, record: TrialRecord) -> float | None:
        """1 - the weighted normalised distance from the ideal, never clipped; None for a record without evaluation."""
        if record.evaluation is None or self.frame is None:
            return None
        return self.frame.fitness(record.evaluation)

    def hypervolume(self) -> float:
        """Of the front, in units of the box between ideal and reference."""
        if self.frame is None:
            return 0.0
        return self.frame.hypervolume([record.evaluation for record in self.front if record.evaluation is not None])

    def rank_correlation(self, objective: str | None = None, *, below: int = 0) -> RankCorrelation | None:
        """How well a rung predicted the next one: Kendall's tau-b over the trials that were evaluated at both.

        Args:
            objective: its name; the first when None.
            below: the lower of the two rungs.

        Returns:
            None with fewer than three pairs, or where one side is constant.
        """
        name = objective or self.objectives.names[0]
        lower = {record.number: record for record in self.records if record.rung == below}
        pairs = [
            (source.evaluation.objectives[name], record.evaluation.objectives[name])
            for record in self.records
            if record.rung == below + 1 and record.evaluation is not None and record.parent is not None
            for source in [lower[record.parent]]
            if source.evaluation is not None
        ]
        return RankCorrelation.of(pairs)


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b over `pairs` pairs, with its 95 % interval (None below six pairs)."""

    tau: float
    low: float | None
    high: float | None
    pairs: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> RankCorrelation | None:
        """Of the pairs [n, 2]; None with fewer than three, or where one side is constant."""
        if len(pairs) < 3 or math.isnan(tau := kendall_tau(*np.array(pairs).T)):
            return None
        low, high = _tau_interval(tau, len(pairs))
        return cls(tau, low, high, len(pairs))


def _tau_interval(tau: float, n: int) -> tuple[float, float] | tuple[None, None]:
    """By Fisher's transformation with variance 0.437 / (n - 4).

    Source: Fieller, Hartley and Pearson 1957. Fewer than six pairs give none. A perfect tau is first moved in by half
    a discordant pair, since its interval would otherwise have no width.
    """
    if n < 6:
        return None, None
    edge = 1 - 2 / (n * (n - 1))
    centre, width = math.atanh(min(edge, max(-edge, tau))), 1.96 * math.sqrt(0.437 / (n - 4))
    low, high = math.tanh(centre - width), math.tanh(centre + width)
    return min(low, tau), max(high, tau)


def kendall_tau(first: Any, second: Any) -> float:
    """Kendall's tau-b (Kendall 1945, https://doi.org/10.1093/biomet/33.3.239); NaN when either is constant."""
    a, b = (np.sign(np.subtract.outer(values, values)) for values in (np.asarray(first), np.asarray(second)))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def _without_limits(evaluation: Evaluation) -> Evaluation:
    kept = {name: value for name, value in evaluation.constraints.items() if not name.startswith(LIMIT_PREFIX)}
    return dataclasses.replace(evaluation, constraints=kept)


def _fitness(frame: Frame, record: TrialRecord) -> float:
    assert record.evaluation is not None
    return frame.fitness(record.evaluation)
