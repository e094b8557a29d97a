"""Tables from benchmarks/results/*.json, in README.md and some docs (marked regions) and docs/benchmarks.md (all):
`python -m benchmarks.table`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, read

ROOT = Path(__file__).parent.parent
README, ALL = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
OF_ITS_OWN = {  # one table each
    ROOT / "docs" / "data.md": "vocabularies",
    ROOT / "docs" / "formats.md": "formats",
    ROOT / "docs" / "squeeze.md": "squeeze",
}
# What a reader wants first; the other tables stand in docs/benchmarks.md, their targets here too.
IN_README = ("main_job", "squeeze", "policies", "decode_speed", "quality")


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


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]


def section(data: dict[str, Any]) -> str:
    """Markdown of one result file: rows, targets, protocol in one line."""
    rows = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in data["rows"]]
    columns = data.get("columns") or list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"#### {data['name']}", "", *table(columns, rows)]
    if data["targets"]:
        goals = [f"{t['name']} {came(t)} (target {goal(t)}: {met(t)})" for t in data["targets"]]
        lines += ["", "Targets: " + "; ".join(goals) + "."]
    shown = {k: v for k, v in data["protocol"].items() if k not in ("versions", "python")}
    versions = data["protocol"].get("versions", {})
    shown |= {k: versions[k] for k in ("torch", "transformers") if k in versions}
    lines += ["", "<sub>" + ", ".join(f"{k}: {v}" for k, v in shown.items()) + "</sub>", ""]
    return "\n".join(lines)


def goal(target: Mapping[str, Any]) -> str:
    """What was aimed at."""
    return f"{'>=' if target['better'] == 'higher' else '<='} {cell(target['target'])}"


def came(target: Mapping[str, Any]) -> str:
    """What was measured, with its interval where there is one."""
    interval = target.get("interval")
    return cell(target["value"]) + (f" [{cell(interval)}]" if interval else "")


def met(target: Mapping[str, Any]) -> str:
    """Whether it was reached."""
    return "met" if target["met"] else "**not met**"


def results() -> list[dict[str, Any]]:
    """All result files, by name."""
    return [read(path) for path in sorted(RESULTS.glob("*.json"))]


def region() -> str:
    """README's part: the tables wanted first, then the other benchmarks' targets, a line each."""
    first = [data for data in results() if data["name"].startswith(IN_README)]
    first.sort(key=lambda data: next(i for i, name in enumerate(IN_README) if data["name"].startswith(name)))
    rest = [
        {
            "benchmark": data["name"],
            "met": f"{sum(t['met'] for t in data['targets'])} of {len(data['targets'])}",
            "targets": "; ".join(f"{t['name']} {came(t)} ({goal(t)}: {met(t)})" for t in data["targets"]),
        }
        for data in results()
        if data not in first and data["targets"]
    ]
    parts = [section(data) for data in first]
    if rest:
        others = table(["benchmark", "met", "targets"], rest)
        parts.append(
            "\n".join(["#### the others, in full in [docs/benchmarks.md](docs/benchmarks.md)", "", *others, ""])
        )
    return "\n".join(parts)


def everything() -> str:
    """docs/benchmarks.md."""
    head = "# Benchmarks\n\nMade by `python -m benchmarks.table` from `benchmarks/results/*.json`, each of which"
    head += " `python -m benchmarks.<name>` writes.\n"
    return "\n".join([head, *(section(data) for data in results())])


def rewritten(text: str, name: str, content: str) -> str:
    """A page with the region marked `name` replaced.

    Raises:
        ValueError: the marks are absent.
    """
    begin, end = f"<!-- {name}: begin (python -m benchmarks.table) -->", f"<!-- {name}: end -->"
    if begin not in text or end not in text:
        raise ValueError(f"expected the marks {begin} and {end}; put them where the tables shall stand")
    return re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n{content}\n{end}", text, flags=re.S)


def pages() -> dict[Path, str]:
    """Every page with tables, as it should read."""
    found = {README: rewritten(README.read_text(encoding="utf-8"), "benchmarks", region()), ALL: everything()}
    for path, name in OF_ITS_OWN.items():
        shown = section(read(RESULTS / f"{name}.json"))
        found[path] = rewritten(path.read_text(encoding="utf-8"), name, shown)
    return found


if __name__ == "__main__":
    for path, page in pages().items():
        path.write_text(page, encoding="utf-8")
