"""What stands in release folders, read without torch: records side by side, an architecture layer by layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..report.architecture import architecture_table, tensors_of_folder
from ..report.cells import Table
from ..report.comparison import compare_table


def read_record(path: Path) -> dict[str, Any]:
    """`record.json` of a release folder or of a study's winner.

    Raises:
        FileNotFoundError: neither.
    """
    for folder in (path, path / "winner"):
        if (folder / "record.json").is_file():
            data: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            return data
    raise FileNotFoundError(f"{path} has no record.json: expected a release folder or a study with a winner")


def compare(models: Sequence[Path]) -> Table:
    """What was measured of release folders, or of the winners of studies, side by side.

    Raises:
        FileNotFoundError: a folder that is neither.
    """
    return compare_table({str(path): read_record(path) for path in models})


def describe(model: Path) -> Table:
    """The layers of a release folder, or of a study's winner, with their parameters and bytes.

    Raises:
        FileNotFoundError: a folder that is neither.
    """
    folder = model if (model / "config.json").is_file() else model / "winner"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{model} has no config.json: expected a release folder or a study")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return architecture_table(tensors_of_folder(folder), config)


def draw(layers: Table, picture: Path, *, label: str) -> None:
    """Draws what `describe` returned, as .png or .svg."""
    from ..report.drawing import save  # loads matplotlib
    from ..report.plots import architecture_figure

    save(architecture_figure(layers), picture, label=label)
