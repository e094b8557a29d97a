"""Healing and distillation: which weights of a finished model move, and towards what.

A squeezed model is healed by a short training. Moving norms and embeddings alone leaves every stored matrix as it is;
low-rank corrections and moving everything change matrices, which are then stored anew. The target is the next token,
or what a teacher said of it: its most likely tokens, computed once and kept (Hinton et al. 2015,
https://arxiv.org/abs/1503.02531).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax
from torch.nn.utils import parametrize

from ..folders import whole_file
from ..folders.ranges import check_range

_IGNORED = -100
Moves = Literal["norms", "embeddings", "low_rank", "all"]


@dataclass(frozen=True, kw_only=True)
class DistilSettings:
    """What a teacher tells.

    Args:
        top: most likely tokens of each position that are kept.
        weight: of the teacher's word; the rest is that of the next token itself.
        temperature: both distributions are flattened by it.

    Raises:
        ValueError: a value out of range.
    """

    top: int = 32
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "top", least=1)
        check_range(self, "weight", least=0, most=1)
        check_range(self, "temperature", above=0)


class _LowRank(nn.Module):
    """A matrix plus the product of two narrow ones, which starts at zero (Hu et al. 2021, LoRA)."""

    def __init__(self, weight: torch.Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.inner = nn.Parameter(torch.empty(rank, columns).normal_(0, columns**-0.5, generator=generator))
        self.outer = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.outer @ self.inner


@contextmanager
def moving(model: nn.Module, what: Moves, *, rank: int = 8, seed: int = 0) -> Iterator[None]:
    """Inside the block only some parameters of a model are trained; low-rank corrections are merged at its end.

    Args:
        model: of transformers.
        what: `norms` and other vectors alone; `embeddings` with them; `low_rank` with corrections to every matrix;
            `all`.
        rank: of the corrections.
        seed: of their start.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    corrected: list[nn.Module] = []
    for parameter in model.parameters():
        vector = parameter.dim() < 2
        parameter.requires_grad_(what == "all" or vector or (what != "norms" and id(parameter) in tables))
    if what == "low_rank":
        generator = torch.Generator().manual_seed(seed)
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in tables]
        corrected += linear
        for layer in linear:
            correction = _LowRank(layer.weight, rank, generator).to(layer.weight.device)
            parametrize.register_parametrization(layer, "weight", correction)
    try:
        yield
    finally:
        for module in corrected:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before.get(name, True))


@torch.no_grad()
def teacher_words(
    teacher: nn.Module,
    ids: torch.Tensor,
    *,
    position_ids: torch.Tensor | None = None,
    top: int,
    kept: torch.Tensor | None = None,
    cache: Path | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's most likely next tokens and their log-probabilities, `[rows, length, top]` each, float16.

    Args:
        teacher: its vocabulary may be larger than the student's.
        ids: `[rows, length]`, in the student's entries.
        position_ids: of them; None counts each row from 0.
        top: how many.
        kept: the teacher's entry for each of the student's; None where they are the same.
        cache: a folder that keeps them; what is there is told apart by tokens, number and vocabulary.
    """
    path = None
    if cache is not None:
        nothing = torch.tensor(-1)
        others = (nothing if part is None else part for part in (position_ids, kept))
        parts = (ids, torch.tensor(top), *others)
        key = hashlib.sha256(b"".join(np.ascontiguousarray(part.cpu().numpy()).tobytes() for part in parts))
        path = cache / f"words-{key.hexdigest()[:16]}.safetensors"
        try:
            found = load_file(path)
            return found["tokens"].long(), found["logs"]
        except (OSError, SafetensorError, KeyError):
            pass
    device = next(teacher.parameters()).device
    theirs = ids if kept is None else kept[ids]
    tokens, logs = [], []
    for at, row in enumerate(theirs):
        places = None if position_ids is None else position_ids[at][None].to(device)
        logits = teacher(input_ids=row[None].to(device), position_ids=places, use_cache=False).logits[0].float()
        logits = logits if kept is None else logits[:, kept.to(device)]
        best = log_softmax(logits, dim=-1).topk(min(top, logits.shape[-1]), dim=-1)
        tokens.append(best.indices.to(torch.int32).cpu())
        logs.append(best.values.cpu())
    result = {"tokens": torch.stack(tokens), "logs": torch.stack(logs).half()}  # autocast stacks no float16
    if path is not None:
        with whole_file(path) as draft:
            save_file(result, draft)
    return result["tokens"].long(), result["logs"]


def distillation(
    logits: torch.Tensor, tokens: torch.Tensor, logs: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Cross-entropy of the teacher's most likely tokens, in nats a position; what they leave over counts as one more.

    Args:
        logits: of the student, `[..., vocabulary]`.
        tokens, logs: of the teacher, `[..., top]`.
        temperature: of both.
    """
    ours = log_softmax(logits.float() / temperature, dim=-1).gather(-1, tokens)
    theirs = logs.float()
    if temperature != 1.0:  # only the kept ones are known: they are flattened among themselves
        rest = 1 - theirs.exp().sum(dim=-1, keepdim=True)
        theirs = log_softmax(theirs / temperature, dim=-1) + torch.log((1 - rest).clamp(min=1e-6))
    weights = theirs.exp()
    left = (1 - weights.sum(dim=-1)).clamp(min=0)
    ours_left = torch.log1p(-ours.exp().sum(dim=-1).clamp(max=1 - 1e-6))
    return -(weights * ours).sum(dim=-1) - left * ours_left


@contextmanager
def taught(
    model: nn.Module,
    teacher: nn.Module,
    *,
    settings: DistilSettings,
    kept: torch.Tensor | None = None,
    cache: Path | None = None,
) -> Iterator[None]:
    """Inside the block the loss of a model is that towards its teacher, in part; its plain loss is told beside it.

    Args:
        model: the student; its parameters keep their names.
        teacher: frozen, on the student's device.
        settings: how much and of what.
        kept, cache: as in `teacher_words`.
    """
    plain = model.forward

    def forward(
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **others: Any,
    ) -> Any:
        output = plain(input_ids=input_ids, position_ids=position_ids, **others)
        if labels is None:
            return output
        scored = labels[:, 1:] != _IGNORED
        logits = output.logits[:, :-1][scored].float()
        items = scored.sum() if num_items_in_batch is None else num_items_in_batch
        loss = cross_entropy(logits, labels[:, 1:][scored], reduction="sum") / items
        ids, places = input_ids.cpu(), None if position_ids is None else position_ids.cpu()
        tokens, logs = teacher_words(teacher, ids, position_ids=places, top=settings.top, kept=kept, cache=cache)
        there = scored.cpu()
        told = distillation(
            logits,
            tokens[:, :-1][there].to(logits.device),
            logs[:, :-1][there].to(logits.device),
            temperature=settings.temperature,
        )
        wanted = settings.weight * told.sum() / items + (1 - settings.weight) * loss
        return SimpleNamespace(loss=wanted, plain_loss=loss, logits=output.logits)

    model.forward = forward  # type: ignore[method-assign]  # of this instance alone
    try:
        yield
    finally:
        del model.forward
