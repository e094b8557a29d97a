"""What a corpus is made of before anything is read: the listed files, those that may go in, and their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .archives import list_manifest
from .contamination import load_benchmarks
from .dedup import UInt64
from .filters import by_name
from .ledger import Ledger
from .licences import UNKNOWN, is_allowed
from .settings import CorpusSettings
from .source_files import SourceFile
from .sources import is_stream, list_source
from .storage import content_key
from .streams import open_stream, stream_identity

_VERSION = 3  # of the rules by which files are judged: a corpus of earlier ones is built again


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


def _list(source: str, settings: CorpusSettings) -> list[SourceFile]:
    if source.startswith("pypi:"):
        return list_manifest(source, archives=settings.archives, download=settings.download)
    return list_source(source, project_depth=settings.project_depth)


def _listing_key(files: Iterable[SourceFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.project}|{file.name}|{file.licence}|{file.size}|{file.stamp}\n".encode(errors="replace"))
    return digest.hexdigest()


def eligible(files: Iterable[SourceFile], settings: CorpusSettings, ledger: Ledger) -> Iterator[SourceFile]:
    """The files that need to be read to decide about them; the others are counted with their reason."""
    verdicts: dict[str, bool] = {}
    own: dict[str, bool] = {}
    seen: set[tuple[str, str | None]] = set()
    for file in files:
        ledger.list_file(file)
        reason = file.problem
        if reason is None and file.place and (file.place, file.member) in seen:
            reason = "listed twice"
        if reason is not None:
            ledger.leave_out(file, reason)
            continue
        seen.add((file.place, file.member))
        if file.licence not in verdicts:
            verdicts[file.licence] = is_allowed(file.licence, settings.licences)
        if file.source not in own:
            own[file.source] = not file.source.startswith(("git:", "pypi:", "hub:")) and (
                file.source not in ("installed", "stdlib") and not is_stream(file.source)
            )
        unknown = settings.unknown_licence == "keep" or (settings.unknown_licence == "folders" and own[file.source])
        if not verdicts[file.licence] and not (unknown and file.licence == UNKNOWN):
            reason = "licence"
        elif file.size > settings.filters.max_bytes:
            reason = "too large"
        elif file.size < settings.filters.min_bytes:
            reason = "too small"
        else:
            reason = by_name(file.name, settings.filters)
        if reason is None:
            yield file
        else:
            ledger.drop_file(file, reason)


def draw(files: list[SourceFile], seed: int) -> list[SourceFile]:
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
