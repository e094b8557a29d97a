"""Training state on disk: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..engine.records import Budget
from ..folders import whole_folder
from .optimizers import Optimizers

CONSTANT = "constant"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "training_state.json"


@dataclass(kw_only=True)
class Progress:
    """Where training stands.

    Args:
        step: optimiser steps taken.
        seconds: wall clock spent on them.
        decayed: the learning rate has begun to fall, so that a larger budget cannot continue from here.
        budget: the budget under which it fell, JSON form.
        identity: settings and data that a continuation must share.
        precision: dtype of the matrix products; what `auto` continues with on whatever machine. Empty in old ones.
        curve: what was logged: step, tokens, seconds, loss.
        pending: losses since the last point of the curve.
    """

    step: int = 0
    seconds: float = 0.0
    decayed: bool = False
    budget: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    precision: Literal["", "float32", "bfloat16"] = ""
    curve: list[dict[str, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)

    def unlike(self, identity: Mapping[str, Any]) -> str | None:
        """What of a run's identity (see `TrainSettings.identity`) is another here; None where it can continue this."""
        own = {"fim_rate": identity.get("fim_rate"), **self.identity}  # states of before do not say it
        return next((name for name, value in identity.items() if own.get(name) != value), None)


def _own_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters once each: tied ones appear under their first name."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def save_checkpoint(folder: Path, *, model: nn.Module, optimizers: Optimizers, progress: Progress) -> None:
    """Writes weights, optimiser state and progress; the folder appears only when it is complete.

    Raises:
        OSError: the disk is full; what stood there before is intact.
    """
    with whole_folder(folder) as fresh:
        save_file(_own_weights(model), fresh / WEIGHTS)
        state = {name: value.contiguous() for name, value in optimizers.state_dict().items()}
        save_file(state, fresh / OPTIMIZER)
        (fresh / STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")


def read_progress(folder: Path) -> Progress:
    """The progress that a checkpoint holds.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: the file is damaged.
    """
    path = folder / STATE
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint in {folder}: {STATE} is missing; train without `resume_from`")
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete {folder} and train again") from error


def damage(folder: Path) -> str | None:
    """Why the checkpoint in a folder cannot be continued: it is gone, or a file is cut off; None when it can."""
    try:
        read_progress(folder)
        for name in (WEIGHTS, OPTIMIZER):
            with safe_open(folder / name, framework="pt"):  # the header says how long the file must be
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    return None


def load_weights(folder: Path, *, model: nn.Module) -> None:
    """Copies a checkpoint's weights into a model of the same shape.

    Raises:
        ValueError: the checkpoint belongs to another model.
    """
    stored = load_file(folder / WEIGHTS)
    own = _own_weights(model)
    if stored.keys() != own.keys() or any(stored[name].shape != own[name].shape for name in own):
        wrong = sorted(
            n for n in stored.keys() | own.keys() if n not in stored or n not in own or stored[n].shape != own[n].shape
        )
        raise ValueError(f"the checkpoint in {folder} belongs to another model: {wrong[0]!r} differs")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])


def load_checkpoint(folder: Path, *, model: nn.Module, optimizers: Optimizers) -> Progress:
    """Inverse of `save_checkpoint`.

    Raises:
        FileNotFoundError, ValueError: as `read_progress` and `load_weights`.
    """
    progress = read_progress(folder)
    load_weights(folder, model=model)
    optimizers.load_state_dict(load_file(folder / OPTIMIZER))
    return progress


def latest_checkpoint(folder: Path, *, budget: Budget | None = None) -> Path | None:
    """The newest checkpoint that an interrupted `train(..., folder=folder)` left, None if there is none.

    Args:
        folder: of the training.
        budget: what shall be trained to. A state whose rate has begun to fall for another budget is passed over for
            one at the constant rate, where there is one: a longer budget costs the decay of the shorter, no more.
            None takes any.
    """
    found = [path for path in folder.glob("step-*") if path.is_dir()]
    found += [folder / CONSTANT] if (folder / CONSTANT).is_dir() else []

    def rank(path: Path) -> tuple[bool, int]:
        progress = read_progress(path)
        fits = budget is None or not progress.decayed or progress.budget == budget.to_dict()
        return fits, progress.step

    return max(found, key=rank, default=None)


def own_folder(folder: Path, identity: Mapping[str, Any]) -> Path:
    """Where a training keeps its state: `folder`, or one beside it while that holds the state of another training.

    Args:
        folder: of trainings of the same weights, each of which is found again by its text and settings.
        identity: see `TrainSettings.identity`.
    """
    found = latest_checkpoint(folder)
    if found is None or read_progress(found).unlike(identity) is None:
        return folder
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return folder.with_name(f"{folder.stem}.{key}{folder.suffix}")
