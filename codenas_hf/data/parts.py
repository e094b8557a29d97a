"""The first pass: candidate files are read, filtered and fingerprinted, part by part, in parallel, resumably.

A part is a run of candidates. Its outcome lies in three files (texts, arrays, rows), the last of which is renamed into
place at the very end, so a killed build goes on with the next part. Memory does not grow with the corpus.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..folders import keep_sockets_short, write_json
from .contamination import contaminated
from .dedup import UInt64, band_keys, fingerprint, signatures
from .filters import FilterSettings, examine
from .source_files import UNREADABLE, SourceFile
from .storage import DataError

PART_BYTES = 4_000_000
_NO_TEXT = ("not UTF-8", "null byte")  # the files of these reasons are named in the report


@dataclass(frozen=True)
class PartJob:
    """One part's work, as handed to a worker process.

    Args:
        number: place in the order of parts.
        files: the candidates.
        folder: where the part's files go.
        benchmarks: npz file with the benchmark hashes.
        filters, licences, window_lines: see `CorpusSettings`.
        near: whether near-duplicates will be looked for.
    """

    number: int
    files: tuple[SourceFile, ...]
    folder: Path
    benchmarks: Path
    filters: FilterSettings
    licences: tuple[str, ...]
    window_lines: int
    near: bool


@dataclass(frozen=True)
class Part:
    """A finished part; only its counts are held in memory.

    Args:
        stem: its files' common path.
        counts: reason to [files, bytes] for what was dropped.
        masked: number of masked secrets and addresses.
        examples: reason to the first few files that could not be read as text.
        take: how many of its kept files are wanted; None takes all.
    """

    stem: Path
    counts: dict[str, list[int]]
    masked: dict[str, int]
    examples: dict[str, list[str]]
    take: int | None = None

    @classmethod
    def open(cls, folder: Path, number: int) -> Part | None:
        """The finished part of that number; None when it is not finished."""
        stem = folder / f"part-{number:06d}"
        try:
            value = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return cls(stem, value["counts"], value["masked"], value["examples"])

    def rows(self) -> list[dict[str, str]]:
        """For each kept file its path, project, licence and source, read from disk."""
        rows: list[dict[str, str]] = json.loads(self.stem.with_suffix(".json").read_text(encoding="utf-8"))["rows"]
        return rows

    def arrays(self, *names: str) -> list[npt.NDArray[Any]]:
        """The named arrays, read from disk.

        `offset`, `size` (bytes of text), `sha` [n, 32], `shingle_count`, `clone_count`, `signature` and
        `clone_signature` [n, 128], `keys` and `clone_keys` [n, 16], `windows` (of all files, one after the other),
        `window_count`, `body`.
        """
        with np.load(self.stem.with_suffix(".npz"), allow_pickle=False) as stored:
            return [stored[name] for name in names]


def split_into_parts(files: Iterable[SourceFile], part_bytes: int = PART_BYTES) -> Iterator[tuple[SourceFile, ...]]:
    """Cuts the candidates into runs of about `part_bytes` raw bytes, in order."""
    batch: list[SourceFile] = []
    total = 0
    for file in files:
        batch.append(file)
        total += file.size
        if total >= part_bytes:
            yield tuple(batch)
            batch, total = [], 0
    if batch:
        yield tuple(batch)


def run_parts(
    batches: Iterable[tuple[SourceFile, ...]],
    *,
    job: Callable[[int, tuple[SourceFile, ...]], PartJob],
    folder: Path,
    workers: int,
    enough: Callable[[Part], bool],
) -> list[Part]:
    """Examines parts in order until there are enough; finished parts of an earlier try are not done again.

    Args:
        batches: the candidates of each part.
        job: makes the work of a part.
        folder: where the parts lie.
        workers: processes; with 1 everything runs in this one.
        enough: called with each part in order; True stops.

    Returns:
        The parts up to the one with which it was enough.
    """
    parts: list[Part] = []
    waiting: deque[tuple[int, Future[None] | None]] = deque()
    stream = enumerate(batches)
    pool = ProcessPoolExecutor(workers, _context(), end_with_the_caller) if workers > 1 else None
    try:
        while True:
            for number, files in itertools.islice(stream, (2 * workers if pool else 1) - len(waiting)):
                future = None
                if Part.open(folder, number) is None:
                    if pool is not None:
                        future = pool.submit(examine_part, job(number, files))
                    else:
                        examine_part(job(number, files))
                waiting.append((number, future))
            if not waiting:
                return parts
            number, future = waiting.popleft()
            if future is not None:
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise DataError(
                        f"a worker process died while it examined part {number} (out of memory, killed, or a script "
                        f'without `if __name__ == "__main__":`); run it again to go on there, or pass workers=1'
                    ) from error
            part = Part.open(folder, number)
            if part is None:
                raise DataError(
                    f"part {number} of the corpus vanished from {folder} while it was being built: run it again, and "
                    "let nothing else write there"
                )
            parts.append(part)
            if enough(part):
                return parts
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """Forked from a clean server: the caller's threads (tokenizers, OpenMP) make a plain fork unsafe."""
    keep_sockets_short()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def end_with_the_caller() -> None:
    """Called first in a worker: it ends when its caller is gone, however that died.

    By itself it would wait for work for ever: it holds the other end of the pipe from which work comes.
    """
    caller = multiprocessing.parent_process()

    def watch() -> None:
        if caller is not None:
            wait([caller.sentinel])
            os._exit(1)

    threading.Thread(target=watch, name="caller-watch", daemon=True).start()


