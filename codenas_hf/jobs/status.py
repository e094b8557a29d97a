"""How studies stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..folders import StudyFolder
from ..report.cells import Column, Table, quantity_column
from .study import open_study

COLUMNS = (
    Column("study", "study"),
    Column("state", "state"),
    Column("evaluated", "evaluated", "integer"),
    Column("failed", "failed", "integer"),
    Column("front", "front", "integer"),
    quantity_column("bits_per_byte", title="best bits per byte"),
    quantity_column("artifact_bytes", title="winner"),
    quantity_column("decode_ms"),
    Column("seconds_left", "left", "seconds"),
    Column("reason", "reason"),
)


def status_table(folder: Path) -> Table:
    """One row for each study in a folder of studies."""
    rows = [study_row(study.folder) for study in StudyFolder.all_in(folder)]
    return Table("studies", "Studies", COLUMNS, tuple(rows))


def study_row(folder: Path) -> dict[str, Any]:
    """How one study stands; what is not known yet is absent. One that cannot be read is a row with the reason."""
    try:
        result, settings = open_study(folder)
    except FileNotFoundError:
        return {"study": folder.name, "state": "preparing data"}
    except Exception as error:  # whatever is wrong with one study must not hide the others
        reason = " ".join(str(error).split()) or type(error).__name__
        return {"study": folder.name, "state": "unreadable", "reason": reason}
    done = [r for r in result.records if r.state == "complete"]
    ladder = settings.search
    each = [ladder.population, *(keep + ladder.audit for keep in ladder.keep)]
    running = any(r.state == "running" for r in result.records)
    row: dict[str, Any] = {
        "study": folder.name,
        "state": "finished" if result.finished else "running" if running else "unfinished",
        "evaluated": len(done),
        "failed": len(result.failures),
        "front": len(result.front),
    }
    if result.front:
        row["bits_per_byte"] = min(r.evaluation.objectives["bits_per_byte"] for r in result.front if r.evaluation)
    if result.winner is not None and result.winner.evaluation is not None:
        row |= {k: result.winner.evaluation.objectives[k] for k in ("artifact_bytes", "decode_ms")}
    if not result.finished and done:
        spent = {rung: [] for rung in range(len(each))}  # type: dict[int, list[float]]
        for r in done:
            if r.evaluation is not None:
                spent[r.rung].append(sum(r.evaluation.seconds.values()))
        means = [sum(v) / len(v) if v else None for v in spent.values()]
        if all(mean is not None for mean in means):
            left = [max(0, ladder.generations * n - len(spent[rung])) for rung, n in enumerate(each)]
            workers = max(1, sum(r.state == "running" for r in result.records))
            row["seconds_left"] = sum(n * (mean or 0.0) for n, mean in zip(left, means, strict=True)) / workers
    return row
