"""Where Python text comes from: the machine's own packages, folders, globs, git checkouts, archives, Hub datasets."""

from __future__ import annotations

import csv
import glob
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import cast

from .licences import UNKNOWN, licence_of_text, package_licence, project_licence
from .storage import DataError

_OURSELVES = {"codenas-hf"}
_SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "dist-packages", ".git", ".tox", ".nox", ".venv"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One candidate file, not yet read.

    Args:
        place: the file's path, or `archive!member`; empty when `raw` holds the content.
        project: the project that it belongs to.
        name: its path inside the project, with `/`.
        licence: SPDX expression, or `unknown`.
        size: bytes, before any filter.
        stamp: modification time in nanoseconds; with `size` it tells whether the file changed.
        source: the source that named it, as in the settings.
        raw: the content, for sources without files.
    """

    place: str
    project: str
    name: str
    licence: str
    size: int
    stamp: int
    source: str
    raw: bytes | None = None

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            OSError: it cannot be read any more.
        """
        if self.raw is not None:
            return self.raw
        archive, _, member = self.place.partition("!")
        if member:
            with zipfile.ZipFile(archive) as bundle:
                return bundle.read(member)
        with open(self.place, "rb") as file:
            return file.read()


def is_stream(source: str) -> bool:
    """Whether a source is a Hub dataset, which is read as a stream, rather than a list of files."""
    if source.startswith("hub:"):
        return True
    local = source in ("installed", "stdlib") or source.startswith(("git:", "pypi:")) or os.path.exists(source)
    return not local and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not source.startswith(".")


def list_source(source: str, *, project_depth: int = 1) -> list[SourceFile]:
    """Lists a source's Python files; reads none of them.

    Args:
        source: `installed` (the interpreter's standard library and installed packages), `stdlib`, `git:FOLDER` (the
            tracked files of a checkout, or of every checkout inside the folder), `pypi:MANIFEST`, a folder, or a glob.
        project_depth: for folders and globs, how many leading path parts name a project.

    Raises:
        DataError: the source is missing or holds no Python.
    """
    if source in ("installed", "stdlib"):
        files = list(_standard_library(source))
        if source == "installed":
            files += _installed_packages()
    elif source.startswith("git:"):
        files = list(_git_checkouts(Path(source.removeprefix("git:")).expanduser(), source))
    elif any(character in source for character in "*?["):
        files = list(_glob(source, project_depth))
    else:
        folder = Path(source).expanduser()
        if not folder.exists():
            raise DataError(
                f"the source `{source}` is missing: expected `installed`, `stdlib`, `git:FOLDER`, `pypi:MANIFEST`, "
                f"`hub:OWNER/NAME`, an existing folder or a glob; correct `sources`"
            )
        files = list(_folder(folder, source, project_depth))
    if not files:
        raise DataError(f"no Python found in the source `{source}`: expected files named *.py; correct `sources`")
    return files


def _entry(path: str, *, project: str, name: str, licence: str, source: str) -> SourceFile | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return SourceFile(path, project, name, licence, status.st_size, status.st_mtime_ns, source)


def _walk(folder: Path) -> Iterator[str]:
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED_FOLDERS
            and not name.startswith(".")
            and not os.path.exists(os.path.join(base, name, "pyvenv.cfg"))
        )
        for name in sorted(names):
            if name.endswith(".py"):
                yield os.path.join(base, name)


