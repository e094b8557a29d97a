"""Model, dataset and study cards, written from records. What was not measured is absent from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import (
    DatasetCard,
    DatasetCardData,
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from codenas_hf.data.split import SPLITS
from codenas_hf.folders import Record, Release, StudyFolder, bundled_folder, read_json
from codenas_hf.folders.record import Start
from codenas_hf.report.architecture import architecture_text
from codenas_hf.report.cells import (
    Column,
    Table,
    format_bytes,
    format_count,
    format_seconds,
    format_value,
    quantity_column,
)

from .squeezed import applied_genome, base_model, squeezed_text

_OURS = "mit"  # licence of weights of our own, where nobody names another
TAGS = ["code", "python", "neural-architecture-search", "codenas"]
# What the tokenizer calls the pieces of a gap to be filled.
FILL_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
# Of an evaluation's many numbers those that a card shows; the others stand in the evaluation's file beside it.
SUITE_METRICS = "bits_per_byte pass@1 pass@10 collapse_rate parse_rate line_exact_match exact_match".split()
_HUMANEVAL_TASKS = 164
RESULTS = Table(
    "evaluation",
    "Evaluation",
    (
        Column("name", "what"),
        Column("value", "value", "number"),
        Column("low", "95 % from", "number"),
        Column("high", "to", "number"),
        Column("n", "over", "integer"),
        Column("engine", "read by"),
        Column("bytes", "bytes", "bytes"),
        Column("protocol", "how"),
    ),
    (),
)
SPEED = (
    Column("device", "device"),
    *(quantity_column(name) for name in ("prefill_ms", "decode_ms")),
    quantity_column("decode_p95_ms", title="95th percentile"),
    quantity_column("peak_memory_bytes"),
    Column("protocol", "protocol"),
)
FILES = (
    Column("name", "file"),
    Column("format", "format"),
    Column("runtime", "read by"),
    Column("bytes", "to ship", "bytes"),
    quantity_column("bits_per_byte"),
    quantity_column("decode_ms"),
)
COUNTS = (
    Column("name", ""),
    Column("files", "files", "integer"),
    Column("bytes", "bytes", "bytes"),
    Column("projects", "projects", "integer"),
)


@dataclass(frozen=True)
class Card:
    """A model card.

    Args:
        text: the README, metadata included.
        eval_results: content of `.eval_results/codenas.yaml`; None without a result on a dataset of the Hub.
    """

    text: str
    eval_results: str | None = None


def model_card(
    release: Release,
    *,
    repo_id: str,
    layers: Table,
    study: StudyFolder | None = None,
    licence: str = _OURS,
    dataset_id: str | None = None,
) -> Card:
    """The card of a release.

    Args:
        release: its configuration, record (docs/sharing.md lists the keys) and evaluation are read where they are.
        repo_id: its id on the Hub.
        layers: `architecture_table` of its weights.
        study: that found it; the front of its report is shown.
        licence: of the weights, as the Hub spells it.
        dataset_id: Hub id of the training text, where that is published.

    Raises:
        RecordError: the record is damaged, or of a newer schema.
    """
    record = release.read_record() if release.record.is_file() else Record()
    if record.squeezed is not None and licence == _OURS:
        licence = record.squeezed.licence or "other"  # what is made from a parent stands under the parent's
    suite = read_json(release.evaluation) if release.evaluation.is_file() else {}
    results = result_rows(record, suite)
    report = study.report if study is not None else None
    name = repo_id.split("/")[-1]
    card_data = ModelCardData(
        language="code",
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
        datasets=[dataset_id] if dataset_id else None,
        model_name=name,
        base_model=base_model(record),
        eval_results=_model_index(results, record.data.digest or "", dataset_id) or None,
    )
    text = _render(
        "model.md.jinja",
        card_data=card_data.to_yaml(),
        repo_id=repo_id,
        name=name,
        num_parameters=sum(row.get("num_parameters") or 0 for row in layers.rows),
        artifact_bytes=release.artifact_bytes,
        weights_bytes=release.weights_bytes,
        record=record,
        architecture=release.read_config().get("model_type") or "transformers",
        origin=_origin(record),
        squeezed=squeezed_text(record),
        parent=base_model(record),
        squeeze_genome=applied_genome(record),
        remote_code="auto_map" in release.read_config(),
        fills_gaps=_fills_gaps(release, record),
        layers=architecture_text(layers),
        layers_note=layers.note,
        front=report and _body(report / "front.md"),
        front_picture=report is not None and (report / "front.png").is_file(),
        evaluation=_table(RESULTS.columns, results),
        protocol=suite.get("protocol"),
        speed=_table(SPEED, speed_rows(record)),
        forms=_table(FILES, [asdict(file) for file in record.release.files]),
        corpus=corpus_context(record.data.corpus),
        dataset_id=dataset_id,
        starts=_starts(record),
        budget=_budget(record),
        files={path.name for path in (release.record, release.settings) if path.is_file()},
        record_name=release.record.name,
        settings_name=release.settings.name,
    )
    entries = [row for row in results if row.get("dataset_id") and row.get("value") is not None]
    listed = [
        EvalResultEntry(dataset_id=row["dataset_id"], task_id=row.get("task_id") or row["name"], value=row["value"])
        for row in entries
    ]
    found = yaml.safe_dump(eval_result_entries_to_yaml(listed), sort_keys=False) if listed else None
    return Card(str(ModelCard(text)), found)


def dataset_card(report: Mapping[str, Any], *, digest: str, repo_id: str) -> str:
    """The card of a training corpus.

    Args:
        report: what `Corpus.report` holds.
        digest: of the corpus.
        repo_id: its id on the Hub.
    """
    corpus = corpus_context(report)
    card_data = DatasetCardData(
        language="code",
        license="other",
        task_categories=["text-generation"],
        tags=["code", "python", "codenas"],
        pretty_name=repo_id.split("/")[-1],
        configs=[{"config_name": "default", "data_files": _splits()}],
    )
    text = _render("dataset.md.jinja", card_data=card_data.to_yaml(), repo_id=repo_id, corpus=corpus, digest=digest)
    return str(DatasetCard(text))


def study_card(study: StudyFolder, *, repo_id: str, model_id: str, tables: list[str]) -> str:
    """The card of a study: what was searched, what came out, how to read it.

    Args:
        study: its folder, with its report.
        repo_id: its id on the Hub.
        model_id: of the winner.
        tables: names of the report's CSV files that have rows.
    """
    first = "trials" if "trials" in tables else tables[0]
    configs = [
        {"config_name": name, "data_files": f"report/{name}.csv", **({"default": True} if name == first else {})}
        for name in tables
    ]
    card_data = DatasetCardData(
        license="mit", tags=["neural-architecture-search", "codenas"], pretty_name=study.name, configs=configs
    )
    shown = {name: _body(study.report / f"{name}.md") for name in ("front", "rank_correlation", "seconds")}
    text = _render(
        "study.md.jinja",
        card_data=card_data.to_yaml(),
        repo_id=repo_id,
        model_id=model_id,
        name=study.name,
        tables=tables,
        first=first,
        shown=shown,
        journal=study.journal.name if study.journal.is_file() else None,
        pictures=[n for n in ("front", "hypervolume") if (study.report / f"{n}.png").is_file()],
    )
    return str(DatasetCard(text))


def result_rows(record: Record, suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Results with their intervals: the release's own measurement, then those of an evaluation suite.

    Args:
        record: of the release.
        suite: what `codenas evaluate` wrote; of its rows those that a reader of a card wants.
    """
    measured = record.measured
    how = []
    if measured.scored_bytes is not None:
        how.append(f"{format_bytes(measured.scored_bytes)} of report text")
    if measured.window_tokens is not None:
        how.append(f"windows of {measured.window_tokens:,} tokens")
    rows: list[dict[str, Any]] = [
        {"name": name.replace("_", " "), "metric": name, "value": value, "protocol": ", ".join(how), "split": "report"}
        for name in ("bits_per_byte", "next_token_accuracy", "loss")
        if (value := getattr(measured, name)) is not None
    ]
    for row in suite.get("rows") or ():
        metric = row["name"].rpartition("/")[2]
        if metric in SUITE_METRICS:
            # A part of a benchmark is another one.
            whole = row.get("count") == _HUMANEVAL_TASKS and not row.get("unjudged")
            listed = {"dataset_id": "openai/openai_humaneval", "task_id": metric, "dataset": "HumanEval"}
            listed = listed if whole and row["name"] == "humaneval/greedy/pass@1" else {}
            name = row["name"].replace("/", ", ").replace("_", " ")
            rows.append({**row, "name": name, "metric": metric, "n": row.get("count"), **listed})
    return rows