def save_benchmarks(path: Path, benchmarks: Mapping[str, UInt64]) -> None:
    """Writes the hashes of each benchmark where the workers find them."""
    arrays = {str(number): hashes for number, hashes in enumerate(benchmarks.values())}
    np.savez(path, names=np.array(list(benchmarks), dtype=str), allow_pickle=False, **arrays)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=2)
def _benchmarks(path: Path, stamp: int) -> dict[str, UInt64]:
    with np.load(path, allow_pickle=False) as stored:
        return {str(name): stored[str(number)] for number, name in enumerate(stored["names"])}


def examine_part(job: PartJob) -> None:
    """Reads, filters and fingerprints one part and writes its outcome."""
    stem = job.folder / f"part-{job.number:06d}"
    benchmarks = _benchmarks(job.benchmarks, job.benchmarks.stat().st_mtime_ns)
    rows: list[dict[str, str]] = []
    texts: list[bytes] = []
    counts: dict[str, list[int]] = {}
    examples: dict[str, list[str]] = {}
    masked = {"secrets": 0, "emails": 0}
    prints = []
    for file in job.files:
        try:
            raw = file.read()
        except UNREADABLE as error:
            reason = f"unreadable ({type(error).__name__})"
            _count(counts, reason, file.size)
            examples.setdefault(reason, []).append(file.name)
            continue
        verdict = examine(raw, name=file.name, settings=job.filters, licences=job.licences)
        if verdict.text is None:
            _count(counts, str(verdict.reason), len(raw))
            if verdict.reason in _NO_TEXT:
                examples.setdefault(verdict.reason, []).append(file.name)
            continue
        found = fingerprint(verdict.text, window_lines=job.window_lines, near=job.near, words=bool(benchmarks))
        benchmark = contaminated(found.words, benchmarks)
        if benchmark is not None:
            _count(counts, f"benchmark: {benchmark}", len(raw))
            continue
        masked["secrets"] += verdict.secrets
        masked["emails"] += verdict.emails
        rows.append({"path": file.name, "project": file.project, "licence": file.licence, "source": file.source})
        texts.append(verdict.text.encode("utf-8"))
        prints.append(found)
    with stem.with_suffix(".bin").open("wb") as out:
        out.writelines(texts)
    sizes = np.array([len(text) for text in texts], np.int64)
    signature = signatures([found.shingles for found in prints])
    clone_signature = signatures([found.clones for found in prints])
    with stem.with_suffix(".npz").open("wb") as out:
        np.savez(
            out,
            offset=np.cumsum(sizes) - sizes,
            size=sizes,
            sha=np.array([list(hashlib.sha256(text).digest()) for text in texts], np.uint8).reshape(-1, 32),
            shingle_count=np.array([len(found.shingles) for found in prints], np.int64),
            clone_count=np.array([len(found.clones) for found in prints], np.int64),
            keys=band_keys(signature),
            clone_keys=band_keys(clone_signature),
            signature=signature,
            clone_signature=clone_signature,
            windows=np.concatenate([*(found.windows for found in prints), np.zeros(0, np.uint64)]),
            window_count=np.array([len(found.windows) for found in prints], np.int64),
            body=np.array([found.body for found in prints], np.int64),
        )
    write_json(stem.with_suffix(".json"), {"rows": rows, "counts": counts, "masked": masked, "examples": examples})


def _count(counts: dict[str, list[int]], reason: str, size: int) -> None:
    entry = counts.setdefault(reason, [0, 0])
    entry[0] += 1
    entry[1] += size
