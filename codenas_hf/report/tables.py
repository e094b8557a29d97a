"""The tables of a study. Pure functions of its records; pictures draw these and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codenas_hf.engine.pareto import hypervolume
from codenas_hf.engine.records import TrialRecord
from codenas_hf.engine.result import RankCorrelation
from codenas_hf.report.cells import Column, Table, format_value, quantity_column
from codenas_hf.report.study_view import StudyView, evaluation_of, short_id
from codenas_hf.report.texts import REPORT, difference, resolution

GENOME = Column("genome", "genome")
# Below this, chance alone gives some gene a large share.
FEWEST_FOR_GENES = 10


def front_table(view: StudyView) -> Table:
    """The Pareto front, best quality first; the winner is marked."""
    members = view.front_members()
    rows = [
        {
            "genome": short_id(r),
            "winner": "winner" if view.is_winner(r) else None,
            "fitness": view.result.fitness(r),
            **_against_winner(view, r),
            **_measured(r, REPORT, "loss", "next_token_accuracy"),
            "num_parameters": parameters_of(r),
            "train_seconds": view.total_seconds(r, "train"),
            "rung": r.rung,
            **evaluation_of(r).objectives,
        }
        for r in members
    ]
    columns = distinct(
        GENOME,
        Column("winner", ""),
        *(view.column(name) for name in view.objectives),
        Column(REPORT, "on the report text", "number"),
        Column("difference", "against the winner", "change"),
        Column("difference_low", "95 % from", "change"),
        Column("difference_high", "to", "change"),
        Column("tied", ""),
        quantity_column("num_parameters"),
        *(quantity_column(name) for name in ("fitness", "loss", "next_token_accuracy", "train_seconds")),
        Column("rung", "rung", "integer"),
    )
    marked = frozenset(i for i, r in enumerate(members) if view.is_winner(r))
    limits = ", ".join(
        f"{view.column(name).title} at most {format_value(value, view.column(name).kind)}"
        for name, value in view.limits.items()
    )
    notes = [f"Limits: {limits}."] if limits else []
    if any(row.get("difference") is not None for row in rows):
        notes.append(
            f"Differences of {view.column(view.quality).title} are in pairs on the same search text, their intervals "
            "from its projects; where one holds zero, the text cannot tell a candidate from the winner: tied."
        )
    if (resolved := resolution(members)) is not None:
        notes.append(
            f"Between neighbours in {view.column(view.quality).title} the text's standard error of a difference is "
            f"{resolved[0]:.4f}, the difference itself {resolved[1]:.4f} (medians); another seed of the training "
            "moves a candidate too, which one training of each cannot show."
        )
    warned = [(short_id(r), evaluation_of(r).measurements.get("latency_warning")) for r in members]
    notes += [f"{name}: {warning}." for name, warning in warned if warning]
    note = " ".join(notes)
    return Table("front", "Pareto front", columns, tuple(rows), note, marked)


def _against_winner(view: StudyView, record: TrialRecord) -> dict[str, Any]:
    """The paired difference in quality to the winner, with its interval, where it is known."""
    if view.winner is None or view.winner.evaluation is None or view.is_winner(record):
        return {}
    found = difference(record, view.winner)
    if found is None:
        return {}
    shown: dict[str, Any] = {"difference": found.value, "difference_low": found.low, "difference_high": found.high}
    return shown if found.clears_zero else {**shown, "tied": "tied"}


def trials_table(view: StudyView) -> Table:
    """Every trial of every rung, with the reason of each failure."""
    rows = []
    for r in sorted(view.records, key=lambda r: (r.rung, r.number)):
        evaluation = r.evaluation
        rows.append(
            {
                "rung": r.rung,
                "number": r.number,
                "generation": r.generation,
                "genome": short_id(r),
                "state": r.state,
                "feasible": None if evaluation is None else evaluation.feasible,
                "num_parameters": parameters_of(r),
                "seconds": None if evaluation is None else sum(evaluation.seconds.values()) or None,
                "parent": r.parent,
                "worker": r.worker,
                "failure": r.failure,
                **({} if evaluation is None else evaluation.objectives),
            }
        )
    columns = distinct(
        Column("rung", "rung", "integer"),
        Column("number", "number", "integer"),
        Column("generation", "generation", "integer"),
        GENOME,
        Column("state", "state"),
        *(view.column(name) for name in view.objectives),
        Column("feasible", "within limits"),
        quantity_column("num_parameters"),
        Column("seconds", "time", "seconds"),
        Column("parent", "promoted from", "integer"),
        Column("worker", "worker"),
        Column("failure", "failure"),
    )
    return Table("trials", "All trials", columns, tuple(rows))


def rank_table(view: StudyView, *, low: int = 0, high: int | None = None) -> Table:
    """Candidates that were evaluated at both rungs, with their ranks by quality among themselves (1 is best)."""
    high = view.top_rung if high is None else high
    upper = {r.genome.genome_id: r for r in view.complete(high)} if high > low else {}
    lower = {r.genome.genome_id: r for r in view.complete(low)}
    both = [name for name in upper if name in lower]
    name = view.quality
    first = [evaluation_of(lower[g]).objectives[name] for g in both]
    second = [evaluation_of(upper[g]).objectives[name] for g in both]
    rows: list[dict[str, Any]] = [
        {
            "genome": short_id(upper[g]),
            "promoted": "audit" if upper[g].audit else "top",
            f"rung{low}": a,
            f"rung{high}": b,
            f"rank{low}": int(rank_a),
            f"rank{high}": int(rank_b),
        }
        for g, a, b, rank_a, rank_b in zip(both, first, second, ranks(first), ranks(second), strict=True)
    ]
    title = view.column(name).title
    columns = (
        GENOME,
        Column("promoted", "promoted as"),
        Column(f"rung{low}", f"{title} at rung {low}", "number"),
        Column(f"rung{high}", f"{title} at rung {high}", "number"),
        Column(f"rank{low}", f"rank at rung {low}", "integer"),
        Column(f"rank{high}", f"rank at rung {high}", "integer"),
    )
    rows.sort(key=lambda row: row[f"rank{high}"])
    return Table("ranks", f"Rung {low} against rung {high}", columns, tuple(rows))


def correlation_table(view: StudyView) -> Table:
    """How well each rung predicted the next: Kendall's tau-b of quality with its 95 % interval.

    Only candidates that were promoted, and the audits among them, were seen at both rungs. Beside it stands what
    vocabulary times width alone, known before any training, says of the higher rung: a rung is worth what it adds.
    """
    rows: list[dict[str, Any]] = []
    for high in range(1, view.top_rung + 1):
        pairs = rank_table(view, low=high - 1, high=high).rows
        found = RankCorrelation.of([(p[f"rung{high - 1}"], p[f"rung{high}"]) for p in pairs])
        if found is None:
            continue
        rows.append(
            {
                "rungs": f"{high - 1} to {high}",
                "tau": found.tau,
                "tau_low": found.low,
                "tau_high": found.high,
                "pairs": found.pairs,
                "audits": sum(p["promoted"] == "audit" for p in pairs),
                "tau_baseline": _embedding_tau(view, high=high, low=high - 1),
            }
        )
    columns = (
        Column("rungs", "rungs"),
        Column("tau", "Kendall tau", "number"),
        Column("tau_low", "95 % from", "number"),
        Column("tau_high", "to", "number"),
        Column("pairs", "candidates", "integer"),
        Column("audits", "of them audits", "integer"),
        Column("tau_baseline", "tau of vocabulary times width", "number"),
    )
    note = "Over the promoted and the audits only: the others were never seen at the higher rung."
    return Table("rank_correlation", "How well a cheap rung predicts the next", columns, tuple(rows), note)


def _embedding_tau(view: StudyView, *, low: int, high: int) -> float | None:
    """Kendall's tau of the size of the embedding, larger first, with quality at `high`, over the same candidates."""
    seen = {r.genome.genome_id for r in view.complete(low)}
    pairs = []
    for r in view.complete(high):
        genes = r.genome.to_dict()
        if r.genome.genome_id in seen and {"vocab_size", "hidden_size"} <= genes.keys():
            size = float(genes["vocab_size"] * genes["hidden_size"])
            pairs.append((-size, evaluation_of(r).objectives[view.quality]))
    found = RankCorrelation.of(pairs)
    return None if found is None else found.tau


