"""How a training ends: what it did, or why it stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


class DivergenceError(ValueError):
    """The loss or its gradient is no longer finite; the last good checkpoint stays where it is."""


class OutOfMemoryError(ValueError):
    """A training step does not fit into the memory of its device."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training did.

    Args:
        steps: optimiser steps that the model has had in total, decay included.
        tokens: training tokens of those steps, all processes together.
        bytes: UTF-8 bytes of text that they stand for.
        seconds: wall clock of those steps.
        steps_run: steps that this call computed.
        seconds_run: wall clock of this call.
        curve: step, tokens, seconds and plain training loss in nats per token, every `log_every` steps.
        checkpoint: the state before the decay; a larger budget continues it. None without a folder.
        precision: dtype of the matrix products.
    """

    steps: int
    tokens: int
    bytes: float
    seconds: float
    steps_run: int
    seconds_run: float
    curve: tuple[Mapping[str, float], ...]
    checkpoint: Path | None
    precision: str

    @property
    def tokens_per_second(self) -> float:
        """Throughput of this call."""
        return self.tokens / self.steps * self.steps_run / self.seconds_run if self.seconds_run else math.nan


def is_memory(error: BaseException) -> bool:
    """True for the ways in which torch says that memory is used up: only on CUDA it has a class of its own."""
    known = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in known)


def memory_line(error: BaseException) -> str:
    """The first line of what was said, short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
