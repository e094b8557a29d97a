"""How studies stand: read from their records, without torch."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..engine import SearchResult, TrialRecord
from ..folders import Release, StudyFolder
from ..report.cells import Column, Table, quantity_column
from ..strict_yaml import from_mapping, read_yaml
from .wanted import LadderSettings, WeightSettings, weights_of

COLUMNS = (
    Column("study", "study"),
    Column("state", "state"),
    Column("evaluated", "evaluated", "integer"),
    Column("failed", "failed", "integer"),
    Column("front", "front", "integer"),
    quantity_column("artifact_bytes", title="winner"),
    quantity_column("bits_per_byte", title="bits per byte, report text"),
    quantity_column("decode_ms"),
    Column("seconds_left", "left", "seconds"),
    Column("reason", "reason"),
)
_NAMES = ("artifact_bytes", "decode_ms", "bits_per_byte")


def read_study(folder: Path) -> tuple[SearchResult, dict[str, Any]]:
    """The record of a study, genomes as they are written, and its settings as plain values.

    Raises:
        FileNotFoundError: no study there, or one that has no record yet.
        ValueError: settings or a record that cannot be read.
    """
    study = StudyFolder(folder)
    if not study.settings.is_file():
        raise FileNotFoundError(f"no study in {folder}: expected the file {study.settings.name}; studies lie in runs/")
    settings = read_yaml(study.settings)
    storage = (settings.get("search") or {}).get("storage")
    weights = from_mapping(WeightSettings, settings.get("weights") or {}, where="weights")
    # A journal knows the name of its search, whatever its folder is called now.
    name = None if storage is None else settings.get("study")
    return SearchResult.open(folder, storage=storage, name=name, weights=weights_of(weights)), settings


def status_table(folder: Path) -> Table:
    """One row for each study in a folder of studies; one that cannot be read says why."""
    rows = [study_row(study.folder) for study in StudyFolder.all_in(folder)]
    return Table("studies", "Studies", COLUMNS, tuple(rows))


def _read(folder: Path) -> tuple[SearchResult, dict[str, Any]]:
    try:
        return read_study(folder)
    except FileNotFoundError:
        from .study import open_study  # loads torch; only here, where all settings must say why there is no record

        open_study(folder)
        raise


def study_row(folder: Path) -> dict[str, Any]:
    """How one study stands; what is not known yet is absent. One that cannot be read is a row with the reason."""
    winner = StudyFolder(folder).winner
    try:
        result, settings = _read(folder)
    except FileNotFoundError:  # a genome that was given is squeezed without a search, so without a record of one
        known = _measured(winner)
        return {"study": folder.name, "state": "preparing data" if known is None else "finished", **(known or {})}
    except Exception as error:  # whatever is wrong with one study must not hide the others
        reason = " ".join(str(error).split()) or type(error).__name__
        return {"study": folder.name, "state": "unreadable", "reason": reason}
    done = [r for r in result.records if r.state == "complete"]
    running = sum(r.state == "running" for r in result.records)
    row: dict[str, Any] = {
        "study": folder.name,
        "state": "finished" if result.finished else "running" if running else "unfinished",
        "evaluated": len(done),
        "failed": len(result.failures),
        "front": len(result.front),
    }
    if result.winner is not None and result.winner.evaluation is not None:
        row |= _known_of(result.winner, release=winner)
    if not result.finished:
        ladder = from_mapping(LadderSettings, settings.get("search") or {}, where="search")
        left = _seconds_left(result, ladder, workers=max(1, running))
        row |= {} if left is None else {"seconds_left": left}
    return row


def _known_of(winner: TrialRecord, *, release: Release) -> dict[str, float | None]:
    """What was measured of the winner's release, else of its trial; quality on the text that nothing chose by."""
    assert winner.evaluation is not None
    if (known := _measured(release, genome_id=winner.genome.genome_id)) is not None:
        return known
    values = {
        **winner.evaluation.objectives,
        "bits_per_byte": winner.evaluation.measurements.get("report_bits_per_byte"),
    }
    return {name: values[name] for name in _NAMES}


def _measured(release: Release, *, genome_id: str | None = None) -> dict[str, float | None] | None:
    """What was measured of a release; None where there is none, or it is of another genome than asked for."""
    with contextlib.suppress(OSError, ValueError):
        record = release.read_record()
        searched = record.genome_id if record.squeezed is None else record.squeezed.genome_id
        if genome_id in (None, searched) and record.measured.bits_per_byte is not None:
            known = record.quantities()
            return {name: known.get(name) for name in _NAMES}
    return None


def _seconds_left(result: SearchResult, ladder: LadderSettings, *, workers: int) -> float | None:
    """What is not evaluated yet at the mean cost of its rung; None while a rung has no evaluation."""
    spent: dict[int, list[float]] = defaultdict(list)
    for record in result.records:
        if record.evaluation is not None:
            spent[record.rung].append(sum(record.evaluation.seconds.values()))
    each = ladder.expected
    if any(not spent[rung] for rung in range(len(each))):
        return None
    seconds = 0.0
    for rung, count in enumerate(each):
        left = max(0, ladder.generations * count - len(spent[rung]))
        seconds += left * sum(spent[rung]) / len(spent[rung])
    return seconds / workers
