"""Rewrites the marked region of README.md from benchmarks/results/*.json: `python -m benchmarks.table`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, read

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin (python -m benchmarks.table) -->", "<!-- benchmarks: end -->"


def cell(value: Any) -> str:
    """A table cell: short numbers, empty where nothing was measured."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return " to ".join(cell(v) for v in value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def section(data: dict[str, Any]) -> str:
    """Markdown of one result file: rows, targets, protocol in one line."""
    rows = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in data["rows"]]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"#### {data['name']}", ""]
    lines += ["| " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]
    if data["targets"]:
        goals = [
            f"{t['name']} {cell(t['value'])} (target {'>=' if t['better'] == 'higher' else '<='} {cell(t['target'])}: "
            f"{'met' if t['met'] else '**not met**'})"
            for t in data["targets"]
        ]
        lines += ["", "Targets: " + "; ".join(goals) + "."]
    shown = {k: v for k, v in data["protocol"].items() if k not in ("versions", "python")}
    versions = data["protocol"].get("versions", {})
    shown |= {k: versions[k] for k in ("torch", "transformers") if k in versions}
    lines += ["", "<sub>" + ", ".join(f"{k}: {v}" for k, v in shown.items()) + "</sub>", ""]
    return "\n".join(lines)


def region() -> str:
    """All sections, by name."""
    return "\n".join(section(read(path)) for path in sorted(RESULTS.glob("*.json")))


def rewritten(text: str) -> str:
    """README text with the marked region replaced.

    Raises:
        ValueError: the marks are absent.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md lacks the marks {BEGIN} and {END}")
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: f"{BEGIN}\n{region()}\n{END}", text, flags=re.S)


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
