"""Which number format trains fastest on a device: read from what the device says it can do, never timed.

Where a processor multiplies bfloat16 (`avx512_bf16`, `amx_bf16`), models of 0.3 to 9 million parameters train at 1.3
to 2.4 times the speed (AMD EPYC with `avx512_bf16`, one thread; one of 35,000 parameters at 0.84 of it). Where it
does not, bfloat16 is imitated: one product of a small model takes 1.3 times as long with plain AVX-512, 35 times with
AVX2. Timing products would say the same on a quiet machine and anything on a busy one, and two workers of a study
must not differ. Processors that are not x86 get float32: nothing was measured there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

Precision = Literal["auto", "float32", "bfloat16"]
_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16"})


def processor_flags() -> frozenset[str]:
    """What the first processor of this machine says it can do; empty where the system does not tell."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())


def _fastest(device: torch.device) -> torch.dtype:
    if device.type == "cuda":  # all of them: a candidate may be trained on any
        each = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        units = torch.version.hip is not None or all(gpu.major >= 8 for gpu in each)
    else:
        units = torch.backends.mkldnn.is_available() and bool(_BFLOAT16_UNITS & processor_flags())
    return torch.bfloat16 if units else torch.float32


def resolve_precision(precision: Precision, *, device: torch.device) -> torch.dtype:
    """The dtype of matrix products in training; weights and optimiser state stay float32.

    `auto` follows from the device alone. Another machine may answer otherwise, so a study keeps its answer.

    Raises:
        ValueError: an unknown name.
    """
    if precision == "auto":
        return _fastest(device)
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"`precision` must be auto, float32 or bfloat16, got {precision!r}")
    return torch.float32 if precision == "float32" else torch.bfloat16


def accelerator_on(device: str | None = None, **more: Any) -> Accelerator:
    """All processes of the launcher, whose own `mixed_precision` counts for nothing: `train.precision` decides.

    Accelerate would wrap the model for good, and it would be scored and timed in that format too.

    Args:
        device: `cpu` or `cuda`; None takes what there is.
        more: for `Accelerator`.
    """
    return Accelerator(cpu=device == "cpu", mixed_precision="no", **more)


def precision_name(dtype: torch.dtype) -> Literal["float32", "bfloat16"]:
    """Inverse of `resolve_precision` for its two answers."""
    return "bfloat16" if dtype is torch.bfloat16 else "float32"
