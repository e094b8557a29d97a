"""The offline evaluation of a finished model, ours or any: one JSON with its protocol, one table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codenas_hf.folders import Release, write_json
from codenas_hf.generation.loading import LoadedModel
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.generation.torch_runtime import context_tokens
from codenas_hf.measure.provenance import provenance
from codenas_hf.suite.next_line import read_projects
from codenas_hf.suite.parts import Parts
from codenas_hf.suite.settings import SUITES, SuiteName, SuiteSettings
from codenas_hf.suite.task_files import read_task_file

__all__ = ["SUITES", "SuiteName", "SuiteSettings", "evaluate_model", "format_table"]


def evaluate_model(
    loaded: LoadedModel,
    *,
    runtime: Runtime | None = None,
    settings: SuiteSettings | None = None,
    folder: Path | None = None,
    on_part: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Measures a model.

    Args:
        loaded: from `load_model`.
        runtime: what decodes, scores and is timed; None is torch.
        settings: one of `SUITES`, or others; None takes `quick`.
        folder: where `evaluation.json`, the completions and the answers are written; an interrupted run goes on with
            the answers to tasks that it finds there. None writes nothing.
        on_part: told the name of each part when it ends, and its seconds.

    Returns:
        `{"model", "protocol", "rows", "absent", "seconds"}`; `absent` says what was not measured, and why. A row names
        its engine, the bytes of the model's files, and under `unjudged` the tasks that are not in it, with reasons.

    Raises:
        TaskFileError: a file of tasks that cannot be read.
        FileNotFoundError: no folder of held-out projects, or none in it.
    """
    settings = settings or SUITES["quick"]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "completions.jsonl").write_text("")
    for path in settings.task_files:
        read_task_file(path)  # what cannot be read is said before anything is measured
    if settings.held_out is not None:
        read_projects(settings.held_out, limit=1)
    run = Parts(loaded, settings, folder, runtime=runtime)
    seconds: dict[str, float] = {}
    for name, part in (
        ("size", run.size),
        ("latency", run.latency),
        ("bits_per_byte", run.text),
        ("completions", run.completions),
        ("humaneval", run.humaneval),
        ("infilling", run.infilling),
        ("task_files", run.task_files),
        ("held_out", run.held_out),
    ):
        start = time.perf_counter()
        part()
        seconds[name] = round(time.perf_counter() - start, 2)
        if on_part is not None:
            on_part(name, seconds[name])
    result = {
        "model": loaded.name,
        "protocol": {
            **provenance(next(loaded.model.parameters()).device),
            **({"dtype": "float32"} if runtime is None else {"runtime": runtime.name}),
            "settings": json.loads(json.dumps(asdict(settings), default=str)),
            "prompt_version": 1,
            "context_tokens": context_tokens(run.scored),
            "interval": "95 %: Wilson; of bits per byte from resampling files and tasks",
            "sandbox": run.sandbox,
        },
        # Every row says what it is of, so that rows of several models can stand in one table.
        "rows": [
            {**row.to_dict(), "engine": run.engine, **({} if (size := loaded.num_bytes) is None else {"bytes": size})}
            for row in run.rows
        ],
        "absent": run.absent,
        "seconds": seconds,
    }
    if folder is not None:
        write_json(Release(folder).evaluation, result)
    return result


def format_table(result: dict[str, Any]) -> str:
    """The rows of a result as aligned text: name, value, interval, count."""
    lines = [f"{result['model']}", ""]
    for row in result["rows"]:
        value = row["value"]
        text = f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4f}"
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
        lines.append(f"{row['name']:42} {text:>14}  {interval:16} {row.get('count', ''):>6}".rstrip())
    lines += [f"{name:42} {'absent':>14}  {reason}" for name, reason in result["absent"].items()]
    for row in result["rows"]:
        for task, reason in (row.get("unjudged") or {}).items():
            lines.append(f"{row['name']:42} {'not judged':>14}  {task}: {reason}")
    return "\n".join(lines)
