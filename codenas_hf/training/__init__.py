"""One plain Accelerate loop for every rung and the winner, and the optimisers that it steps."""

from .loop import DivergenceError, TrainResult, build_model, latest_checkpoint, train
from .optim import OptimSettings
from .precision import resolve_precision
from .settings import TrainSettings

__all__ = [
    "DivergenceError",
    "OptimSettings",
    "TrainResult",
    "TrainSettings",
    "build_model",
    "latest_checkpoint",
    "resolve_precision",
    "train",
]
