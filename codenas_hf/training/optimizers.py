"""The optimisers of a model: Muon for its matrices, AdamW for the rest, each at the rate of its role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .muon import Muon
from .optim import OptimSettings
from .roles import Part, parts, shift_free, width_of

_BETAS = (0.9, 0.95)


class Optimizers:
    """The optimisers of one model, their peak rates, and their state by parameter name.

    Args:
        model: bare, not wrapped for distribution.
        settings: what to build.
        dtype: of Muon's iteration.
    """

    def __init__(self, model: nn.Module, *, settings: OptimSettings, dtype: torch.dtype = torch.float32) -> None:
        width = settings.base_width / width_of(model)
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        roles: dict[str, list[nn.Parameter]] = {}
        matrices: list[Part] = []
        for part in parts(model):
            if part.role in ("matrix", "out"):
                matrices.append(part)
            else:
                roles.setdefault(part.role, []).append(part.parameter)
        fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
        groups: list[dict[str, Any]] = []
        self.all: list[torch.optim.Optimizer] = []
        if settings.optimizer == "muon" and matrices:
            by_layout = {layout: [p.parameter for p in matrices if p.transposed == layout] for layout in (False, True)}
            self.all.append(
                Muon(
                    [{"params": found, "transposed": layout} for layout, found in by_layout.items() if found],
                    lr=settings.matrix_learning_rate,
                    weight_decay=settings.weight_decay,
                    momentum=settings.momentum,
                    dtype=dtype,
                )
            )
        elif matrices:
            # Fan-in stands for width: where they differ (the feed-forward network's output), it is the exact rule.
            for fan_in in sorted({part.fan_in for part in matrices}):
                rate = settings.adamw_learning_rate
                if settings.initialise == "width":
                    rate *= settings.base_width / fan_in
                members = [part.parameter for part in matrices if part.fan_in == fan_in]
                groups.append({"params": members, "lr": rate, "weight_decay": settings.weight_decay})
        for role, members in roles.items():
            # The last norm's gain is as small as the width is large; so are its steps.
            rate = settings.learning_rate * (width if role == "last_norm" and settings.initialise == "width" else 1.0)
            groups.append({"params": members, "lr": rate, "weight_decay": 0.0})
        self.all.append(torch.optim.AdamW(groups, betas=_BETAS, eps=1e-10, fused=fused))
        self._centred = shift_free(model)
        self._peaks = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self.all]

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Sets the dtype of Muon's iteration."""
        for optimizer in self.all:
            if isinstance(optimizer, Muon):
                optimizer.dtype = dtype

    def set_rate(self, factor: float) -> None:
        """Sets every group to `factor` times its peak rate."""
        for optimizer, peaks in zip(self.all, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

    @torch.no_grad()
    def step(self) -> None:
        """Moves all parameters; what softmax does not see of a readout stays at zero."""
        for optimizer in self.all:
            optimizer.step()
        for parameter in self._centred:
            parameter.sub_(parameter.mean(0))

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
