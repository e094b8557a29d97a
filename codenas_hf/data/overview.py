"""What a corpus is made of, as Markdown: the same tables in the documentation and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .corpus import Corpus
from .ledger import EXAMPLES
from .prepare import PreparedData
from .split import SPLITS


def overview(data: PreparedData) -> str:
    """Sources, filters, duplicates, decontamination, split and vocabularies of prepared data, as Markdown."""
    vocabularies = []
    for size in data.vocab_sizes:
        texts = [data.tokens(size, split) for split in SPLITS]
        counts = [f"{text.num_tokens:,}" for text in texts]
        vocabularies.append((f"{size:,}", *counts, *(f"{text.bytes_per_token:.3f}" for text in texts)))
    head = ("vocabulary", "training tokens", "search", "report", "bytes per token, training", "search", "report")
    return f"{corpus_overview(data.corpus)}\n**Vocabularies**\n\n{_table(head, vocabularies)}"


def corpus_overview(corpus: Corpus) -> str:
    """Sources, filters, duplicates, decontamination and split of a corpus, as Markdown."""
    report = corpus.report
    kept = {"passed all filters": report["passed_filters"], "read, beyond max_bytes": report["beyond_max_bytes"]}
    leakage = {"held out, shares lines with another split": report["leakage"]["dropped"]}
    duplicates = {f"duplicate: {name}": count for name, count in report["duplicates"].items()}
    sources = [
        (name, f"{count['files']:,}", _megabytes(count["bytes"]), f"{count['projects']:,}")
        for name, count in report["sources"].items()
    ]
    splits = [
        (name, f"{count['files']:,}", _megabytes(count["bytes"]), f"{count['projects']:,}")
        for name, count in report["split"].items()
    ]
    counted = ("files", "MB")
    notes = [f"- {name}: {note}" for name, note in report["benchmarks"].items()]
    masked = ", ".join(f"{count:,} {kind}" for kind, count in report["masked"].items()) or "nothing"
    parts = [
        f"Corpus `{corpus.digest[:12]}`.",
        "**Sources**",
        _table(("source", *counted, "projects"), sources),
        "**Dropped before and while reading**",
        _table(("reason", *counted), _counts(report["dropped"])),
        *_left_out(report),
        f"Masked in what was read: {masked}.",
        "**Licences that were refused**",
        _table(("licence", *counted), _counts(report["refused_licences"])),
        "**Kept, and dropped by comparing files**",
        _table(("outcome", *counted), [*_counts(kept), *_not_read(report), *_counts(duplicates | leakage)]),
        f"Windows of {report['leakage']['window_lines']} lines that held-out text still shares with another split: "
        f"{report['leakage'].get('left', 'not checked')}.",
        "**Benchmarks that it is cleaned of**",
        "\n".join(notes) or "none",
        "**Split by project**",
        _table(("split", *counted, "projects"), splits),
        *("- " + line for line in report["not_promised"]),
        "**Licences of what is kept**",
        _table(("licence", *counted), _counts(report["licences"])),
    ]
    return "\n\n".join(parts) + "\n"


def _left_out(report: Mapping[str, Any]) -> list[str]:
    """The folders that were not entered, and the first files of each kind that could not be read; nothing for none."""
    folders = {reason: f"{count:,}" for reason, count in report["folders_not_entered"].items()}
    lines = [
        f"- {reason}{f' ({folders[reason]})' if reason in folders else ''}: "
        + ", ".join(f"`{name}`" for name in names)
        + (", ..." if len(names) == EXAMPLES else "")
        for reason, names in report["examples"].items()
    ]
    return ["**Not read: the first of each kind**", "\n".join(lines)] if lines else []


def _not_read(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The files that stand in no other row. Their bytes are not told: of what was read, those of its text are."""
    listed = sum(count["files"] for count in report["sources"].values())
    read = sum(count["files"] for count in report["dropped"].values())
    left = listed - read - report["passed_filters"]["files"] - report["beyond_max_bytes"]["files"]
    return [("not read: max_bytes was reached", f"{left:,}", "")] if left else []


def _counts(counts: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [(name, f"{count['files']:,}", _megabytes(count["bytes"])) for name, count in counts.items()]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
