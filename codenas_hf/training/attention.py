"""How attention is trained in bfloat16 on a CPU: in plain products, a block at a time.

torch's fused kernel computes bfloat16 without the processor's units for it; plain products use them, but a score for
every pair of tokens costs more to move through memory than to compute. Here a block of scores stays in the cache from
its product to its use, and what a causal mask hides to the right of a block is never computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

NAME = "codenas_blocks"
_BLOCK = 256  # rows of scores, which lie in a cache of 1 MB with their gradients
_LONGEST = 1024  # tokens of a row: beyond, the scores that are kept for the way back cost too much memory


class _Blocks(torch.autograd.Function):
    """Causal attention of q, k, v [batch, heads, length, head_dim] under a mask [batch, 1, length, length] to add."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        batch, heads, length, _ = query.shape
        rows = max(1, _BLOCK // length)  # of the batch in one product
        query, key, value = (x.contiguous() for x in (query, key, value))
        output = torch.empty_like(value)
        kept = []
        for first in range(0, batch, rows):
            q, k, v, out = (x[first : first + rows].flatten(0, 1) for x in (query, key, value, output))
            hidden = mask[first : first + rows].expand(-1, heads, -1, -1)
            for start in range(0, length, _BLOCK):
                end = min(start + _BLOCK, length)
                seen = hidden[:, :, start:end, :end].reshape(-1, end - start, end)
                scores = torch.baddbmm(seen, q[:, start:end], k[:, :end].transpose(1, 2), alpha=scale)
                weights = torch.softmax(scores, dim=-1)
                out[:, start:end] = torch.bmm(weights, v[:, :end])
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale = scale
        return output

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        batch, _, length, _ = query.shape
        rows, weights = max(1, _BLOCK // length), iter(kept)
        output = gradients[0].to(query.dtype).contiguous()
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))  # sums over blocks
        for first in range(0, batch, rows):
            part = (x[first : first + rows].flatten(0, 1) for x in (query, key, value, output, of_query))
            q, k, v, out, to_q = part
            to_k, to_v = (x[first : first + rows].flatten(0, 1) for x in (of_key, of_value))
            for start in range(0, length, _BLOCK):
                end = min(start + _BLOCK, length)
                share, back = next(weights), out[:, start:end]
                to_v[:, :end] += torch.bmm(share.transpose(1, 2), back)
                scores = torch.ops.aten._softmax_backward_data(
                    torch.bmm(back, v[:, :end].transpose(1, 2)), share, -1, share.dtype
                )
                to_q[:, start:end] = torch.bmm(scores, k[:, :end])
                to_k[:, :end] += torch.bmm(scores.transpose(1, 2), q[:, start:end])
        return of_query * ctx.scale, of_key * ctx.scale, of_value, None, None


@torch.compiler.disable
def blocks_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in blocks where it is causal and plain, by torch's kernel where it is anything else.

    Args:
        module: the attention layer.
        query: [batch, heads, length, head_dim].
        key: [batch, key-value heads, length, head_dim].
        value: as `key`.
        attention_mask: [batch, 1, length, length], added to the scores; hides at least what comes later.
        dropout: of the attention weights.
        scaling: of the scores; None takes one over the root of `head_dim`.
        position_bias: added to the scores as well.
        **kwargs: for torch's kernel.

    Returns:
        [batch, length, heads, head_dim], and no weights.
    """
    plain = not dropout and position_bias is None and kwargs.get("softcap") is None
    if not plain or attention_mask is None or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, position_bias=position_bias,
            **kwargs,
        )  # fmt: skip
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # float32's lowest number would become minus infinity in bfloat16, and a row that is hidden as a whole no number.
    mask = attention_mask.clamp(min=torch.finfo(torch.bfloat16).min).to(query.dtype)
    return _Blocks.apply(query, key, value, mask, scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, blocks_attention_forward)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def fast_attention(model: nn.Module, dtype: torch.dtype, *, length: int) -> Iterator[None]:
    """Trains with attention in blocks where that is faster, and leaves the model as it was.

    Forward and backward of one layer of two million parameters take 6 and 18 ms with rows of 256 and 512 tokens, in
    whole products 9 and 28, by torch's kernel 13 and 40 (AMD EPYC with `avx512_bf16`, one thread).
    """
    config: Any = getattr(model, "config", None)
    device = next(model.parameters()).device.type
    slow = device == "cpu" and dtype is torch.bfloat16 and length <= _LONGEST
    before = getattr(config, "_attn_implementation", None)
    if not slow or before != "sdpa" or not isinstance(model, PreTrainedModel):
        yield
        return
    # A bias of positions is added to every score: whole products do that, the model refuses what it does not know.
    biased = getattr(config, "position_embedding_type", None) == "alibi"
    model.set_attn_implementation("eager" if biased else NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
