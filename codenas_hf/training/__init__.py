"""One plain Accelerate loop for every rung and the winner, and the optimisers that it steps."""

from .checkpoint import latest_checkpoint
from .loop import train
from .optim import OptimSettings
from .outcome import DivergenceError, OutOfMemoryError, TrainResult
from .precision import accelerator_on, precision_name, resolve_precision
from .roles import build_model
from .settings import TrainSettings

__all__ = [
    "DivergenceError",
    "OptimSettings",
    "OutOfMemoryError",
    "TrainResult",
    "TrainSettings",
    "accelerator_on",
    "build_model",
    "latest_checkpoint",
    "precision_name",
    "resolve_precision",
    "train",
]
