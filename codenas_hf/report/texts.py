"""What two texts say of the same candidates: which are tied on the search text, and whether it flattered the winner.

Candidates are chosen by the search text. Those of the highest rung are scored on the report text too, which nothing
chooses by; only a difference between the two that the winner has and the others have not is flattery.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from codenas_hf.engine.intervals import Interval, paired_ratio
from codenas_hf.engine.records import TrialRecord
from codenas_hf.engine.result import RankCorrelation
from codenas_hf.report.cells import Column, Table
from codenas_hf.report.study_view import StudyView, evaluation_of, short_id

REPORT, BY_PROJECT = "report_bits_per_byte", "bits_by_project"


def difference(a: TrialRecord, b: TrialRecord) -> Interval | None:
    """Bits per byte of `a` minus those of `b` on the same search text, with its 95 % interval from its projects.

    Returns:
        None where that was not recorded by project, or is of fewer than three.
    """
    first, second = (evaluation_of(r).measurements.get(BY_PROJECT) for r in (a, b))
    return paired_ratio(first, second)


def resolution(members: Sequence[TrialRecord]) -> tuple[float, float] | None:
    """What the search text can tell apart on a front: the standard error of a difference, and the differences.

    Args:
        members: best quality first.

    Returns:
        Medians over neighbours in quality: the standard error, and the size of the difference; None where no
        difference is known.
    """
    found = [difference(b, a) for a, b in pairwise(members)]
    known = [interval for interval in found if interval is not None]
    if not known:
        return None
    errors = [(interval.high - interval.low) / (2 * 1.96) for interval in known]
    return statistics.median(errors), statistics.median(abs(interval.value) for interval in known)


def tied(view: StudyView, record: TrialRecord) -> bool:
    """True when the interval of the difference to the winner holds zero: the text cannot tell the two apart."""
    if view.winner is None or view.winner.evaluation is None or view.is_winner(record):
        return False
    found = difference(record, view.winner)
    return found is not None and not found.clears_zero


@dataclass(frozen=True)
class Flattery:
    """How the search text compares with the report text.

    Args:
        search, report: bits per byte of the winner.
        excess: how much more the winner loses from search to report text than all candidates of its rung do on
            average, relative to its bits per byte; above 0 it was flattered.
        candidates: of that rung.
        tau: rank correlation of the two texts over the front; None with fewer than three members.
    """

    search: float
    report: float
    excess: float
    candidates: int
    tau: RankCorrelation | None

    @classmethod
    def of(cls, view: StudyView) -> Flattery | None:
        """Of a study; None without a winner, or where the report text was not scored."""
        winner = view.winner
        if winner is None or winner.evaluation is None or REPORT not in winner.evaluation.measurements:
            return None
        pairs = [_both(view, r) for r in view.complete(winner.rung) if REPORT in evaluation_of(r).measurements]
        front = [_both(view, r) for r in view.front_members() if REPORT in evaluation_of(r).measurements]
        search, report = _both(view, winner)
        usual = statistics.fmean(b - a for a, b in pairs)
        return cls(search, report, (report - search - usual) / report, len(pairs), RankCorrelation.of(front))

    def line(self) -> str:
        """For people."""
        order = ""
        if self.tau is not None:
            order = (
                f"; over the front both texts agree in order with tau {self.tau.tau:.2f} ({self.tau.pairs} members)"
            )
        return (
            f"the winner needs {self.report:.3f} bits per byte on the report text and {self.search:.3f} on the search "
            f"text; against the mean of {self.candidates} candidates it was "
            f"{'flattered' if self.excess > 0 else 'not flattered'} by choosing ({self.excess:+.1%}){order}"
        )


def texts_table(view: StudyView) -> Table:
    """The candidates of the highest rung on both texts, best first on the report text."""
    front = {r.genome.genome_id for r in view.front_members()}
    rows: list[dict[str, Any]] = []
    for r in view.complete(view.top_rung):
        if REPORT in evaluation_of(r).measurements:
            search, report = _both(view, r)
            role = "winner" if view.is_winner(r) else "front" if r.genome.genome_id in front else None
            rows.append({"genome": short_id(r), "role": role, "search": search, "report": report})
            rows[-1]["gap"] = report - search
    rows.sort(key=lambda row: row["report"])
    columns = (
        Column("genome", "genome"),
        Column("role", ""),
        Column("report", "report text", "number"),
        Column("search", "search text", "number"),
        Column("gap", "gap", "change"),
    )
    flattery = Flattery.of(view)
    note = "Bits per byte. " + ("" if flattery is None else f"{flattery.line()[0].upper()}{flattery.line()[1:]}.")
    marked = frozenset(i for i, row in enumerate(rows) if row["role"] == "winner")
    return Table("texts", "Search text against report text", columns, tuple(rows), note.strip(), marked)


def _both(view: StudyView, record: TrialRecord) -> tuple[float, float]:
    evaluation = evaluation_of(record)
    return evaluation.objectives[view.quality], float(evaluation.measurements[REPORT])
