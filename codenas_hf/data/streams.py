"""Hub datasets as a stream of candidate files: any columns, any licence names, larger than memory."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets

from .licences import UNKNOWN, normalise_licence
from .source_files import SourceFile
from .storage import DataError, content_key


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """How a Hub dataset's rows are read.

    Args:
        name: configuration of the dataset, when it has several.
        data_dir: folder of the dataset, when it keeps languages in folders.
        split: its split.
        revision: branch, tag or commit; a commit makes the corpus reproducible.
        text_column: the source text.
        project_column: what the split keeps together; rows without it are counted and left out.
        path_column: the path in the project.
        licence_column: licence name, or list of names, of a row; None when one licence covers the dataset.
        licence: that licence, when there is no column.
        licence_map: names that the dataset uses to SPDX identifiers.
    """

    name: str | None = None
    data_dir: str | None = None
    split: str = "train"
    revision: str | None = None
    text_column: str = "content"
    project_column: str = "repo_name"
    path_column: str = "path"
    licence_column: str | None = "license"
    licence: str = UNKNOWN
    licence_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("split", "text_column", "project_column", "path_column"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` must be a non-empty name, got {getattr(self, name)!r}")


def open_stream(source: str, settings: HubSettings) -> Any:
    """Opens the dataset lazily.

    Returns:
        A `datasets.IterableDataset`.

    Raises:
        DataError: it cannot be reached, or lacks a column.
    """
    identifier = source.removeprefix("hub:")
    try:
        stream = datasets.load_dataset(
            identifier,
            settings.name,
            data_dir=settings.data_dir,
            split=settings.split,
            revision=settings.revision,
            streaming=True,
        )
        columns = list(stream.features or next(iter(stream.take(1)), {}))
    except Exception as error:  # the Hub client raises a dozen unrelated types
        raise DataError(
            f"the Hub dataset `{identifier}` (split {settings.split}) cannot be opened: "
            f"{type(error).__name__}: {error}; "
            f"check the name, the split, the network and, for a gated one, that you are logged in"
        ) from error
    wanted = [settings.text_column, settings.project_column, settings.path_column]
    missing = [name for name in [*wanted, settings.licence_column] if name and name not in columns]
    if missing:
        raise DataError(
            f"the Hub dataset `{identifier}` has no column {', '.join(missing)}; it has {', '.join(columns)}: "
            f"set `hub.text_column` and its neighbours"
        )
    return stream


def stream_identity(source: str, stream: Any, settings: HubSettings) -> str:
    """What tells this dataset from another version of it: the files that it resolves to, where they are known."""
    info = getattr(stream, "info", None)
    checksums = sorted(getattr(info, "download_checksums", None) or {})
    return content_key([source, settings.name, settings.data_dir, settings.split, settings.revision, checksums])


def stream_files(source: str, stream: Any, settings: HubSettings) -> Iterator[SourceFile]:
    """The rows as candidate files, in the dataset's own order; a row without text or project carries its problem.

    Raises:
        DataError: the stream breaks off.
    """
    rows = iter(stream)
    for number in itertools.count():
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the Hub client, the network and the file formats raise dozens of unrelated types
            raise DataError(
                f"the Hub dataset `{source.removeprefix('hub:')}` broke off at row {number:,}: "
                f"{type(error).__name__}: {error}; run it again to go on, or correct `sources`"
            ) from error
        yield _row_file(row, number, source, settings)


def _row_file(row: dict[str, Any], number: int, source: str, settings: HubSettings) -> SourceFile:
    text, project, path = (row[c] for c in (settings.text_column, settings.project_column, settings.path_column))
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    problem = None if isinstance(raw, bytes) else "row without text"
    if problem is None and (project is None or not str(project).strip()):
        problem = "row without a project"
    raw = raw if isinstance(raw, bytes) else b""
    return SourceFile(
        place="",
        project=str(project or ""),
        name=str(path) if path else f"row {number}",
        licence=_row_licence(row, settings),
        size=len(raw),
        stamp=0,
        source=source,
        raw=raw,
        problem=problem,
    )


def _row_licence(row: dict[str, Any], settings: HubSettings) -> str:
    value = row[settings.licence_column] if settings.licence_column else settings.licence
    names = [
        str(name) for name in (value if isinstance(value, Collection) and not isinstance(value, str) else [value])
    ]
    mapped = [settings.licence_map.get(name) or normalise_licence(name) for name in names if name and name != "None"]
    return " AND ".join(dict.fromkeys(mapped)) if mapped else UNKNOWN