def seconds_table(view: StudyView) -> Table:
    """Where the time of the evaluations went, by rung, and the share outside training."""
    parts: list[str] = []
    sums: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for r in view.complete():
        for part, seconds in evaluation_of(r).seconds.items():
            parts += [part] if part not in parts else []
            sums[r.rung][part] += seconds
    rows: list[dict[str, Any]] = []
    for rung in sorted(sums):
        failed = sum(r.state == "fail" for r in view.records if r.rung == rung)
        rows.append({"rung": f"rung {rung}", "evaluations": len(view.complete(rung)), "failed": failed, **sums[rung]})
    if len(rows) > 1:
        keys = ["evaluations", "failed", *parts]
        rows.append({"rung": "all", **{k: sum(row.get(k, 0) for row in rows) for k in keys}})
    for row in rows:
        total = sum(row.get(part, 0.0) for part in parts)
        row["total"] = total
        row["outside_train_share"] = 1 - row["train"] / total if "train" in row and total else None
    columns = (
        Column("rung", "rung"),
        Column("evaluations", "evaluations", "integer"),
        Column("failed", "failed", "integer"),
        *(Column(part, part, "seconds") for part in parts),
        Column("total", "total", "seconds"),
        Column("outside_train_share", "outside training", "share"),
    )
    return Table("seconds", "Where the time went", columns, tuple(rows))


