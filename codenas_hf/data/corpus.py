"""The corpus: Python text from many sources, filtered, without duplicates, split by project, with its report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from ..folders import write_json
from ..hardware import cores
from . import selection
from .candidates import CorpusInputs, draw, eligible, list_inputs
from .ledger import Ledger, as_counts
from .parts import PART_BYTES, Part, PartJob, run_parts, save_benchmarks, split_into_parts
from .settings import CorpusSettings
from .shards import write_splits
from .source_files import SourceFile
from .split import HELD_OUT, SPLITS, promises
from .storage import DataError, building, content_key, locked, read_json, stored_key
from .streams import stream_files

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, float, float], None]

_MANIFEST = "corpus.json"
_WEEK = 7 * 24 * 3600  # seconds


@dataclass(frozen=True)
class Corpus:
    """A finished corpus on disk.

    Args:
        folder: its folder.
        digest: hex SHA-256 of its text and its settings: equal on every machine.
        report: what was read, dropped and why, and what each split holds (JSON).
    """

    folder: Path
    digest: str
    report: dict[str, Any] = field(repr=False, hash=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Opens a finished corpus.

        Raises:
            DataError: there is none, or it is damaged.
        """
        value = read_json(folder / _MANIFEST, what="a corpus")
        if set(value["report"]["split"]) != set(SPLITS):
            raise DataError(
                f"the corpus in {folder} was split by an earlier version into "
                f"{' and '.join(value['report']['split'])}; expected {', '.join(SPLITS)}: build it again"
            )
        return cls(folder, str(value["digest"]), value["report"])

    def split(self, name: str) -> datasets.Dataset:
        """One split, memory-mapped: columns `text`, `path`, `project`, `licence`, `sha256`.

        Raises:
            DataError: no such split.
        """
        shards = [datasets.Dataset.from_file(str(path), split=datasets.Split(name)) for path in self.shards(name)]
        return shards[0] if len(shards) == 1 else datasets.concatenate_datasets(shards)

    def shards(self, name: str) -> list[Path]:
        """The Arrow files of a split, in order.

        Raises:
            DataError: no such split, or its files are gone.
        """
        if name == "validation":  # what other programs call the text that nothing is trained on
            return [path for split in HELD_OUT for path in self.shards(split)]
        if name not in SPLITS:
            raise DataError(f"a corpus has the splits {', '.join(SPLITS)} and validation (the last two), got {name!r}")
        paths = sorted(self.folder.glob(f"{name}-*.arrow"))
        if len(paths) != self.report["split"][name]["shards"]:
            raise DataError(f"{self.folder} lacks shards of {name}; delete the folder and build the corpus again")
        return paths

    def batches(self, name: str, *columns: str) -> Iterator[dict[str, list[str]]]:
        """A split's rows in order, some megabytes at a time; memory does not grow with the corpus.

        Args:
            name: `train`, `search` or `report`; `validation` is the last two together.
            columns: which ones; all when none is named.
        """
        for path in self.shards(name):
            yield from self.read_shard(path, *columns)

    def read_shard(self, path: Path, *columns: str) -> Iterator[dict[str, list[str]]]:
        """One shard's rows in order, some megabytes at a time."""
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield (batch.select(columns) if columns else batch).to_pydict()


def build_corpus(
    settings: CorpusSettings,
    *,
    folder: Path,
    workers: int | None = None,
    inputs: CorpusInputs | None = None,
    on_progress: OnProgress | None = None,
) -> Corpus:
    """Builds a corpus, or opens it when `folder` holds the one of these settings and unchanged sources.

    A killed build goes on where it was. `folder` changes only once everything is done.

    Args:
        settings: what goes in.
        folder: where it goes.
        workers: processes; None takes what the machine grants. The result does not depend on it.
        inputs: as listed for these settings, when that was done already.
        on_progress: told `"corpus"`, the bytes of text that are kept so far, and those that there will be at most.

    Raises:
        DataError: a missing source, no Python left after the filters, an impossible split, a full disk.
    """
    started = time.perf_counter()
    with locked(folder):
        inputs = inputs or list_inputs(settings)
        listing, streams, key = inputs.listing, inputs.streams, inputs.key
        if stored_key(folder, _MANIFEST) == key:
            return Corpus.open(folder)
        name = f"building-{key[:12]}"
        _remove_stale(folder, name)
        logger.info("building the corpus in %s", folder)
        with building(folder, name=name, keep=True) as work:
            ledger = Ledger()
            hashes = work / "parts" / "benchmarks.npz"
            hashes.parent.mkdir(exist_ok=True)
            save_benchmarks(hashes, inputs.benchmarks)
            # The sources share `max_bytes` by their number; those with files draw from one list.
            share = None if settings.max_bytes is None else settings.max_bytes // len(settings.sources)
            wanted = list(eligible(itertools.chain.from_iterable(listing), settings, ledger))
            work_bytes = sum(file.size for file in wanted)
            if settings.max_bytes is not None:
                work_bytes = min(work_bytes, 2 * settings.max_bytes)
            # Starting workers takes some seconds: they are for work that takes longer.
            heavy = settings.filters.must_parse or settings.near_threshold is not None
            small = work_bytes < PART_BYTES * (4 if heavy else 40) and not streams
            processes = 1 if small else workers or cores()
            parts: list[Part] = []
            if listing:
                place = work / "parts" / "files"
                limit = None if share is None else share * len(listing)
                drawn = draw(wanted, settings.seed)
                most = sum(file.size for file in wanted)
                told = None if on_progress is None else functools.partial(_tell, on_progress, min(limit or most, most))
                parts += _examine(
                    drawn, settings, place=place, hashes=hashes, limit=limit, workers=processes, on_taken=told
                )
            for number, (source, stream) in enumerate(streams.items()):
                place = work / "parts" / f"stream-{number}"
                rows = eligible(stream_files(source, stream, settings.hub), settings, ledger)
                told = None if on_progress is None or share is None else functools.partial(_tell, on_progress, share)
                parts += _examine(
                    rows, settings, place=place, hashes=hashes, limit=share, workers=processes, on_taken=told
                )
            for part in parts:
                ledger.add_part(part.counts, part.masked, part.examples)
            chosen, outcome = _select(parts, settings, ledger, work)
            report = {**ledger.to_dict(), "benchmarks": inputs.notes, **outcome}
            digest = write_splits(chosen, parts, report, folder=work, salt=content_key(settings.identity()))
            shutil.rmtree(work / "parts")
            report["seconds"] = round(time.perf_counter() - started, 1)
            value = {"key": key, "digest": digest, "settings": settings.identity(), "report": report}
            write_json(work / _MANIFEST, json.loads(json.dumps(value, default=str)))
    return Corpus.open(folder)


