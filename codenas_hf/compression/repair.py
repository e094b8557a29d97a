"""What stays of a matrix makes up for what leaves it, in closed form: cut columns, and the rounding of each column.

A matrix W sees inputs X. With their second moments H = X Xᵀ the outputs that a change of W spoils are known without
the text: |(W - V) X|² = tr((W - V) H (W - V)ᵀ). Of all matrices that use only the inputs K the one nearest in that
sense is W H[:,K] H[K,K]⁻¹: least squares, no training (for neurons as in ZipLM, Kurtic et al. 2023,
https://arxiv.org/abs/2302.04089; the idea is Optimal Brain Surgeon's, Hassibi and Stork 1993,
https://doi.org/10.1109/ICNN.1993.298572). Which neurons leave is not chosen by that error but by their importance:
the greedy order by the error was tried and came out worse on other text. Rounding goes a column at a time, and those
not yet rounded take over the error: GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323), here on the fixed
grids of the storage formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .formats import Block, Format
from .quantize import Codes, as_stored, points_of, quantize, transposed

_RIDGE = 1e-2  # of the mean of H's diagonal: inputs that the text hardly moved must not take over anything large
_BATCH = 64  # columns that are rounded before all later ones are told
_TEXT_TOKENS, _TEXT_ROWS = 16_384, 8  # of training text, by which what was trained is rounded
_TEXT_SEED = 1_000_003  # of no training


@dataclass(frozen=True)
class Moments:
    """Second moments of what matrices take in.

    Args:
        sums: float32 `[inputs, inputs]` by the name of a matrix: the mean over tokens of the products of two inputs.
        same: a matrix to the one whose inputs it shares.
    """

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)


def products(model: nn.Module) -> dict[str, str]:
    """The modules that multiply with a matrix, to the name of that parameter; a tied one has its first name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    linear = ((path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return {path: names[id(module.weight)] for path, module in linear}


@contextmanager
def second_moments(model: nn.Module, names: Mapping[str, str]) -> Iterator[Moments]:
    """Inside the block every pass of the model adds to the moments; at its end they are means.

    Args:
        model: left as it was.
        names: of modules, to the matrices that they multiply with.
    """
    found, tokens = Moments(), dict.fromkeys(names, 0)
    last: list[tuple[str, torch.Tensor]] = []  # modules that take in the very same tensor stand one after the other

    def hook_of(path: str, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if last and last[0][1] is inputs[0]:
                found.same[name] = last[0][0]
                return
            last[:] = [(name, inputs[0])]
            rows = inputs[0].detach().float().flatten(0, -2)
            if name not in found.sums:
                found.sums[name] = torch.zeros(rows.shape[1], rows.shape[1])
            found.sums[name] += (rows.T @ rows).cpu()
            tokens[path] += len(rows)

        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(hook_of(path, name)) for path, name in names.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for path, name in names.items():
            if name in found.sums:
                found.sums[name] /= max(1, tokens[path])


@torch.no_grad()
def repaired(weight: torch.Tensor, moments: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The columns that stay, changed so that outputs are missed least: float32 `[rows, kept]`.

    Args:
        weight: `[rows, columns]`.
        moments: of its inputs, `[columns, columns]`.
        kept: columns that stay, in their new order.
    """
    stays = torch.zeros(weight.shape[1], dtype=torch.bool)
    stays[kept] = True
    # The ridge holds the change, not the weights: where the text says nothing the columns stay as they were.
    missing = weight[:, ~stays].double() @ moments[~stays][:, kept].double()
    change = torch.linalg.solve(_ridged(moments[kept][:, kept].double()), missing.T).T
    found: torch.Tensor = (weight[:, kept].double() + change).float()
    return found


@torch.no_grad()
def rounded(weight: torch.Tensor, block: Block, moments: torch.Tensor | None) -> Codes:
    """The codes of a matrix, rounded so that its outputs are missed least; `quantize` where nothing is known.

    Scales are those of `quantize`, and the weights that span a block keep their codes, so that `quantize` finds the
    very same codes and scales again in what is decoded.

    Args:
        weight: `[rows, columns]`.
        block: the format.
        moments: of its inputs, `[columns, columns]`.

    Raises:
        ValueError: as `quantize`.
    """
    plain = quantize(weight, block)
    if moments is None or block.bits > 8 or torch.equal(plain.decoded(), weight.float()):
        return plain  # nothing known, nothing to gain, or nothing lost
    order = moments.diagonal().argsort(descending=True, stable=True)
    factor = torch.linalg.cholesky(_ridged(moments[order][:, order].double()))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True).float()

    def by_column(values: torch.Tensor) -> torch.Tensor:
        whole = values.float().repeat_interleave(block.size, dim=1)
        return whole[:, order].T.contiguous()

    scales = by_column(plain.scales)
    offsets = by_column(plain.offsets) if plain.offsets is not None else None
    inverse, points = torch.where(scales == 0, 0.0, 1 / scales), points_of(block)
    borders = (points[1:] + points[:-1]) / 2
    fixed = _spanning(weight, block)[:, order].T.contiguous()
    now, codes = weight.float()[:, order].T.contiguous(), plain.codes.long()[:, order].T.contiguous()
    for first in range(0, len(order), _BATCH):
        last = min(first + _BATCH, len(order))
        part, errors = now[first:last].clone(), torch.zeros(last - first, weight.shape[0])
        for at, here in enumerate(range(first, last)):
            wanted = part[at] if offsets is None else part[at] - offsets[here]
            code = torch.where(fixed[here], codes[here], torch.bucketize(wanted * inverse[here], borders))
            codes[here] = code
            errors[at] = (wanted - points[code] * scales[here]) / upper[here, here]
            part[at:] -= upper[here, here:last, None] * errors[at]
        now[last:] -= upper[first:last, last:].T @ errors
    back = torch.empty_like(codes)
    back[order] = codes
    return Codes(block, plain.scales, back.T.to(torch.uint8).contiguous(), plain.offsets)


@torch.no_grad()
def store_repaired(model: nn.Module, form: Format, batches: Iterable[torch.Tensor]) -> None:
    """As `quantize.store_in`, but what a rounding spoils on some text, later columns take over.

    What is on its grid already, such as a matrix that no training moved, stays as it is.

    Args:
        model: changed in place.
        form: as which its reader has it.
        batches: the text, `[rows, tokens]` each, on the model's device.

    Raises:
        ValueError: a layer that the format cannot store.
    """
    with second_moments(model, products(model)) as moments:
        for ids in batches:
            model(input_ids=ids, use_cache=False)
    across = transposed(model)
    for name, parameter in model.named_parameters():
        block = form.block_of(name, tuple(parameter.shape))
        turned = parameter.T if name in across else parameter
        if block.points is None:
            turned.copy_(as_stored(turned, block))
        else:
            inputs = moments.sums.get(moments.same.get(name, name))
            turned.copy_(rounded(turned.detach().cpu(), block, inputs).decoded())


def rounding_rows(tokens: Any, *, length: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Rows of training text for `store_repaired`, in an order of their own.

    Args:
        tokens: `data.tokens.Tokens`.
        length: of a row.
        device: of the model.
    """
    for at in range(-(-_TEXT_TOKENS // (_TEXT_ROWS * length))):
        found = tokens.batch(at, sequences=_TEXT_ROWS, length=length, seed=_TEXT_SEED)
        yield torch.from_numpy(found["input_ids"]).to(device)


def _spanning(weight: torch.Tensor, block: Block) -> torch.Tensor:
    """True for the largest weight of each block, or for its lowest and its highest: scales follow from these."""
    values = weight.float().reshape(-1, block.size)
    ends = [values.argmin(dim=1), values.argmax(dim=1)] if block.offset else [values.abs().argmax(dim=1)]
    ends = [] if block.power else ends  # any weights say which powers of two they are multiples of
    found = torch.zeros_like(values, dtype=torch.bool)
    for end in ends:
        found[torch.arange(len(values)), end] = True
    return found.view(weight.shape)


def _ridged(moments: torch.Tensor) -> torch.Tensor:
    """With a ridge that makes any moments invertible, those of inputs that were always 0 too."""
    ridge = _RIDGE * float(moments.diagonal().mean())
    return moments + max(ridge, 1e-12) * torch.eye(len(moments), dtype=moments.dtype)
