"""One candidate file, what a folder holds of them, and what is said of those that cannot be read."""

from __future__ import annotations

import lzma
import os
import stat
import zipfile
import zlib
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

# What reading a file or a member of an archive raises when it is damaged, encrypted, gone or not ours to read.
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, KeyError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
ENVIRONMENTS = frozenset({"node_modules", "site-packages", "dist-packages"})


def printable(text: str) -> str:
    """A name that every file format can hold: bytes of a file name that are not UTF-8 are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One candidate file, not yet read.

    Args:
        place: the path of the file, or of the archive that holds it; empty when `raw` holds the content.
        project: the project that it belongs to.
        name: its path inside the project, with `/`; ends in `/` for a folder that was not entered.
        licence: SPDX expression, or `unknown`.
        size: bytes, before any filter.
        stamp: modification time in nanoseconds; with `size` it tells whether the file changed.
        source: the source that named it, as in the settings.
        raw: the content, for sources without files.
        member: its name in the archive.
        problem: why it cannot be read; such a file is only counted.
    """

    place: str
    project: str
    name: str
    licence: str
    size: int
    stamp: int
    source: str
    raw: bytes | None = None
    member: str | None = None
    problem: str | None = None

    def __post_init__(self) -> None:
        for name in ("project", "name", "licence", "source"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    @property
    def is_folder(self) -> bool:
        """Whether it stands for a folder that was not entered."""
        return self.name.endswith("/")

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            UNREADABLE: it cannot be read any more.
        """
        if self.raw is not None:
            return self.raw
        if self.member is not None:
            with zipfile.ZipFile(self.place) as bundle:
                return bundle.read(self.member)
        with open(self.place, "rb") as file:
            return file.read()


def entry(path: str, *, project: str, name: str, licence: str, source: str, problem: str | None = None) -> SourceFile:
    """A file on disk as a candidate; one that is no regular file, or cannot be looked at, carries its problem."""
    size = stamp = 0
    if problem is None:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            problem = "link that leads nowhere" if os.path.islink(path) else "missing file"
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            problem = f"unreadable ({type(error).__name__})"
        else:
            if stat.S_ISREG(status.st_mode):
                size, stamp = status.st_size, status.st_mtime_ns
            else:
                problem = "not a regular file"
    return SourceFile(path, project, name, licence, size, stamp, source, problem=problem)


def walk(folder: Path, *, skip: Collection[str] = ENVIRONMENTS) -> Iterator[tuple[str, str | None]]:
    """The Python files below a folder, sorted, and what is not read there.

    Links to folders are followed, after everything that lies here itself; each folder is read once, so loops end.
    Hidden folders, caches and virtual environments are not entered.

    Args:
        folder: where to begin.
        skip: names of folders that are not entered either.

    Yields:
        A path and None for a file; a path that ends in `/` and the reason for a folder that is not entered.
    """
    seen: set[tuple[int, int]] = set()
    above = {_identity(str(parent)) for parent in folder.parents}
    waiting = deque([str(folder)])
    problems: list[OSError] = []
    while waiting:
        top = waiting.popleft()
        if _identity(top) in seen | above:
            yield f"{top}/", "linked folder that is read already"
            continue
        for base, folders, names in os.walk(top, onerror=problems.append):
            seen.add(_identity(base))
            inner = []
            for name in sorted(folders):
                path = os.path.join(base, name)
                if name == "__pycache__":
                    continue
                if name.startswith("."):
                    yield f"{path}/", "hidden folder"
                elif name in skip or os.path.exists(os.path.join(path, "pyvenv.cfg")):
                    yield f"{path}/", "folder of installed packages"
                elif os.path.islink(path):
                    waiting.append(path)
                else:
                    inner.append(name)
            folders[:] = inner
            for name in sorted(names):
                path = os.path.join(base, name)
                if name.endswith(".py"):
                    yield path, None
                elif os.path.islink(path) and not os.path.exists(path):
                    yield f"{path}/", "link that leads nowhere"
    for error in problems:
        yield f"{error.filename}/", f"unreadable ({type(error).__name__})"


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino
