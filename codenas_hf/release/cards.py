"""Model, dataset and study cards, written from records. What was not measured is absent from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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

from codenas_hf.report.architecture import architecture_text
from codenas_hf.report.cells import Column, Table, format_bytes, format_count, format_seconds, format_value
from codenas_hf.report.comparison import facts_of

TAGS = ["code", "python", "neural-architecture-search", "codenas"]
# What the tokenizer calls the pieces of a gap to be filled.
FILL_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
# Of an evaluation's many numbers those that a card shows; the others stand in evaluation.json beside it.
SUITE_METRICS = (
    "bits_per_byte",
    "pass@1",
    "pass@10",
    "collapse_rate",
    "parse_rate",
    "line_exact_match",
    "exact_match",
)
RESULTS = Table(
    "evaluation",
    "Evaluation",
    (
        Column("name", "what"),
        Column("value", "value", "number"),
        Column("low", "95 % from", "number"),
        Column("high", "to", "number"),
        Column("n", "over", "integer"),
        Column("protocol", "how"),
    ),
    (),
)
SPEED = (
    Column("device", "device"),
    Column("prefill_ms", "prefill", "ms"),
    Column("decode_ms", "decode per token", "ms"),
    Column("decode_p95_ms", "95th percentile", "ms"),
    Column("peak_memory_bytes", "peak memory", "bytes"),
    Column("protocol", "protocol"),
)
FORMATS = (
    Column("format", "format"),
    Column("artifact_bytes", "bytes", "bytes"),
    Column("bits_per_byte", "bits per byte", "number"),
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
    release: Path,
    *,
    repo_id: str,
    layers: Table,
    run: Path | None = None,
    licence: str = "mit",
    dataset_id: str | None = None,
) -> Card:
    """The card of a release folder.

    Args:
        release: the folder; its `config.json`, `record.json` (see docs/sharing.md for the keys), `settings.yaml` and
            `evaluation.json` are read where they are.
        repo_id: its id on the Hub.
        layers: `architecture_table` of its weights.
        run: the study that found it; its `report/front.md` is shown.
        licence: of the weights, as the Hub spells it.
        dataset_id: Hub id of the training text, where that is published.
    """
    config, record = read_json(release / "config.json"), read_json(release / "record.json")
    suite = read_json(release / "evaluation.json")
    facts = facts_of(record)
    facts["artifact_bytes"] = sum(path.stat().st_size for path in release.glob("*.safetensors"))
    facts["num_parameters"] = sum(row.get("num_parameters") or 0 for row in layers.rows)
    results = result_rows(record, suite)
    front = run / "report" / "front.md" if run is not None else None
    data, start = record.get("data") or {}, record.get("start") or {}
    name = repo_id.split("/")[-1]
    card_data = ModelCardData(
        language="code",
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
        datasets=[dataset_id] if dataset_id else None,
        model_name=name,
        eval_results=_model_index(results, data, dataset_id) or None,
    )
    text = _render(
        "model.md.jinja",
        card_data=card_data.to_yaml(),
        repo_id=repo_id,
        name=name,
        facts=facts,
        record=record,
        release=record.get("release") or {},
        remote_code="auto_map" in config,
        fills_gaps=_fills_gaps(release, record),
        layers=architecture_text(layers),
        layers_note=layers.note,
        front=front.read_text(encoding="utf-8").split("\n", 2)[-1].strip() if front and front.is_file() else None,
        front_picture=front is not None and (front.parent / "front.png").is_file(),
        evaluation=_table(RESULTS.columns, results),
        protocol=suite.get("protocol"),
        speed=_table(SPEED, speed_rows(record)),
        formats=_table(FORMATS, record.get("compression") or []),
        corpus=corpus_context(data.get("corpus") or {}),
        data_digest=data.get("digest"),
        dataset_id=dataset_id,
        start=start,
        start_licences=corpus_context((start.get("data") or {}).get("corpus") or {}).get("licences"),
        training=record.get("training") or {},
        budget=_budget(record),
        seconds=record.get("seconds") or {},
        provenance=record.get("provenance") or {},
        has_settings=(release / "settings.yaml").is_file(),
        limits=_limits(release),
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


def study_card(run: Path, *, repo_id: str, model_id: str, tables: list[str]) -> str:
    """The card of a study: what was searched, what came out, how to read it.

    Args:
        run: the study's folder with its report.
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
        license="mit", tags=["neural-architecture-search", "codenas"], pretty_name=run.name, configs=configs
    )
    shown = {name: _body(run / "report" / f"{name}.md") for name in ("front", "rank_correlation", "seconds")}
    text = _render(
        "study.md.jinja",
        card_data=card_data.to_yaml(),
        repo_id=repo_id,
        model_id=model_id,
        name=run.name,
        tables=tables,
        first=first,
        shown=shown,
        has_journal=(run / "study.journal").is_file(),
        pictures=[n for n in ("front", "hypervolume") if (run / "report" / f"{n}.png").is_file()],
    )
    return str(DatasetCard(text))


