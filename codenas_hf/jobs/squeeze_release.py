"""The winner of a squeeze is healed on all processes, measured and written as a release like any other."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..architecture.genome import Genome
from ..compression.squeezing import SqueezeGenome, mixed_format, pieces
from ..data.storage import content_key
from ..engine import Budget, Rung, TrialRecord
from ..folders import Record, Release, StudyFolder
from ..folders.record import (
    DataFacts,
    FileFacts,
    LatencyFacts,
    Measured,
    Origin,
    Squeezed,
    Training,
    Trial,
    trial_and_training,
)
from ..generation.torch_runtime import context_tokens
from ..hardware import Hardware, is_main_process
from ..measure.latency import default_protocol
from ..measure.provenance import provenance
from ..measure.score import leak_gate, score_passages
from ..measure.timing import measure_latency
from ..release.export import write_release
from ..release.spelling import without_places
from ..report.curve import Watch, curve_lines
from ..strict_yaml import SettingsError, dump, read_yaml, to_mapping
from ..training import TrainResult, accelerator_on, latest_checkpoint
from .files import measure_gguf
from .release import trial_origin
from .settings import RunSettings
from .squeeze_prepare import Prepared, parent_bits
from .train import told_points, training_facts
from .wanted import objective_limits

Say = Callable[[str], None]
_ELSEWHERE = ("parent", "heal_budget")  # of `squeeze`: known by its digest; may grow


def heal_and_release(
    genome: SqueezeGenome,
    ready: Prepared,
    *,
    settings: RunSettings,
    folder: Path,
    hardware: Hardware,
    trial: TrialRecord | None,
    say: Say,
    watch: Watch | None,
) -> Path:
    """Heals a squeeze of the parent and writes its release; a finished one stays, an interrupted healing goes on.

    Args:
        genome: what is kept.
        ready: what it stands on.
        settings: of the study.
        folder: of the study; the release is its winner.
        hardware: that is used.
        trial: that found it; None for a genome file.
        say: told how it goes.
        watch: told every point of the curve of the healing.

    Returns:
        The release folder.
    """
    study = StudyFolder(folder)
    release, budget = study.winner, settings.squeeze.heal_budget
    release.check_replaceable()
    with contextlib.suppress(OSError, ValueError):
        found = release.read_record()
        same = found.squeezed is not None and found.squeezed.genome_id == genome.genome_id
        if same and found.training.budget == (None if budget is None else str(budget)):
            return release.folder
    accelerator = accelerator_on(hardware.device)  # first: it knows which GPU is this process's
    evaluator, device = ready.evaluator, accelerator.device
    started = time.perf_counter()
    heals = budget is not None and budget.amount
    model = torch.nn.Module.to(evaluator.model(genome, full=evaluator.heal.moving if heals else ()), device)
    leak_gate(model, vocab_size=genome.vocab_size)
    trained, training = None, Training()
    if budget is not None and budget.amount:
        trained = _healed(
            model,
            genome,
            ready,
            settings=settings,
            folder=study,
            budget=budget,
            accelerator=accelerator,
            say=say,
            watch=watch,
        )
        processes = accelerator.num_processes
        training = training_facts(trained, budget=budget, settings=settings, processes=processes)
    if not is_main_process():
        return release.folder
    if heals:
        evaluator.store(model, genome)  # what the file holds is what is measured, and what lies beside it
    seconds = {"train": time.perf_counter() - started}
    return _released(
        model,
        genome,
        ready,
        settings=settings,
        release=release,
        training=training,
        trial=trial,
        seconds=seconds,
        say=say,
    )


def check_applied_release(genome: SqueezeGenome, ready: Prepared, *, settings: RunSettings, folder: Path) -> None:
    """Refuses to apply a genome in a folder whose release is another squeeze: it has no record that would say so.

    Another `squeeze.heal_budget` is the same squeeze, which is trained on.

    Raises:
        SettingsError: another genome, parent, text or training.
    """
    release = StudyFolder(folder).winner
    try:
        found = release.read_record()
    except FileNotFoundError:
        return
    before = read_yaml(release.settings) if release.settings.is_file() else {}
    same = (
        found.squeezed is not None
        and (found.squeezed.genome_id, found.squeezed.digest) == (genome.genome_id, ready.source.digest)
        and found.data.digest == ready.evaluator.data.digest
        and _how(before) == _how(to_mapping(settings))
    )
    if not same:
        raise SettingsError(
            f"{release.folder} holds another squeeze (of another genome, parent, text or training): give this one a "
            "study of its own, study=NAME, or --fresh, which puts that one aside"
        )


def _how(settings: Mapping[str, Any]) -> str:
    """How a squeeze is healed and scored, as text; for how long is not in it."""
    squeezed = {name: value for name, value in (settings.get("squeeze") or {}).items() if name not in _ELSEWHERE}
    return dump({"squeeze": squeezed, **{name: settings.get(name) for name in ("train", "candidate")}})


def _healed(
    model: PreTrainedModel,
    genome: SqueezeGenome,
    ready: Prepared,
    *,
    settings: RunSettings,
    folder: StudyFolder,
    budget: Budget,
    accelerator: Accelerator,
    say: Say,
    watch: Watch | None,
) -> TrainResult:
    """Trains the model in place, on every process of the launcher."""
    evaluator = ready.evaluator
    key = content_key([genome.genome_id, ready.source.digest, evaluator.data.digest, _how(to_mapping(settings))])
    state = folder.finish_training.with_name(f"{folder.finish_training.name}.{key[:12]}")
    resume = latest_checkpoint(state, budget=budget) if state.exists() else None
    if resume is not None:
        say(f"resume    from {resume}")
    tokens = evaluator.tokens(genome.vocab_size)
    heal = settings.squeeze.heal
    where = f"{accelerator.num_processes} x {accelerator.device.type}"
    say(f"heal      {heal.moves} of {genome.genome_id} for {budget} on {where}")
    result = evaluator.healed(
        model,
        genome,
        Rung(0, budget),
        folder=state,
        state=resume,
        accelerator=accelerator,
        on_point=told_points(tokens.bytes_per_token, watch=watch or curve_lines(say)),
    )
    accelerator.wait_for_everyone()
    return result


def _released(
    model: PreTrainedModel,
    genome: SqueezeGenome,
    ready: Prepared,
    *,
    settings: RunSettings,
    release: Release,
    training: Training,
    trial: TrialRecord | None,
    seconds: dict[str, float],
    say: Say,
) -> Path:
    evaluator, started = ready.evaluator, time.perf_counter()
    device = next(model.parameters()).device
    passages = evaluator.passages(genome.vocab_size, "report", max_bytes=settings.final_score_bytes)
    score = score_passages(model, passages, batch_size=settings.candidate.batch_windows)
    parent = parent_bits(evaluator, "report", max_bytes=settings.final_score_bytes, say=say)
    say(
        f"quality   {score.bits_per_byte:.4f} bits per byte on {score.num_bytes:,} bytes of report text, "
        f"the parent {parent:.4f}"
    )
    protocol = settings.candidate.timing or default_protocol(device.type)
    latency = measure_latency(copy.deepcopy(model), protocol)  # which casts what it is given, on a GPU to bfloat16
    model = torch.nn.Module.to(model, "cpu").float()
    seconds["final_measure"] = time.perf_counter() - started
    known, _ = (
        ({}, {}) if trial is None or trial.evaluation is None else trial_and_training(trial.evaluation.to_dict())
    )
    record = Record(
        genome=_architecture(model),
        origin=Origin(kind="file", name="squeeze genome", limits=objective_limits(settings.limits))
        if trial is None
        else trial_origin(trial, settings=settings),
        trial=None if trial is None else Trial(rung=trial.rung, number=trial.number, **known),
        squeezed=Squeezed(
            parent=ready.source.name,
            licence=ready.source.licence,
            digest=ready.source.digest,
            genome=genome.to_dict(),
            genome_id=genome.genome_id,
            parent_bits_per_byte=parent,
            parent_parameters=sum(math.prod(shape) for shape in ready.parent.shape.shapes.values()),
            healing=None if training.tokens is None else f"{settings.squeeze.heal.words}, {training.tokens:,} tokens",
        ),
        training=training,
        measured=Measured(
            **score.facts(),  # type: ignore[arg-type]  # its names are fields
            window_tokens=settings.candidate.window_tokens or settings.train.sequence_length,
            context_tokens=context_tokens(model),
            bytes_per_token=score.num_bytes / score.num_tokens,
            bits_by_project=score.bits_by_project,
            latency=LatencyFacts(**latency.to_dict()),
        ),
        seconds=seconds,
        data=DataFacts(digest=evaluator.data.digest, corpus=evaluator.data.corpus.report),
        provenance=provenance(device),
    )
    if record.genome is not None:
        record = replace(record, genome_id=Genome.from_dict(record.genome).genome_id)

    def files(written: Release) -> tuple[FileFacts, ...]:
        if written.shipped is None:
            return ()
        timing = settings.candidate.timing or default_protocol("cpu")
        return (
            measure_gguf(written.shipped, passages, form="squeezed", protocol=timing, vocab_size=genome.vocab_size),
        )

    return write_release(
        model,
        folder=release.folder,
        tokenizer=evaluator.parent.vocabulary(genome.vocab_size),
        record=record,
        settings=dump(without_places(to_mapping(settings))),
        form=mixed_format(pieces(genome, evaluator.parent.shape)),
        files=files,
    )


def _architecture(model: PreTrainedModel) -> dict[str, Any] | None:
    """The genes of a squeezed model, by which it can be trained on; None where our genomes do not hold all of it."""
    config: Any = model.config
    kinds = {"llama": ("gated", False), "qwen3": ("gated", True), "arcee": ("plain", False)}
    if config.model_type not in kinds or config.rope_parameters.get("rope_type", "default") != "default":
        return None
    if config.attention_bias or getattr(config, "mlp_bias", False):
        return None
    mlp, norms = kinds[config.model_type]
    try:
        genome = Genome(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            mlp_type=mlp,
            qk_norm=norms,
            rope_theta=config.rope_parameters["rope_theta"],
            tie_word_embeddings=config.tie_word_embeddings,
        )
    except ValueError:
        return None
    return genome.to_dict()
