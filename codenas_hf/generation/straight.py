"""The step of a llama-like model as a straight line of operations.

A small model decodes a token in less time than transformers takes to find out what to do: masks, hooks, caches and
settings are looked at in every layer. Here they are looked at once. The weights are the model's own, not copies.
One more token is computed with vectors in place of matrices of one row: fewer operations, on a processor only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_MODEL_TYPES = ("llama", "qwen2", "qwen3", "arcee")
_FIRST_TOKENS = 128  # of room in the cache; it doubles


class StraightDecoder:
    """One sequence in a model of `_MODEL_TYPES`, in float32 on a processor, with its cache.

    Args:
        model: as transformers made it: plain projections, full attention, rotary positions of the default kind.

    Raises:
        ValueError: another kind of model; says what is different.
    """

    def __init__(self, model: Any) -> None:
        config, body = model.config, getattr(model, "model", None)
        if config.model_type not in _MODEL_TYPES:
            raise ValueError(f"{config.model_type} is none of {', '.join(_MODEL_TYPES)}")
        if any("forward" in vars(module) or module._forward_hooks for module in model.modules()):
            raise ValueError("something looks at what its modules compute, or computes it in their place")
        if {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
            raise ValueError("it has layers of other kinds than full attention")
        kinds = {(weight.dtype, weight.device.type) for weight in model.parameters()}
        if kinds != {(torch.float32, "cpu")} or body is None:
            raise ValueError("it is not in float32 on a processor")
        self.layers = [_layer(layer) for layer in body.layers]
        self.head_dim = int(body.layers[0].self_attn.head_dim)
        self.embedding: torch.Tensor = body.embed_tokens.weight
        self.norm: tuple[Any, ...] = _norm(body.norm)
        self.head = _projection(model.lm_head)
        self.rotary = body.rotary_emb
        half = self.head_dim // 2
        self.turned = torch.cat([torch.arange(half, self.head_dim), torch.arange(half)])
        self.sign = torch.ones(self.head_dim)
        self.sign[:half] = -1
        queries = [layer["q"][0].shape[0] for layer in self.layers]
        self.both = [
            torch.empty(n + layer["heads"] * self.head_dim) for n, layer in zip(queries, self.layers, strict=True)
        ]
        self.parts = [(both[:n], both[n:]) for both, n in zip(self.both, queries, strict=True)]
        self.length = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._make_room(_FIRST_TOKENS)

    def _make_room(self, tokens: int) -> None:
        """Room for so many tokens, and their angles."""
        cos, sin = self.rotary(self.embedding[:1], torch.arange(tokens)[None])
        if cos.shape[-1] != self.head_dim:
            raise ValueError("its rotary positions turn a part of each head")
        self.cos, self.sin = cos[0, :, None], sin[0, :, None] * self.sign
        for kept in (self.keys, self.values):
            old = list(kept)
            kept[:] = [self.embedding.new_empty(layer["heads"], tokens, self.head_dim) for layer in self.layers]
            for new, before in zip(kept, old, strict=False):
                new[:, : self.length] = before[:, : self.length]

    def __call__(self, ids: list[int]) -> torch.Tensor:
        """The logits `[vocabulary]` behind some more tokens."""
        begin, new = self.length, len(ids)
        end = begin + new
        if end > self.cos.shape[0]:
            self._make_room(max(end, 2 * self.cos.shape[0]))
        self.length = end
        if new == 1:
            return self._one_more(ids[0], begin)
        cos, sin = self.cos[begin:end], self.sin[begin:end]
        mask = torch.arange(end) <= torch.arange(begin, end)[:, None]
        x = F.embedding(torch.tensor(ids), self.embedding)
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            h = F.rms_norm(x, *layer["norm"])
            q, k = (self._heads(h, *layer[name]) for name in "qk")
            q, k = (torch.addcmul(y * cos, y.index_select(-1, self.turned), sin).transpose(0, 1) for y in (q, k))
            keys[:, begin:end] = k
            values[:, begin:end] = F.linear(h, *layer["v"]).view(new, -1, self.head_dim).transpose(0, 1)
            mixed = F.scaled_dot_product_attention(
                q[None], keys[None, :, :end], values[None, :, :end], attn_mask=mask, enable_gqa=True
            )
            x = x + F.linear(mixed[0].transpose(0, 1).reshape(new, -1), *layer["o"])
            h = F.rms_norm(x, *layer["ffn_norm"])
            inner = layer["act"](F.linear(h, *layer["gate"]))
            if layer["up"] is not None:
                inner = inner * F.linear(h, *layer["up"])
            x = x + F.linear(inner, *layer["down"])
        return F.linear(F.rms_norm(x[-1], *self.norm), *self.head)

    def _one_more(self, token: int, at: int) -> torch.Tensor:
        """The same for one token at a position."""
        cos, sin, end, dim = self.cos[at], self.sin[at], at + 1, self.head_dim
        x = self.embedding[token]
        kept = zip(self.layers, self.keys, self.values, self.both, self.parts, strict=True)
        for layer, keys, values, both, (q, k) in kept:
            h = _normed(x, layer["norm"])
            for out, (weight, bias, _) in ((q, layer["q"]), (k, layer["k"])):
                torch.mv(weight, h, out=out)
                if bias is not None:
                    out += bias
            turned = both.view(-1, dim)
            heads = len(turned) - layer["heads"]
            if layer["q"][2] is not None:
                turned = torch.cat(
                    [F.rms_norm(turned[:heads], *layer["q"][2]), F.rms_norm(turned[heads:], *layer["k"][2])]
                )
            turned = torch.addcmul(turned * cos, turned.index_select(-1, self.turned), sin)
            keys[:, at] = turned[heads:]
            values[:, at] = _product(h, layer["v"]).view(-1, dim)
            mixed = F.scaled_dot_product_attention(
                turned[None, :heads, None], keys[None, :, :end], values[None, :, :end], enable_gqa=True
            )
            x = x + _product(mixed.view(-1), layer["o"])
            h = _normed(x, layer["ffn_norm"])
            inner = layer["act"](_product(h, layer["gate"]))
            if layer["up"] is not None:
                inner = inner * _product(h, layer["up"])
            x = x + _product(inner, layer["down"])
        return _product(_normed(x, self.norm), self.head)

    def _heads(self, h: torch.Tensor, weight: Any, bias: Any, norm: tuple[Any, ...] | None) -> torch.Tensor:
        y = F.linear(h, weight, bias).view(len(h), -1, self.head_dim)
        return y if norm is None else F.rms_norm(y, *norm)


def _product(x: torch.Tensor, weights: tuple[Any, Any]) -> torch.Tensor:
    """What a projection makes of a vector."""
    weight, bias = weights
    return torch.mv(weight, x) if bias is None else torch.addmv(bias, weight, x)


def _normed(x: torch.Tensor, norm: tuple[Any, ...]) -> torch.Tensor:
    """What `rms_norm` makes of a vector."""
    shape, weight, eps = norm
    return torch.mul(x, weight).mul_((torch.dot(x, x).item() / shape[0] + eps) ** -0.5)


def _projection(module: Any) -> tuple[Any, Any]:
    """Weight and bias of a plain projection."""
    if type(module) is not nn.Linear:
        raise ValueError(f"it has a {type(module).__name__} where a Linear was expected")
    return module.weight, module.bias


def _norm(module: Any) -> tuple[Any, ...]:
    """What `rms_norm` takes behind its input."""
    return (len(module.weight),), module.weight, float(module.variance_epsilon)


def _layer(layer: Any) -> dict[str, Any]:
    """The weights of a layer by their part in it."""
    attention, ffn = layer.self_attn, layer.mlp
    gate = getattr(ffn, "gate_proj", None)
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    q_norm, k_norm = (None if norm is None else _norm(norm) for norm in norms)
    return {
        "norm": _norm(layer.input_layernorm),
        "q": (*_projection(attention.q_proj), q_norm),
        "k": (*_projection(attention.k_proj), k_norm),
        "v": _projection(attention.v_proj),
        "o": _projection(attention.o_proj),
        "heads": attention.k_proj.out_features // attention.head_dim,
        "ffn_norm": _norm(layer.post_attention_layernorm),
        "gate": _projection(gate if gate is not None else ffn.up_proj),
        "up": None if gate is None else _projection(ffn.up_proj),
        "down": _projection(ffn.down_proj),
        "act": ffn.act_fn,
    }
