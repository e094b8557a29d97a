"""One genome, trained, scored and released; and a study's trial, released as it is."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from transformers import PreTrainedModel

from ..architecture.genome import Genome
from ..data import PreparedData, prepare_data, prepare_for_tokenizer
from ..data.storage import file_sha256
from ..engine import Budget, TrialRecord
from ..generation.loading import load_model
from ..hardware import Hardware, alone, exclusively, is_main_process
from ..measure.candidate import ARTIFACT, new_model
from ..measure.latency import default_protocol
from ..measure.provenance import provenance
from ..measure.score import Score, leak_gate, score_windows
from ..measure.timing import measure_latency
from ..modeling_codenas import CodeNASForCausalLM
from ..release.export import write_release
from ..strict_yaml import to_mapping
from ..suite.prompts import PromptKind, prompt_file
from ..training import latest_checkpoint, train
from .settings import RunSettings

Say = Callable[[str], None]


def prepare(settings: RunSettings, *, vocab_sizes: Sequence[int] = (), tokenizer: Path | None = None) -> PreparedData:
    """Corpus, tokenizers and tokens of these settings: built, or found from an earlier run.

    Of the processes of a job on one machine one builds and the others then find it. Where the corpus is cleaned of
    benchmarks it is cleaned of this project's own prompts too.

    Args:
        settings: name the text.
        vocab_sizes: of the tokenizers that are trained on it.
        tokenizer: folder of one that is there already; it is taken instead.
    """
    folder = (settings.folder / "data").resolve()
    corpus = settings.corpus
    if corpus.benchmarks:
        prompts = tuple(str(prompt_file(kind)) for kind in get_args(PromptKind))
        corpus = replace(corpus, benchmarks=(*corpus.benchmarks, *prompts))
    with exclusively(folder / ".lock"):
        if tokenizer is not None:
            return prepare_for_tokenizer(tokenizer, corpus=corpus, folder=folder)
        return prepare_data(corpus=corpus, tokenizer=settings.tokenizer, vocab_sizes=vocab_sizes, folder=folder)


def seconds_per_step(
    genome: Genome, *, settings: RunSettings, data: PreparedData, device: str, steps: int = 6
) -> float:
    """Seconds of one training step of a genome with one compute thread, measured now on `device`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = new_model(genome, optim=settings.train.optim, settings=settings.candidate, seed=0)
        tokens = data.tokens(genome.vocab_size, "train")
        with alone():  # the main rank measures; the others are not here to be waited for
            accelerator = Accelerator(cpu=device == "cpu")
        train(model, tokens, Budget("steps", 2), settings=settings.train, accelerator=accelerator)  # warm-up
        result = train(model, tokens, Budget("steps", steps), settings=settings.train, accelerator=accelerator)
    finally:
        torch.set_num_threads(threads)
    return result.seconds_run / result.steps_run


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
    score = _score(model, settings=settings, data=data, vocab_size=vocab_size)
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


