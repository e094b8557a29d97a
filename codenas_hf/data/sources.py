"""Where Python text comes from: the machine's own packages, folders, globs and git checkouts."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from .licences import UNKNOWN, project_licence
from .packages import installed_packages, standard_library
from .source_files import ENVIRONMENTS, SourceFile, entry, walk
from .storage import DataError

_ARCHIVES = (".zip", ".whl", ".egg", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
_WILD = re.compile(r"[*?\[]")


def is_stream(source: str) -> bool:
    """Whether a source is a Hub dataset, which is read as a stream, rather than a list of files."""
    if source.startswith("hub:"):
        return True
    local = source in ("installed", "stdlib") or source.startswith(("git:", "pypi:")) or os.path.exists(source)
    return not local and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not source.startswith(".")


def list_source(source: str, *, project_depth: int = 1) -> list[SourceFile]:
    """Lists a source's Python files; reads none of them.

    What lies there but cannot be read is in the list too, with its problem.

    Args:
        source: `installed` (the interpreter's standard library and installed packages), `stdlib`, `git:FOLDER` (the
            tracked files of a checkout, or of every checkout inside the folder), a folder, or a glob. A name that
            exists is never a glob, whatever letters it has.
        project_depth: for folders and globs, how many leading path parts name a project.

    Raises:
        DataError: the source is missing or holds no Python.
    """
    if source in ("installed", "stdlib"):
        files = list(standard_library(source))
        if source == "installed":
            files += installed_packages()
    elif source.startswith("git:"):
        files = list(_git_checkouts(expanded(source.removeprefix("git:")), source))
    else:
        folder = expanded(source)
        if folder.exists():
            files = list(_folder(folder, source, project_depth))
        elif _WILD.search(source):
            files = list(_glob(folder, source, project_depth))
        else:
            raise DataError(
                f"the source `{source}` is missing: expected `installed`, `stdlib`, `git:FOLDER`, `pypi:MANIFEST`, "
                f"`hub:OWNER/NAME`, an existing folder or a glob; correct `sources`"
            )
    if all(file.is_folder for file in files):
        left = "".join(f"; not entered: {file.name} ({file.problem})" for file in files[:3])
        raise DataError(
            f"no Python found in the source `{source}`: expected files named *.py; correct `sources`{left}"
        )
    return files


def expanded(path: str) -> Path:
    """A path with its `~`.

    Raises:
        DataError: a home folder of nobody, or a null byte.
    """
    try:
        found = Path(path).expanduser()
        found.exists()
    except (RuntimeError, ValueError) as error:
        raise DataError(f"the path `{path!a}` cannot be read as one: {error}; correct it in `corpus`") from error
    except OSError as error:
        raise DataError(f"the path `{path}` cannot be looked at: {error.strerror}; correct it in `corpus`") from error
    return found


def _project_of(relative: PurePosixPath, *, depth: int, fallback: str) -> str:
    parts = relative.parts[:-1][:depth]
    return "/".join(parts) if parts else fallback


class _Projects:
    """The entries of one root: each file's project, and the licence that its folder states."""

    def __init__(self, root: Path, source: str, depth: int, whole: str) -> None:
        self.root, self.source, self.depth, self.whole = root, source, depth, whole
        self.licences: dict[str, str] = {}

    def entry(self, path: str, problem: str | None) -> SourceFile:
        relative = PurePosixPath(os.path.relpath(path, self.root).replace(os.sep, "/"))
        project = _project_of(relative, depth=self.depth, fallback=self.root.name)
        if project not in self.licences:
            own = project_licence(self.root / project)
            self.licences[project] = self.whole if own == UNKNOWN else own
        return entry(
            path,
            project=project,
            name=f"{relative}/" if path.endswith("/") else str(relative),
            licence=self.licences[project],
            source=self.source,
            problem=problem,
        )


def _folder(folder: Path, source: str, depth: int) -> Iterator[SourceFile]:
    folder = folder.resolve()
    if not folder.is_dir():
        if folder.name.lower().endswith(_ARCHIVES):
            raise DataError(f"the source `{source}` is an archive: unpack it and name the folder in `sources`")
        yield entry(str(folder), project=folder.stem, name=folder.name, licence=UNKNOWN, source=source)
        return
    projects = _Projects(folder, source, depth, project_licence(folder))
    for path, problem in walk(folder):
        yield projects.entry(path, problem)


def _glob(pattern: Path, source: str, depth: int) -> Iterator[SourceFile]:
    fixed, rest = Path(pattern.parts[0] if pattern.is_absolute() else "."), list(pattern.parts)
    rest = rest[1:] if pattern.is_absolute() else rest
    while rest and os.path.lexists(fixed / rest[0]):  # a name that exists is meant as it stands: `[data]`, `a*b`
        fixed /= rest.pop(0)
    root = fixed.resolve()
    projects = _Projects(root, source, depth, project_licence(root))
    seen: set[str] = set()
    for path, problem in _matches(root, rest):
        if path not in seen:
            seen.add(path)
            yield projects.entry(path, problem)


def _matches(root: Path, pattern: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """What a pattern names below `root`: with `**` by the walk, which ends where links go in circles."""
    if "**" in pattern:
        for path, problem in walk(root, skip=ENVIRONMENTS.difference(pattern)):
            if problem is not None or _fits(Path(path).relative_to(root).parts, pattern):
                yield path, problem
        return
    for path in sorted(glob.glob(os.path.join(glob.escape(str(root)), *pattern))):
        if os.path.isdir(path):
            yield from walk(Path(path))
        elif path.endswith(".py"):
            yield path, None


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _git_checkouts(folder: Path, source: str) -> Iterator[SourceFile]:
    if shutil.which("git") is None:
        raise DataError(f"the source `{source}` needs the program git: install it, or name the folder without `git:`")
    alone = (folder / ".git").exists()
    roots = [folder] if alone else sorted(path.parent for path in folder.glob("*/.git"))
    if not roots:
        raise DataError(f"the source `{source}` holds no git checkout: expected {folder}/.git or {folder}/*/.git")
    for root in roots:
        root = root.resolve()
        try:
            names = _tracked(root)
        except DataError:
            if alone:
                raise
            broken = {"name": f"{root.name}/", "problem": "checkout that git cannot list"}
            yield entry(f"{root}/", project=root.name, licence=UNKNOWN, source=source, **broken)
            continue
        licence = project_licence(root)
        for name in names:
            yield entry(str(root / name), project=root.name, name=name, licence=licence, source=source)


def _tracked(root: Path) -> list[str]:
    """The Python files that git tracks in a checkout and its submodules; names need not be UTF-8."""
    # A hook or an alias of git sets variables that would point it at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), "ls-files", "-z", "--recurse-submodules", "--", "*.py"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode(errors="replace").strip()
        raise DataError(f"git cannot list the files of {root}: {message}") from error
    return sorted({os.fsdecode(name) for name in listed.split(b"\0") if name})
