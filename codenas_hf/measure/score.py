"""One model, measured: does it see the future, bits per byte, bytes on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from .metrics import bits_per_byte

_IGNORED = -100


class LeakError(ValueError):
    """A model whose prediction depends on tokens that come after it: every loss of it would be meaningless."""


class ScoredWindows(Protocol):
    """What `score_windows` asks of `data.tokens.Windows`."""

    @property
    def input_ids(self) -> NDArray[np.int64]:
        """[n, length]."""
        ...

    @property
    def targets(self) -> NDArray[np.int64]:
        """[n, length], already shifted; -100 is not scored."""
        ...

    @property
    def position_ids(self) -> NDArray[np.int64]:
        """[n, length], 0 where a document or a window starts."""
        ...

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of what the targets spell."""
        ...


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a model predicts held-out text: plain cross-entropy, dropout off.

    Args:
        bits_per_byte: `nats` in bits, per UTF-8 byte of the text; comparable across vocabularies.
        loss: nats per token.
        next_token_accuracy: share of tokens that were the most likely one.
        nats: summed cross-entropy.
        num_bytes: bytes of the scored text.
        num_tokens: scored tokens.
    """

    bits_per_byte: float
    loss: float
    next_token_accuracy: float
    nats: float
    num_bytes: int
    num_tokens: int


@torch.no_grad()
def leak_gate(model: nn.Module, *, vocab_size: int, length: int = 48) -> None:
    """Refuses a model in which a changed future token moves a past logit.

    Matrices that are still zero (the width rule starts the residual stream's writers so) are filled for the moment:
    an attention layer that writes nothing cannot show that it looks ahead.

    Args:
        model: causal language model; left as it was.
        vocab_size: tokens to draw from.
        length: tokens of the test sequence.

    Raises:
        LeakError: names the first position that moved.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    was_training, zeros = model.training, [p for p in model.parameters() if p.ndim > 1 and not p.any()]
    for parameter in zeros:
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.2, generator=generator))
    cuts = [length // 4, length // 2, length - 1]
    ids = torch.randint(vocab_size, (1, length), generator=generator).repeat(1 + len(cuts), 1)
    for row, cut in enumerate(cuts, start=1):
        ids[row, cut:] = (ids[row, cut:] + 1 + torch.arange(length - cut) % max(1, vocab_size - 1)) % vocab_size
    model.eval()
    try:
        logits = model(input_ids=ids.to(device), use_cache=False).logits.float()
    finally:
        for parameter in zeros:
            parameter.zero_()
        model.train(was_training)
    if not torch.isfinite(logits).all():
        raise LeakError(
            "the model's logits are not finite, so the leak gate cannot judge it: its weights have diverged, or its "
            "genome overflows; train it anew at lower rates"
        )
    scale = float(logits.std()) + 1e-6
    for row, cut in enumerate(cuts, start=1):
        moved = (logits[row, :cut] - logits[0, :cut]).abs().amax(dim=-1) / scale
        if float(moved.max()) > 1e-2:
            raise LeakError(
                f"changing tokens from position {cut} on moved the logits at position {int(moved.argmax())} by "
                f"{float(moved.max()):.3g} of their spread: the model sees the future; check its attention mask"
            )


@torch.no_grad()
def score_windows(model: nn.Module, windows: ScoredWindows, *, batch_size: int = 8) -> Score:
    """Bits per byte over fixed windows.

    Args:
        model: causal language model.
        windows: held-out text.
        batch_size: windows in one forward pass.

    Raises:
        ValueError: no window, or a loss that is not finite.
    """
    device = next(model.parameters()).device
    count = len(windows.input_ids)
    if not count or windows.num_bytes < 1:
        raise ValueError(f"nothing to score: {count} windows of {windows.num_bytes} bytes; give more held-out text")
    was_training = model.training
    model.eval()
    nats = torch.zeros((), dtype=torch.float64)
    tokens, correct = 0, 0
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        ids, targets, positions = (
            torch.from_numpy(array[part]).to(device)
            for array in (windows.input_ids, windows.targets, windows.position_ids)
        )
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        logits, flat = logits.flatten(0, 1).float(), targets.flatten()
        nats += cross_entropy(logits, flat, ignore_index=_IGNORED, reduction="sum").double().cpu()
        tokens += int((flat != _IGNORED).sum())
        correct += int((logits.argmax(dim=-1) == flat).sum())
    model.train(was_training)
    total = float(nats)
    if not math.isfinite(total):
        raise ValueError(f"the loss on held-out text is {total}: the model has diverged; train it anew at lower rates")
    return Score(
        bits_per_byte=bits_per_byte(total, windows.num_bytes),
        loss=total / tokens,
        next_token_accuracy=correct / tokens,
        nats=total,
        num_bytes=windows.num_bytes,
        num_tokens=tokens,
    )
