"""What a report needs to know of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codenas_hf.engine.records import Evaluation, TrialRecord
from codenas_hf.engine.result import SearchResult
from codenas_hf.report.cells import Column, quantity_column


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """A study as reports see it. Titles and units are those of `quantities`, scales those that the study began with.

    Args:
        name: the study's name.
        result: its record, finished or not.
        facts: what stands at the foot of the report: device, versions, commit, data digest, seed.
    """

    name: str
    result: SearchResult
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Every trial of every rung."""
        return self.result.records

    @property
    def winner(self) -> TrialRecord | None:
        """The member of the front that was picked."""
        return self.result.winner

    @property
    def limits(self) -> Mapping[str, float]:
        """Objective to the user's limit, in the objective's own unit."""
        return self.result.objectives.limits

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives in the study's order, quality first."""
        return self.result.objectives.names

    @property
    def quality(self) -> str:
        """The objective that training improves: the study's first."""
        return self.objectives[0]

    def column(self, objective: str) -> Column:
        """The column of an objective."""
        return quantity_column(objective, scale=self.result.objectives.scales[objective])

    def complete(self, rung: int | None = None) -> list[TrialRecord]:
        """Complete trials, of one rung or of all, by generation, rung and number."""
        chosen = [r for r in self.records if r.evaluation is not None and rung in (None, r.rung)]
        return sorted(chosen, key=lambda r: (r.generation, r.rung, r.number))

    @property
    def top_rung(self) -> int:
        """The highest rung that has a complete trial; 0 before that."""
        return max((r.rung for r in self.records if r.evaluation is not None), default=0)

    def front_members(self) -> list[TrialRecord]:
        """The front, best first in `quality`."""
        return sorted(self.result.front, key=lambda r: (*self.values(r), r.genome.genome_id))

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

    def total_seconds(self, record: TrialRecord, part: str) -> float | None:
        """Seconds of one part (`train`) that a candidate has had over all its rungs; None if unmeasured."""
        parent = self.below(record) if record.rung else None
        own = None if record.evaluation is None else record.evaluation.seconds.get(part)
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
