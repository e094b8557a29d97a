"""Paths in the record: relative to the folder of the study, so that it may be moved, renamed or copied."""

from __future__ import annotations

from pathlib import Path


def stored_place(path: Path, folder: Path) -> str:
    """How the record names a path: relative to the study where it lies inside, else absolute.

    Args:
        path: relative to the working directory, or absolute.
        folder: of the study.
    """
    for base in (folder.absolute(), folder.resolve()):
        if path.absolute().is_relative_to(base):
            return path.absolute().relative_to(base).as_posix()
    return str(path.absolute())


def found_place(text: str, folder: Path) -> Path:
    """Inverse of `stored_place`, wherever the study lies now.

    Records used to hold absolute paths: the end of such a path is looked for in the study's own folder first, so that
    a copy of a study never uses the files of the original.

    Args:
        text: as the record names it.
        folder: of the study.
    """
    path = Path(text)
    if path.is_absolute():
        for start in range(1, len(path.parts)):
            own = folder.joinpath(*path.parts[start:])
            if own.exists():
                return own
    return folder / path  # an absolute path stays what it is
