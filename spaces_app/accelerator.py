"""The GPU of a ZeroGPU Space, where there is one. Import this before torch: `spaces` must patch CUDA first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GPU_SECONDS = 60

try:
    import spaces
except ImportError:
    spaces = None


def borrows_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as it is, or on ZeroGPU run in a process that holds a GPU for as long as it runs.

    There the arguments are pickled and the process is a fork, so pass names of models, not models.
    """
    return function if spaces is None else spaces.GPU(duration=GPU_SECONDS)(function)
