"""Weights in few bits, exactly as their reader decodes them.

A block of 32 weights shares a float16 scale; each weight is one of the format's points times that scale. The reader
fixes how codes are decoded; which codes and scale a block gets is the writer's choice, and here it is the best of some
scales by squared error. The same function serves measuring, training and writing, so what is measured is what ships.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from .formats import Block, Format

# What the largest weight of a block may become, in units of the scale: each gives one scale that is tried. Chosen one
# after the other for the least squared error on normal and heavy-tailed weights; more gain nothing. The outer points
# themselves are among them, so what was stored once is stored again without loss.
_TARGETS = {
    "q8_0": (127.0,),
    "q4_0": (-8.25, -7.75, -8.5, -7.25, -8.0, -8.75, -7.0, -6.0),
    "q5_0": (-16.25, -15.75, -16.0, -15.25, -16.5, -15.0, -14.0),
    "iq4_nl": (-129.0, -123.0, -135.0, 114.0, 120.0, -108.0, -132.0, -127.0, 113.0, -104.0),
}
_LARGEST = 65504.0  # of float16
# The reader's code of each point of MXFP4: a sign and one of eight sizes.
_SIGNED = np.array([*range(15, 8, -1), *range(8)], dtype=np.uint8)


@dataclass(frozen=True)
class Codes:
    """A quantised matrix.

    Args:
        block: its format.
        scales: float16 `[rows, columns / block size]`.
        codes: uint8 `[rows, columns]`, indices of the format's points.
        offsets: float16 as `scales`, of a format with offsets.
    """

    block: Block
    scales: torch.Tensor
    codes: torch.Tensor
    offsets: torch.Tensor | None = None

    def decoded(self) -> torch.Tensor:
        """float32 `[rows, columns]`: one product for each weight, as every reader does it."""
        points = points_of(self.block).to(self.codes.device)[self.codes.long()]
        rows, columns = self.codes.shape
        blocks = points.view(rows, -1, self.block.size) * self.scales.float()[..., None]
        if self.offsets is not None:
            blocks = blocks + self.offsets.float()[..., None]
        return blocks.view(rows, columns)

    def packed(self) -> NDArray[np.uint8]:
        """Bytes `[rows, bytes of a row]` as llama.cpp lays them out: a scale, then the codes of each block."""
        rows = len(self.codes)
        scales = self.scales.cpu().contiguous().numpy().view(np.uint8).reshape(rows, -1, 2)
        if self.block.power:
            exponents = torch.where(self.scales > 0, self.scales.float().log2().round() + 128, 0.0)
            scales = exponents.to(torch.uint8).cpu().numpy()[..., None]
        codes = self.codes.cpu().numpy().reshape(rows, -1, self.block.size)
        packed: NDArray[Any]
        if self.block.name == "q8_0":
            packed = (codes.astype(np.int16) - 127).astype(np.int8).view(np.uint8)
        else:  # the first half of a block in the low bits, the second half in the high bits, fifth bits before both
            if self.block.power:
                codes = _SIGNED[codes]
            half, low = self.block.size // 2, codes & 15
            packed = low[..., :half] | (low[..., half:] << 4)
            if len(self.block.points or ()) > 16:
                packed = np.concatenate([np.packbits(codes >> 4, axis=-1, bitorder="little"), packed], axis=-1)
        if self.offsets is not None:
            offsets = self.offsets.cpu().contiguous().numpy().view(np.uint8).reshape(rows, -1, 2)
            scales = np.concatenate([scales, offsets], axis=-1)
        return np.concatenate([scales, packed], axis=-1).reshape(rows, -1)


@torch.no_grad()
def quantize(weight: torch.Tensor, block: Block) -> Codes:
    """The codes of a matrix `[rows, columns]`.

    Raises:
        ValueError: the format has no codes, rows are not whole blocks, or a weight that float16 scales cannot hold.
    """
    if block.points is None:
        raise ValueError(f"{block.name} stores numbers as they are; it has no codes")
    block.num_bytes(*weight.shape)
    values = weight.detach().float().reshape(-1, block.size)
    if block.offset:
        return _with_offsets(values, block, shape=tuple(weight.shape))
    largest = values.abs().amax(dim=1)
    widest = 2 if block.power else abs(_TARGETS[block.name][-1])
    if not torch.isfinite(largest).all() or float(largest.max()) > _LARGEST * widest:
        raise ValueError(f"a weight of {float(largest.max()):.3g} does not fit {block.name}")
    peak = values.gather(1, values.abs().argmax(dim=1, keepdim=True)).squeeze(1)
    if block.name == "q8_0":  # symmetric: the sign of the largest weight does not matter
        peak = largest
    best_error = torch.full_like(peak, torch.inf)
    best_scale, best_codes = torch.zeros_like(peak).half(), torch.zeros_like(values, dtype=torch.uint8)
    for scale in _scales(peak, block):
        codes, error = nearest(values, scale.float(), block)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_codes = torch.where(better[:, None], codes, best_codes)
    rows, columns = weight.shape
    return Codes(block, best_scale.view(rows, -1), best_codes.view(rows, columns))


def _scales(peak: torch.Tensor, block: Block) -> Iterator[torch.Tensor]:
    """The float16 scales to try for blocks with these largest weights, `[blocks]` each."""
    if not block.power:
        yield from ((peak / target).half() for target in _TARGETS[block.name])
        return
    most = float(points_of(block)[-1])
    exponent = torch.ceil(torch.log2(peak.abs().clamp_min(2.0**-24) / most))
    for step in (0, -1, 1):
        scale = torch.exp2((exponent + step).clamp(-24, 15))
        yield torch.where(peak == 0, torch.zeros_like(scale), scale).half()


def as_stored(weight: torch.Tensor, block: Block) -> torch.Tensor:
    """A tensor as a reader of the format has it, float32; the tensor's own shape."""
    if block.points is None:
        return weight.detach().to(_DTYPES[block.name]).float()
    return quantize(weight, block).decoded()


