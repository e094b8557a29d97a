"""Structured pruning: neurons, groups of heads, layers and width leave a model, by what they do on real text.

A neuron's importance is the energy of what it adds to the residual stream: the mean square of its activation times
the squared norm of its output weights; a group of heads (one key-value head and its queries) likewise. A dimension of
the residual stream counts by what the normed stream brings through it into matrices and head. It takes forward passes
only (cf. Molchanov et al. 2019, https://arxiv.org/abs/1906.10771, and Muralidharan et al. 2024,
https://arxiv.org/abs/2407.14679). What is left is an ordinary model of the same architecture, in smaller matrices.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

Floats = NDArray[np.float64]
_BLOCK = 32  # what is left must be whole blocks in every storage format
_PARTS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_NORMS = ("input_layernorm", "post_attention_layernorm")  # of the residual stream, before attention and network


@dataclass(frozen=True)
class Importance:
    """What each part of a model does on some text.

    Args:
        neurons: of each feed-forward neuron, `[layers, intermediate size]`.
        groups: of each key-value head with its queries, `[layers, key-value heads]`.
        layers: of each layer: 1 less the cosine between what goes in and what comes out, `[layers]`.
        num_tokens: of the text.
        stream: mean square of the normed residual stream where matrices take it in: attention and network of each
            layer, then the head, `[2 * layers + 1, hidden size]`.
    """

    neurons: Floats
    groups: Floats
    layers: Floats
    num_tokens: int
    stream: Floats = field(default_factory=lambda: np.zeros((0, 0)))


def check_prunable(model: PreTrainedModel) -> None:
    """Refuses an architecture whose parts go by other names.

    Raises:
        ValueError: names what is missing.
    """
    layers = _layers(model)
    missing = [part for part in _PARTS if not _has(layers[0], part)] if len(layers) else list(_PARTS)
    if missing:
        raise ValueError(
            f"a {model.config.model_type} cannot be pruned here: its layers have no {', '.join(missing)}; known are "
            "decoders shaped like Llama (llama, qwen2, qwen3, smollm3, arcee, mistral, stablelm)"
        )


@torch.no_grad()
def measure_importance(model: PreTrainedModel, batches: Iterable[torch.Tensor]) -> Importance:
    """Runs some text through a model and adds up what its parts do.

    Args:
        model: left as it was.
        batches: token ids, each `[sequences, length]`.

    Raises:
        ValueError: another architecture, or no text.
    """
    check_prunable(model)
    layers, config = _layers(model), model.config
    counts = {"tokens": 0}
    neurons = torch.zeros(len(layers), int(config.intermediate_size), dtype=torch.float64)
    heads = torch.zeros(len(layers), int(config.num_attention_heads), dtype=torch.float64)
    turned = torch.zeros(len(layers), dtype=torch.float64)
    readers = [together for together, _ in _readers(model)]
    taken = torch.zeros(len(readers), int(config.hidden_size), dtype=torch.float64)

    def neurons_of(at: int) -> Any:
        def hook(module: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
            neurons[at] += inputs[0].float().square().flatten(0, 1).sum(dim=0).double().cpu()

        return hook

    def heads_of(at: int) -> Any:
        def hook(module: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].float().flatten(0, 1).square().sum(dim=0)
            energy = values * module.weight.float().square().sum(dim=0)
            heads[at] += energy.view(heads.shape[1], -1).sum(dim=1).double().cpu()

        return hook

    def turn_of(at: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosine = nn.functional.cosine_similarity(inputs[0].float(), after.float(), dim=-1)
            turned[at] += (1 - cosine).sum().double().cpu()

        return hook

    def taken_by(at: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            taken[at] += inputs[0].float().square().flatten(0, -2).sum(dim=0).double().cpu()

        return hook

    hooks = [together[0].register_forward_pre_hook(taken_by(at)) for at, together in enumerate(readers)]
    for at, layer in enumerate(layers):
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(neurons_of(at)))
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(heads_of(at)))
        hooks.append(layer.register_forward_hook(turn_of(at)))
    was_training = model.training
    model.eval()
    try:
        for ids in batches:
            model(input_ids=ids.to(model.device), use_cache=False)
            counts["tokens"] += ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    if not counts["tokens"]:
        raise ValueError(
            "`batches` holds no text: importance is measured on some; give at least a few thousand tokens"
        )
    out = torch.stack([layer.mlp.down_proj.weight.float().square().sum(dim=0).double().cpu() for layer in layers])
    groups = heads.view(len(layers), int(config.num_key_value_heads), -1).sum(dim=2)
    scale = 1.0 / counts["tokens"]
    return Importance(
        (neurons * out * scale).numpy(),
        (groups * scale).numpy(),
        (turned * scale).numpy(),
        counts["tokens"],
        (taken * scale).numpy(),
    )


@torch.no_grad()
def pruned(
    model: PreTrainedModel,
    importance: Importance,
    *,
    neurons: int | None = None,
    groups: int | None = None,
    width: int | None = None,
    without_layers: Sequence[int] = (),
) -> PreTrainedModel:
    """A smaller model of the same architecture: in each layer the most important parts, in their old order.

    Args:
        model: left as it was.
        importance: measured on it.
        neurons: feed-forward neurons that stay in each layer; None keeps all.
        groups: key-value heads, with their queries, that stay in each layer; None keeps all.
        width: dimensions of the residual stream that stay; None keeps all.
        without_layers: layers that are left out.

    Raises:
        ValueError: more than there is, nothing left, or widths that are no multiple of 32.
    """
    check_prunable(model)
    config = copy.deepcopy(model.config)
    layers = _layers(model)
    per_group = int(config.num_attention_heads) // int(config.num_key_value_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    neurons = int(config.intermediate_size) if neurons is None else neurons
    groups = int(config.num_key_value_heads) if groups is None else groups
    _check("neurons", neurons, int(config.intermediate_size), width=neurons)
    width = int(config.hidden_size) if width is None else width
    _check("groups", groups, int(config.num_key_value_heads), width=groups * per_group * size)
    _check("width", width, int(config.hidden_size), width=width)
    stay = [at for at in range(len(layers)) if at not in without_layers]
    if not stay or any(not 0 <= at < len(layers) for at in without_layers):
        raise ValueError(f"`without_layers` must leave some of {len(layers)} layers, got {list(without_layers)}")
    config.intermediate_size, config.num_hidden_layers = neurons, len(stay)
    config.num_key_value_heads, config.num_attention_heads = groups, groups * per_group
    config.head_dim, config.hidden_size = size, width
    for name in ("layer_types", "no_rope_layers"):  # a value for each layer
        if getattr(config, name, None):
            setattr(config, name, [getattr(config, name)[at] for at in stay])
    state = model.state_dict()
    base = _layers_name(model)
    wide = torch.arange(width)
    if width < int(model.config.hidden_size):
        wide = torch.from_numpy(_best(_width(model, importance.stream), width))
    outside = {name: weight for name, weight in state.items() if not name.startswith(f"{base}.")}
    result = {name: weight[..., wide.to(weight.device)] for name, weight in outside.items()}
    factors = _norm_factors(model, importance.stream, wide) if width < int(model.config.hidden_size) else {}
    for new, old in enumerate(stay):
        chosen = torch.from_numpy(_best(importance.neurons[old], neurons))
        kept = torch.from_numpy(_best(importance.groups[old], groups))
        keys = (kept[:, None] * size + torch.arange(size)).flatten()
        queries = (kept[:, None] * per_group * size + torch.arange(per_group * size)).flatten()
        rows = {"gate_proj": chosen, "up_proj": chosen, "q_proj": queries, "k_proj": keys, "v_proj": keys}
        rows |= dict.fromkeys(("down_proj", "o_proj", *_NORMS), wide)
        columns = {"down_proj": chosen, "o_proj": queries}
        columns |= dict.fromkeys(("gate_proj", "up_proj", "q_proj", "k_proj", "v_proj"), wide)
        for name, weight in state.items():
            if not name.startswith(f"{base}.{old}."):
                continue
            owner = name.split(".")[-2]
            if owner in rows:
                weight = weight[rows[owner].to(weight.device)]
            if owner in columns and weight.dim() == 2:
                weight = weight[:, columns[owner].to(weight.device)]
            weight = weight * factors.get(name, 1.0)
            result[name.replace(f"{base}.{old}.", f"{base}.{new}.", 1)] = weight
    last = f"{model.base_model_prefix}.norm.weight"
    result[last] = result[last] * factors.get(last, 1.0)
    smaller: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    smaller.load_state_dict({name: weight.clone() for name, weight in result.items()}, strict=False)
    smaller.tie_weights()
    smaller.generation_config = copy.deepcopy(model.generation_config)
    smaller.to(model.device)  # type: ignore[arg-type]
    smaller.train(model.training)
    return smaller


def _check(name: str, value: int, most: int, *, width: int) -> None:
    if not 1 <= value <= most:
        raise ValueError(f"`{name}` must lie between 1 and {most}, got {value}")
    if value < most and width % _BLOCK:
        raise ValueError(f"`{name}` {value} leaves rows of {width}, which 4- and 8-bit formats cannot store; use a "
                         f"multiple of {_BLOCK}")  # fmt: skip


def _best(values: Floats, count: int) -> NDArray[np.int64]:
    """The places of the largest values, ascending; of equal ones the earlier."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


