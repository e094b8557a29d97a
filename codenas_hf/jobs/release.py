"""A model is measured and written as a release: a study's trial as it is, or what was trained."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..architecture.genome import Genome
from ..data import PreparedData
from ..engine import TrialRecord
from ..hardware import Hardware
from ..measure.candidate import ARTIFACT
from ..measure.latency import default_protocol
from ..measure.provenance import provenance
from ..measure.score import Score, leak_gate, score_windows
from ..measure.timing import measure_latency
from ..modeling_codenas import CodeNASForCausalLM
from ..release.export import write_release
from ..strict_yaml import to_mapping
from .settings import RunSettings


@dataclass(frozen=True)
class Measured:
    """What a released model was measured to be.

    Args:
        facts: bits per byte, loss, accuracy, bytes, latencies, ...; what was not measured is absent.
        seconds: what the measuring took.
    """

    facts: Mapping[str, Any]
    seconds: float


def measure_model(
    model: torch.nn.Module, *, settings: RunSettings, data: PreparedData, vocab_size: int, device: str
) -> Measured:
    """Scores a model on `final_score_bytes` of held-out text and times it alone, after the leak gate.

    Raises:
        codenas_hf.measure.score.LeakError: the model sees tokens that it must predict.
    """
    started = time.perf_counter()
    model = torch.nn.Module.to(model, torch.device(device)).eval()
    leak_gate(model, vocab_size=vocab_size)
    length = settings.train.sequence_length
    score = score_model(model, settings=settings, data=data, vocab_size=vocab_size)
    latency = measure_latency(model, settings.candidate.timing or default_protocol(device))
    facts = {
        "bits_per_byte": score.bits_per_byte,
        "loss": score.loss,
        "next_token_accuracy": score.next_token_accuracy,
        "scored_bytes": score.num_bytes,
        "scored_tokens": score.num_tokens,
        "window_tokens": length,
        "bytes_per_token": score.num_bytes / score.num_tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "latency": latency.to_dict(),
    }
    return Measured(facts, time.perf_counter() - started)


def score_model(model: torch.nn.Module, *, settings: RunSettings, data: PreparedData, vocab_size: int) -> Score:
    """On `final_score_bytes` of held-out text."""
    windows = data.tokens(vocab_size, "validation").windows(
        settings.train.sequence_length, max_bytes=settings.final_score_bytes
    )
    return score_windows(model, windows)


def release_trial(record: TrialRecord, *, study: Path, settings: RunSettings, data: PreparedData) -> Path:
    """Writes `study`/winner from the weights that a trial left; an existing release of the same trial stays.

    The weights are loaded from the trial's checkpoint, scored on more text than in the search, and timed alone.

    Returns:
        The release folder.

    Raises:
        ValueError: the trial has no checkpoint.
    """
    genome, evaluation = record.genome, record.evaluation
    if evaluation is None or evaluation.checkpoint is None or not isinstance(genome, Genome):
        raise ValueError(f"trial {record.number} of rung {record.rung} has no weights to release; train its genome")
    folder = study / "winner"
    same = {"genome_id": genome.genome_id, "rung": record.rung, "number": record.number}
    try:
        found = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        if found.get("trial") == same:
            return folder
    except (OSError, ValueError):
        pass
    device = Hardware.discover(settings.device).device
    model = CodeNASForCausalLM.from_pretrained(evaluation.checkpoint / ARTIFACT, dtype=torch.float32)
    measured = measure_model(model, settings=settings, data=data, vocab_size=genome.vocab_size, device=device)
    return release_model(
        model,
        genome,
        folder=folder,
        settings=settings,
        data=data,
        record={
            "trial": same,
            "study": study.name,
            "evaluation": evaluation.to_dict(),
            "measured": measured.facts,
            "seconds": {**evaluation.seconds, "final_measure": measured.seconds},
        },
    )


def release_model(
    model: PreTrainedModel,
    genome: Genome,
    *,
    folder: Path,
    settings: RunSettings,
    data: PreparedData,
    record: Mapping[str, Any],
) -> Path:
    """Writes the release folder with its record."""
    full = {
        "genome": genome.to_dict(),
        "genome_id": genome.genome_id,
        **record,
        "data": {"digest": data.digest, "corpus": data.corpus.report},
        "provenance": provenance(torch.device(Hardware.discover(settings.device).device)),
    }
    return write_release(
        torch.nn.Module.to(model, "cpu"),
        folder=folder,
        tokenizer=data.tokenizer(genome.vocab_size),
        record=full,
        settings=to_mapping(settings),
    )
