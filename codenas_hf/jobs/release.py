"""A model is measured and written as a release: a study's trial as it is, or what was trained."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..architecture.genome import Genome
from ..compression.squeezing import SqueezeGenome
from ..data import PreparedData
from ..data.passages import Passages
from ..engine import TrialRecord
from ..folders import Record, Release, StudyFolder
from ..folders.record import DataFacts, FileFacts, LatencyFacts, Measured, Origin, Training, Trial, trial_and_training
from ..generation.loading import CodeNASForCausalLM
from ..generation.torch_runtime import context_tokens
from ..hardware import Hardware
from ..measure.checkpoints import ARTIFACT, artifact_damage, brought
from ..measure.latency import default_protocol
from ..measure.provenance import provenance
from ..measure.score import Score, leak_gate, score_passages
from ..measure.shipped import Format, stored_weights
from ..release.export import write_release
from ..release.spelling import without_places
from ..strict_yaml import dump, to_mapping
from .elsewhere import share_of
from .files import measure_files
from .latency import timed_on, timer_of
from .settings import RunSettings
from .study import Say, open_study, study_data
from .text import load_space
from .wanted import objective_limits
from .winner import Answer


class LostWeightsError(OSError):
    """The weights that a trial left are gone or damaged."""


def measure_model(
    model: torch.nn.Module,
    *,
    settings: RunSettings,
    data: PreparedData,
    vocab_size: int,
    device: str,
    form: Format | None = None,
) -> tuple[Measured, float]:
    """Scores a model on `final_score_bytes` of report text and times it alone, after the leak gate.

    It is scored with the weights as they ship, and left as it was.

    It is scored in windows as long as training rows, and once more as long as the context that its configuration
    promises where that is another length.

    Args:
        model: in full precision.
        settings: how.
        data: its report text.
        vocab_size: of the model.
        device: where it is scored.
        form: the format that ships; None takes that of the settings.

    Returns:
        What it was measured to be, and the seconds that the measuring took.

    Raises:
        codenas_hf.measure.score.LeakError: the model sees tokens that it must predict.
    """
    started = time.perf_counter()
    model = torch.nn.Module.to(model, torch.device(device)).eval()
    leak_gate(model, vocab_size=vocab_size)
    length = settings.train.sequence_length
    context = context_tokens(model) or length
    with stored_weights(model, form or settings.ship.form):
        score = score_model(model, settings=settings, data=data, vocab_size=vocab_size)
        whole = score
        if context != length:
            whole = score_model(model, settings=settings, data=data, vocab_size=vocab_size, length=context)
    # A copy, which the timing leaves in its own number format.
    protocol = settings.candidate.timing or default_protocol(timed_on(settings.ship, device))
    latency = timer_of(settings.ship)(copy.deepcopy(model), protocol)
    measured = Measured(
        **score.facts(),  # type: ignore[arg-type]  # its names are fields
        window_tokens=length,
        context_tokens=context,
        context_bits_per_byte=whole.bits_per_byte,
        bytes_per_token=score.num_bytes / score.num_tokens,
        bits_by_project=score.bits_by_project,
        latency=LatencyFacts(**latency.to_dict()),
    )
    return measured, time.perf_counter() - started


def score_model(
    model: torch.nn.Module, *, settings: RunSettings, data: PreparedData, vocab_size: int, length: int | None = None
) -> Score:
    """On `final_score_bytes` of report text, by which no search chooses, in rows of `length` tokens, or as trained."""
    return score_passages(model, report_passages(settings, data=data, vocab_size=vocab_size, length=length))


def report_passages(
    settings: RunSettings, *, data: PreparedData, vocab_size: int, length: int | None = None
) -> Passages:
    """`final_score_bytes` of report text in rows of `length` tokens, or as trained."""
    rows = length or settings.train.sequence_length
    return data.passages(vocab_size, "report", length=rows, max_bytes=settings.final_score_bytes)


def release_trial(
    record: TrialRecord, *, study: Path, settings: RunSettings, data: PreparedData, out: Path | None = None
) -> Path:
    """Writes a release from the weights that a trial left; an existing release of the same trial stays.

    The weights are loaded from the trial's checkpoint, scored on the report text, and timed alone.

    Args:
        record: the trial.
        study: its folder.
        settings: of the study.
        data: of the study.
        out: where the release goes; None takes `study`/winner.

    Returns:
        The release folder.

    Raises:
        ValueError: the trial has no checkpoint.
        LostWeightsError: its checkpoint is gone or damaged.
    """
    genome, evaluation = record.genome, record.evaluation
    if evaluation is None or evaluation.checkpoint is None or not isinstance(genome, Genome):
        raise ValueError(f"trial {record.number} of rung {record.rung} has no weights to release; train its genome")
    release = StudyFolder(study).winner if out is None else Release(out)
    with contextlib.suppress(OSError, ValueError):
        found = release.read_record()
        there = found.trial and (found.genome_id, found.trial.rung, found.trial.number)
        if there == (genome.genome_id, record.rung, record.number):
            return release.folder
    artifact = evaluation.checkpoint / ARTIFACT
    problem = artifact_damage(artifact)
    if problem is not None:
        raise LostWeightsError(
            f"the weights of trial {record.number} of rung {record.rung} cannot be loaded ({problem}): put {artifact} "
            "back, or run the search again, which trains them again"
        )
    device = Hardware.discover(settings.device).device
    model = CodeNASForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    measured, seconds = measure_model(model, settings=settings, data=data, vocab_size=genome.vocab_size, device=device)
    known, trained = trial_and_training(evaluation.to_dict())
    return release_model(
        model,
        genome,
        folder=release.folder,
        settings=settings,
        data=data,
        record=Record(
            origin=trial_origin(record, settings=settings),
            trial=Trial(rung=record.rung, number=record.number, **known),
            training=Training(**trained, fim_rate=settings.train.fim_rate),
            measured=measured,
            seconds={**evaluation.seconds, "final_measure": seconds},
        ),
    )


def trial_origin(record: TrialRecord, *, settings: RunSettings) -> Origin:
    """What a release says of a genome that a study found.

    Args:
        record: the trial.
        settings: of the study.
    """
    return Origin(
        kind="study",
        name=settings.study,
        rung=record.rung,
        number=record.number,
        policy=settings.search.policy,
        limits=objective_limits(settings.limits),
    )


def release_model(
    model: PreTrainedModel,
    genome: Genome,
    *,
    folder: Path,
    settings: RunSettings,
    data: PreparedData,
    record: Record,
    form: Format | None = None,
) -> Path:
    """Writes the release folder with its record and settings, without the paths of this machine.

    Args:
        model: in full precision.
        genome: its architecture.
        folder: where it goes.
        settings: that go with it.
        data: its tokenizer and report text.
        record: what is known of it.
        form: the format that ships; None takes that of the settings.

    Returns:
        The release folder.
    """
    form = form or settings.ship.form
    device = Hardware.discover(settings.device).device
    full = replace(
        record,
        genome=genome.to_dict(),
        genome_id=genome.genome_id,
        data=DataFacts(digest=data.digest, corpus=data.corpus.report),
        provenance=provenance(torch.device(device)),
    )
    full_precision = torch.nn.Module.to(model, "cpu")

    def files(written: Release) -> tuple[FileFacts, ...]:
        return measure_files(
            written,
            model=full_precision,
            measured=record.measured,
            passages=report_passages(settings, data=data, vocab_size=genome.vocab_size),
            form=form,
            protocol=settings.candidate.timing or default_protocol("cpu"),
            vocab_size=genome.vocab_size,
            device=device,
        )

    return write_release(
        full_precision,
        folder=folder,
        tokenizer=data.tokenizer(genome.vocab_size),
        record=full,
        settings=dump(without_places(to_mapping(settings))),
        form=form if form.coded else None,
        files=files,
    )


def release_winner(answer: Answer, out: Path, *, say: Say = print) -> Path:
    """Releases the member of the front that a question named.

    Args:
        answer: from `winner.ask`.
        out: the release folder.
        say: told how it goes, a line at a time.

    Returns:
        The release folder.

    Raises:
        ValueError: nobody wins, the trial has no weights any more, or it is a squeeze, which never had any.
    """
    if answer.record is None:
        raise ValueError(f"no member of {answer.study} keeps these limits: loosen them, or search longer")
    result, settings = open_study(answer.study)
    wanted = (answer.record.rung, answer.record.number)
    record = next(found for found in result.records if (found.rung, found.number) == wanted)
    if isinstance(record.genome, SqueezeGenome):
        raise ValueError(
            f"{answer.study} is of squeezes, which are scored without being kept: put this line into a file and give "
            f"that to `codenas squeeze --genome FILE study=NAME`: {json.dumps(record.genome.to_dict())}"
        )
    sizes = load_space(settings.space).vocab_sizes
    data = study_data(settings, folder=answer.study, vocab_sizes=sizes, say=say)
    if record.evaluation is not None and (problem := brought(record.evaluation, share=share_of(settings))):
        say(f"weights   are not on this machine: {problem}")
    return release_trial(record, study=answer.study, settings=settings, data=data, out=out)
