"""The running interpreter's own Python: its standard library and its installed packages."""

from __future__ import annotations

import csv
import email
import importlib.metadata
import io
import os
import platform
import re
import sysconfig
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

from .licences import UNKNOWN, licence_of_text, package_licence
from .source_files import SourceFile, entry, walk

_OURSELVES = {"codenas-hf"}


def standard_library(source: str) -> Iterator[SourceFile]:
    """The files of the standard library, as one project."""
    root = Path(sysconfig.get_paths()["stdlib"])
    project = f"{platform.python_implementation().lower()}-{sysconfig.get_python_version()}"
    for path, problem in walk(root):
        if problem is None or problem.startswith("unreadable"):
            name = os.path.relpath(path, root) + ("/" if problem else "")
            yield entry(path, project=project, name=name, licence="PSF-2.0", source=source, problem=problem)


def installed_packages() -> Iterator[SourceFile]:
    """The files of every installed distribution, by its own list of files; odd ones carry their problem."""
    seen: set[str] = set()
    listed: set[str] = set()
    for distribution in importlib.metadata.distributions():
        metadata = _metadata(distribution)
        project = re.sub(r"[-_.]+", "-", str(metadata.get("Name") or "").strip()).lower()
        problem = None
        if not project:
            project, problem = "unnamed", "package without a name"
        elif project in _OURSELVES:
            problem = "this package itself"
        elif project in seen:
            problem = "another installation of the package"
        seen.add(project)
        licence = package_licence(metadata)
        if licence == UNKNOWN:
            licence = _licence_of_files(distribution, metadata)
        names = _recorded(distribution, metadata)
        if names is None:
            yield entry(
                "", project=project, name=project, licence=licence, source="installed", problem="package without files"
            )
        for name in sorted(names or ()):
            path = os.path.normpath(str(distribution.locate_file(name)))
            if not name.endswith(".py") or path in listed:
                continue
            listed.add(path)
            outside = "outside the packages' folder" if name.startswith(("..", "/")) else None
            yield entry(
                path, project=project, name=name, licence=licence, source="installed", problem=problem or outside
            )


def _text(distribution: importlib.metadata.Distribution, name: str) -> str:
    """A file of the metadata; Latin-1 where it is not UTF-8, empty where it cannot be read."""
    try:
        return distribution.read_text(name) or ""
    except UnicodeDecodeError as error:
        return error.object.decode("latin-1")
    except OSError:
        return ""


def _metadata(distribution: importlib.metadata.Distribution) -> Message:
    """The headers, from wherever a wheel or an egg keeps them."""
    texts = (_text(distribution, name) for name in ("METADATA", "PKG-INFO", ""))
    return email.message_from_string(next(filter(None, texts), ""))


def _recorded(distribution: importlib.metadata.Distribution, metadata: Message) -> set[str] | None:
    """The names of a distribution's files, relative to the packages' folder.

    Without a readable list (distributions of Linux leave it out) the modules that it says, or seems, to consist of are
    looked through. None where even these are not there.
    """
    try:
        found = {row[0] for row in csv.reader(io.StringIO(_text(distribution, "RECORD"), newline="")) if row}
        found = found or {str(path) for path in distribution.files or ()}
    except (csv.Error, ValueError, OSError):
        found = set()
    if any(name.endswith(".py") for name in found):
        return found
    base = Path(str(distribution.locate_file("")))
    modules = _text(distribution, "top_level.txt").split() or [re.sub(r"[-.]+", "_", str(metadata.get("Name") or ""))]
    for module in filter(None, modules):
        if (base / module).is_dir():
            found |= {os.path.relpath(path, base) for path, problem in walk(base / module) if problem is None}
        elif (base / f"{module}.py").is_file():
            found.add(f"{module}.py")
    return found or None


def _licence_of_files(distribution: importlib.metadata.Distribution, metadata: Message) -> str:
    """The text of the `License-File`s that the metadata name: all must agree to be understood."""
    found = set()
    for name in metadata.get_all("License-File") or []:
        text = _text(distribution, str(name)) or _text(distribution, f"licenses/{name}")
        found.add(licence_of_text(text) if text else UNKNOWN)
    return found.pop() if len(found) == 1 else UNKNOWN
