"""One model, measured: does it see the future, and how many bits per byte does it need."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..compression.formats import is_positions
from ..engine.intervals import Interval, by_project, ratio_interval
from .metrics import bits_per_byte
from .rows import Floats, Ints, RowSums, sum_rows


class LeakError(ValueError):
    """A model whose prediction depends on tokens that come after it: every loss of it would be meaningless."""


class Passages(Protocol):
    """What `score_passages` asks of `data.Passages`: rows of tokens, each of one project."""

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
        """[n, length]."""
        ...

    @property
    def num_bytes(self) -> NDArray[np.int64]:
        """[n]: UTF-8 bytes of what the targets of each row spell; their sum is the same for every vocabulary."""
        ...

    @property
    def project(self) -> NDArray[np.int64]:
        """[n]: index into `projects`."""
        ...

    @property
    def projects(self) -> Sequence[str]:
        """Names of the projects."""
        ...


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a model predicts held-out text: plain cross-entropy, dropout off.

    Args:
        rows: sums of each scored row.
        row_bytes: [n], UTF-8 bytes of each.
        project: [n], index into `projects`.
        projects: what the rows belong to; intervals come from resampling these.

    Raises:
        ValueError: nothing scored, or a loss that is not finite.
    """

    rows: RowSums
    row_bytes: Ints
    project: Ints
    projects: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.num_tokens or self.num_bytes < 1:
            raise ValueError(
                f"nothing to score: {self.num_tokens} tokens of {self.num_bytes} bytes; give more held-out text"
            )
        if not math.isfinite(self.nats):
            raise ValueError(
                f"the loss on held-out text is {self.nats}: the model has diverged; train it anew at lower rates"
            )

    @property
    def nats(self) -> float:
        """Summed cross-entropy."""
        return float(self.rows.nats.sum())

    @property
    def num_bytes(self) -> int:
        """Bytes of the scored text."""
        return int(self.row_bytes.sum())

    @property
    def num_tokens(self) -> int:
        """Scored tokens."""
        return int(self.rows.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """`nats` in bits, per UTF-8 byte of the text; comparable across vocabularies."""
        return bits_per_byte(self.nats, self.num_bytes)

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def next_token_accuracy(self) -> float:
        """Share of tokens that were the most likely one."""
        return int(self.rows.correct.sum()) / self.num_tokens

    @functools.cached_property
    def interval(self) -> Interval | None:
        """`bits_per_byte` with its 95 % interval; None with fewer than three projects."""
        return ratio_interval(self._bits(self.rows.nats), self._bytes())

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.interval is None else self.interval.low

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.interval is None else self.interval.high

    @property
    def copied_tokens(self) -> int:
        """Scored tokens that stood behind the same token earlier in their row."""
        return int(self.rows.copied_tokens.sum())

    @property
    def copied_bits_per_byte(self) -> float:
        """What the copied tokens add to `bits_per_byte`."""
        return bits_per_byte(float(self.rows.copied_nats.sum()), self.num_bytes)

    @property
    def new_bits_per_byte(self) -> float:
        """What all other tokens add to `bits_per_byte`."""
        return self.bits_per_byte - self.copied_bits_per_byte

    @property
    def bits_by_project(self) -> dict[str, list[float]]:
        """`bits` and `bytes` of each project, in the order of `projects`: what a paired difference needs later."""
        return {"bits": [round(float(x), 1) for x in self._bits(self.rows.nats)], "bytes": self._bytes().tolist()}

    def facts(self) -> dict[str, float | int]:
        """What records say of it; an interval that nothing supports is absent."""
        known: dict[str, float | int | None] = {
            "bits_per_byte": self.bits_per_byte,
            "bits_per_byte_low": self.low,
            "bits_per_byte_high": self.high,
            "copied_bits_per_byte": self.copied_bits_per_byte,
            "new_bits_per_byte": self.new_bits_per_byte,
            "loss": self.loss,
            "next_token_accuracy": self.next_token_accuracy,
            "scored_bytes": self.num_bytes,
            "scored_tokens": self.num_tokens,
        }
        return {name: value for name, value in known.items() if value is not None}

    def _bits(self, nats: Floats) -> Floats:
        return by_project(nats / math.log(2), self.project, projects=len(self.projects))

    def _bytes(self) -> Floats:
        return by_project(self.row_bytes, self.project, projects=len(self.projects))


def paired_difference(a: Score, b: Score) -> Interval | None:
    """Bits per byte of `a` minus those of `b` on the same text, with its 95 % interval; below 0, `a` is better.

    What makes a project hard is hard for both models, so this interval is much narrower than those of `a` and `b`.

    Returns:
        None with fewer than three projects.

    Raises:
        ValueError: the two were scored on other text.
    """
    if a.projects != b.projects or not np.array_equal(a._bytes(), b._bytes()):
        raise ValueError(
            f"the scores are of other text ({a.num_bytes:,} bytes of {len(a.projects)} projects, {b.num_bytes:,} of "
            f"{len(b.projects)}); score both models on the same passages"
        )
    # By project, since a long passage takes more rows of a smaller vocabulary.
    return ratio_interval(a._bits(a.rows.nats) - b._bits(b.rows.nats), a._bytes())


def learned_positions(model: nn.Module) -> int | None:
    """Most tokens that a model with a table of learned positions takes; None where it has none."""
    return min((len(table) for name, table in model.named_parameters() if is_positions(name)), default=None)


@torch.no_grad()
def leak_gate(model: nn.Module, *, vocab_size: int, length: int = 48) -> None:
    """Refuses a model in which a changed future token moves a past logit.

    Matrices that are still zero (the width rule starts the residual stream's writers so) are filled for the moment:
    an attention layer that writes nothing cannot show that it looks ahead.

    Args:
        model: causal language model; left as it was.
        vocab_size: tokens to draw from.
        length: tokens of the test sequence; fewer where the model learns fewer positions.

    Raises:
        LeakError: names the first position that moved.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    was_training, zeros = model.training, [p for p in model.parameters() if p.ndim > 1 and not p.any()]
    for parameter in zeros:
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.2, generator=generator))
    length = min(length, learned_positions(model) or length)
    cuts = sorted({length // 4, length // 2, length - 1} - {0})  # before the first token there is nothing to move
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


class GivesLogits(Protocol):
    """What is asked of a runtime that scores."""

    @property
    def context_tokens(self) -> int | None:
        """Most tokens that it takes."""

    def all_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits `[tokens, vocabulary]` behind each of some tokens."""
        ...


class ReaderModel(nn.Module):
    """What computes logits, as a model that is scored.

    Args:
        runtime: any of `generation`.
        vocab_size: of the model.
    """

    def __init__(self, runtime: GivesLogits, *, vocab_size: int) -> None:
        super().__init__()
        self.runtime = runtime
        self.config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=runtime.context_tokens)
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # a model is somewhere

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        """Logits `[rows, length, vocabulary]`."""
        rows = [self.runtime.all_logits(row)[:, : self.config.vocab_size] for row in input_ids.tolist()]
        return SimpleNamespace(logits=torch.from_numpy(np.stack(rows)))


def score_passages(model: nn.Module, passages: Passages, *, batch_size: int = 8) -> Score:
    """Bits per byte over passages of many projects, with what its interval needs.

    Args:
        model: causal language model.
        passages: held-out text.
        batch_size: most passages in one forward pass; it does not show in the score.

    Raises:
        ValueError: nothing to score, or a loss that is not finite.
    """
    p = passages
    rows = sum_rows(model, p.input_ids, p.targets, position_ids=p.position_ids, batch_size=batch_size)
    return Score(rows=rows, row_bytes=p.num_bytes, project=p.project, projects=tuple(p.projects))