def result_rows(record: Mapping[str, Any], suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Results with their intervals: the release's own measurement, then those of an evaluation suite.

    Args:
        record: `record.json`.
        suite: `evaluation.json`, which `codenas evaluate` writes; of its rows those that a reader of a card wants.
    """
    measured = record.get("measured") or {}
    how = []
    if "scored_bytes" in measured:
        how.append(f"{format_bytes(measured['scored_bytes'])} of held-out projects")
    if "window_tokens" in measured:
        how.append(f"windows of {measured['window_tokens']:,} tokens")
    rows: list[dict[str, Any]] = [
        {"name": name.replace("_", " "), "metric": name, "value": measured[name], "protocol": ", ".join(how)}
        for name in ("bits_per_byte", "next_token_accuracy", "loss")
        if isinstance(measured.get(name), int | float)
    ]
    for row in suite.get("rows") or ():
        metric = row["name"].rpartition("/")[2]
        if metric in SUITE_METRICS:
            greedy = row["name"] == "humaneval/greedy/pass@1"
            listed = {"dataset_id": "openai/openai_humaneval", "task_id": metric} if greedy else {}
            name = row["name"].replace("/", ", ").replace("_", " ")
            rows.append({**row, "name": name, "metric": metric, "n": row.get("count"), **listed})
    return rows


def speed_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Latencies by device, each with its protocol: the release's own and those under `latencies`."""
    own = (record.get("measured") or {}).get("latency")
    found = [*([own] if own else []), *(record.get("latencies") or ())]
    return [{**row, "protocol": describe(row.get("protocol"))} for row in found]


def corpus_context(report: Mapping[str, Any]) -> dict[str, Any]:
    """A corpus report as Markdown tables: sources, splits, licences, what was dropped, duplicates, decontamination."""
    if not report:
        return {}
    split = report.get("split") or {}
    names = report.get("validation_projects") or ()
    return {
        "sources": _table(COUNTS, _named(report.get("sources"))),
        "splits": _table(COUNTS, _named(split)),
        "licences": _table(COUNTS, _named(report.get("licences"))),
        "dropped": _table(COUNTS, _named(report.get("dropped"))),
        "duplicates": _table(COUNTS, _named(report.get("duplicates"))),
        "leakage": report.get("leakage"),
        "benchmarks": describe(report.get("benchmarks")),
        "masked": describe(report.get("masked")),
        "validation_projects": len(names) if isinstance(names, list | tuple) else names,
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def bundled_folder(name: str) -> Path:
    """A folder that lies beside the package in a checkout, and inside it in an installed wheel.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{name}/ is neither in {package} nor beside it; install codenas-hf again")


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


def _model_index(rows: list[dict[str, Any]], data: Mapping[str, Any], dataset_id: str | None) -> list[EvalResult]:
    """Results as the Hub's `model-index` wants them."""
    digest = str(data.get("digest") or "")[:12]
    own = dataset_id or "codenas-corpus"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=row.get("dataset_id") or own,
            dataset_name=row.get("dataset") or ("held-out Python projects" + (f" ({digest})" if digest else "")),
            dataset_split=None if row.get("dataset_id") else "validation",
            metric_type=row["metric"],
            metric_name=row["name"],
            metric_value=round(float(row["value"]), 6),
        )
        for row in rows
    ]


def _fills_gaps(release: Path, record: Mapping[str, Any]) -> bool:
    """True for a model that was trained to fill gaps and whose tokenizer has the words for it."""
    settings = release / "settings.yaml"
    known = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    rate = _find(known, "fim_rate") or _find(record, "fim_rate") or 0
    tokenizer = release / "tokenizer.json"
    return bool(rate) and tokenizer.is_file() and all(t in tokenizer.read_text(encoding="utf-8") for t in FILL_TOKENS)


def _limits(release: Path) -> str:
    """The limits that the search was given, in words; empty without any."""
    settings = release / "settings.yaml"
    known = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    limits = (known or {}).get("limits") or {}
    shown = {"bytes": format_bytes, "artifact_bytes": format_bytes, "decode_ms": lambda v: f"{v:g} ms a token"}
    return " and ".join(
        shown[name](value) for name, value in limits.items() if isinstance(value, int | float) and name in shown
    )


def _budget(record: Mapping[str, Any]) -> dict[str, Any]:
    """Steps, tokens and bytes of training, from wherever the record has them."""
    training = record.get("training") or {}
    measured = (record.get("evaluation") or {}).get("measurements") or {}
    found = {
        name: training.get(name, measured.get(name)) for name in ("steps", "tokens", "bytes", "tokens_per_second")
    }
    seconds = training.get("seconds", measured.get("train_seconds_total"))
    return {name: value for name, value in {**found, "seconds": seconds}.items() if value is not None}


def _find(tree: Any, name: str) -> Any:
    """The first value under a key, at any depth."""
    if not isinstance(tree, Mapping):
        return None
    if name in tree:
        return tree[name]
    return next((found for value in tree.values() if (found := _find(value, name)) is not None), None)


def _splits() -> list[dict[str, str]]:
    return [{"split": split, "path": f"data/{split}-*.parquet"} for split in ("train", "validation")]


def _body(path: Path) -> str | None:
    """A report's Markdown table without its heading."""
    return path.read_text(encoding="utf-8").split("\n", 2)[-1].strip() if path.is_file() else None
