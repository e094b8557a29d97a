"""Optimisers, their schedule, and the rule that carries learning rates and initial weights across shapes.

A search compares models of many widths under one set of settings, so those settings must suit every width: hidden
matrices start with standard deviation 1/sqrt(fan in); AdamW's rate for them falls as 1/width (Yang et al., 2022,
arXiv:2203.03466), while Muon's orthogonal updates need no correction (Bernstein and Newhouse, 2024,
arXiv:2409.20325). The readout's factor 1/width lies in the gain of the last norm, so a plain Llama holds the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Role = Literal["matrix", "out", "embedding", "readout", "vector", "last_norm"]
# Coefficients of the Newton-Schulz iteration, as in torch.optim.Muon (Jordan, 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_BETAS = (0.9, 0.95)
# Three train as well per step as torch's five, in less time. Bits per byte at widths 48 to 192: 2.605, 2.504, 2.455,
# 2.436 with three, 2.602, 2.505, 2.455, 2.435 with five (benchmarks/width_transfer.py's protocol, 80 steps, one seed).
_ITERATIONS = 3


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
        decay_share: last share of a budget in which the rate falls linearly to zero; before that it is constant.
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
    schedule: Literal["stable", "cosine"] = "stable"
    gradient_clip: float | None = 1.0
    base_width: int = 128
    initialise: Literal["width", "model"] = "width"
    embedding_std: float = 0.1
    readout_gain: float = 0.2

    def __post_init__(self) -> None:
        for name in ("matrix_learning_rate", "adamw_learning_rate", "learning_rate", "embedding_std", "readout_gain"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}; 0.01 is a usual size")
        for name in ("momentum", "decay_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(self, name)!r}")
        for name in ("weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)!r}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"`gradient_clip` must be above 0, or null for none, got {self.gradient_clip!r}")
        if self.base_width < 1:
            raise ValueError(f"`base_width` must be 1 or more, got {self.base_width!r}")


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
        factor *= max(0.0, (1 - progress) / settings.decay_share)
    return factor


def parameter_role(name: str, parameter: nn.Parameter, *, last_norm: str) -> Role:
    """What a parameter does, by its name: the model classes of transformers share these."""
    if name.rpartition(".")[0] == last_norm:
        return "last_norm"
    if "lm_head" in name:
        return "readout"
    if "embed" in name and parameter.ndim == 2:
        return "embedding"
    if parameter.ndim != 2:
        return "vector"
    return "out" if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight")) else "matrix"


def _last_norm(model: nn.Module) -> str:
    """Name of the norm before the readout; empty where there is none (it then keeps its gain)."""
    base = getattr(model, "base_model_prefix", "")
    for name in (f"{base}.norm", f"{base}.ln_f"):
        if any(found == name for found, _ in model.named_modules()):
            return name
    return ""


def _width(model: nn.Module) -> int:
    return int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]


@torch.no_grad()
def initialise(model: nn.Module, *, settings: OptimSettings, seed: int) -> None:
    """Draws fresh weights by the width rule: matrices 1/sqrt(fan in), matrices that write the residual stream zero.

    Drawn on the CPU from a generator of its own, so that the device and what ran before do not matter.
    """
    if settings.initialise == "model":
        return
    generator = torch.Generator().manual_seed(seed)
    last_norm = _last_norm(model)
    for name, parameter in model.named_parameters():
        role = parameter_role(name, parameter, last_norm=last_norm)
        if role == "out":
            parameter.zero_()
        elif role in ("matrix", "embedding", "readout"):
            std = parameter.shape[1] ** -0.5 if role == "matrix" else settings.embedding_std
            draw = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
            parameter.copy_(draw)
        elif role == "last_norm" and name.endswith("weight"):
            parameter.fill_(settings.readout_gain * settings.base_width / _width(model))


def orthogonalise(matrices: torch.Tensor, *, iterations: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end near 1.

    The quintic Newton-Schulz iteration of torch.optim.Muon, for many matrices at once and in the dtype given: on a
    processor without bfloat16 units torch's own, which always works in bfloat16, takes ten to thirty times longer.

    Args:
        matrices: [number, rows, columns].
        iterations: 5 bring singular values near 1, fewer leave small ones smaller.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan, 2024) with equal shapes orthogonalised together and in a chosen dtype.

    Update and scaling by sqrt(max(1, rows / columns)) are those of `torch.optim.Muon`.

    Args:
        params: two-dimensional parameters, or groups of them.
        lr: spectral norm of one update of a wide matrix.
        weight_decay: decoupled.
        momentum: of the Nesterov average.
        dtype: of the iteration.
        iterations: of the orthogonalisation; `torch.optim.Muon` takes 5.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
        iterations: int = _ITERATIONS,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype, self.iterations = dtype, iterations
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices, got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                self._step_shape(group, shape, parameters)

    def _step_shape(self, group: Mapping[str, Any], shape: torch.Size, parameters: list[torch.Tensor]) -> None:
        averages = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            averages.append(state["momentum_buffer"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        updates = orthogonalise(
            torch.stack(torch._foreach_lerp(gradients, averages, group["momentum"])).to(self.dtype),
            iterations=self.iterations,
        )
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
        torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype).unbind(0)), alpha=-scale)


class Optimizers:
    """The optimisers of one model, their peak rates, and their state by parameter name.

    Args:
        model: bare, not wrapped for distribution.
        settings: what to build.
        dtype: of Muon's iteration.
    """

    def __init__(self, model: nn.Module, *, settings: OptimSettings, dtype: torch.dtype = torch.float32) -> None:
        last_norm = _last_norm(model)
        width = settings.base_width / _width(model)
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        roles: dict[Role, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            roles.setdefault(parameter_role(name, parameter, last_norm=last_norm), []).append(parameter)
        matrices = roles.pop("matrix", []) + roles.pop("out", [])
        fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
        groups: list[dict[str, Any]] = []
        self.all: list[torch.optim.Optimizer] = []
        if settings.optimizer == "muon" and matrices:
            self.all.append(
                Muon(
                    matrices,
                    lr=settings.matrix_learning_rate,
                    weight_decay=settings.weight_decay,
                    momentum=settings.momentum,
                    dtype=dtype,
                )
            )
        elif matrices:
            # Fan-in stands for width: where they differ (the feed-forward network's output), it is the exact rule.
            for fan_in in sorted({p.shape[1] for p in matrices}):
                rate = settings.adamw_learning_rate
                if settings.initialise == "width":
                    rate *= settings.base_width / fan_in
                members = [p for p in matrices if p.shape[1] == fan_in]
                groups.append({"params": members, "lr": rate, "weight_decay": settings.weight_decay})
        for role, members in roles.items():
            # The last norm's gain is as small as the width is large; so are its steps.
            rate = settings.learning_rate * (width if role == "last_norm" and settings.initialise == "width" else 1.0)
            groups.append({"params": members, "lr": rate, "weight_decay": 0.0})
        self.all.append(torch.optim.AdamW(groups, betas=_BETAS, eps=1e-10, fused=fused))
        self._peaks = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self.all]

    def set_rate(self, factor: float) -> None:
        """Sets every group to `factor` times its peak rate."""
        for optimizer, peaks in zip(self.all, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

    def step(self) -> None:
        """Moves all parameters."""
        for optimizer in self.all:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def _states(self) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter]]:
        for optimizer in self.all:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield optimizer, parameter

    def state_dict(self) -> dict[str, torch.Tensor]:
        """`<parameter>|<quantity>` to tensor: what safetensors can hold."""
        state: dict[str, torch.Tensor] = {}
        for optimizer, parameter in self._states():
            for quantity, value in optimizer.state.get(parameter, {}).items():
                state[f"{self._names[parameter]}|{quantity}"] = value.detach()
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state belongs to another model or optimiser.
        """
        known = {self._names[parameter] for _, parameter in self._states()}
        if strangers := {key.partition("|")[0] for key in state} - known:
            raise ValueError(
                f"the checkpoint's optimiser state has {sorted(strangers)[0]!r}, which this model does not train; "
                "continue with the settings and the genome that wrote it"
            )
        quantities = {"Muon": {"momentum_buffer"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}
        for optimizer, parameter in self._states():
            name = self._names[parameter]
            found = {k.partition("|")[2]: v for k, v in state.items() if k.partition("|")[0] == name}
            if found and set(found) != quantities[type(optimizer).__name__]:
                raise ValueError(
                    f"the checkpoint was written by another optimiser than {type(optimizer).__name__} (it holds "
                    f"{', '.join(sorted(found))} for {name!r}); continue with the `optimizer` that wrote it"
                )
            for quantity, value in found.items():
                optimizer.state[parameter][quantity] = value.to(parameter.device, copy=True)
