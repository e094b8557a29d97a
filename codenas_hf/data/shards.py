"""The corpus on disk: Arrow shards that `datasets` maps into memory, written with bounded memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
    with tempfile.TemporaryFile(dir=folder) as file:
        source = _Source.read(rows, parts, file)
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
                        writer.write_table(_table(batch, source, licences))
                shards += 1
            digest.update(f"{name} {len(inside)}".encode() + rows.sha[inside].tobytes())
            report["split"][name] = {
                **tally(rows, rows.split == number),
                "projects": len(np.unique(rows.project[inside])),
                "shards": shards,
            }
    report["licences"] = as_counts(licences)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Source:
    """Text and provenance of any row; in memory are only their places.

    Rows that are written one after the other lie in different parts: to open the tables of each of these again for
    every batch would take a time that grows with the square of the corpus.

    Args:
        rows: with their parts and sizes.
        parts: hold the texts.
        offsets: of each text in its part's file, int64 [n].
        file: what the parts say of their rows, as JSON, one row after the other.
        edges: of the rows in `file`, int64 [n + 1].
    """

    rows: Rows
    parts: Sequence[Part]
    offsets: np.ndarray[Any, Any]
    file: IO[bytes]
    edges: np.ndarray[Any, Any]

    @classmethod
    def read(cls, rows: Rows, parts: Sequence[Part], file: IO[bytes]) -> _Source:
        """Opens each part's tables once and writes `file`."""
        offsets, lengths = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
        for part in parts:
            offsets.append(part.arrays("offset")[0][: part.take])
            lines = [json.dumps(row).encode() for row in part.rows()[: part.take]]
            lengths.append(np.array([len(line) for line in lines], np.int64))
            file.writelines(lines)
        return cls(rows, parts, np.concatenate(offsets), file, np.cumsum(np.concatenate(lengths)))

    def text(self, row: int, texts: IO[bytes]) -> str:
        """A row's text, from its part's open file of them."""
        texts.seek(int(self.offsets[row]))
        return texts.read(int(self.rows.size[row])).decode("utf-8")

    def described(self, row: int) -> dict[str, str]:
        """A row's path, project, licence and source."""
        self.file.seek(int(self.edges[row]))
        found: dict[str, str] = json.loads(self.file.read(int(self.edges[row + 1] - self.edges[row])))
        return found


def _cut(rows: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], limit: int) -> Iterator[np.ndarray[Any, Any]]:
    """Consecutive runs of rows with about `limit` bytes each."""
    groups = (np.cumsum(sizes[rows]) - sizes[rows]) // limit
    edges = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1], True])
    for start, end in itertools.pairwise(edges):
        yield rows[start:end]


def _table(batch: np.ndarray[Any, Any], source: _Source, licences: dict[str, list[int]]) -> pa.Table:
    """The chosen rows' texts and provenance; opens the texts of each part that they lie in once."""
    rows = source.rows
    values: dict[int, tuple[str, dict[str, str]]] = {}
    by_part = batch[np.argsort(rows.part[batch], kind="stable")].tolist()
    for number, mine in itertools.groupby(by_part, key=lambda row: int(rows.part[row])):
        with source.parts[number].stem.with_suffix(".bin").open("rb") as texts:
            for row in mine:
                values[row] = (source.text(row, texts), source.described(row))
    for row, (_, described) in values.items():
        entry = licences.setdefault(described["licence"], [0, 0])
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
