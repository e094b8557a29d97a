"""Projects that a model never saw: their text, and their lines to complete, in the manner of CodeXGLUE's line task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from codenas_hf.suite.prompts import Prompt

_BEFORE = 4000  # characters before a line that a model is given
_FIRST_LINE = 10  # of a file; before it hardly anything is known


def read_projects(folder: Path, *, limit: int | None = None) -> dict[str, list[str]]:
    """Python files of the projects in a folder: each sub-folder is one.

    Args:
        folder: of projects.
        limit: UTF-8 bytes to take in all, an equal share of each project; whole files, at least one of each. None
            takes all.

    Raises:
        FileNotFoundError: no such folder, or no Python file in a sub-folder of it.
        ValueError: a file that is not UTF-8.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; expected one whose sub-folders are held-out projects")
    found = {path.name: sorted(path.rglob("*.py")) for path in sorted(folder.iterdir()) if path.is_dir()}
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        raise FileNotFoundError(f"{folder} has no sub-folder with Python files: expected one for each project")
    projects: dict[str, list[str]] = {}
    for name, paths in found.items():
        left = float("inf") if limit is None else limit / len(found)
        for path in paths:
            if left <= 0:
                break
            try:
                text = path.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8: {error}; take it out of the held-out projects") from error
            if text.strip():
                projects.setdefault(name, []).append(text)
                left -= len(text.encode())
    if not projects:
        raise FileNotFoundError(f"the Python files in {folder} are all empty")
    return projects


def next_line_prompts(projects: Mapping[str, Sequence[str]], count: int) -> list[Prompt]:
    """Places in held-out code, each with the line that follows: equally many of each project, evenly spread.

    Blank lines, comments and lines of fewer than three characters are not asked for.

    Args:
        projects: texts of each.
        count: most places in all.
    """
    prompts = []
    share = -(-count // len(projects)) if count else 0
    for project, texts in projects.items():
        places = []
        for number, text in enumerate(texts):
            lines = text.replace("\r\n", "\n").split("\n")
            places += [
                (number, index, lines)
                for index, line in enumerate(lines)
                if index >= _FIRST_LINE and len(line.strip()) >= 3 and not line.strip().startswith("#")
            ]
        for number, index, lines in (places[step * len(places) // share] for step in range(min(share, len(places)))):
            before = "\n".join(lines[:index])[-_BEFORE:].rstrip()
            prompts.append(
                Prompt(
                    prompt_id=f"next_line/{project}/{number}/{index}",
                    kind="mid_file",
                    text=before,
                    reference="\n" + lines[index],
                    source=project,
                    licence="",
                )
            )
    return prompts[:count]
