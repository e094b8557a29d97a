"""The corpus: Python text from many sources, filtered, without duplicates, split by project, with its report."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from ..folders import write_json
from . import selection
from .archives import list_manifest
from .contamination import load_benchmarks
from .dedup import UInt64
from .filters import FilterSettings, by_name
from .ledger import Ledger, as_counts
from .licences import PERMISSIVE, UNKNOWN, is_allowed
from .parts import PART_BYTES, Part, PartJob, available_workers, run_parts, split_into_parts
from .shards import write_splits
from .sources import SourceFile, is_stream, list_source
from .storage import DataError, building, content_key, locked, read_json, stored_key
from .streams import HubSettings, open_stream, stream_files, stream_identity

logger = logging.getLogger(__name__)

_VERSION = 1
_MANIFEST = "corpus.json"


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What goes into a corpus.

    Args:
        sources: each `installed`, `stdlib`, a folder, a glob, `git:FOLDER`, `pypi:MANIFEST` or `hub:OWNER/NAME`.
        max_bytes: about how much text is wanted; files are taken so that every project gives the same number of bytes
            as long as it has them. None takes all.
        seed: of the order in which files and validation projects are drawn.
        validation_fraction: share of the bytes that whole projects give to the validation split.
        max_validation_bytes: upper limit of that split.
        licences: SPDX identifiers that are allowed; an expression must be satisfiable with them.
        unknown_licence: what happens to files whose licence nobody states: `folders` keeps them when they come from a
            folder or glob that you named yourself, `keep` always, `drop` never.
        project_depth: how many leading path parts name a project, for folders and globs.
        near_threshold: texts with at least this estimated Jaccard similarity are duplicates; None switches it off.
        window_lines: a validation file that shares a window of so many lines with training is dropped; 0: off.
        benchmarks: `humaneval` or JSONL files; files that hold 13 consecutive words of theirs are dropped.
        filters: limits for single files.
        hub: how rows of Hub datasets are read.
        archives: folder with the archives of `pypi:` manifests.
        download: allow pip to download archives that the folder lacks.

    Raises:
        ValueError: an empty list of sources, or a number out of range.
    """

    sources: tuple[str, ...] = ("installed",)
    max_bytes: int | None = 40_000_000
    seed: int = 0
    validation_fraction: float = 0.05
    max_validation_bytes: int = 50_000_000
    licences: tuple[str, ...] = PERMISSIVE
    unknown_licence: Literal["folders", "keep", "drop"] = "folders"
    project_depth: int = 1
    near_threshold: float | None = 0.7
    window_lines: int = 10
    benchmarks: tuple[str, ...] = ("humaneval",)
    filters: FilterSettings = field(default_factory=FilterSettings)
    hub: HubSettings = field(default_factory=HubSettings)
    archives: Path = Path("archives")
    download: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("`sources` must name at least one source, got none; `installed` is this machine's Python")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"`max_bytes` must be positive, got {self.max_bytes}; null takes everything")
        if not 0 < self.validation_fraction < 0.5:
            raise ValueError(f"`validation_fraction` must lie between 0 and 0.5, got {self.validation_fraction}")
        if self.near_threshold is not None and not 0.3 <= self.near_threshold <= 1:
            raise ValueError(f"`near_threshold` must lie between 0.3 and 1, got {self.near_threshold}; null: off")
        for name, least in (("project_depth", 1), ("window_lines", 0), ("max_validation_bytes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if self.unknown_licence not in ("folders", "keep", "drop"):
            raise ValueError(f"`unknown_licence` must be folders, keep or drop, got {self.unknown_licence!r}")

    def identity(self) -> dict[str, Any]:
        """What of the settings decides about the text, places on this machine left out."""
        value = dataclasses.asdict(self)
        for name in ("sources", "archives", "download"):
            del value[name]
        value["benchmarks"] = [Path(name).name for name in self.benchmarks]
        return value


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
        return cls(folder, str(value["digest"]), value["report"])

    def split(self, name: Literal["train", "validation"]) -> datasets.Dataset:
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
        if name not in selection.SPLITS:
            raise DataError(f"a corpus has the splits {' and '.join(selection.SPLITS)}, got {name!r}")
        paths = sorted(self.folder.glob(f"{name}-*.arrow"))
        if len(paths) != self.report["split"][name]["shards"]:
            raise DataError(f"{self.folder} lacks shards of {name}; delete the folder and build the corpus again")
        return paths

    def batches(self, name: str, *columns: str) -> Iterator[dict[str, list[str]]]:
        """A split's rows in order, some megabytes at a time; memory does not grow with the corpus.

        Args:
            name: `train` or `validation`.
            columns: which ones; all when none is named.
        """
        for path in self.shards(name):
            yield from self.read_shard(path, *columns)

    def read_shard(self, path: Path, *columns: str) -> Iterator[dict[str, list[str]]]:
        """One shard's rows in order, some megabytes at a time."""
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield (batch.select(columns) if columns else batch).to_pydict()


@dataclass(frozen=True)
class CorpusInputs:
    """What a corpus is made of, before anything is read.

    Args:
        listing: the candidate files of the sources that have files.
        streams: the opened Hub datasets.
        benchmarks: hashes of the benchmark texts.
        notes: what there is to say about each benchmark.
        key: hex SHA-256 of all that and the settings: while it stays, the corpus need not be built again.
    """

    listing: list[list[SourceFile]]
    streams: dict[str, Any]
    benchmarks: dict[str, UInt64]
    notes: dict[str, str]
    key: str


def list_inputs(settings: CorpusSettings) -> CorpusInputs:
    """Lists the sources; reads none of their files.

    Raises:
        DataError: a missing source or benchmark file.
    """
    listing = [_list(source, settings) for source in settings.sources if not is_stream(source)]
    streams = {source: open_stream(source, settings.hub) for source in settings.sources if is_stream(source)}
    benchmarks, notes = load_benchmarks(settings.benchmarks)
    key = content_key(
        [
            _VERSION,
            settings.identity(),
            [_listing_key(files) for files in listing],
            [stream_identity(source, stream, settings.hub) for source, stream in streams.items()],
            {name: hashlib.sha256(hashes.tobytes()).hexdigest() for name, hashes in benchmarks.items()},
        ]
    )
    return CorpusInputs(listing, streams, benchmarks, notes, key)


def build_corpus(
    settings: CorpusSettings, *, folder: Path, workers: int | None = None, inputs: CorpusInputs | None = None
) -> Corpus:
    """Builds a corpus, or opens it when `folder` holds the one of these settings and unchanged sources.

    A killed build goes on where it was. `folder` changes only once everything is done.

    Args:
        settings: what goes in.
        folder: where it goes.
        workers: processes; None takes what the machine grants. The result does not depend on it.
        inputs: as listed for these settings, when that was done already.

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
        for stale in folder.parent.glob(f".{folder.name}.building-*"):
            if stale.name != f".{folder.name}.{name}":
                shutil.rmtree(stale, ignore_errors=True)
        logger.info("building the corpus in %s", folder)
        with building(folder, name=name, keep=True) as work:
            ledger = Ledger()
            hashes = work / "parts" / "benchmarks.npz"
            hashes.parent.mkdir(exist_ok=True)
            np.savez(hashes, allow_pickle=False, **inputs.benchmarks)  # type: ignore[arg-type]
            # The sources share `max_bytes` by their number; those with files draw from one list.
            share = None if settings.max_bytes is None else settings.max_bytes // len(settings.sources)
            candidates = list(_eligible(itertools.chain.from_iterable(listing), settings, ledger))
            work_bytes = sum(file.size for file in candidates)
            if settings.max_bytes is not None:
                work_bytes = min(work_bytes, 2 * settings.max_bytes)
            # Starting workers takes some seconds: they are for work that takes longer.
            heavy = settings.filters.must_parse or settings.near_threshold is not None
            small = work_bytes < PART_BYTES * (4 if heavy else 40) and not streams
            processes = 1 if small else workers or available_workers()
            parts: list[Part] = []
            if listing:
                place = work / "parts" / "files"
                limit = None if share is None else share * len(listing)
                drawn = _draw(candidates, settings.seed)
                parts += _examine(drawn, settings, place=place, hashes=hashes, limit=limit, workers=processes)
            for number, (source, stream) in enumerate(streams.items()):
                place = work / "parts" / f"stream-{number}"
                rows = _eligible(stream_files(source, stream, settings.hub), settings, ledger)
                parts += _examine(rows, settings, place=place, hashes=hashes, limit=share, workers=processes)
            for part in parts:
                ledger.add_part(part.counts, part.masked)
            chosen, outcome = _select(parts, settings, ledger, work)
            report = {**ledger.to_dict(), "benchmarks": inputs.notes, **outcome}
            digest = write_splits(chosen, parts, report, folder=work, salt=content_key(settings.identity()))
            shutil.rmtree(work / "parts")
            report["seconds"] = round(time.perf_counter() - started, 1)
            value = {"key": key, "digest": digest, "settings": settings.identity(), "report": report}
            write_json(work / _MANIFEST, json.loads(json.dumps(value, default=str)))
    return Corpus.open(folder)


def _list(source: str, settings: CorpusSettings) -> list[SourceFile]:
    if source.startswith("pypi:"):
        return list_manifest(source, archives=settings.archives, download=settings.download)
    return list_source(source, project_depth=settings.project_depth)


def _listing_key(files: Iterable[SourceFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.project}|{file.name}|{file.licence}|{file.size}|{file.stamp}\n".encode(errors="replace"))
    return digest.hexdigest()


def _eligible(files: Iterable[SourceFile], settings: CorpusSettings, ledger: Ledger) -> Iterator[SourceFile]:
    """The files that need to be read to decide about them; the others are counted with their reason."""
    verdicts: dict[str, bool] = {}
    for file in files:
        ledger.list_file(file)
        if file.licence not in verdicts:
            verdicts[file.licence] = is_allowed(file.licence, settings.licences)
        own = not file.source.startswith(("git:", "pypi:")) and file.source not in ("installed", "stdlib")
        own = own and not is_stream(file.source)
        unknown = settings.unknown_licence == "keep" or (settings.unknown_licence == "folders" and own)
        if not verdicts[file.licence] and not (unknown and file.licence == UNKNOWN):
            reason: str | None = "licence"
        elif file.size > settings.filters.max_bytes:
            reason = "too large"
        elif file.size < settings.filters.min_bytes:
            reason = "too small"
        else:
            reason = by_name(file.name, settings.filters)
        if reason is None:
            ledger.keep_file(file)
            yield file
        else:
            ledger.drop_file(file, reason)


def _draw(files: list[SourceFile], seed: int) -> list[SourceFile]:
    """Orders the files so that every prefix holds about as many bytes of each project as that project has.

    Within a project the order is that of a seeded hash of the path; the projects are merged by the bytes that each has
    already given. So a limit in bytes never lets one large package become the corpus, a larger limit only adds files,
    and nothing depends on where the files lie.
    """

    def lot(file: SourceFile) -> bytes:
        return hashlib.sha256(f"{seed}|{file.project}|{file.name}".encode(errors="replace")).digest()

    given: dict[str, int] = {}
    order: list[tuple[int, bytes, SourceFile]] = []
    for draw, file in sorted(((lot(file), file) for file in files), key=lambda entry: (entry[0], entry[1].place)):
        order.append((given.get(file.project, 0), draw, file))
        given[file.project] = given.get(file.project, 0) + file.size
    return [file for _, _, file in sorted(order, key=lambda entry: (entry[0], entry[1], entry[2].place))]


def _examine(
    files: Iterable[SourceFile],
    settings: CorpusSettings,
    *,
    place: Path,
    hashes: Path,
    limit: int | None,
    workers: int,
) -> list[Part]:
    """Runs the first pass over `files` until about `limit` bytes of text are kept."""
    place.mkdir(exist_ok=True)
    taken = 0
    last: int | None = None

    def enough(part: Part) -> bool:
        nonlocal taken, last
        sizes = part.arrays("size")[0]
        if limit is not None and taken + int(sizes.sum()) >= limit:
            last = min(len(sizes), int(np.searchsorted(np.cumsum(sizes), limit - taken)) + 1)
            return True
        taken += int(sizes.sum())
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
        raise DataError(
            f"no Python found in {', '.join(settings.sources)} that passes the filters "
            f"(dropped: {dropped or 'nothing'}); "
            f"add sources, or relax `filters`, `licences` or `unknown_licence`"
        )
    examined = selection.tally(rows, np.ones(len(rows.size), bool))
    duplicates = {"exact": selection.drop_exact_duplicates(rows)}
    if settings.near_threshold is not None:
        for name, clones in (("near", False), ("renamed", True)):
            duplicates[name] = selection.drop_near_duplicates(
                rows, parts, threshold=settings.near_threshold, clones=clones, folder=work / "parts"
            )
    projects = selection.split_projects(
        rows, seed=settings.seed, fraction=settings.validation_fraction, maximum=settings.max_validation_bytes
    )
    leakage = selection.drop_leaking(rows, parts) if settings.window_lines else {"dropped": {"files": 0, "bytes": 0}}
    for number, name in enumerate(selection.SPLITS):
        if not np.any(rows.split == number):
            raise DataError(
                f"the {name} split is empty after {leakage['dropped']['files']} validation files "
                f"that leak into training were dropped; add sources, change `seed`, or raise `validation_fraction`"
            )
    outcome = {
        "passed_filters": examined,
        "beyond_max_bytes": beyond,
        "duplicates": duplicates,
        "leakage": {"window_lines": settings.window_lines, **leakage},
        "validation_projects": sorted(projects),
    }
    return rows, outcome
