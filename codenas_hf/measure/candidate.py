"""evaluate(genome, rung, previous): one code path for every rung."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ..architecture.genome import Genome
from ..compression.quantize import store_in
from ..data import PreparedData
from ..data.tokenizer import END_OF_TEXT, PAD
from ..engine.records import Evaluation, Rung
from ..folders import folder_bytes, whole_folder
from ..folders.ranges import check_range
from ..folders.share import Share
from ..hardware import DeviceName, Hardware, take_gpu
from ..modeling_codenas import CodeNASForCausalLM
from ..training import (
    OptimSettings,
    TrainResult,
    TrainSettings,
    accelerator_on,
    build_model,
    precision_name,
    resolve_precision,
    train,
)
from .checkpoints import ARTIFACT, TRAINING, artifact_damage, brought, left, removed, training_state
from .latency import LatencyModel, default_protocol
from .provenance import commit, provenance
from .score import Passages, Score, leak_gate, score_passages
from .shipped import ShipSettings, as_shipped, check_widths, shipped_bytes
from .timing import Timer, TimingProtocol, measure_latency

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CandidateSettings:
    """How a candidate is scored.

    Args:
        score_bytes: search text that a rung is scored on, the same passages for every vocabulary.
        report_bytes: report text that candidates of the last rung are scored on too; nothing is chosen by it.
        window_tokens: length of a scoring window; None means that of training.
        batch_windows: windows in one forward pass.
        max_position_embeddings: context that the configuration names; None means what was trained,
            `train.sequence_length`. More is a promise that nothing was trained for.
        measure_latency: time every candidate in place of predicting; only for workers that are alone on the device.
        timing: protocol of the front's timing; None means the default of the device.

    Raises:
        ValueError: a value out of range.
    """

    score_bytes: int = 56_000
    report_bytes: int = 128_000
    window_tokens: int | None = None
    batch_windows: int = 8
    max_position_embeddings: int | None = None
    measure_latency: bool = False
    timing: TimingProtocol | None = None

    def __post_init__(self) -> None:
        check_range(self, "score_bytes", "report_bytes", "batch_windows", least=1)
        check_range(self, "max_position_embeddings", "window_tokens", least=1, optional=True)


class Stopwatch:
    """Seconds by purpose."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, purpose: str) -> Iterator[None]:
        """Adds the time of the block to `purpose`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[purpose] = self.seconds.get(purpose, 0.0) + spent


def candidate_seed(genome: Genome, *, seed: int) -> int:
    """The seed of a genome's weights: from what it is, never from who evaluates it or when."""
    return (int(genome.genome_id[:15], 16) + seed) % (2**63)


def promised_context(genome: Genome, *, train: TrainSettings, settings: CandidateSettings) -> int:
    """Tokens of context that the configuration of a genome's model will name.

    Raises:
        ValueError: a table of learned positions with rows that training would not reach, or too few to score by.
    """
    learned, trained = genome.max_position_embeddings, train.sequence_length
    if genome.position_embedding_type != "learned":
        return settings.max_position_embeddings or trained
    if learned != trained:
        raise ValueError(
            f"the genome learns {learned} positions, but training rows have {trained} tokens: expected the same, "
            f"since {'positions beyond stay as they were drawn' if learned > trained else 'rows would not fit'}; set "
            f"max_position_embeddings: {trained} in the genome, or train.sequence_length={learned}"
        )
    window = settings.window_tokens
    if window is not None and window > learned:
        raise ValueError(
            f"the genome learns {learned} positions, but `candidate.window_tokens` is {window}: expected at most as "
            "many; set candidate.window_tokens=null, which takes that of training"
        )
    return learned