@torch.no_grad()
def store_in(model: nn.Module, form: Format) -> None:
    """Replaces every parameter of a model by what a reader of the format has; tied ones once.

    Raises:
        ValueError: a layer that the format cannot store; names it.
    """
    across = transposed(model)
    for name, parameter in model.named_parameters():
        block = form.block_of(name, tuple(parameter.shape))
        # Blocks lie along the inputs of a product. GPT-2's Conv1D has them in its rows, all others in their columns.
        turned = parameter.T if name in across else parameter
        try:
            turned.copy_(as_stored(turned, block))
        except ValueError as error:
            raise ValueError(f"`{name}` {list(parameter.shape)} cannot be stored as {form.name}: {error}") from error


def transposed(model: nn.Module) -> set[str]:
    """Names of the matrices whose inputs lie in their rows: those of GPT-2's Conv1D."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}


@contextmanager
def stored_weights(model: nn.Module, form: Format) -> Iterator[None]:
    """Inside the block the model computes with the weights as stored; gradients go straight through to the full ones.

    Bengio et al. 2013, https://arxiv.org/abs/1308.3432. Call `backward` inside the block, step the optimiser outside.
    """
    full = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    store_in(model, form)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(full[name])


def stored_bytes(shapes: Mapping[str, tuple[int, ...]], form: Format) -> int:
    """Bytes of all tensors, by name and shape, without a file's header.

    Raises:
        ValueError: a layer that the format cannot store; names it.
    """
    total = 0
    for name, shape in shapes.items():
        rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, shape[0])
        try:
            total += form.block_of(name, shape).num_bytes(rows, columns)
        except ValueError as error:
            raise ValueError(f"`{name}` {list(shape)} cannot be stored as {form.name}: {error}") from error
    return total


# Of a block's range, the shares at its lower and upper end that are given up for finer steps. Nothing is tried first:
# what was stored once is stored again without loss.
_CUTS = ((0.0, 0.0), (0.03, 0.03), (0.06, 0.0), (0.0, 0.06), (0.06, 0.06), (0.1, 0.03), (0.03, 0.1))


def _with_offsets(values: torch.Tensor, block: Block, *, shape: tuple[int, ...]) -> Codes:
    """The codes of blocks `[blocks, size]` between their own lowest and highest weight, the best of some cuts."""
    points = points_of(block).to(values.device)
    low, high = values.amin(dim=1), values.amax(dim=1)
    if not torch.isfinite(values).all() or float(values.abs().max()) > _LARGEST:
        raise ValueError(f"a weight of {float(values.abs().max()):.3g} does not fit {block.name}")
    best = torch.full_like(low, torch.inf)
    scales, offsets = torch.zeros_like(low).half(), torch.zeros_like(low).half()
    codes = torch.zeros_like(values, dtype=torch.uint8)
    for below, above in _CUTS:
        span = high - low
        offset = (low + below * span).half()
        scale = ((1 - below - above) * span / (len(points) - 1)).half()
        found, error = nearest(values - offset.float()[:, None], scale.float(), block)
        better = error < best
        best = torch.where(better, error, best)
        scales, offsets = torch.where(better, scale, scales), torch.where(better, offset, offsets)
        codes = torch.where(better[:, None], found, codes)
    rows, columns = shape
    return Codes(block, scales.view(rows, -1), codes.view(rows, columns), offsets.view(rows, -1))


_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@functools.cache
def points_of(block: Block) -> torch.Tensor:
    """What each code stands for, float32, in units of the scale."""
    assert block.points is not None
    return torch.tensor(block.points, dtype=torch.float32)


@functools.cache
def _table(block: Block) -> tuple[torch.Tensor, int]:
    """The code nearest to each half of a unit, from the lowest on, and that lowest; borders lie at halves."""
    points = points_of(block)
    borders = (points[1:] + points[:-1]) / 2
    halves = torch.arange(2 * int(points[0]), 2 * int(points[-1]) + 1)
    return torch.bucketize(halves / 2, borders), int(halves[0])


def nearest(values: torch.Tensor, scale: torch.Tensor, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of the points nearest to `values` `[blocks, size]` at a scale for each block, and their squared error.

    A value on the border of two points takes the lower one. Training does this at every step, so it goes without a
    search for the place among the borders, which takes three to seven times as long.
    """
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)[:, None]
    wanted = values * inverse
    points = points_of(block).to(values.device)
    lowest, highest = float(points[0]), float(points[-1])
    if len(points) == highest - lowest + 1:  # all whole numbers between them
        near = wanted.sub_(0.5).ceil_().clamp_(lowest, highest)
        codes = (near - lowest).to(torch.uint8)
    else:
        table, first = _table(block)
        places = wanted.mul_(2).ceil_().clamp_(2 * lowest, 2 * highest).sub_(first).to(torch.int32)
        found = table.to(values.device)[places]
        near, codes = points[found], found.to(torch.uint8)
    error = near.mul_(scale[:, None]).sub_(values).square_().sum(dim=1)
    return codes, error