def hypervolume_table(view: StudyView) -> Table:
    """Hypervolume over cost: after each complete evaluation.

    Objectives are on the study's scales and normalised so that its ideal is 0 and its reference point 1; the
    hypervolume then lies between 0 and 1, above only where the ideal was beaten. Before the first generation is
    finished there are no fixed points: the best and worst values seen take their place, and the note says so.
    Infeasible trials cost but do not count. The record keeps no times of finishing: evaluations stand in the order of
    generations, and within one of rungs.
    """
    records, frame = view.complete(), view.result.frame
    evaluations = [evaluation_of(r) for r in records]
    if frame is not None:
        rows = [list(frame.distances(evaluation).values()) for evaluation in evaluations]
        unit = np.array(rows, dtype=np.float64).reshape(len(rows), len(view.objectives))
    else:
        points = view.result.objectives.matrix(evaluations)
        low, high = points.min(axis=0, initial=np.inf), points.max(axis=0, initial=-np.inf)
        unit = (points - low) / np.where(high > low, high - low, 1.0)
    columns = (
        Column("evaluations", "evaluations", "integer"),
        Column("seconds", "compute", "seconds"),
        Column("hypervolume", "hypervolume", "number"),
    )
    box = (
        "the study's ideal and reference point that the front dominates"
        if frame is not None
        else "the best and the worst values seen here: not comparable across studies"
    )
    note = f"Share of the box between {box}. Evaluations in the order of generations, then of rungs."
    return Table("hypervolume", "Hypervolume over cost", columns, tuple(_growth(records, unit)), note)