def speed_rows(record: Record) -> list[dict[str, Any]]:
    """The release's latency with its protocol: one row, none where nobody timed it."""
    latency = record.measured.latency
    return [] if latency is None else [{**asdict(latency), "protocol": describe(latency.protocol)}]


def corpus_context(report: Mapping[str, Any]) -> dict[str, Any]:
    """A corpus report as Markdown tables: sources, splits, licences, what was dropped, duplicates, decontamination."""
    if not report:
        return {}
    split = report.get("split") or {}
    held_out = {name: set(found) for name, found in (report.get("held_out_projects") or {}).items()}
    return {
        "sources": _table(COUNTS, _named(report.get("sources"))),
        "splits": _table(COUNTS, _named(split)),
        "licences": _table(COUNTS, _named(report.get("licences"))),
        "dropped": _table(COUNTS, _named(report.get("dropped"))),
        "duplicates": _table(COUNTS, _named(report.get("duplicates"))),
        "leakage": report.get("leakage"),
        "benchmarks": describe(report.get("benchmarks")),
        "masked": describe(report.get("masked")),
        "held_out_projects": {name: len(found) for name, found in held_out.items()},
        # Of one or two projects files are dealt, and both texts name the same one.
        "apart": len(set().union(*held_out.values())) == sum(map(len, held_out.values())),
        "window_lines": (report.get("leakage") or {}).get("window_lines"),
        "not_promised": report.get("not_promised") or (),
    }


