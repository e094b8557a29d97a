"""Which stock architecture of transformers equals a configuration, weight for weight.

A model that equals one needs no remote code, and whatever reads that architecture (vLLM, llama.cpp, ...) reads it.
Each row of `ROWS` was found exact by copying weights and comparing logits bit for bit; an export compares them again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..configuration_codenas import PER_LAYER_FIELDS, CodeNASConfig

Weights = dict[str, torch.Tensor]

# What the rows below check or carry over. Any other gene, also one that is added later, forbids a stock export.
_EXPRESSED = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "mlp_type",
        "norm_type",
        "position_embedding_type",
        "qk_norm",
        "layer_types",
        "sliding_window",
        "conv_kernel_size",
        "parallel_residual",
        "max_position_embeddings",
        "initializer_range",
        "norm_eps",
        "attention_dropout",
        "use_cache",
        "tie_word_embeddings",
        "rope_parameters",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    }
)
_OURS_ALONE: dict[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(CodeNASConfig)
    if field.name not in _EXPRESSED and field.name not in PreTrainedConfig.__dataclass_fields__
}


@dataclass(frozen=True)
class StockRow:
    """One stock architecture.

    Args:
        model_type: transformers' name.
        needs: field to the values that the architecture can express; what no row mentions must be at its default.
        settings: the stock configuration's own arguments for a configuration that fits.
        convert: our weights under the stock names.
        even_heads: the architecture wants `hidden_size` to be a multiple of the heads.
        usual_head_dim: the architecture has no head width of its own.
        multi_head: the architecture has as many key-value heads as query heads.
        windows: which sliding layers it can express: `none`, `any`, or `all` (each layer or none).
    """

    model_type: str
    needs: Mapping[str, tuple[Any, ...]]
    settings: Callable[[CodeNASConfig], dict[str, Any]]
    convert: Callable[[CodeNASConfig, Weights], Weights] = lambda config, weights: weights
    even_heads: bool = False
    usual_head_dim: bool = False
    multi_head: bool = False
    windows: str = "none"

    def reasons_against(self, config: Any) -> list[str]:
        """What of a homogeneous configuration the architecture cannot express; empty when it fits."""
        reasons = [
            f"{self.model_type} has {name} {' or '.join(map(str, allowed))}, not {getattr(config, name)}"
            for name, allowed in self.needs.items()
            if getattr(config, name) not in allowed
        ]
        heads, width = config.num_attention_heads, config.hidden_size
        if self.even_heads and width % heads:
            reasons.append(f"{self.model_type} wants hidden_size ({width}) to be a multiple of the heads ({heads})")
        if self.usual_head_dim and config.head_dim != width / heads:
            reasons.append(f"{self.model_type} has head_dim hidden_size / num_attention_heads, not {config.head_dim}")
        if self.multi_head and config.num_key_value_heads != heads:
            reasons.append(
                f"{self.model_type} has as many num_key_value_heads as heads, not {config.num_key_value_heads}"
            )
        kinds = set(config.layer_types)
        if "sliding_attention" in kinds and (self.windows == "none" or (self.windows == "all" and len(kinds) > 1)):
            reasons.append(f"{self.model_type} has no such sliding_window layers")
        return reasons


def _common(config: CodeNASConfig) -> dict[str, Any]:
    names = (
        "vocab_size",
        "max_position_embeddings",
        "initializer_range",
        "tie_word_embeddings",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    return {name: getattr(config, name) for name in names}


def _llama_like(config: CodeNASConfig) -> dict[str, Any]:
    names = (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "attention_dropout",
    )
    same = {name: getattr(config, name) for name in names}
    rope = {"rope_type": "default", "rope_theta": 10_000.0} | dict(config.rope_parameters or {})
    return (
        _common(config)
        | same
        | {"head_dim": config.head_dim, "rms_norm_eps": config.norm_eps, "rope_parameters": rope}
    )


def _windows(config: CodeNASConfig) -> dict[str, Any]:
    sliding = config.sliding_window is not None
    return {
        "layer_types": list(config.layer_types),
        "use_sliding_window": sliding,
        "sliding_window": config.sliding_window,
    }


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _smollm3(config: CodeNASConfig) -> dict[str, Any]:
    rope = int(config.position_embedding_type == "rope")
    return _llama_like(config) | _windows(config) | {"no_rope_layers": [rope] * config.num_hidden_layers}


def _stablelm(config: CodeNASConfig) -> dict[str, Any]:
    values = _without(_llama_like(config), "head_dim", "rms_norm_eps")
    values["rope_parameters"]["partial_rotary_factor"] = 1.0
    own = {"layer_norm_eps": config.norm_eps, "use_parallel_residual": config.parallel_residual}
    return values | own | {"use_qkv_bias": False}


def _starcoder2(config: CodeNASConfig) -> dict[str, Any]:
    values = _without(_llama_like(config), "rms_norm_eps")
    return values | {"norm_epsilon": config.norm_eps, "use_bias": False, "sliding_window": config.sliding_window}


def _gpt2(config: CodeNASConfig) -> dict[str, Any]:
    return _without(_common(config), "max_position_embeddings") | {
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_position_embeddings,
        "activation_function": config.hidden_act,
        "layer_norm_epsilon": config.norm_eps,
        "attn_pdrop": config.attention_dropout,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _starcoder2_weights(config: CodeNASConfig, weights: Weights) -> Weights:
    return {name.replace("up_proj", "c_fc").replace("mlp.down_proj", "mlp.c_proj"): w for name, w in weights.items()}


def _gpt2_weights(config: CodeNASConfig, weights: Weights) -> Weights:
    """GPT-2 keeps one matrix for query, key and value, all transposed, and has biases: zeros here."""
    renamed = {
        "model.layers": "transformer.h",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "model.norm": "transformer.ln_f",
        "model.embed_tokens": "transformer.wte",
        "model.embed_positions": "transformer.wpe",
    }
    found: Weights = {}
    for name, weight in weights.items():
        if "self_attn" not in name and "mlp" not in name:
            for ours, theirs in renamed.items():
                name = name.replace(ours, theirs)
            found[name] = weight
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"transformer.h.{layer}."
        qkv = torch.cat([weights[f"{ours}self_attn.{kind}_proj.weight"] for kind in "qkv"])
        matrices = {
            "attn.c_attn": qkv,
            "attn.c_proj": weights[ours + "self_attn.o_proj.weight"],
            "mlp.c_fc": weights[ours + "mlp.up_proj.weight"],
            "mlp.c_proj": weights[ours + "mlp.down_proj.weight"],
        }
        for name, matrix in matrices.items():
            found[f"{theirs}{name}.weight"] = matrix.T.contiguous()
            found[f"{theirs}{name}.bias"] = matrix.new_zeros(matrix.shape[0])
    return found


def _needs(
    norm: str, position: str | tuple[str, ...], mlp: str, **others: tuple[Any, ...]
) -> dict[str, tuple[Any, ...]]:
    positions = (position,) if isinstance(position, str) else position
    plain = {"qk_norm": (False,), "parallel_residual": (False,)}
    return {"norm_type": (norm,), "position_embedding_type": positions, "mlp_type": (mlp,)} | plain | others


# In the order in which they are tried: the most widely supported first.
ROWS = (
    StockRow("llama", _needs("rmsnorm", "rope", "gated"), _llama_like, even_heads=True),
    StockRow(
        "qwen3",
        _needs("rmsnorm", "rope", "gated", qk_norm=(True,)),
        lambda config: _llama_like(config) | _windows(config),
        windows="any",
    ),
    StockRow("arcee", _needs("rmsnorm", "rope", "plain"), _llama_like, even_heads=True),
    StockRow("smollm3", _needs("rmsnorm", ("none", "rope"), "gated"), _smollm3, windows="any"),
    StockRow(
        "stablelm",
        _needs("layernorm", "rope", "gated", parallel_residual=(False, True)),
        _stablelm,
        usual_head_dim=True,
    ),
    StockRow("starcoder2", _needs("layernorm", "rope", "plain"), _starcoder2, _starcoder2_weights, windows="all"),
    StockRow(
        "gpt2",
        _needs("layernorm", "learned", "plain"),
        _gpt2,
        _gpt2_weights,
        usual_head_dim=True,
        multi_head=True,
    ),
)


def find_row(config: Any) -> tuple[StockRow | None, list[str]]:
    """The first row that equals a configuration (or whatever has its fields), else None and what forbids it."""
    reasons = [
        f"no stock architecture here has `{name}` {getattr(config, name)}"
        for name, default in _OURS_ALONE.items()
        if getattr(config, name, default) != default
    ]
    if "conv" in config.layer_types:
        reasons.append(f"no stock architecture here has `layer_types` {list(config.layer_types)}")
    if config.is_heterogeneous and config.per_layer_attributes:
        names = [name for name in PER_LAYER_FIELDS if name in config.per_layer_attributes]
        reasons.append(f"no stock architecture here lets `{'`, `'.join(names)}` differ between layers")
    if reasons:
        return None, reasons
    against = [(row, row.reasons_against(config)) for row in ROWS]
    for row, reasons in against:
        if not reasons:
            return row, []
    return None, min((reasons for _, reasons in against), key=len)


def stock_architecture(config: Any) -> tuple[str | None, list[str]]:
    """Name of the stock architecture that equals the configuration, or None and why: the genes that forbid it."""
    row, reasons = find_row(config)
    return (None if row is None else row.model_type), reasons