def _score(model: torch.nn.Module, *, settings: RunSettings, data: PreparedData, vocab_size: int) -> Score:
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
    return _release(
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


def train_genome(
    genome: Genome,
    budget: Budget,
    *,
    folder: Path,
    settings: RunSettings,
    data: PreparedData,
    say: Say,
    start: Path | None = None,
) -> Path:
    """Trains a genome on every process of the launcher, scores it and writes a release folder.

    An interrupted training goes on from its newest checkpoint in `<folder>.training`.

    Args:
        genome: the architecture.
        budget: the total.
        folder: where the release goes.
        settings: how.
        data: what text; for fine-tuning, of the tokenizer in `start`.
        say: told how it goes.
        start: a release folder of the same genome, whose weights are trained on (fine-tuning); None draws fresh ones.

    Returns:
        The release folder.

    Raises:
        codenas_hf.training.DivergenceError: the loss is no longer finite; names the last good checkpoint.
        codenas_hf.measure.score.LeakError: the model sees tokens that it must predict.
    """
    device = Hardware.discover(settings.device).device
    accelerator = Accelerator(cpu=device == "cpu", log_with=_trackers(settings), project_dir=settings.folder)
    state = folder.with_name(f"{folder.name}.training")
    before = {}
    if start is None:
        optim, seed = settings.train.optim, settings.train.seed
        model: PreTrainedModel = new_model(genome, optim=optim, settings=settings.candidate, seed=seed)
    else:
        model, known = _start(
            start, settings=settings, data=data, vocab_size=genome.vocab_size, device=device, say=say
        )
        before = {"start": known}
        state = folder.with_name(f"{folder.name}.{known['weights'][:8]}.training")  # other weights, another training
    leak_gate(model, vocab_size=genome.vocab_size)
    tokens = data.tokens(genome.vocab_size, "train")
    resume = latest_checkpoint(state) if state.exists() else None
    if resume is not None:
        say(f"resume    from {resume}")
    if settings.log_with:
        accelerator.init_trackers("trackers", config={"genome": genome.genome_id, "budget": str(budget)})
    say(f"train     {genome.num_parameters():,} parameters for {budget} on {accelerator.num_processes} x {device}")
    result = train(
        model,
        tokens,
        budget,
        settings=settings.train,
        folder=state,
        resume_from=resume,
        accelerator=accelerator,
        on_point=_curve_lines(tokens.bytes_per_token, say=say),
    )
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if not is_main_process():
        return folder
    say(
        f"trained   {result.steps:,} steps, {result.tokens:,} tokens ({tokens.bytes_per_token:.2f} bytes each), "
        f"{result.tokens_per_second:,.0f} tokens a second"
    )
    model = accelerator.unwrap_model(model)
    measured = measure_model(model, settings=settings, data=data, vocab_size=genome.vocab_size, device=device)
    say(f"quality   {measured.facts['bits_per_byte']:.4f} bits per byte on {measured.facts['scored_bytes']:,} bytes")
    training = {
        "budget": str(budget),
        "steps": result.steps,
        "tokens": result.tokens,
        "bytes": result.bytes,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "precision": result.precision,
        "processes": accelerator.num_processes,
        "curve": [dict(point) for point in result.curve],
    }
    return _release(
        model,
        genome,
        folder=folder,
        settings=settings,
        data=data,
        record={
            **before,
            "training": training,
            "measured": measured.facts,
            "seconds": {"train": result.seconds, "final_measure": measured.seconds},
        },
    )


def _start(
    folder: Path, *, settings: RunSettings, data: PreparedData, vocab_size: int, device: str, say: Say
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model of a release folder, and what the record of its fine-tuning says of it."""
    model = load_model(folder, device=device).model
    bits = _score(model, settings=settings, data=data, vocab_size=vocab_size).bits_per_byte
    say(f"start     {bits:.4f} bits per byte on the new text, as {folder} is")
    earlier = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    known = {"folder": folder.name, "weights": file_sha256(folder / "model.safetensors"), "bits_per_byte": bits}
    return model, known | {"data": earlier.get("data")}


def _trackers(settings: RunSettings) -> list[str] | None:
    """The user's trackers, all of which must be there: accelerate only warns of one that is not."""
    known, found = [str(kind) for kind in LoggerType], [str(kind) for kind in get_available_trackers()]
    for name in settings.log_with:
        if name not in known[1:]:
            raise ValueError(f"`log_with`: `{name}` is no tracker of accelerate; known are {', '.join(known[1:])}")
        if name not in found:
            raise ValueError(f"`log_with`: `{name}` is not installed; pip install {name}")
    return list(settings.log_with) or None


def _curve_lines(bytes_per_token: float, *, say: Say) -> Callable[[Mapping[str, float], float], None]:
    """Says where a training stands: at first often, later each time that a tenth more time has passed."""
    said = 0.0

    def on_point(point: Mapping[str, float], share: float) -> None:
        nonlocal said
        if point["seconds"] >= max(1.1 * said, said + 5.0):
            said = point["seconds"]
            bits = point["loss"] / math.log(2) / bytes_per_token
            say(
                f"{share:6.0%}    step {point['step']:,}: {bits:.4f} bits per byte of training text, "
                f"{point['tokens'] / said:,.0f} tokens a second, about {said * (1 / share - 1):.0f} s left"
            )

    return on_point


def _release(
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
