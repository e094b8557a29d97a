"""Tables from benchmarks/results/*.json, in README.md and some docs (marked regions) and docs/benchmarks.md (all):
`python -m benchmarks.table`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, read

ROOT = Path(__file__).parent.parent
README, ALL = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
IN_DOCS = {  # page of docs/ to its tables
    "data.md": ("vocabularies",),
    "formats.md": ("formats",),
    "evaluation.md": ("incumbent",),
    "squeeze.md": ("squeeze", "healing"),
    "runtimes.md": ("decode_speed",),
    "training.md": ("quality_4mb", "recipe", "train_speed"),
}


@dataclass(frozen=True)
class Shown:
    """A table in README.md.

    Args:
        caption: what it is about.
        only: values that a row must have to be shown, by column; columns that are empty then are left out.
    """

    caption: str
    only: Mapping[str, Sequence[Any]] = field(default_factory=dict)


# What a reader wants first; all else stands in docs/benchmarks.md.
IN_README = {
    "main_job": Shown(
        "`make search` on two cores: what it releases, what the search had of it, and what the first version gave.",
        {"model": ("released: the winner, trained on", "winner of the search", "the first version's winner")},
    ),
    "squeeze": Shown(
        "SmolLM2-135M cut to three sizes, without any training; `healing` below says what a short one gives back.",
        {"arm": ("parent", "searched", "uniform")},
    ),
    "policies": Shown(
        "Searches replayed from our public table of 192 trained architectures. Cost: the time to where random search "
        "ends, over random search's own; the columns `at ...` are hypervolume after that share of its time.",
        {"space": ("half, 96",), "stages": ("adaptive", "its own")},
    ),
    "incumbent": Shown("What a model of so many bytes does, in the file that ships and the program that reads it."),
    "decode_speed": Shown(
        "A token after a prompt, against `generate` of transformers; one thread.",
        {"runtime": ("generate", "torch", "llama.cpp q8_0")},
    ),
}


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


def section(data: dict[str, Any], shown: Shown | None = None) -> str:
    """Markdown of one result file: rows, targets, protocol in a line; all of it, or as README shows it."""
    rows = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in data["rows"]]
    columns = data.get("columns") or list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"#### {data['name']}", "", *([shown.caption, ""] if shown else [])]
    if shown and shown.only:
        some = [row for row in rows if all(row.get(name) in values for name, values in shown.only.items())]
        columns = [name for name in columns if any(row.get(name) is not None for row in some)]
        note = f"{len(some)} of {len(rows)} rows; the others: [docs/benchmarks.md](docs/benchmarks.md)"
        lines += [*table(columns, some), "", f"<sub>{note}</sub>"]
    else:
        lines += table(columns, rows)
    if data["targets"]:
        goals = [f"{t['name']} {came(t)} (target {goal(t)}: {met(t)})" for t in data["targets"]]
        lines += ["", "Targets: " + "; ".join(goals) + "."]
    about = {k: v for k, v in data["protocol"].items() if k not in ("versions", "python") and not is_long(v)}
    versions = data["protocol"].get("versions", {})
    about |= {k: versions[k] for k in ("torch", "transformers") if k in versions}
    lines += ["", "<sub>" + ", ".join(f"{k}: {v}" for k, v in about.items()) + "</sub>", ""]
    return "\n".join(lines)


def is_long(value: Any) -> bool:
    """Whether a part of a protocol, such as a whole genome, is left to the result file."""
    return isinstance(value, dict) and len(value) > 8


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
    first = [data for data in results() if data["name"] in IN_README]
    first.sort(key=lambda data: list(IN_README).index(data["name"]))
    rest = [
        {
            "benchmark": data["name"],
            "met": f"{sum(t['met'] for t in data['targets'])} of {len(data['targets'])}",
            "targets": "; ".join(f"{t['name']} {came(t)} ({goal(t)}: {met(t)})" for t in data["targets"]),
        }
        for data in results()
        if data not in first and data["targets"]
    ]
    parts = [section(data, IN_README[data["name"]]) for data in first]
    if rest:
        others = table(["benchmark", "met", "targets"], rest)
        parts.append(
            "\n".join(["#### the others, in full in [docs/benchmarks.md](docs/benchmarks.md)", "", *others, ""])
        )
    return "\n".join(parts)


def everything() -> str:
    """docs/benchmarks.md."""
    head = "# Benchmarks\n\nMade by `python -m benchmarks.table` from `benchmarks/results/*.json`, each of which"
    head += " `python -m benchmarks.<name>`\nwrites; `main_job --time` writes search_time, `search_table --latency`"
    head += " table_latency, `workers --processes 64`\nworkers_shared and `quality` quality_4mb.\n"
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
    for page, names in IN_DOCS.items():
        path = ROOT / "docs" / page
        found[path] = path.read_text(encoding="utf-8")
        for name in names:
            found[path] = rewritten(found[path], name, section(read(RESULTS / f"{name}.json")))
    return found


if __name__ == "__main__":
    for path, page in pages().items():
        path.write_text(page, encoding="utf-8")
