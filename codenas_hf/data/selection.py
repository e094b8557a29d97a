"""The second pass: duplicates leave, projects are dealt to the splits, leaking held-out files leave."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .dedup import BANDS, PERMUTATIONS, Clusters, UInt64, join_near_duplicates
from .parts import Part
from .split import HELD_OUT, SPLITS, deal, lots

_FEWEST_SHINGLES = 20
_CLONE_THRESHOLD = 0.9
_FEWEST_CLONES = 40


@dataclass
class Rows:
    """All examined files, one row each, in their order of selection.

    Args:
        part, place: part number and row in it, int32 [n].
        size: bytes of text, int64 [n].
        sha: SHA-256 of the text, uint8 [n, 32].
        project: index into `projects`, int32 [n].
        projects: project names.
        split: -1 dropped, else the index in `SPLITS`; int8 [n].
    """

    part: npt.NDArray[np.int32]
    place: npt.NDArray[np.int32]
    size: npt.NDArray[np.int64]
    sha: npt.NDArray[np.uint8]
    project: npt.NDArray[np.int32]
    projects: list[str]
    split: npt.NDArray[np.int8]


def tally(rows: Rows, chosen: npt.NDArray[np.bool_]) -> dict[str, int]:
    """Files and bytes of the chosen rows, for the report."""
    return {"files": int(chosen.sum()), "bytes": int(rows.size[chosen].sum())}


def gather(parts: Sequence[Part]) -> tuple[Rows, dict[str, int]]:
    """Collects the rows that are wanted of each part.

    Returns:
        The rows, and the tally of those that are not wanted.
    """
    names: dict[str, int] = {}
    titles: list[str] = []
    columns: dict[str, list[npt.NDArray[Any]]] = {
        "part": [np.zeros(0, np.int32)],
        "place": [np.zeros(0, np.int32)],
        "size": [np.zeros(0, np.int64)],
        "sha": [np.zeros((0, 32), np.uint8)],
        "project": [np.zeros(0, np.int32)],
    }
    beyond = {"files": 0, "bytes": 0}
    for number, part in enumerate(parts):
        size, sha = part.arrays("size", "sha")
        count = len(size) if part.take is None else part.take
        beyond["files"] += len(size) - count
        beyond["bytes"] += int(size[count:].sum())
        projects = []
        for row in part.rows()[:count]:
            # `Me/Code` and `me/code` are one project to the Hub and to git hosts; so are two spellings of one accent.
            name = unicodedata.normalize("NFC", row["project"]).casefold()
            if name not in names:
                names[name] = len(names)
                titles.append(row["project"])
            projects.append(names[name])
        columns["part"].append(np.full(count, number, np.int32))
        columns["place"].append(np.arange(count, dtype=np.int32))
        columns["size"].append(size[:count])
        columns["sha"].append(sha[:count])
        columns["project"].append(np.array(projects, np.int32))
    joined = {name: np.concatenate(arrays) for name, arrays in columns.items()}
    return Rows(**joined, projects=titles, split=np.zeros(len(joined["size"]), np.int8)), beyond


def drop_exact_duplicates(rows: Rows) -> dict[str, int]:
    """Keeps the first of equal texts."""
    keys = np.ascontiguousarray(rows.sha).view("V32").reshape(-1)
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(rows.size), bool)
    again[first] = False
    rows.split[again] = -1
    return tally(rows, again)


def drop_near_duplicates(
    rows: Rows, parts: Sequence[Part], *, threshold: float, clones: bool, folder: Path
) -> dict[str, int]:
    """Keeps the first of each cluster of similar texts, so that no cluster can lie in two splits.

    Args:
        rows: marked in place.
        parts: hold the signatures.
        threshold: smallest estimated Jaccard similarity.
        clones: compare the texts with names and numbers made equal (renamed copies, at 0.9 or `threshold`, whichever
            is larger) instead of the texts.
        folder: for temporary files: the signatures do not stay in memory.

    Returns:
        The tally of the dropped files.
    """
    prefix, count_name, fewest = (
        ("clone_", "clone_count", _FEWEST_CLONES) if clones else ("", "shingle_count", _FEWEST_SHINGLES)
    )
    indices: list[npt.NDArray[np.int64]] = []
    bands = [(folder / f"band-{band:02d}.tmp").open("wb") for band in range(BANDS)]
    try:
        with (folder / "signature.tmp").open("wb") as out:
            for part, start, stop in _per_part(rows, parts):
                count, keys, signature = part.arrays(count_name, f"{prefix}keys", f"{prefix}signature")
                eligible = np.flatnonzero((rows.split[start:stop] >= 0) & (count[: stop - start] >= fewest))
                indices.append(eligible.astype(np.int64) + start)
                signature[eligible].tofile(out)
                for band, file in enumerate(bands):
                    keys[eligible, band].tofile(file)
    finally:
        for file in bands:
            file.close()
    index = np.concatenate([*indices, np.zeros(0, np.int64)])
    clusters = Clusters(len(rows.size))
    if len(index):
        stored = np.memmap(folder / "signature.tmp", np.uint32, mode="r", shape=(len(index), PERMUTATIONS))
        for band in range(BANDS):
            join_near_duplicates(
                clusters,
                keys=np.fromfile(folder / f"band-{band:02d}.tmp", np.uint64)[:, None],
                signature=stored,
                indices=index,
                threshold=max(threshold, _CLONE_THRESHOLD) if clones else threshold,
            )
        del stored
    for path in folder.glob("*.tmp"):
        path.unlink()
    dropped = np.zeros(len(rows.size), bool)
    for row in np.flatnonzero(clusters.parent != np.arange(len(rows.size))):
        dropped[row] = clusters.find(int(row)) != row
    rows.split[dropped] = -1
    return tally(rows, dropped)


def split_projects(rows: Rows, *, seed: int, fraction: float, maximum: int) -> None:
    """Deals whole projects to the splits; of a corpus of one or two projects, files.

    Raises:
        DataError: there are not even three files to deal.
    """
    alive = np.flatnonzero(rows.split >= 0)
    totals = project_bytes(rows, rows.split >= 0)
    if len(totals) > 2:
        named = {rows.projects[number]: number for number in totals}
        sizes = {name: totals[number] for name, number in named.items()}
        sides = deal(sizes, seed=seed, fraction=fraction, maximum=maximum)
        for split, names in sides.items():
            rows.split[alive[np.isin(rows.project[alive], [named[name] for name in names])]] = SPLITS.index(split)
        return
    files = {rows.sha[row].tobytes().hex(): int(row) for row in alive}
    if len(totals) == 2:
        smaller = min(totals, key=lambda number: (totals[number], rows.projects[number]))
        inside = lots([name for name, row in files.items() if rows.project[row] == smaller], seed)
        if len(inside) > 1:
            for number, name in enumerate(inside):
                rows.split[files[name]] = 1 + number % len(HELD_OUT)
            return
    sizes = {name: int(rows.size[row]) for name, row in files.items()}
    for split, names in deal(sizes, seed=seed, fraction=fraction, maximum=maximum).items():
        rows.split[[files[name] for name in names]] = SPLITS.index(split)


def project_bytes(rows: Rows, chosen: npt.NDArray[np.bool_]) -> dict[int, int]:
    """Bytes of each project that has any among the chosen rows."""
    totals = np.bincount(rows.project[chosen], weights=rows.size[chosen], minlength=len(rows.projects))
    return {int(number): int(totals[number]) for number in np.flatnonzero(totals)}


def drop_leaking(rows: Rows, parts: Sequence[Part]) -> dict[str, Any]:
    """Drops search files that share a window of lines with training, and report files that share one with either.

    Then it counts what is left (none). A held-out file's windows count outside its leading comment and imports, those
    of the text that it is compared with everywhere.
    """
    dropped = np.zeros(len(rows.size), bool)
    by_split: dict[str, dict[str, int]] = {}
    leaking = left = 0
    for number, name in enumerate(HELD_OUT, 1):
        windows, owners = _held_out_windows(rows, parts, number)
        leaked = _windows_among(rows, parts, windows, splits=number)
        places = np.unique(owners[np.isin(windows, leaked)])
        leaves = np.zeros(len(rows.size), bool)
        leaves[places] = True
        rows.split[leaves] = -1
        again, _ = _held_out_windows(rows, parts, number)
        left += len(_windows_among(rows, parts, again, splits=number)) if len(places) else 0
        leaking += len(leaked)
        by_split[name] = tally(rows, leaves)
        dropped |= leaves
    return {"dropped": tally(rows, dropped), "by_split": by_split, "leaking_windows": leaking, "left": left}


def _per_part(rows: Rows, parts: Sequence[Part]) -> list[tuple[Part, int, int]]:
    ends = np.searchsorted(rows.part, np.arange(len(parts)), side="right")
    starts = np.r_[0, ends[:-1]]
    return [(part, int(start), int(end)) for part, start, end in zip(parts, starts, ends, strict=True)]


def _held_out_windows(rows: Rows, parts: Sequence[Part], split: int) -> tuple[UInt64, npt.NDArray[np.int64]]:
    found: list[UInt64] = [np.zeros(0, np.uint64)]
    owners: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for part, start, end in _per_part(rows, parts):
        inside = np.flatnonzero(rows.split[start:end] == split)
        if not len(inside):
            continue
        windows, counts, body = part.arrays("windows", "window_count", "body")
        ends = np.cumsum(counts)
        for place in inside:
            mine = windows[ends[place] - counts[place] + min(body[place], counts[place]) : ends[place]]
            found.append(mine)
            owners.append(np.full(len(mine), start + place, np.int64))
    return np.concatenate(found), np.concatenate(owners)


def _windows_among(rows: Rows, parts: Sequence[Part], wanted: UInt64, *, splits: int) -> UInt64:
    """Which of the wanted windows the first `splits` splits hold."""
    wanted = np.unique(wanted)
    leaked: list[UInt64] = [np.zeros(0, np.uint64)]
    for part, start, end in _per_part(rows, parts):
        windows, counts = part.arrays("windows", "window_count")
        counts = counts[: end - start]
        inside = np.repeat((rows.split[start:end] >= 0) & (rows.split[start:end] < splits), counts)
        mine = windows[: len(inside)][inside]
        if len(wanted) and len(mine):
            places = np.minimum(np.searchsorted(wanted, mine), len(wanted) - 1)
            leaked.append(np.unique(mine[wanted[places] == mine]))
    return np.unique(np.concatenate(leaked))
