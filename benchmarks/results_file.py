"""The one form of a result file: what was asked, under which protocol, what came out, and which targets are met."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from codenas_hf.folders import write_json
from codenas_hf.hardware import cores, processor_name

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit of this tree, short; empty where git does not know one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def protocol(**more: Any) -> dict[str, Any]:
    """Device, versions, commit and date of this run, and whatever the benchmark adds (threads, repeats, shapes)."""
    names = ("torch", "transformers", "datasets", "tokenizers", "accelerate", "optuna", "codenas-hf")
    return {
        "device": processor_name(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **more,
    }


def target(
    name: str,
    value: float,
    goal: float,
    *,
    better: Literal["higher", "lower"],
    interval: Sequence[float] | None = None,
) -> dict[str, Any]:
    """One target, with the 95 % interval of its value where there is one; `met` is computed here and nowhere else."""
    met = value >= goal if better == "higher" else value <= goal
    found = {"name": name, "value": value, "target": goal, "better": better, "met": bool(met)}
    return found if interval is None else {**found, "interval": list(interval)}


def write(
    name: str,
    *,
    protocol: Mapping[str, Any],
    rows: Sequence[Any],
    targets: Sequence[Any] = (),
    columns: Sequence[str] | None = None,
) -> Path:
    """Writes `benchmarks/results/<name>.json` whole or not at all.

    Args:
        name: of the file and of its table.
        protocol: from `protocol`.
        rows: what was measured.
        targets: from `target`.
        columns: what of the rows the table shows; None shows all.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"name": name, "protocol": dict(protocol), "rows": list(rows), "targets": list(targets)}
    if columns is not None:
        content["columns"] = list(columns)
    write_json(path, content)
    return path


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: a field of the form is absent.
    """
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    absent = {"name", "protocol", "rows", "targets"} - set(data)
    if absent:
        raise ValueError(f"{path}: not a result file, {', '.join(sorted(absent))} absent")
    return data
