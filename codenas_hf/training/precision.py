"""Which number format trains fastest on a device: measured, because a processor's name does not tell.

Where the units exist, bfloat16 halves a step; where they do not, it takes ten times longer.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
# A gain below this is eaten by the casts that autocast adds around small matrices.
_WORTHWHILE = 1.3


def _matmul_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Median of five products of the size that a small model makes at 512 tokens."""
    left, right = (torch.full(shape, 0.5, dtype=dtype, device=device) for shape in ((512, 128), (128, 384)))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        product = left @ right
        product[0, 0].item()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@functools.cache
def _fastest(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    single, half = (_matmul_seconds(dtype, device) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if half * _WORTHWHILE < single else torch.float32


def resolve_precision(precision: Precision, *, device: torch.device) -> torch.dtype:
    """The dtype of matrix products in training; weights and optimiser state stay float32.

    `auto` measures once a process. A study should resolve it once and hand the answer to its workers, so that noise
    cannot make two of them differ.

    Raises:
        ValueError: an unknown name.
    """
    if precision == "auto":
        return _fastest(device)
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"`precision` must be auto, float32 or bfloat16, got {precision!r}")
    return torch.float32 if precision == "float32" else torch.bfloat16
