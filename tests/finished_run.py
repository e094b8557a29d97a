"""A finished run for the tests of sharing: a tiny release with its record, a report, the corpus by name."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from study_records import make_records, make_result
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from codenas_hf.data import PreparedData
from codenas_hf.report.study_view import StudyView
from codenas_hf.report.tables import correlation_table, front_table, seconds_table, trials_table

LATENCY = {
    "prefill_ms": 3.2,
    "decode_ms": 0.81,
    "decode_p95_ms": 0.93,
    "device": "test cpu",
    "protocol": {"threads": 1, "dtype": "bfloat16"},
}


def make_record(data: PreparedData) -> dict[str, Any]:
    """What the main job writes beside a winner, with made-up numbers."""
    return {
        "genome": {"hidden_size": 32},
        "genome_id": "0123456789abcdef",
        "trial": {"genome_id": "0123456789abcdef", "rung": 1, "number": 3},
        "study": "demo",
        "evaluation": {
            "objectives": {"bits_per_byte": 2.41, "artifact_bytes": 51_000.0, "decode_ms": 0.8},
            "measurements": {"steps": 300, "tokens": 307_200, "train_seconds_total": 41.0},
            "seconds": {"train": 34.0, "evaluate": 2.0},
        },
        "measured": {
            "bits_per_byte": 2.3456,
            "next_token_accuracy": 0.271,
            "scored_bytes": 200_000,
            "window_tokens": 256,
            "latency": LATENCY,
        },
        "data": {"digest": data.digest, "corpus": data.corpus.report},
        "provenance": {"seed": 0, "commit": "abc123", "versions": {"torch": "2.13.0"}},
        "release": {"architecture": "llama", "dtype": "bfloat16"},
    }


def make_run(folder: Path, data: PreparedData, *, seed: int = 0) -> Path:
    """A run with a stock winner, a report, settings and a journal."""
    winner = folder / "winner"
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer(512))
    config = LlamaConfig(
        **sizes,
        vocab_size=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(winner)
    tokenizer.save_pretrained(winner)
    (winner / "record.json").write_text(json.dumps(make_record(data)), encoding="utf-8")
    settings = {"limits": {"bytes": 20_000_000}, "train": {"fim_rate": 0.5}, "storage": "postgresql://me:hunter2@db/x"}
    (winner / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (winner / "optimizer.pt").write_bytes(b"never")
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "study.journal").write_text('{"worker": "host:1"}\n', encoding="utf-8")
    (folder / "data.json").write_text(json.dumps({"data": data.to_dict()}), encoding="utf-8")
    write_tables(folder / "report")
    return folder


def write_tables(folder: Path) -> None:
    """A report without its drawings, which take longer than everything else here."""
    folder.mkdir()
    view = StudyView(name="demo", result=make_result(make_records(generations=1, population=4, top=2)))
    for table in (front_table(view), trials_table(view), correlation_table(view), seconds_table(view)):
        (folder / f"{table.name}.csv").write_text(table.to_csv(), encoding="utf-8")
        (folder / f"{table.name}.md").write_text(table.to_markdown(), encoding="utf-8")
    (folder / "front.png").write_bytes(b"a picture")
    (folder / "index.html").write_text("<!doctype html>", encoding="utf-8")
