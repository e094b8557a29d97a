"""What a budget of tokens, bytes or operations means in optimiser steps."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..engine.records import Budget

# What stock models call the one matrix that makes query, key and value; its rows say nothing of the queries alone.
_FUSED_ATTENTION = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "W_pack")


def flops_per_token(model: nn.Module, *, length: int) -> float:
    """Floating point operations of one training token, forward and backward.

    Six for each weight of a product, whatever module holds it (of a stack of experts those that a token visits), and
    for each attention layer six times the context for scores and mixing, which a causal mask halves (Kaplan et al.,
    2020, arXiv:2001.08361). A block that is applied several times counts so often. Tables that are looked up are free.

    Args:
        model: any causal language model of transformers.
        length: tokens of a training sequence.
    """
    config: Any = model.config
    repeats = int(getattr(config, "layer_repeats", 1))
    visited = getattr(config, "num_experts_per_tok", None)
    total = 0.0
    for name, module in model.named_modules():
        flops = 0.0
        for weight in module.parameters(recurse=False) if not isinstance(module, nn.Embedding) else ():
            experts = weight.ndim == 3 and not isinstance(module, nn.Conv1d)
            if weight.ndim > 1:
                flops += 6.0 * weight.numel() * (min(1.0, visited / weight.shape[0]) if experts and visited else 1.0)
        if name.endswith("q_proj"):
            flops += 6.0 * length * module.weight.shape[0]  # type: ignore[union-attr, index]
        elif name.endswith(_FUSED_ATTENTION):
            heads = int(config.num_attention_heads)
            flops += 6.0 * length * heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        total += flops * (repeats if ".layers." in f".{name}" else 1)
    return total


def planned_steps(
    budget: Budget, *, tokens_per_step: int, bytes_per_token: float, flops_per_token: float
) -> int | None:
    """Optimiser steps of a whole budget, at least 1; None for a budget in seconds, which only the clock knows."""
    if budget.kind == "seconds":
        return None
    one_step = {
        "steps": 1.0,
        "tokens": float(tokens_per_step),
        "bytes": tokens_per_step * bytes_per_token,
        "flops": tokens_per_step * flops_per_token,
    }[budget.kind]
    return max(1, round(budget.amount / one_step))
