"""evaluate(genome, rung, previous) for squeezes: rung 0 scores a slice of the parent, later rungs heal it first."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ..compression.parent import ParentFolder
from ..compression.repair import store_repaired
from ..compression.squeeze_space import SqueezeSpace
from ..compression.squeezing import Kind, SqueezeGenome, mixed_format, pieces
from ..compression.vocabulary import VocabularyError, check_tokenizer
from ..compression.vocabulary import count_tokens as count_in
from ..data import PreparedData
from ..data.passages import Passages, build_passages
from ..data.tokenizer import load_backend
from ..data.tokens import Tokens, build_tokens
from ..engine.records import Budget, Evaluation, Rung
from ..folders import whole_folder
from ..folders.files import TOKENIZER
from ..folders.ranges import check_range
from ..hardware import DeviceName
from ..training import TrainResult, TrainSettings, accelerator_on, train
from ..training.distil import DistilSettings, Moves, moving, taught
from .candidate import CandidateSettings, Stopwatch, worker_device
from .checkpoints import ARTIFACT, TRAINING, training_state
from .provenance import provenance
from .score import leak_gate, score_passages

logger = logging.getLogger(__name__)

_ROUNDING_TOKENS, _ROUNDING_ROWS = 16_384, 8  # of training text, by which a healed model is rounded
_ROUNDING_SEED = 1_000_003  # of no training


@dataclass(frozen=True, kw_only=True)
class HealSettings:
    """How a squeezed model is healed.

    Args:
        moves: what is trained: `norms` (with all other vectors), `embeddings` with them, `low_rank` with corrections
            to every matrix, or `all`.
        rank: of the corrections.
        distil: learn from the parent's logits beside the text.
        teach: how.

    Raises:
        ValueError: a rank below 1.
    """

    moves: Moves = "embeddings"
    rank: int = 8
    distil: bool = False
    teach: DistilSettings = field(default_factory=DistilSettings)

    def __post_init__(self) -> None:
        check_range(self, "rank", least=1)

    @property
    def moving(self) -> tuple[Kind, ...]:
        """Matrices that are trained: a small step from a point of their grid would be rounded back to that point."""
        if self.moves == "norms":
            return ()
        return ("embedding",) if self.moves == "embeddings" else ("embedding", "attention", "feed_forward")

    @property
    def words(self) -> str:
        """What is trained, as a card says it."""
        trained = {
            "norms": "norms",
            "embeddings": "norms and embeddings",
            "low_rank": "norms, embeddings and a low-rank correction of every matrix",
            "all": "all weights",
        }[self.moves]
        return f"{trained}, in part towards the parent's own answers" if self.distil else trained


@dataclass(frozen=True, kw_only=True)
class SqueezeSettings:
    """What `codenas squeeze` cuts, and how.

    Args:
        parent: a model's folder, a GGUF file or a Hub id; None takes the one that the extra `peers` brings.
        count_bytes: training text on which the vocabulary's entries are counted, at most.
        importance_tokens: training text on which neurons and heads are watched.
        heal: how candidates of later rungs, and the winner, are healed.
        heal_budget: total healing of the winner, such as `200000 tokens`; null releases it as it was searched.

    Raises:
        ValueError: a number out of range.
    """

    parent: str | None = None
    count_bytes: int = 20_000_000
    importance_tokens: int = 16_384
    heal: HealSettings = field(default_factory=HealSettings)
    heal_budget: Budget | None = None

    def __post_init__(self) -> None:
        check_range(self, "count_bytes", "importance_tokens", least=1)


def tokenizer_of(tokenizer: Any) -> dict[str, Any]:
    """What `tokenizer.json` holds of a loaded tokenizer.

    Raises:
        VocabularyError: it has none, or it is no byte-level BPE.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise VocabularyError(
            f"the tokenizer is a {type(tokenizer).__name__} without {TOKENIZER}; only byte-level BPE can lose entries"
        )
    state: dict[str, Any] = json.loads(backend.to_str())
    check_tokenizer(state)
    return state


def count_tokens(folder: Path, texts: Any) -> NDArray[np.int64]:
    """How often each entry of the tokenizer in a folder occurs in some texts."""
    return count_in(load_backend(folder), texts)


