"""Side by side: finished models, and what more of a budget would have bought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from codenas_hf.engine.intervals import Interval
from codenas_hf.engine.records import TrialRecord
from codenas_hf.quantities import QUANTITIES, quantity
from codenas_hf.report.cells import Column, Table, format_value
from codenas_hf.report.study_view import StudyView, evaluation_of, short_id


def compare_table(
    models: Mapping[str, Mapping[str, float]],
    *,
    files: Mapping[str, Mapping[str, Mapping[str, float | None]]] | None = None,
    differences: Mapping[str, Interval] | None = None,
) -> Table:
    """Models side by side, one column each and one row per quantity; what was not measured is an empty cell.

    Args:
        models: name to what is known of it, as `Record.quantities` gives it.
        files: name to each form of the model, and what its reader gives; rows of their own below.
        differences: name to its bits per byte minus those of the first model, in pairs on the same text.

    Raises:
        ValueError: no model.
    """
    if not models:
        raise ValueError("`models` must name at least one model to compare, got none")
    rows: list[dict[str, Any]] = []

    def add(known: Mapping[str, Mapping[str, float | None]], form: str | None = None) -> None:
        for row in QUANTITIES:
            values = {name: value for name, all_ in known.items() if (value := all_.get(row.name)) is not None}
            if values:
                shown = {name: format_value(value, row.unit) for name, value in values.items()}
                title, key = (row.title, row.name) if form is None else (f"{form}: {row.title}", f"{form}/{row.name}")
                rows.append({"quantity": title, "better": row.better, "key": key, "raw": values, **shown})
            if row.name == "bits_per_byte" and differences and form is None:
                rows.append(_difference_row(differences, first=next(iter(models))))

    add(models)
    files = files or {}
    for form in dict.fromkeys(form for forms in files.values() for form in forms):
        add({name: forms[form] for name, forms in files.items() if form in forms}, form)
    columns = (Column("quantity", ""), *(Column(name, name) for name in models), Column("better", "better"))
    note = "Loss and perplexity count tokens: compare them only between models with one vocabulary."
    return Table("comparison", "Side by side", columns, tuple(rows), note)


def _difference_row(differences: Mapping[str, Interval], *, first: str) -> dict[str, Any]:
    """The paired difference of each model to the first, with its 95 % interval."""
    shown = {n: f"{d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f})" for n, d in differences.items()}
    raw = {n: [d.value, d.low, d.high] for n, d in differences.items()}
    title = f"bits per byte against {first}, in pairs, 95 %"
    return {"quantity": title, "better": "lower", "key": "bits_per_byte_difference", "raw": raw, **shown}


def budget_table(view: StudyView, objective: str, *, step: float | None = None, steps: int = 2) -> Table:
    """What the next 10 MB or 5 ms would buy: the best candidate measured within each limit on one objective.

    The other limits of the study stay. Nothing is extrapolated: a limit beyond which nothing was measured says so.

    Args:
        objective: the objective whose limit moves.
        step: how far, in the objective's unit; None takes 10 MB or 5 ms, or less where the whole
            study spans less.
        steps: how many to either side of the limit now, or of the winner's value in a study without that limit.
    """
    column = view.column(objective)
    records = [r for r in view.complete(view.top_rung) if _within(view, r, except_for=objective)]
    values = [evaluation_of(r).objectives[objective] for r in records]
    winner = view.winner.evaluation if view.winner is not None else None
    base = view.limits.get(objective, winner.objectives[objective] if winner else None)
    columns = (
        Column("limit", "limit", column.kind),
        view.column(view.quality),
        Column("change", "against now", "change"),
        Column("genome", "best"),
        Column(objective, f"its {column.title}", column.kind),
    )
    title = f"What a higher limit would buy: {column.title}"
    if not records or base is None:
        return Table(f"budget_{objective}", title, columns, (), "Nothing measured, or neither a limit nor a winner.")
    step = step or _step(objective, max(values) - min(values))
    now = _best(view, records, objective, base)
    rows: list[dict[str, Any]] = []
    for i in range(-steps, steps + 1):
        limit = base + i * step
        best = _best(view, records, objective, limit) if limit > 0 else None
        searched = i <= 0 or max(values) > base
        if best is None or not searched:
            rows.append({"limit": limit, "genome": "not measured"} if limit > 0 else {})
            continue
        quality = evaluation_of(best).objectives[view.quality]
        change = None if now is None or i == 0 else quality - evaluation_of(now).objectives[view.quality]
        found = {view.quality: quality, objective: evaluation_of(best).objectives[objective]}
        rows.append({"limit": limit, "change": change, "genome": short_id(best), **found})
    note = f"Among the {len(records)} candidates measured at rung {view.top_rung} within the other limits."
    return Table(f"budget_{objective}", title, columns, tuple(r for r in rows if r), note, frozenset(_row(rows, base)))


def _within(view: StudyView, record: TrialRecord, *, except_for: str) -> bool:
    """True when a candidate keeps every limit but one; without stored limits its own constraints decide."""
    evaluation = evaluation_of(record)
    if not view.limits:
        return evaluation.feasible
    return all(evaluation.objectives[n] <= limit for n, limit in view.limits.items() if n != except_for)


def _best(view: StudyView, records: Sequence[TrialRecord], objective: str, limit: float) -> TrialRecord | None:
    """The candidate with the best quality whose objective keeps the limit."""
    kept = [r for r in records if evaluation_of(r).objectives[objective] <= limit]
    return min(kept, key=lambda r: evaluation_of(r).objectives[view.quality], default=None)


def _step(objective: str, span: float) -> float:
    """10 MB or 5 ms, or a round quarter of the span where that is less."""
    usual = {"bytes": 10e6, "ms": 5.0}.get(quantity(objective).unit, math.inf)
    if span <= 0:
        return usual if math.isfinite(usual) else 1.0
    quarter = span / 4
    size = 10.0 ** math.floor(math.log10(quarter))
    return min(usual, next(m * size for m in (5, 2, 1) if m * size <= quarter))


def _row(rows: Sequence[Mapping[str, Any]], base: float) -> list[int]:
    """Number of the row of the limit now, among the rows that are kept."""
    return [i for i, row in enumerate(r for r in rows if r) if row["limit"] == base]
