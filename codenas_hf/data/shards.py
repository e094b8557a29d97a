"""The corpus on disk: Arrow shards that `datasets` maps into memory, written with bounded memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from .ledger import as_counts
from .parts import Part
from .selection import Rows, tally
from .split import SPLITS

_SHARD_BYTES = 256_000_000
_BATCH_BYTES = 8_000_000
_SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "path", "project", "licence", "sha256")])


def write_splits(rows: Rows, parts: Sequence[Part], report: dict[str, Any], *, folder: Path, salt: str) -> str:
    """Writes each split in the order of the texts' SHA-256, which mixes the projects and depends on the text only.

    Args:
        rows: with their splits.
        parts: hold the texts.
        report: gets the tallies of splits and licences.
        folder: where `train-00000.arrow` and its neighbours go.
        salt: what else belongs to the corpus' identity.

    Returns:
        Hex SHA-256 of the salt and of all texts with their splits.
    """
    digest = hashlib.sha256(salt.encode())
    report["split"] = {}
    licences: dict[str, list[int]] = {}
    for number, name in enumerate(SPLITS):
        inside = np.flatnonzero(rows.split == number)
        keys = np.ascontiguousarray(rows.sha[inside]).view("V32").reshape(-1)
        inside = inside[np.argsort(keys, kind="stable")]
        shards = 0
        for shard in _cut(inside, rows.size, _SHARD_BYTES):
            with (
                pa.OSFile(str(folder / f"{name}-{shards:05d}.arrow"), "wb") as out,
                pa.ipc.new_stream(out, _SCHEMA) as writer,
            ):
                for batch in _cut(shard, rows.size, _BATCH_BYTES):
                    writer.write_table(_table(batch, rows, parts, licences))
            shards += 1
        digest.update(f"{name} {len(inside)}".encode() + rows.sha[inside].tobytes())
        report["split"][name] = {
            **tally(rows, rows.split == number),
            "projects": len(np.unique(rows.project[inside])),
            "shards": shards,
        }
    report["licences"] = as_counts(licences)
    return digest.hexdigest()


def _cut(rows: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], limit: int) -> Iterator[np.ndarray[Any, Any]]:
    """Consecutive runs of rows with about `limit` bytes each."""
    groups = (np.cumsum(sizes[rows]) - sizes[rows]) // limit
    edges = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1], True])
    for start, end in itertools.pairwise(edges):
        yield rows[start:end]


def _table(batch: np.ndarray[Any, Any], rows: Rows, parts: Sequence[Part], licences: dict[str, list[int]]) -> pa.Table:
    """The chosen rows' texts and provenance; reads each part that they lie in once."""
    values: dict[int, tuple[str, dict[str, str]]] = {}
    for number in np.unique(rows.part[batch]):
        mine = batch[rows.part[batch] == number]
        part = parts[number]
        sizes, offsets = part.arrays("size", "offset")
        described = part.rows()
        with part.stem.with_suffix(".bin").open("rb") as file:
            for row in mine:
                place = int(rows.place[row])
                file.seek(int(offsets[place]))
                values[int(row)] = (file.read(int(sizes[place])).decode("utf-8"), described[place])
    for row, (_, described_row) in values.items():
        entry = licences.setdefault(described_row["licence"], [0, 0])
        entry[0] += 1
        entry[1] += int(rows.size[row])
    chosen = [values[int(row)] for row in batch]
    return pa.table(
        {
            "text": [text for text, _ in chosen],
            "path": [row["path"] for _, row in chosen],
            "project": [row["project"] for _, row in chosen],
            "licence": [row["licence"] for _, row in chosen],
            "sha256": [rows.sha[row].tobytes().hex() for row in batch],
        },
        schema=_SCHEMA,
    )