def new_model(
    genome: Genome,
    *,
    settings: CandidateSettings,
    seed: int,
    train: TrainSettings | None = None,
    optim: OptimSettings | None = None,
    device: torch.device | None = None,
) -> CodeNASForCausalLM:
    """A fresh model of a genome, with the special tokens of its tokenizer, started by the width rule.

    Args:
        genome: the architecture.
        settings: name the context, where training does not.
        seed: of the weights.
        train: how it will be trained; None takes the defaults.
        optim: how weights start, where `train` is not given.
        device: where it shall live; None leaves it on the CPU.

    Raises:
        ValueError: as `promised_context`.
    """
    train = train or TrainSettings(optim=optim or OptimSettings())
    config = genome.to_config(
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        pad_token_id=PAD,
        max_position_embeddings=promised_context(genome, train=train, settings=settings),
    )
    model = build_model(CodeNASForCausalLM, config, settings=train.optim, seed=seed, device=device)
    assert isinstance(model, CodeNASForCausalLM)
    return model


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights alone: `.to(dtype)` would round the rotary frequencies too, which loading keeps in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def save_artifact(model: PreTrainedModel, *, tokenizer: Path, folder: Path) -> int:
    """Writes weights in their present dtype, configuration and tokenizer; returns the bytes that must be shipped."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for path in tokenizer.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    return folder_bytes(folder)


def unstarted_device(device: DeviceName) -> torch.device:
    """The device that workers use, found without making a CUDA context that forked children could not share."""
    return torch.device(Hardware.discover(device).device)


def worker_device(device: DeviceName) -> torch.device:
    """The device of an evaluation; where there are several GPUs, one that the other workers leave to this one."""
    if device != "cpu":
        take_gpu()
    return unstarted_device(device)


@dataclass(frozen=True, kw_only=True)
class CandidateEvaluator:
    """Builds, checks, trains, scores, saves and weighs one candidate; picklable.

    A checkpoint is the folder `<genome_id>-r<rung>`, written whole or not at all: `artifact` is the scored model with
    its tokenizer, in bfloat16 as it would be shipped or, where codes are shipped, in the full precision that they are
    made from; `training` is what the next rung, or the winner's last training, continues.

    Args:
        data: what to train and score on.
        train: how to train. `auto` precision is resolved here, once for all workers.
        settings: how to score.
        ship: the format that candidates are scored and weighed in.
        latency: predicts decode latency; None only where candidates are timed.
        timer: times them, and the front; in torch, or in the runtime that ships.
        folder: where checkpoints go; all processes of the study must see it, unless there is a share.
        device: where to train and time.
        share: where checkpoints go for other machines, by the hash of their content; None where all see `folder`.

    Raises:
        ValueError: no latency model and no timing, or a schedule without a constant part.
    """

    data: PreparedData
    train: TrainSettings
    settings: CandidateSettings = field(default_factory=CandidateSettings)
    ship: ShipSettings = field(default_factory=ShipSettings)
    latency: LatencyModel | None = None
    timer: Timer = measure_latency
    folder: Path
    device: DeviceName = "auto"
    share: Share | None = None

    def __post_init__(self) -> None:
        if self.latency is None and not self.settings.measure_latency:
            raise ValueError("`latency` is needed unless `measure_latency` is set: decode latency is an objective")
        if self.train.optim.schedule != "stable":
            raise ValueError(
                f"rungs need the schedule `stable`, whose constant part can be continued; got "
                f"`{self.train.optim.schedule}`"
            )
        dtype = resolve_precision(self.train.precision, device=unstarted_device(self.device))
        object.__setattr__(self, "train", replace(self.train, precision=precision_name(dtype)))
        commit()

    def __call__(self, genome: Genome, rung: Rung, previous: Evaluation | None) -> Evaluation:
        """The outcome of `genome` at `rung`; continues the checkpoint of `previous`.

        Where that is gone or damaged, it trains from the start: a budget is the total, and the state before the decay
        is what a straight training passes through, so the outcome is the same. `restarted` in the measurements says
        why.

        Raises:
            LeakError, DivergenceError, OSError, ValueError: the candidate fails for the reason given.
        """
        disable_progress_bar()  # of saving and loading weights; the search has a display of its own
        watch = Stopwatch()
        device = worker_device(self.device)
        seed = candidate_seed(genome, seed=self.train.seed)
        check_widths(genome, self.ship)
        target = self.folder / f"{genome.genome_id}-r{rung.index}"
        state, problem = training_state(previous, share=self.share)
        if problem is not None:
            logger.warning("%s trains for rung %d from the start: %s", genome.genome_id, rung.index, problem)
        for stale in self.folder.glob(f".{target.name}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        with watch.on("build"):
            model = new_model(genome, train=self.train, settings=self.settings, seed=seed, device=device)
            tokens = self.data.tokens(genome.vocab_size, "train")
            passages = self._passages(genome, "search", self.settings.score_bytes)
        with watch.on("gate"):
            leak_gate(model, vocab_size=genome.vocab_size)
        with whole_folder(target) as fresh:
            with watch.on("train"):
                trained = train(
                    model,
                    tokens,
                    rung.budget,
                    settings=self.train,
                    folder=fresh / TRAINING,
                    resume_from=state,
                    accelerator=accelerator_on(device.type),
                    stored=lambda trained: as_shipped(trained, self.ship),
                )
            with watch.on("save"):
                artifact_bytes = self._save(genome, model, folder=fresh / ARTIFACT)
            with watch.on("evaluate"):
                score = score_passages(model, passages, batch_size=self.settings.batch_windows)
                reported = self._on_report_text(genome, model) if rung.keep is None else {}
            with watch.on("measure"):
                decode_ms, timing = self._decode_ms(genome, model, device=device)
        if previous is not None:
            removed(previous, share=self.share, everywhere=False)  # was fetched to be continued
        evaluation = Evaluation(
            objectives={
                "bits_per_byte": score.bits_per_byte,
                "artifact_bytes": float(artifact_bytes),
                "decode_ms": decode_ms,
            },
            measurements=_measurements(
                genome, score=score, trained=trained, timing={**reported, **timing}, restarted=problem
            ),
            seconds=watch.seconds,
            checkpoint=target,
            provenance={
                **provenance(device),
                "seed": seed,
                "data_seed": self.train.seed,
                "dtype": trained.precision,
                "data": self.data.digest,
                "budget": str(rung.budget),
                **({"format": self.ship.format} if self.ship.form.coded else {}),
                "resumed": state is not None,
            },
        )
        return left(evaluation, share=self.share)

    def restored(self, genome: Genome, rung: Rung, evaluation: Evaluation) -> Evaluation:
        """The evaluation, its weights trained again from the start where they are gone or damaged.

        What was recorded stands; `weights_restored` in the provenance says that its weights were made twice.
        """
        if evaluation.checkpoint is not None:
            problem = brought(evaluation, share=self.share) or artifact_damage(evaluation.checkpoint / ARTIFACT)
        else:
            problem = "it has no checkpoint"
        if problem is None:
            return evaluation
        logger.warning("%s of rung %d is trained again: %s", genome.genome_id, rung.index, problem)
        again = replace(self, share=None)(genome, rung, None)  # is needed here
        provenance = {**evaluation.provenance, "weights_restored": True}
        return replace(evaluation, checkpoint=again.checkpoint, provenance=provenance)

    def discard(self, evaluation: Evaluation) -> None:
        """Removes the checkpoint of a candidate that can no longer be promoted; harmless when repeated."""
        path = evaluation.checkpoint
        if path is not None and path.parent.resolve() == self.folder.resolve():
            removed(evaluation, share=self.share, everywhere=True)

    def _save(self, genome: Genome, model: PreTrainedModel, *, folder: Path) -> int:
        """Writes the model and leaves it with the weights that are shipped, in float32; returns the bytes to ship."""
        tokenizer = self.data.tokenizer(genome.vocab_size)
        if self.ship.form.coded:  # written in full: a file in codes is made of the one that leaves the study
            save_artifact(model, tokenizer=tokenizer, folder=folder)
            store_in(model, self.ship.form)
            return shipped_bytes(genome, self.ship, tokenizer=tokenizer)
        # What is scored is what is shipped: the rounding to bfloat16 comes first.
        round_weights(model, torch.bfloat16)
        written = save_artifact(model, tokenizer=tokenizer, folder=folder)
        model.float()
        return written

    def _passages(self, genome: Genome, which: str, max_bytes: int) -> Passages:
        length = self.settings.window_tokens or self.train.sequence_length
        return self.data.passages(genome.vocab_size, which, length=length, max_bytes=max_bytes)

    def _on_report_text(self, genome: Genome, model: PreTrainedModel) -> dict[str, float]:
        """What a candidate of the last rung is on text by which nothing is chosen."""
        passages = self._passages(genome, "report", self.settings.report_bytes)
        score = score_passages(model, passages, batch_size=self.settings.batch_windows)
        return {"report_bits_per_byte": score.bits_per_byte}

    def _decode_ms(
        self, genome: Genome, model: PreTrainedModel, *, device: torch.device
    ) -> tuple[float, dict[str, Any]]:
        if self.settings.measure_latency:
            latency = self.timer(model, self.settings.timing or default_protocol(device.type))
            return latency.decode_ms, {"latency": latency.to_dict()}
        assert self.latency is not None
        predicted = self.latency.predict_decode_ms(genome)
        return predicted, {"decode_ms_predicted": predicted}


def _measurements(
    genome: Genome, *, score: Score, trained: TrainResult, timing: Mapping[str, Any], restarted: str | None
) -> dict[str, Any]:
    """What is recorded of a candidate beside its objectives; `restarted` is why it began anew, where it did."""
    return {
        **{name: value for name, value in score.facts().items() if name != "bits_per_byte"},
        "bits_by_project": score.bits_by_project,
        "num_parameters": genome.num_parameters(),
        "weights_bytes": genome.weights_bytes(),
        "steps": trained.steps,
        "tokens": trained.tokens,
        "bytes": trained.bytes,
        "train_seconds_total": trained.seconds,
        "steps_run": trained.steps_run,
        "tokens_per_second": trained.tokens_per_second,
        "curve": [dict(point) for point in trained.curve],
        **timing,
        **({} if restarted is None else {"restarted": restarted}),
    }