def describe(value: Any) -> str:
    """Nested facts on one line: `threads 1, prompt tokens 128`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {describe(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return ", ".join(describe(v) for v in value)
    return (
        "" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    )


def _render(template: str, **context: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(bundled_folder("model_cards")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "time": format_seconds,
        "number": lambda value: format_value(value, "number"),
        "share": lambda value: format_value(value, "share"),
        "describe": describe,
    }
    return environment.get_template(template).render(**context)


def _table(columns: tuple[Column, ...], rows: Any) -> str:
    """Rows as a Markdown table; an empty string without rows."""
    return Table("", "", columns, tuple(rows)).to_markdown(heading=False).strip() if rows else ""


def _named(counts: Any) -> list[dict[str, Any]]:
    """`{name: {files, bytes, ...}}` as rows, the largest first."""
    rows = [{"name": name, **entry} for name, entry in (counts or {}).items() if isinstance(entry, Mapping)]
    return sorted(rows, key=lambda row: -(row.get("bytes") or 0))


def _model_index(rows: list[dict[str, Any]], digest: str, dataset_id: str | None) -> list[EvalResult]:
    """Results as the Hub's `model-index` wants them: of the report text, and of whole benchmarks that it knows."""
    own = dataset_id or "codenas-corpus"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=row.get("dataset_id") or own,
            dataset_name=row.get("dataset") or ("held-out Python projects" + (f" ({digest[:12]})" if digest else "")),
            dataset_split=row.get("split"),
            metric_type=row["metric"],
            metric_name=row["name"],
            metric_value=round(float(row["value"]), 6),
        )
        for row in rows
        if row.get("split") or row.get("dataset_id")
    ]


def _fills_gaps(release: Release, record: Record) -> bool:
    """True for a model that was trained to fill gaps and whose tokenizer has the words for it."""
    if not record.training.fim_rate or not release.tokenizer.is_file():
        return False
    text = release.tokenizer.read_text(encoding="utf-8")
    return all(token in text for token in FILL_TOKENS)


def _origin(record: Record) -> str | None:
    """Where the architecture comes from, as a sentence; None where the record does not say."""
    origin = record.origin
    if origin is None:
        return None
    if origin.kind == "file":
        return f"Its architecture is that of the genome file `{origin.name}`." if record.squeezed is None else None
    how = "random search" if origin.policy == "random" else "evolutionary search"
    shown = {"artifact_bytes": format_bytes, "decode_ms": lambda v: f"{v:g} ms a token"}
    limits = " and ".join(shown[name](value) for name, value in origin.limits.items() if name in shown)
    what = "Its architecture" if record.squeezed is None else "What was cut"
    return f"{what} was found by {how}" + (f" for the best model within {limits}." if limits else ".")


def _starts(record: Record) -> list[tuple[Start, str]]:
    """The releases that a fine-tuning goes back to, the nearest first, each with the licences of its text."""
    found = []
    start = record.start
    while start is not None:
        corpus = corpus_context(start.data.corpus) if start.data is not None else {}
        found.append((start, corpus.get("licences", "")))
        start = start.start
    return found


def _budget(record: Record) -> dict[str, Any]:
    """What the training took: steps, tokens, bytes, seconds."""
    names = ("steps", "tokens", "bytes", "tokens_per_second", "seconds")
    return {name: value for name in names if (value := getattr(record.training, name)) is not None}


def _splits() -> list[dict[str, str]]:
    return [{"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS]


def _body(path: Path) -> str | None:
    """A report's Markdown table without its heading."""
    return path.read_text(encoding="utf-8").split("\n", 2)[-1].strip() if path.is_file() else None
