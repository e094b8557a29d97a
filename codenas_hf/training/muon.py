"""Muon: orthogonalised momentum for matrices, equal shapes together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

# Coefficients of the Newton-Schulz iteration, as in torch.optim.Muon (Jordan, 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315
# Three train as well per step as torch's five, in less time. Bits per byte at widths 48 to 192: 2.605, 2.504, 2.455,
# 2.436 with three, 2.602, 2.505, 2.455, 2.435 with five (benchmarks/width_transfer.py's protocol, 80 steps, one seed).
_ITERATIONS = 3


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

    Update and scaling by sqrt(max(1, outputs / inputs)) are those of `torch.optim.Muon`.

    Args:
        params: matrices [outputs, inputs] or stacks of them [number, outputs, inputs], or groups of these; in a group
            with `transposed` they are [inputs, outputs].
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
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "transposed": False}
        super().__init__(params, defaults)
        self.dtype, self.iterations = dtype, iterations
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim not in (2, 3):
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
        stacked = torch.stack(torch._foreach_lerp(gradients, averages, group["momentum"]))
        matrices = stacked.to(self.dtype).flatten(0, -3)
        updates = orthogonalise(matrices, iterations=self.iterations).to(parameters[0].dtype).view(stacked.shape)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        outputs, inputs = reversed(shape[-2:]) if group["transposed"] else shape[-2:]
        scale = group["lr"] * max(1.0, outputs / inputs) ** 0.5
        torch._foreach_add_(parameters, list(updates.unbind(0)), alpha=-scale)