def _layers_name(model: PreTrainedModel) -> str:
    return f"{model.base_model_prefix}.layers"


def _layers(model: PreTrainedModel) -> Any:
    base = getattr(model, model.base_model_prefix, None)
    return getattr(base, "layers", ())


def _readers(model: PreTrainedModel) -> list[tuple[tuple[nn.Module, ...], str]]:
    """The matrices that take in the residual stream, those of one place together, and the norm before them."""
    found: list[tuple[tuple[nn.Module, ...], str]] = []
    for at, layer in enumerate(_layers(model)):
        attention, network = layer.self_attn, layer.mlp
        networks = tuple(getattr(network, name) for name in ("up_proj", "gate_proj") if hasattr(network, name))
        for together, norm in zip(
            ((attention.q_proj, attention.k_proj, attention.v_proj), networks), _NORMS, strict=True
        ):
            # A StableLM whose network works beside its attention has one norm for both.
            own = _NORMS[0] if getattr(layer, norm, None) is None else norm
            found.append((together, f"{_layers_name(model)}.{at}.{own}.weight"))
    return [*found, ((model.get_output_embeddings(),), f"{model.base_model_prefix}.norm.weight")]


def _width(model: PreTrainedModel, stream: Floats) -> Floats:
    """Of each dimension of the residual stream its share in what the matrices take in, summed over these."""
    total = np.zeros(stream.shape[1])
    for (together, _), taken in zip(_readers(model), stream, strict=True):
        weights = torch.cat([module.get_parameter("weight").detach() for module in together])
        energy = taken * weights.float().square().sum(dim=0).double().cpu().numpy()
        total += energy / energy.sum()
    return total


def _norm_factors(model: PreTrainedModel, stream: Floats, wide: torch.Tensor) -> dict[str, float]:
    """What norms are multiplied by, so that dividing by the size of fewer dimensions changes nothing on average."""
    found, state = {}, model.state_dict()
    for (_, norm), taken in zip(_readers(model), stream, strict=True):
        gain = state[norm].double().square().cpu().numpy()
        size = np.divide(taken, gain, out=np.zeros_like(taken), where=gain > 0)
        found[norm] = float(np.sqrt(size[wide.numpy()].mean() / size.mean()))
    return found


def _has(layer: nn.Module, part: str) -> bool:
    try:
        return isinstance(layer.get_submodule(part), nn.Linear)
    except AttributeError:
        return False
