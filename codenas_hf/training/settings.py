"""How a model is trained, and what the loop asks of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import nn

from ..folders.ranges import check_range
from .optim import OptimSettings
from .precision import Precision

# Told of each new point of the curve, and the share of the budget that is spent.
OnPoint = Callable[[Mapping[str, float], float], None]
# Puts the weights of the format to ship into a model while its block runs, see `compression.quantize.stored_weights`.
Stored = Callable[[nn.Module], AbstractContextManager[None]]


class TrainingTokens(Protocol):
    """What the loop asks of `data.tokens.Tokens`."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text that a token stands for, on average."""
        ...

    @property
    def digest(self) -> str:
        """Hash of the data."""
        ...

    def batch(
        self,
        step: int,
        *,
        sequences: int,
        length: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        fim_rate: float = 0.0,
    ) -> dict[str, np.ndarray]:
        """`input_ids`, `labels`, `position_ids`, each [sequences, length]."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a model is trained.

    Args:
        optim: optimisers, schedule, width rule.
        sequence_length: tokens of a training sequence.
        tokens_per_step: of all processes together; a multiple of `sequence_length`.
        micro_sequences: most sequences in one forward pass; None means all of a step's. Gradients add up exactly.
        precision: of matrix products: `float32`, `bfloat16`, or `auto`: bfloat16 where the device multiplies it.
        loss_chunk_tokens: compute the loss this many tokens at a time, without all logits at once; None means whole.
            On a CPU blocks that stay in the cache take three quarters of the time. Ignored by models that cannot, and
            with label smoothing.
        seed: of the batches, and of the weights where nothing else is said.
        fim_rate: share of documents that become fill-in-the-middle examples.
        dropout: of attention and feed-forward outputs; for training over many epochs.
        label_smoothing: weight of the uniform distribution in the training loss; reported losses have none of it.
        checkpoint_minutes: how often the state is written in a long training.
        log_every: steps between points of the curve.
        quantize: last share of the decay that computes with the weights as the format to ship stores them; gradients
            go straight through to the full ones. 0 is off.
        compile: run the model through `torch.compile`; pays in long trainings only.

    Raises:
        ValueError: a value out of range.
    """

    optim: OptimSettings = field(default_factory=OptimSettings)
    sequence_length: int = 256
    tokens_per_step: int = 1024
    micro_sequences: int | None = None
    precision: Precision = "auto"
    loss_chunk_tokens: int | None = 256
    seed: int = 0
    fim_rate: float = 0.0
    dropout: float = 0.0
    label_smoothing: float = 0.0
    checkpoint_minutes: float = 10.0
    log_every: int = 10
    quantize: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        check_range(self, "sequence_length", "tokens_per_step", "log_every", least=1)
        if self.tokens_per_step % self.sequence_length:
            raise ValueError(
                f"`tokens_per_step` must be a multiple of `sequence_length` ({self.sequence_length}), got "
                f"{self.tokens_per_step}; e.g. {self.sequence_length * 4}"
            )
        check_range(self, "micro_sequences", "loss_chunk_tokens", least=1, optional=True)
        check_range(self, "fim_rate", "quantize", least=0, most=1)
        check_range(self, "dropout", "label_smoothing", least=0, below=1)
        check_range(self, "checkpoint_minutes", above=0)

    def sequences_each(self, processes: int) -> int:
        """Sequences of a step that each of some processes trains on.

        Raises:
            ValueError: they cannot share a step equally; says what to set.
        """
        sequences = self.tokens_per_step // self.sequence_length
        if sequences % processes:
            raise ValueError(
                f"`tokens_per_step` is {sequences} sequences, which {processes} processes cannot share; use a "
                f"multiple of {processes * self.sequence_length}"
            )
        return sequences // processes

    def identity(self, data: str) -> dict[str, Any]:
        """What a continuation of a training shares with it; `data` is the digest of its tokens."""
        return {
            "data": data,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "tokens_per_step": self.tokens_per_step,
            "optimizer": self.optim.optimizer,
            "fim_rate": self.fim_rate,
        }
