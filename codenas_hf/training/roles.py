"""What each parameter of a model does, and the rule that carries initial weights across shapes.

A search compares models of many widths under one set of settings, so those settings must suit every width: hidden
matrices start with standard deviation 1/sqrt(fan in); AdamW's rate for them falls as 1/width (Yang et al., 2022,
arXiv:2203.03466), while Muon's orthogonal updates need no correction (Bernstein and Newhouse, 2024,
arXiv:2409.20325). The readout's factor 1/width lies in the gain of the last norm, so a plain Llama holds the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from .optim import OptimSettings

Role = Literal["matrix", "out", "embedding", "readout", "vector", "last_norm"]
# The names of transformers' models: matrices that write the residual stream, and norms before the readout.
_WRITERS = ("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "attention.dense")
_LAST_NORMS = ("norm", "ln_f", "norm_f", "final_layer_norm", "final_layernorm", "decoder.final_layer_norm")


@dataclass(frozen=True)
class Part:
    """One parameter of a model.

    Args:
        name: as in `named_parameters`.
        parameter: itself.
        role: what it does.
        transposed: stored as [inputs, outputs], as GPT-2 does.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    transposed: bool = False

    @property
    def fan_in(self) -> int:
        """Inputs of a matrix."""
        return int(self.parameter.shape[-2 if self.transposed else -1])


def parts(model: nn.Module) -> Iterator[Part]:
    """Every parameter once, tied ones under their first name.

    What a parameter does follows from the module that holds it: a table that is looked up is an embedding, whatever
    its name.
    """
    last_norm = _last_norm(model)
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        role: Role = "vector"
        if owner == last_norm:
            role = "last_norm"
        elif isinstance(module, nn.Embedding):
            role = "embedding"
        elif "lm_head" in name or "embed_out" in name:
            role = "readout"
        elif isinstance(module, nn.modules.conv._ConvNd):
            role = "vector"
        elif (parameter.ndim == 2 and own_name == "weight") or parameter.ndim == 3:  # three: a stack of experts
            writes = owner.endswith(_WRITERS) or own_name in _WRITERS
            role = "out" if writes else "matrix"
        yield Part(name, parameter, role, transposed=isinstance(module, Conv1D))


def _last_norm(model: nn.Module) -> str:
    """Name of the norm before the readout; empty where there is none (it then keeps its gain)."""
    base = getattr(model, "base_model_prefix", "")
    found = {name for name, _ in model.named_modules()}
    return next((name for name in (f"{base}.{norm}" for norm in _LAST_NORMS) if name in found), "")


def shift_free(model: nn.Module) -> list[nn.Parameter]:
    """What of an untied readout can move without a change of the model: softmax does not see a shift of all logits.

    So no gradient keeps the mean of a readout's rows (and of its bias) where it is, and AdamW, which divides number by
    number, lets it drift: to a mean logit of -31 in 83 million tokens. That costs steps in bfloat16 and in codes, and
    a repetition penalty, which multiplies negative logits, weighs as much more. Where the mean is subtracted, the
    model is the same and neither happens. A readout that is the embedding too, and one whose logits are capped, have
    no such freedom.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    if not isinstance(head, nn.Linear) or not head.weight.requires_grad or is_parametrized(head):
        return []  # a frozen one stays as it is, and a correction of low rank is no row of logits
    if any("logit" in name and "cap" in name and value for name, value in vars(model.config).items()):
        return []
    own = {part.parameter for part in parts(model) if part.role == "readout"}
    return [parameter for parameter in head.parameters() if parameter in own]


def width_of(model: nn.Module) -> int:
    """Width of the residual stream."""
    return int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]


@torch.no_grad()
def initialise(model: nn.Module, *, settings: OptimSettings, seed: int) -> None:
    """Draws fresh weights by the width rule: matrices 1/sqrt(fan in), matrices that write the residual stream zero.

    Drawn on the CPU from a generator of its own, so that the device and what ran before do not matter.
    """
    if settings.initialise == "model":
        return
    generator = torch.Generator().manual_seed(seed)
    for part in parts(model):
        if part.role == "out":
            part.parameter.zero_()
        elif part.role in ("matrix", "embedding", "readout") and part.parameter.ndim > 1:
            std = part.fan_in**-0.5 if part.role == "matrix" else settings.embedding_std
            draw = torch.empty(part.parameter.shape).normal_(0.0, std, generator=generator)
            part.parameter.copy_(draw)
        elif part.role == "last_norm" and part.name.endswith("weight"):
            part.parameter.fill_(settings.readout_gain * settings.base_width / width_of(model))


def build_model(
    make: Callable[[Any], nn.Module],
    config: Any,
    *,
    settings: OptimSettings,
    seed: int,
    device: torch.device | None = None,
) -> nn.Module:
    """A fresh model, started by the width rule.

    Args:
        make: the model's class, e.g. `CodeNASForCausalLM`.
        config: its configuration.
        settings: names the rule.
        seed: of the weights.
        device: where it shall live; None leaves it on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(config)
    initialise(model, settings=settings, seed=seed)
    return model if device is None else model.to(device)
