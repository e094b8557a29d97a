"""What a budget of tokens, bytes or operations means in optimiser steps."""

from __future__ import annotations

from torch import nn

from ..engine.records import Budget


def flops_per_token(model: nn.Module, *, length: int) -> float:
    """Floating point operations of one training token, forward and backward.

    Six for each weight of a matrix product, and for each layer six times the context for scores and mixing, which a
    causal mask halves (Kaplan et al., 2020, arXiv:2001.08361). A block that is applied several times counts so often.

    Args:
        model: any causal language model of transformers.
        length: tokens of a training sequence.
    """
    repeats = int(getattr(model.config, "layer_repeats", 1))
    total = 0.0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            flops = 6.0 * module.in_features * module.out_features
            if name.endswith("q_proj"):
                flops += 6.0 * length * module.out_features
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
