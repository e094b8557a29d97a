"""The second pass: duplicates leave, projects are dealt to the splits, leaking validation files leave."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .dedup import BANDS, PERMUTATIONS, Clusters, UInt64, join_near_duplicates
from .parts import Part
from .storage import DataError

SPLITS = ("train", "validation")
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
        split: -1 dropped, 0 train, 1 validation; int8 [n].
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
    """Keeps the first of each cluster of similar texts, so that no cluster can lie on both sides of the split.

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


def choose_validation(sizes: Mapping[str, int], *, seed: int, fraction: float, maximum: int) -> set[str]:
    """Picks validation projects in an order that depends on the seed and the names only.

    Projects are taken while they fit into `fraction` of the bytes (at most `maximum`, with half as much again as
    slack); too large ones are passed over, so a giant never becomes the whole validation split.

    Args:
        sizes: bytes of each project.
        seed, fraction, maximum: see `CorpusSettings`.

    Raises:
        DataError: no choice leaves text of at least one project on each side, in a sensible share.
    """
    total = sum(sizes.values())
    target = min(fraction * total, float(maximum))
    order = sorted(sizes, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name))
    chosen: set[str] = set()
    taken = 0
    for name in order:
        if taken + sizes[name] <= 1.5 * target:
            chosen.add(name)
            taken += sizes[name]
        if taken >= target:
            break
    if taken < 0.5 * target and sizes:
        # Nothing small fits: the smallest remaining project is better than an empty side.
        smallest = min((name for name in order if name not in chosen), key=lambda name: (sizes[name], name))
        if sizes[smallest] + taken <= max(0.35 * total, 1.5 * target):
            chosen.add(smallest)
            taken += sizes[smallest]
    if not chosen or len(chosen) == len(sizes) or taken < 0.1 * target:
        raise DataError(
            f"the corpus cannot be split by project: expected some projects that make about {fraction:.0%} of the "
            f"{total:,} bytes, got {len(sizes)} projects of which the largest has {max(sizes.values(), default=0):,}; "
            f"add sources, raise `project_depth` so that subfolders count as projects, or raise `validation_fraction`"
        )
    return chosen


def split_projects(rows: Rows, *, seed: int, fraction: float, maximum: int) -> set[str]:
    """Deals whole projects to the splits; returns the validation projects."""
    alive = rows.split >= 0
    totals = np.bincount(rows.project[alive], weights=rows.size[alive], minlength=len(rows.projects))
    sizes = {name: int(total) for name, total in zip(rows.projects, totals, strict=True) if total}
    chosen = choose_validation(sizes, seed=seed, fraction=fraction, maximum=maximum)
    is_validation = np.array([name in chosen for name in rows.projects], bool)
    rows.split[alive & is_validation[rows.project]] = 1
    return chosen


def drop_leaking(rows: Rows, parts: Sequence[Part]) -> dict[str, Any]:
    """Drops validation files that share a window of lines with training, then counts what is left (none).

    A validation file's windows count outside its leading comment and imports, a training file's everywhere.
    """
    windows, owners = _validation_windows(rows, parts)
    leaked = _windows_in_training(rows, parts, windows)
    places = np.unique(owners[np.isin(windows, leaked)])
    dropped = np.zeros(len(rows.size), bool)
    dropped[places] = True
    rows.split[dropped] = -1
    left, _ = _validation_windows(rows, parts)
    remaining = len(_windows_in_training(rows, parts, left)) if len(places) else 0
    return {"dropped": tally(rows, dropped), "leaking_windows": len(leaked), "left": remaining}


def _per_part(rows: Rows, parts: Sequence[Part]) -> list[tuple[Part, int, int]]:
    ends = np.searchsorted(rows.part, np.arange(len(parts)), side="right")
    starts = np.r_[0, ends[:-1]]
    return [(part, int(start), int(end)) for part, start, end in zip(parts, starts, ends, strict=True)]


def _validation_windows(rows: Rows, parts: Sequence[Part]) -> tuple[UInt64, npt.NDArray[np.int64]]:
    found: list[UInt64] = [np.zeros(0, np.uint64)]
    owners: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for part, start, end in _per_part(rows, parts):
        inside = np.flatnonzero(rows.split[start:end] == 1)
        if not len(inside):
            continue
        windows, counts, body = part.arrays("windows", "window_count", "body")
        ends = np.cumsum(counts)
        for place in inside:
            mine = windows[ends[place] - counts[place] + min(body[place], counts[place]) : ends[place]]
            found.append(mine)
            owners.append(np.full(len(mine), start + place, np.int64))
    return np.concatenate(found), np.concatenate(owners)


def _windows_in_training(rows: Rows, parts: Sequence[Part], wanted: UInt64) -> UInt64:
    wanted = np.unique(wanted)
    leaked: list[UInt64] = [np.zeros(0, np.uint64)]
    for part, start, end in _per_part(rows, parts):
        windows, counts = part.arrays("windows", "window_count")
        counts = counts[: end - start]
        training = np.repeat(rows.split[start:end] == 0, counts)
        mine = windows[: len(training)][training]
        if len(wanted) and len(mine):
            places = np.minimum(np.searchsorted(wanted, mine), len(wanted) - 1)
            leaked.append(np.unique(mine[wanted[places] == mine]))
    return np.unique(np.concatenate(leaked))
