"""What a report needs to know of a study, whoever kept it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codenas_hf.engine.pareto import front
from codenas_hf.engine.records import Evaluation, TrialRecord
from codenas_hf.report.cells import Column, Kind

TITLES: dict[str, tuple[str, Kind]] = {
    "bits_per_byte": ("bits per byte", "number"),
    "artifact_bytes": ("artifact", "bytes"),
    "decode_ms": ("decode per token", "ms"),
}


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """A study as reports see it.

    Args:
        name: the study's name.
        records: every trial of every rung.
        front: the members of the Pareto front; None computes it from the records: feasible, at the highest rung that
            has any complete trial, not dominated.
        winner: the member of the front that was picked; None names none.
        limits: objective name to the user's limit, in the objective's own unit.
        ideal: objective name to the study's fixed ideal point, same units.
        reference: objective name to the study's fixed reference point, same units.
        fitness: fitness of a trial; None where the study has no fixed points.
        random_records: trials of a random search under the same settings, for comparison.
        facts: what stands at the head of the report: device, versions, commit, data digest, seed.
    """

    name: str
    records: Sequence[TrialRecord]
    front: Sequence[TrialRecord] | None = None
    winner: TrialRecord | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    ideal: Mapping[str, float] | None = None
    reference: Mapping[str, float] | None = None
    fitness: Callable[[TrialRecord], float | None] | None = None
    random_records: Sequence[TrialRecord] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, quality first; empty before the first complete trial."""
        names = next((tuple(evaluation_of(r).objectives) for r in self.records if r.evaluation is not None), ())
        return tuple(sorted(names, key=lambda name: name != "bits_per_byte"))

    @property
    def quality(self) -> str:
        """The objective that training improves: bits per byte, in other studies the first.

        Raises:
            ValueError: the study has no complete trial yet.
        """
        if not self.objectives:
            raise ValueError(f"study {self.name!r} has no complete trial yet, so there is no objective to report")
        return self.objectives[0]

    def complete(self, rung: int | None = None) -> list[TrialRecord]:
        """Complete trials, of one rung or of all, in the order in which they finished."""
        chosen = [r for r in self.records if r.evaluation is not None and rung in (None, r.rung)]
        return sorted(chosen, key=finish_key)

    @property
    def top_rung(self) -> int:
        """The highest rung that has a complete trial; 0 before that."""
        return max((r.rung for r in self.records if r.evaluation is not None), default=0)

    def front_members(self) -> list[TrialRecord]:
        """The front, best first in `quality`."""
        members = list(self.front) if self.front is not None else non_dominated(self.complete(self.top_rung))
        return sorted(members, key=lambda r: (*self.values(r), r.genome.genome_id))

    def values(self, record: TrialRecord) -> list[float]:
        """Objectives of a complete trial, in the order of `objectives`."""
        return [evaluation_of(record).objectives[name] for name in self.objectives]

    def is_winner(self, record: TrialRecord) -> bool:
        """True for the winner and for no other trial."""
        won = self.winner
        return won is not None and (won.rung, won.genome.genome_id) == (record.rung, record.genome.genome_id)

    def below(self, record: TrialRecord) -> TrialRecord | None:
        """The trial of the rung below that was promoted into this one."""
        rung, number = record.rung - 1, record.parent
        return (
            next((r for r in self.records if (r.rung, r.number) == (rung, number)), None)
            if number is not None
            else None
        )

    def total_seconds(self, record: TrialRecord, part: str | None = None) -> float | None:
        """Seconds that a candidate has had over all its rungs, in one part (`train`) or all; None if unmeasured."""
        parent = self.below(record) if record.rung else None
        own = None if record.evaluation is None else _seconds(record.evaluation, part)
        earlier = None if parent is None else self.total_seconds(parent, part)
        return own if earlier is None else earlier + (own or 0.0)


def evaluation_of(record: TrialRecord) -> Evaluation:
    """The evaluation of a complete trial.

    Raises:
        ValueError: the trial is not complete.
    """
    if record.evaluation is None:
        raise ValueError(f"trial {record.number} of rung {record.rung} is {record.state}: it has no evaluation")
    return record.evaluation


def short_id(record: TrialRecord) -> str:
    """How a candidate is called in tables and pictures."""
    return record.genome.genome_id[:8]


def finish_key(record: TrialRecord) -> tuple[float, int, int, int]:
    """Sorts by the time of finishing where the study kept it, else by generation, rung, number."""
    evaluation = record.evaluation
    finished = None if evaluation is None else evaluation.provenance.get("finished")
    at = float(finished) if isinstance(finished, int | float) else 0.0
    return at, record.generation, record.rung, record.number


def objective_column(name: str) -> Column:
    """The column of an objective; a name of another study gets its unit from its suffix."""
    title, kind = TITLES.get(name, (name.replace("_", " "), unit_kind(name)))
    return Column(name, title, kind)


def unit_kind(name: str) -> Kind:
    """How values under a name are shown, from the unit in the name."""
    for suffix, kind in (("_bytes", "bytes"), ("_ms", "ms"), ("_seconds", "seconds"), ("_share", "share")):
        if name.endswith(suffix):
            return kind  # type: ignore[return-value]
    return "number"


def scaled(name: str, value: float) -> float:
    """An objective on the scale on which it is compared: log2 for bytes and milliseconds, linear otherwise."""
    return math.log2(value) if name.endswith(("_bytes", "_ms")) and value > 0 else value


def scaled_points(records: Sequence[TrialRecord], names: Sequence[str]) -> NDArray[np.float64]:
    """Scaled objectives [number of records, number of objectives]."""
    points = [[scaled(name, evaluation_of(r).objectives[name]) for name in names] for r in records]
    return np.array(points, dtype=np.float64).reshape(len(records), len(names))


def non_dominated(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The feasible complete trials that no other feasible one dominates; equal points are all kept."""
    feasible = [r for r in records if r.evaluation is not None and r.evaluation.feasible]
    if not feasible:
        return []
    points = scaled_points(feasible, tuple(evaluation_of(feasible[0]).objectives))
    return [feasible[i] for i in front(points)]


def _seconds(evaluation: Evaluation, part: str | None) -> float | None:
    """Seconds of one part of an evaluation, or of all."""
    if part is not None:
        return evaluation.seconds.get(part)
    return sum(evaluation.seconds.values()) if evaluation.seconds else None
