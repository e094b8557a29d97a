"""Folders that are complete or absent: content keys, locks, atomic replacement."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock


class DataError(ValueError):
    """Something about the data: what was expected, what was got, how to mend it."""


def content_key(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`: equal content, equal key, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Reads a manifest of ours.

    Raises:
        DataError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"expected {what} at {path.parent}, found no {path.name}; build it first") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged ({error}); delete {path.parent} and build {what} again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged (not a JSON object); delete {path.parent} and build {what} again")
    return value


def stored_key(folder: Path, manifest: str) -> str | None:
    """The key that a finished folder was built with; None when there is none or it cannot be read."""
    try:
        value = json.loads((folder / manifest).read_text(encoding="utf-8"))
        return str(value["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One builder at a time per folder; the others wait, then find the finished folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        yield


@contextmanager
def building(folder: Path, *, name: str = "new", keep: bool = False) -> Iterator[Path]:
    """A work folder beside `folder` that replaces it once the block ends without an error.

    Args:
        folder: the final place; what it holds stays readable until the very end.
        name: names the work folder; the same name finds what an interrupted build left behind.
        keep: leave the work folder for the next try when the block fails; else it is removed.

    Raises:
        DataError: the disk is full. Earlier results are intact.
    """
    work = folder.parent / f".{folder.name}.{name}"
    try:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        yield work
        _sync(work)
        old = folder.parent / f".{folder.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
        _sync_directory(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or not keep:
            shutil.rmtree(work, ignore_errors=True)
        if full:
            free = shutil.disk_usage(folder.parent).free
            raise DataError(
                f"the disk of {folder.parent} is full ({free:,} bytes free now that the unfinished part is removed); "
                f"free some space or choose another folder; earlier results are intact"
            ) from error
        raise


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(folder)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
