"""The one place where cross-entropy is summed: rows of tokens in, sums of each row out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
IGNORED = -100
_LOGIT_BYTES = 256 * 2**20  # of the logits of one forward pass, as float32
_CHUNK_LOGITS = 2**22  # of one reduction


@dataclass(frozen=True, kw_only=True)
class RowSums:
    """What a model made of each row; arrays [n].

    Args:
        nats: summed cross-entropy of the scored tokens.
        tokens: how many they are.
        correct: how many of them were the most likely one.
        copied_nats: of the tokens that the row shows after the same token before: they can be copied from context.
        copied_tokens: how many those are.
    """

    nats: Floats
    tokens: Ints
    correct: Ints
    copied_nats: Floats
    copied_tokens: Ints


@torch.no_grad()
def sum_rows(
    model: nn.Module,
    input_ids: Ints,
    targets: Ints,
    *,
    position_ids: Ints | None = None,
    batch_size: int = 8,
) -> RowSums:
    """Plain cross-entropy of every row, dropout off.

    Logits are reduced as float32, whatever the weights are, and added up as float64, so that neither the batch size
    nor the number of threads shows beyond 1e-6. Rows of similar length run together, cut behind their last target,
    which causal attention cannot notice; the logits of a pass stay below 256 MB as long as one row's do.

    Args:
        model: causal language model; left as it was.
        input_ids: [n, length].
        targets: [n, length], already shifted; -100 is not scored.
        position_ids: [n, length]; None leaves them to the model.
        batch_size: most rows in one forward pass.
    """
    count = len(input_ids)
    nats = np.zeros(input_ids.shape, np.float64)
    correct = np.zeros(input_ids.shape, bool)
    if not input_ids.size:
        none, nothing = np.zeros(count, np.int64), np.zeros(count, np.float64)
        return RowSums(nats=nothing, tokens=none, correct=none, copied_nats=nothing, copied_tokens=none)
    ends = input_ids.shape[1] - np.argmax((targets != IGNORED)[:, ::-1], axis=1)
    order = np.argsort(-ends, kind="stable")
    device = next(model.parameters()).device
    vocab_size = int(getattr(getattr(model, "config", None), "vocab_size", 0) or targets.max(initial=0) + 1)
    with _as_shipped(model):
        start = 0
        while start < count:
            length = int(ends[order[start]])
            rows = order[start : start + max(1, min(batch_size, _LOGIT_BYTES // (4 * length * vocab_size)))]
            start += len(rows)
            given = {"input_ids": input_ids, "position_ids": position_ids}
            inputs = {
                name: torch.from_numpy(np.ascontiguousarray(array[rows, :length])).to(device)
                for name, array in given.items()
                if array is not None
            }
            logits = cast(Any, model)(**inputs, use_cache=False).logits.flatten(0, 1)
            flat = torch.from_numpy(np.ascontiguousarray(targets[rows, :length])).to(device).flatten()
            found, right = _token_nats(logits, flat)
            nats[rows, :length] = found.view(len(rows), length).cpu().numpy()
            correct[rows, :length] = right.view(len(rows), length).cpu().numpy()
    scored = targets != IGNORED
    copied = copied_tokens(input_ids, targets)
    return RowSums(
        nats=nats.sum(axis=1),
        tokens=scored.sum(axis=1),
        correct=correct.sum(axis=1),
        copied_nats=(nats * copied).sum(axis=1),
        copied_tokens=copied.sum(axis=1),
    )


def _token_nats(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy [tokens] as float64, 0 where nothing is scored; and whether the target was the most likely."""
    nats = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    right = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    scored = (targets != IGNORED).nonzero()[:, 0]
    for part in scored.split(max(1, _CHUNK_LOGITS // logits.shape[-1])):
        rows, wanted = logits[part].float(), targets[part]
        nats[part] = (rows.logsumexp(-1) - rows.gather(1, wanted[:, None])[:, 0]).double()
        right[part] = rows.argmax(-1) == wanted
    return nats, right


def copied_tokens(input_ids: Ints, targets: Ints) -> NDArray[np.bool_]:
    """[n, length]: the scored tokens that stood behind the same token earlier in their row.

    Much of what a small model gains late in training sits on these (Olsson et al., 2022, arXiv:2209.11895).
    """
    if input_ids.shape[1] < 2:
        return np.zeros(input_ids.shape, bool)
    base = int(max(input_ids.max(initial=0), targets.max(initial=0))) + 1
    row = np.arange(len(input_ids))[:, None]

    def pairs(first: Ints, second: Ints) -> Ints:
        keys: Ints = (row * base + first) * base + second
        return keys

    seen, where = np.unique(pairs(input_ids[:, :-1], input_ids[:, 1:]), return_index=True)
    asked = pairs(input_ids, np.maximum(targets, 0))
    place = np.minimum(np.searchsorted(seen, asked), len(seen) - 1)
    before = where[place] % (input_ids.shape[1] - 1) < np.arange(input_ids.shape[1])
    copied: NDArray[np.bool_] = (targets != IGNORED) & (seen[place] == asked) & before
    return copied


@contextmanager
def _as_shipped(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and full float32 products, on a GPU too; as it was afterwards."""
    was_training, products = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        model.train(was_training)