def _remove_stale(folder: Path, name: str) -> None:
    """Removes what killed builds left: of this corpus at once, of others after a week, where nobody builds them."""
    for stale in folder.parent.glob(".*.building-*"):
        other = stale.name[1:].rpartition(".building-")[0]
        if other == folder.name:
            if stale.name != f".{folder.name}.{name}":
                shutil.rmtree(stale, ignore_errors=True)
            continue
        with contextlib.suppress(OSError, Timeout):  # it went meanwhile; it is being built
            if time.time() - stale.stat().st_mtime > _WEEK:
                with FileLock(folder.parent / f".{other}.lock", timeout=0):
                    shutil.rmtree(stale, ignore_errors=True)


def _tell(on_progress: OnProgress, most: int, taken: int) -> None:
    on_progress("corpus", min(taken, most), max(1, most))


def _examine(
    files: Iterable[SourceFile],
    settings: CorpusSettings,
    *,
    place: Path,
    hashes: Path,
    limit: int | None,
    workers: int,
    on_taken: Callable[[int], None] | None,
) -> list[Part]:
    """Runs the first pass over `files` until about `limit` bytes of text are kept."""
    place.mkdir(exist_ok=True)
    taken = 0
    if on_taken is not None:
        on_taken(taken)
    last: int | None = None

    def enough(part: Part) -> bool:
        nonlocal taken, last
        sizes = part.arrays("size")[0]
        if limit is not None and taken + int(sizes.sum()) >= limit:
            last = min(len(sizes), int(np.searchsorted(np.cumsum(sizes), limit - taken)) + 1)
            return True
        taken += int(sizes.sum())
        if on_taken is not None:
            on_taken(taken)
        return False

    def job(number: int, batch: tuple[SourceFile, ...]) -> PartJob:
        near = settings.near_threshold is not None
        return PartJob(number, batch, place, hashes, settings.filters, settings.licences, settings.window_lines, near)

    parts = run_parts(split_into_parts(files), job=job, folder=place, workers=workers, enough=enough)
    if last is not None:
        parts[-1] = dataclasses.replace(parts[-1], take=last)
    return parts


def _select(
    parts: list[Part], settings: CorpusSettings, ledger: Ledger, work: Path
) -> tuple[selection.Rows, dict[str, Any]]:
    """The second pass, and what it has to report."""
    rows, beyond = selection.gather(parts)
    if not len(rows.size):
        dropped = ", ".join(f"{name}: {count['files']}" for name, count in as_counts(ledger.dropped).items())
        named = [f"{name} ({reason})" for reason, names in ledger.examples.items() for name in names]
        refused = f" (refused: {', '.join(list(as_counts(ledger.refused))[:5])})" if ledger.refused else ""
        raise DataError(
            f"no Python found in {', '.join(settings.sources)} that passes the filters "
            f"(dropped: {dropped or 'nothing'}{', such as ' if named else ''}{', '.join(named[:3])}); "
            f"add sources, or relax `filters`, `unknown_licence` or `licences`{refused}: corpus.licences=[...] takes "
            f"all that may be used, your own with them"
        )
    examined = selection.tally(rows, np.ones(len(rows.size), bool))
    duplicates = {"exact": selection.drop_exact_duplicates(rows)}
    if settings.near_threshold is not None:
        for name, clones in (("near", False), ("renamed", True)):
            duplicates[name] = selection.drop_near_duplicates(
                rows, parts, threshold=settings.near_threshold, clones=clones, folder=work / "parts"
            )
    selection.split_projects(
        rows, seed=settings.seed, fraction=settings.held_out_fraction, maximum=settings.max_held_out_bytes
    )
    leakage = selection.drop_leaking(rows, parts) if settings.window_lines else {"dropped": {"files": 0, "bytes": 0}}
    for number, name in enumerate(SPLITS):
        if not np.any(rows.split == number):
            raise DataError(
                f"the {name} text is empty after {leakage['dropped']['files']} held-out files that share lines with "
                f"another split were dropped; add sources, change `seed`, or raise `held_out_fraction`"
            )
    whole = len(selection.project_bytes(rows, rows.split >= 0))
    held_out = {
        name: {rows.projects[p]: size for p, size in selection.project_bytes(rows, rows.split == number).items()}
        for number, name in enumerate(HELD_OUT, 1)
    }
    outcome = {
        "passed_filters": examined,
        "beyond_max_bytes": beyond,
        "duplicates": duplicates,
        "leakage": {"window_lines": settings.window_lines, **leakage},
        "held_out_projects": {name: sorted(found) for name, found in held_out.items()},
        "not_promised": promises(held_out, whole=whole),
    }
    return rows, outcome