@dataclass(frozen=True, kw_only=True)
class SqueezeEvaluator:
    """Slices the parent, heals the slice where the rung has a budget, scores it as it ships; picklable.

    A checkpoint is the folder `<genome_id>-r<rung>`: `training` is what the next rung continues, `artifact` the healed
    model in full precision. Rung 0 leaves none: a slice is made again in seconds.

    Args:
        data: what to score and train on.
        parent: prepared, with its formats and vocabularies.
        space: weighs genomes; its `decode_ms` predicts.
        train: how healing trains.
        heal: what it trains.
        settings: how to score.
        folder: where checkpoints go.
        device: where to compute.
    """

    data: PreparedData
    parent: ParentFolder
    space: SqueezeSpace
    train: TrainSettings
    heal: HealSettings
    settings: CandidateSettings
    folder: Path
    device: DeviceName = "auto"

    def __call__(self, genome: SqueezeGenome, rung: Rung, previous: Evaluation | None) -> Evaluation:
        """The outcome of `genome` at `rung`; a healing continues that of `previous`.

        Raises:
            LeakError, DivergenceError, OSError, ValueError: the candidate fails for the reason given.
        """
        disable_progress_bar()
        watch, device = Stopwatch(), worker_device(self.device)
        heals = rung.budget.amount > 0
        known = self.space.known_objectives(genome)
        target = self.folder / f"{genome.genome_id}-r{rung.index}"
        state, problem = training_state(previous) if previous is not None and previous.checkpoint else (None, None)
        measurements: dict[str, Any] = {"decode_ms_predicted": known["decode_ms"]}
        with watch.on("build"):
            model = self.model(genome, full=self.heal.moving if heals else ())
            torch.nn.Module.to(model, device)
            passages = self.passages(genome.vocab_size, "search", max_bytes=self.settings.score_bytes)
        with watch.on("gate"):
            leak_gate(model, vocab_size=genome.vocab_size)
        if heals:
            for stale in self.folder.glob(f".{target.name}-*"):
                shutil.rmtree(stale, ignore_errors=True)
            with whole_folder(target) as fresh:
                with watch.on("train"):
                    trained = self.healed(model, genome, rung, folder=fresh / TRAINING, state=state)
                with watch.on("save"):
                    model.save_pretrained(fresh / ARTIFACT)
                    self.store(model, genome)
            measurements |= {
                "steps": trained.steps,
                "tokens": trained.tokens,
                "bytes": trained.bytes,
                "train_seconds_total": trained.seconds,
                "steps_run": trained.steps_run,
                "tokens_per_second": trained.tokens_per_second if trained.steps_run else None,
                "curve": [dict(point) for point in trained.curve],
                **({} if problem is None else {"restarted": problem}),
            }
        with watch.on("evaluate"):
            score = score_passages(model, passages, batch_size=self.settings.batch_windows)
        measurements |= {name: value for name, value in score.facts().items() if name != "bits_per_byte"}
        measurements["bits_by_project"] = score.bits_by_project
        measurements["num_parameters"] = model.num_parameters()
        return Evaluation(
            objectives={"bits_per_byte": score.bits_per_byte, **known},
            measurements={name: value for name, value in measurements.items() if value is not None},
            seconds=watch.seconds,
            checkpoint=target if heals else None,
            provenance={
                **provenance(device),
                "data": self.data.digest,
                "parent": self.parent.facts["digest"],
                "budget": str(rung.budget),
                "resumed": state is not None,
            },
        )

    def model(self, genome: SqueezeGenome, *, full: Collection[Kind] = ()) -> PreTrainedModel:
        """The squeezed model before any healing, with the weights that its reader has but for these matrices."""
        return self.parent.model(genome, full=full)

    def passages(self, vocab_size: int, which: str, *, max_bytes: int) -> Passages:
        """Search or report text in the entries of a vocabulary."""
        return build_passages(
            self.data.corpus,
            self.parent.vocabulary(vocab_size),
            which,
            length=self.settings.window_tokens or self.train.sequence_length,
            max_bytes=max_bytes,
            cache=self.data.folder / "tokens" / "squeeze",
        )

    def tokens(self, vocab_size: int) -> Tokens:
        """Training text in the entries of a vocabulary; made once."""
        key = f"{self.data.digest[:12]}-{self.parent.facts['digest'][:8]}-{vocab_size}"
        folder = self.data.folder / "tokens" / f"squeeze-{key}"
        return build_tokens(self.data.corpus, self.parent.vocabulary(vocab_size), split="train", folder=folder)

    def healed(
        self,
        model: PreTrainedModel,
        genome: SqueezeGenome,
        rung: Rung,
        *,
        folder: Path | None,
        state: Path | None,
        accelerator: Accelerator | None = None,
        **others: Any,
    ) -> TrainResult:
        """Trains a squeezed model in place until the rung's budget is spent; stored matrices may have moved.

        Args:
            model: from `model`, on its device.
            genome: of it.
            rung: names the total budget.
            folder: gets checkpoints; None keeps none.
            state: a checkpoint to continue.
            accelerator: all its processes train together.
            others: for `training.train`.
        """
        device = next(model.parameters()).device
        with ExitStack() as stack:
            stack.enter_context(moving(model, self.heal.moves, rank=self.heal.rank, seed=self.train.seed))
            if self.heal.distil:
                teacher = self.parent.model(None)
                torch.nn.Module.to(teacher, device)  # transformers' own method has another signature
                kept = torch.from_numpy(self.parent.kept(genome.vocab_size))
                cache = self.data.folder / "teacher" / self.parent.facts["digest"][:12]
                stack.enter_context(taught(model, teacher, settings=self.heal.teach, kept=kept, cache=cache))
            return train(
                model,
                self.tokens(genome.vocab_size),
                rung.budget,
                settings=self.train,
                folder=folder,
                resume_from=state,
                accelerator=accelerator or accelerator_on(device.type),
                **others,
            )

    def store(self, model: PreTrainedModel, genome: SqueezeGenome) -> None:
        """Makes a healed model what its reader has; matrices that moved are rounded by what they now take in.

        Plain rounding of a healed model costs more than the healing gained.
        """
        tokens, rows = self.tokens(genome.vocab_size), self.train.sequence_length
        device = next(model.parameters()).device

        def batches() -> Iterator[torch.Tensor]:
            for at in range(-(-_ROUNDING_TOKENS // (_ROUNDING_ROWS * rows))):
                found = tokens.batch(at, sequences=_ROUNDING_ROWS, length=rows, seed=_ROUNDING_SEED)
                yield torch.from_numpy(found["input_ids"]).to(device)

        if self.heal.moving:
            store_repaired(model, mixed_format(pieces(genome, self.parent.shape)), batches())

    def discard(self, evaluation: Evaluation) -> None:
        """Removes the checkpoint of a candidate that can no longer be promoted; harmless when repeated."""
        path = evaluation.checkpoint
        if path is not None and path.parent.resolve() == self.folder.resolve():
            shutil.rmtree(path, ignore_errors=True)
