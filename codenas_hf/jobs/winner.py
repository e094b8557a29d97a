"""Which member of a front wins: a question asked of a finished record, answered without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine import SearchResult, TrialRecord
from ..quantities import OBJECTIVES
from ..report.cells import Column, Table, format_value, quantity_column
from ..strict_yaml import SettingsError, from_mapping, merge, parse_overrides
from .status import read_study
from .wanted import LimitSettings, WeightSettings, objective_limits, weights_of

SIZE = "artifact_bytes"
SHARES = {0.25: "a quarter", 0.5: "half", 1.0: "all"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a record.

    Args:
        limits: what the winner must keep.
        weights: how much the objectives without a limit count.
    """

    limits: LimitSettings = field(default_factory=LimitSettings)
    weights: WeightSettings = field(default_factory=WeightSettings)


@dataclass(frozen=True)
class Answer:
    """The winner, and why.

    Args:
        study: its folder.
        result: the record under this question; `result.winner` is None when no member keeps the limits.
    """

    study: Path
    result: SearchResult

    @property
    def record(self) -> TrialRecord | None:
        """The trial that wins."""
        return self.result.winner

    def table(self) -> Table:
        """The winner; without any limit also the best within shares of the largest member's bytes."""
        columns = (Column("member", "member"), Column("genome", "genome"), *(quantity_column(n) for n in OBJECTIVES))
        rows = [] if self.record is None else [_row("winner", self.record)]
        rows += [_row(f"best within {SHARES[share]} of the bytes", found) for share, found in members(self.result)]
        return Table("winner", "Winner", columns, tuple(rows))

    def lines(self) -> list[str]:
        """Why it wins, a line each."""
        result = self.result
        if self.record is None:
            return ["none      no evaluated architecture keeps these limits"]
        deciding = ", ".join(f"{weight:.2f} {name}" for name, weight in result.objectives.deciding.items())
        if result.objectives.limits:
            inside = ", ".join(f"{name} {format_limit(name, v)}" for name, v in result.objectives.limits.items())
            return [f"inside    {inside}: satisfied; {len(result.front)} of the front, by {deciding}"]
        return [
            f"no limit  was given: of {len(result.front)} members of the front, by weight: {deciding}",
            f"take      another: codenas winner {self.study} limits.bytes=... --release OUT",
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        objectives = self.result.objectives
        return {
            "study": str(self.study),
            "limits": dict(objectives.limits),
            "deciding": objectives.deciding,
            "winner": None if self.record is None else self._member(self.record),
            "within": [{"share": share, **self._member(found)} for share, found in members(self.result)],
        }

    def _member(self, record: TrialRecord) -> dict[str, Any]:
        values = {} if record.evaluation is None else dict(record.evaluation.objectives)
        known = {"genome_id": record.genome.genome_id, "rung": record.rung, "number": record.number}
        return {**known, "objectives": values, "fitness": self.result.fitness(record)}


def ask(study: Path, words: Sequence[str] = ()) -> Answer:
    """Names the winner of a study under other limits or weights than it was searched with.

    Inside a limit an objective is satisfied: weights count only over the objectives without one.

    Args:
        study: its folder.
        words: settings such as `limits.bytes=4MB`, `limits.decode_ms=null` or `weights.bits_per_byte=1`; what is not
            named stays as in the study.

    Raises:
        FileNotFoundError: no study there.
        SettingsError: a word that is no limit or weight.
    """
    result, settings = read_study(study)
    stored = {name: dict(settings.get(name) or {}) for name in ("limits", "weights")}
    given = parse_overrides(words)
    if "min_bytes" in (given.get("limits") or {}):
        raise SettingsError("`limits.min_bytes` narrows what is searched; it cannot be asked of a record")
    stored["limits"].pop("min_bytes", None)
    question = from_mapping(Question, merge(stored, given))
    asked = result.asked(weights=weights_of(question.weights), limits=objective_limits(question.limits))
    return Answer(study, asked)


def members(result: SearchResult) -> list[tuple[float, TrialRecord]]:
    """Without any limit: shares of the largest member's bytes, and the best member within each. Else none."""
    if result.objectives.limits:
        return []
    found = ((share, result.best_within(SIZE, share)) for share in SHARES)
    return [(share, record) for share, record in found if record is not None]


def advice(study: Path, result: SearchResult) -> list[str]:
    """What to say of a search without any limit: whoever gives one gets the best model inside it."""
    lines = []
    for share, record in members(result):
        values = {} if record.evaluation is None else record.evaluation.objectives
        said = ", ".join(format_limit(name, values[name]) for name in OBJECTIVES if name in values)
        lines.append(f"          best within {SHARES[share]} of the largest member's bytes: {said}")
    if not lines:
        return []
    first = "no limit  was given, so weights picked the winner; a limit takes the best model inside it:"
    return [first, *lines, f"          codenas winner {study} limits.bytes=... --release OUT"]


def format_limit(name: str, value: float) -> str:
    """A value of an objective as people read it."""
    kind = quantity_column(name).kind
    text = format_value(value, kind)
    return f"{text} bits per byte" if name == OBJECTIVES[0] else text


def _row(member: str, record: TrialRecord) -> dict[str, Any]:
    values = {} if record.evaluation is None else dict(record.evaluation.objectives)
    return {"member": member, "genome": record.genome.genome_id, **values}
