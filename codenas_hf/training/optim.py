"""How weights start and move: the settings, and the schedule of the rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..folders.ranges import check_range


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """How weights start and move.

    Args:
        optimizer: for hidden matrices; everything else is trained by AdamW.
        matrix_learning_rate: of hidden matrices under Muon, at every width.
        adamw_learning_rate: of hidden matrices under AdamW, at `base_width`; falls as 1/width.
        learning_rate: of embeddings, readout, norms and scalars, at every width.
        weight_decay: decoupled decay of hidden matrices; it follows the learning rate's schedule.
        momentum: of Muon.
        warmup_steps: linear, at most a tenth of the budget.
        decay_share: last share of a budget in which the rate falls linearly; before that it is constant.
        decay_floor: share of the peak rate at which the decay ends.
        schedule: `stable` (warm-up, constant, linear decay) or `cosine` (warm-up, half a cosine down to a tenth).
        gradient_clip: largest global norm of a gradient; None turns clipping off.
        base_width: hidden size at which `adamw_learning_rate` and `readout_gain` hold.
        initialise: `width` starts weights by the rule above, `model` keeps what the model class draws.
        embedding_std: standard deviation of a fresh embedding.
        readout_gain: initial gain of the last norm at `base_width`; falls as 1/width.

    Raises:
        ValueError: a value out of range.
    """

    optimizer: Literal["muon", "adamw"] = "muon"
    matrix_learning_rate: float = 0.01
    adamw_learning_rate: float = 7e-4
    learning_rate: float = 2e-2
    weight_decay: float = 0.05
    momentum: float = 0.95
    warmup_steps: int = 20
    decay_share: float = 0.2
    decay_floor: float = 0.0
    schedule: Literal["stable", "cosine"] = "stable"
    gradient_clip: float | None = 1.0
    base_width: int = 128
    initialise: Literal["width", "model"] = "width"
    embedding_std: float = 0.1
    readout_gain: float = 0.2

    def __post_init__(self) -> None:
        rates = ("matrix_learning_rate", "adamw_learning_rate", "learning_rate", "embedding_std", "readout_gain")
        check_range(self, *rates, above=0, advice="0.01 is a usual size")
        check_range(self, "momentum", "decay_share", "decay_floor", least=0, below=1)
        check_range(self, "weight_decay", "warmup_steps", least=0)
        check_range(self, "gradient_clip", above=0, optional=True)
        check_range(self, "base_width", least=1)

    @property
    def half_rates(self) -> str:
        """What a person would type to train at half the rates."""
        matrices = "matrix_learning_rate" if self.optimizer == "muon" else "adamw_learning_rate"
        return " ".join(f"train.optim.{name}={getattr(self, name) / 2:g}" for name in (matrices, "learning_rate"))


def rate_factor(progress: float, step: int, *, settings: OptimSettings, planned_steps: float) -> float:
    """The share of the peak learning rate at one step.

    Args:
        progress: share of the budget that is spent, 0 to 1.
        step: steps taken so far.
        settings: names the schedule.
        planned_steps: steps of the whole budget, as far as known; bounds the warm-up.
    """
    warmup = min(settings.warmup_steps, max(1.0, planned_steps / 10))
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if settings.schedule == "cosine":
        return factor * (0.55 + 0.45 * math.cos(math.pi * min(progress, 1.0)))
    if settings.decay_share and progress > 1 - settings.decay_share:
        left = max(0.0, (1 - progress) / settings.decay_share)
        factor *= settings.decay_floor + (1 - settings.decay_floor) * left
    return factor