def _standard_library(source: str) -> Iterator[SourceFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    project = f"{platform.python_implementation().lower()}-{sysconfig.get_python_version()}"
    for path in _walk(root):
        name = Path(path).relative_to(root).as_posix()
        found = _entry(path, project=project, name=name, licence="PSF-2.0", source=source)
        if found is not None:
            yield found


def _installed_packages() -> Iterator[SourceFile]:
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        project = re.sub(r"[-_.]+", "-", str(distribution.metadata["Name"] or "")).lower()
        if not project or project in seen or project in _OURSELVES:
            continue
        seen.add(project)
        licence = package_licence(cast(Message, distribution.metadata))
        if licence == UNKNOWN:
            licence = _licence_of_files(distribution)
        for name in sorted(_recorded(distribution)):
            if not name.endswith(".py") or name.startswith(("..", "/")):
                continue
            path = str(distribution.locate_file(name))
            found = _entry(path, project=project, name=name, licence=licence, source="installed")
            if found is not None:
                yield found


def _recorded(distribution: importlib.metadata.Distribution) -> Iterable[str]:
    record = distribution.read_text("RECORD")
    if record:
        return {row[0] for row in csv.reader(record.splitlines()) if row}
    return {str(path) for path in distribution.files or []}


def _licence_of_files(distribution: importlib.metadata.Distribution) -> str:
    """The text of the `License-File`s that the metadata name: all must agree to be understood."""
    found = set()
    for name in distribution.metadata.get_all("License-File") or []:
        text = distribution.read_text(str(name)) or distribution.read_text(f"licenses/{name}")
        found.add(licence_of_text(text) if text else UNKNOWN)
    return found.pop() if len(found) == 1 else UNKNOWN


def _project_of(relative: PurePosixPath, *, depth: int, fallback: str) -> str:
    parts = relative.parts[:-1][:depth]
    return "/".join(parts) if parts else fallback


def _folder(folder: Path, source: str, depth: int) -> Iterator[SourceFile]:
    folder = folder.resolve()
    if folder.is_file():
        found = _entry(str(folder), project=folder.stem, name=folder.name, licence=UNKNOWN, source=source)
        if found is not None:
            yield found
        return
    licences: dict[str, str] = {}
    whole = project_licence(folder)
    for path in _walk(folder):
        relative = PurePosixPath(Path(path).relative_to(folder).as_posix())
        project = _project_of(relative, depth=depth, fallback=folder.name)
        if project not in licences:
            own = project_licence(folder / project) if (folder / project).is_dir() else UNKNOWN
            licences[project] = whole if own == UNKNOWN else own
        found = _entry(path, project=project, name=str(relative), licence=licences[project], source=source)
        if found is not None:
            yield found


def _glob(pattern: str, depth: int) -> Iterator[SourceFile]:
    fixed = Path(re.split(r"[*?\[]", os.path.expanduser(pattern), maxsplit=1)[0] or ".")
    root = (fixed if fixed.is_dir() else fixed.parent).resolve()
    licences: dict[str, str] = {}
    for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)):
        if not path.endswith(".py") or not os.path.isfile(path):
            continue
        relative = PurePosixPath(os.path.relpath(path, root).replace(os.sep, "/"))
        project = _project_of(relative, depth=depth, fallback=root.name)
        if project not in licences:
            licences[project] = project_licence(root / project) if (root / project).is_dir() else UNKNOWN
        found = _entry(
            os.path.abspath(path), project=project, name=str(relative), licence=licences[project], source=pattern
        )
        if found is not None:
            yield found


def _git_checkouts(folder: Path, source: str) -> Iterator[SourceFile]:
    if shutil.which("git") is None:
        raise DataError(f"the source `{source}` needs the program git: install it, or name the folder without `git:`")
    roots = [folder] if (folder / ".git").exists() else sorted(path.parent for path in folder.glob("*/.git"))
    if not roots:
        raise DataError(f"the source `{source}` holds no git checkout: expected {folder}/.git or {folder}/*/.git")
    for root in roots:
        root = root.resolve()
        try:
            listed = subprocess.run(
                ["git", "-C", str(root), "ls-files", "-z", "--", "*.py"], check=True, capture_output=True
            ).stdout
        except subprocess.CalledProcessError as error:
            message = error.stderr.decode(errors="replace").strip()
            raise DataError(f"git cannot list the files of {root}: {message}") from error
        licence = project_licence(root)
        for name in sorted(listed.decode(errors="replace").split("\0")):
            found = name and _entry(str(root / name), project=root.name, name=name, licence=licence, source=source)
            if found:
                yield found