def gene_table(view: StudyView, *, rung: int = 0) -> Table:
    """How much of each objective's variance each gene explains alone, at one rung.

    The estimate is epsilon squared of a one-way analysis of variance (Kelley 1935), which takes off what chance would
    explain with that many choices. Genes that an evolved population mixes together share the credit: this is
    association, not cause. Fewer than `FEWEST_FOR_GENES` candidates give no rows.
    """
    records = view.complete(rung)
    names = view.objectives
    genes = _gene_values(records)
    rows: list[dict[str, Any]] = []
    if len(records) >= FEWEST_FOR_GENES:
        points = view.result.objectives.matrix([evaluation_of(r) for r in records])
        for gene, values in genes.items():
            shares = {n: explained_share(values, points[:, i]) for i, n in enumerate(names)}
            if all(share is None for share in shares.values()):
                continue
            means = {v: float(np.mean(points[[x == v for x in values], 0])) for v in set(values)}
            best = min(means, key=lambda v: (means[v], v))
            rows.append(
                {
                    "gene": gene,
                    "choices": len(means),
                    "best_choice": best,
                    **{f"{n}_share": s for n, s in shares.items()},
                }
            )
    rows.sort(key=lambda row: (-(row[f"{names[0]}_share"] or 0.0), row["gene"]))
    columns = (
        Column("gene", "gene"),
        *(Column(f"{n}_share", view.column(n).title, "share") for n in names),
        Column("choices", "choices seen", "integer"),
        Column("best_choice", f"best mean {view.column(names[0]).title}"),
    )
    note = (
        f"Share of variance that a gene explains alone, over {len(records)} candidates of rung {rung}; an association."
    )
    return Table("genes", "Gene importance", columns, tuple(rows), note)


def explained_share(values: Sequence[str], outcomes: NDArray[np.float64]) -> float | None:
    """Epsilon squared of outcomes [n] grouped by value, at least 0; None where it cannot be told."""
    groups = [outcomes[[x == v for x in values]] for v in set(values)]
    n, k = len(outcomes), len(groups)
    total = float(np.sum((outcomes - outcomes.mean()) ** 2)) if n else 0.0
    if k < 2 or n <= k or total <= 0:
        return None
    within = sum(float(np.sum((group - group.mean()) ** 2)) for group in groups)
    return max(0.0, (total - within - (k - 1) * within / (n - k)) / total)


def ranks(values: Sequence[float]) -> NDArray[np.int64]:
    """Rank of each value [n], 1 is the smallest; equal values keep their order."""
    order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
    result = np.empty(len(values), dtype=np.int64)
    result[order] = np.arange(1, len(values) + 1)
    return result


def parameters_of(record: TrialRecord) -> int | None:
    """Measured number of parameters of a candidate, None where nobody counted."""
    return _measured(record, "num_parameters").get("num_parameters")


def distinct(*columns: Column) -> tuple[Column, ...]:
    """The columns without those whose name came before: a measurement that is an objective too stands there once."""
    found: dict[str, Column] = {}
    for column in columns:
        found.setdefault(column.name, column)
    return tuple(found.values())


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested genes as dotted names with their choices as text."""
    flat: dict[str, str] = {}
    for name, value in data.items():
        inner = flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": str(value)}
        flat.update(inner)
    return flat


def _measured(record: TrialRecord, *names: str) -> dict[str, Any]:
    """The named measurements of a trial, without those that were not made."""
    found = {} if record.evaluation is None else record.evaluation.measurements
    return {name: found[name] for name in names if found.get(name) is not None}


def _gene_values(records: Sequence[TrialRecord]) -> dict[str, list[str]]:
    """Gene to its choice in each record; a gene that a genome lacks counts as the choice `-`."""
    flat = [flatten(r.genome.to_dict()) for r in records]
    return {name: [f.get(name, "-") for f in flat] for name in sorted({n for f in flat for n in f})}


def _growth(records: Sequence[TrialRecord], unit: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Hypervolume after each record; `unit` [n, objectives] has the reference point at 1."""
    reference = np.ones(unit.shape[1])
    archive = np.empty((0, unit.shape[1]))
    seconds, volume, rows = 0.0, 0.0, []
    for count, (record, point) in enumerate(zip(records, unit, strict=True), start=1):
        evaluation = evaluation_of(record)
        seconds += sum(evaluation.seconds.values())
        inside = bool(np.all(point < reference))
        if evaluation.feasible and inside and not bool(np.any(np.all(archive <= point, axis=1))):
            archive = np.vstack([archive[~np.all(archive >= point, axis=1)], point])
            volume = hypervolume(archive, reference=reference)
        rows.append({"evaluations": count, "seconds": seconds, "hypervolume": volume})
    return rows
