"""The step of a llama-like model as a straight line of operations.

A small model decodes a token in less time than transformers takes to find out what to do: masks, hooks, caches and
settings are looked at in every layer. Here they are looked at once. One more token is computed with vectors in place
of matrices of one row: fewer operations, on a processor only. There a product of matrix and vector that gives more
numbers than it takes is faster where the matrix lies column by column: queries, keys, values, the
entrances of the feed-forward part and the head are kept so, side by side, as copies of the model's weights; what gives
fewer numbers is the model's own.
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
        if is_watched(model):
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
        self.head = _beside(model.lm_head)
        self.weights = list(model.parameters())
        self.state = self._state()
        self.rotary = body.rotary_emb
        half = self.head_dim // 2
        self.turned = torch.cat([torch.arange(half, self.head_dim), torch.arange(half)])
        self.sign = torch.ones(self.head_dim)
        self.sign[:half] = -1
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
            turned, v = self._heads(F.linear(h, *layer["qkv"]).view(new, -1, self.head_dim), layer)
            turned = torch.addcmul(turned * cos, turned.index_select(-1, self.turned), sin).transpose(0, 1)
            q, keys[:, begin:end] = turned[: layer["queries"]], turned[layer["queries"] :]
            values[:, begin:end] = v.transpose(0, 1)
            mixed = F.scaled_dot_product_attention(
                q[None], keys[None, :, :end], values[None, :, :end], attn_mask=mask, enable_gqa=True
            )
            x = x + F.linear(mixed[0].transpose(0, 1).reshape(new, -1), *layer["o"])
            h = F.rms_norm(x, *layer["ffn_norm"])
            x = x + F.linear(_inside(F.linear(h, *layer["ffn"]), layer), *layer["down"])
        return F.linear(F.rms_norm(x[-1], *self.norm), *self.head)

    def _one_more(self, token: int, at: int) -> torch.Tensor:
        """The same for one token at a position."""
        cos, sin, end, dim = self.cos[at], self.sin[at], at + 1, self.head_dim
        x = self.embedding[token]
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            heads = layer["queries"]
            turned, v = self._heads(_product(_normed(x, layer["norm"]), layer["qkv"]).view(-1, dim), layer)
            turned = torch.addcmul(turned * cos, turned.index_select(-1, self.turned), sin)
            keys[:, at], values[:, at] = turned[heads:], v
            # The queries that share a key stand where the queries of a longer text would.
            mixed = F.scaled_dot_product_attention(
                turned[:heads].view(1, layer["heads"], -1, dim), keys[None, :, :end], values[None, :, :end]
            )
            x = x + _product(mixed.view(-1), layer["o"])
            x = x + _product(_inside(_product(_normed(x, layer["ffn_norm"]), layer["ffn"]), layer), layer["down"])
        return _product(_normed(x, self.norm), self.head)

    def _heads(self, made: torch.Tensor, layer: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys in one, and values, of `[..., heads, head_dim]`; the former with their norms."""
        queries, both = layer["queries"], layer["queries"] + layer["heads"]
        turned, v = made[..., :both, :], made[..., both:, :]
        if layer["q_norm"] is not None:
            q, k = turned[..., :queries, :], turned[..., queries:, :]
            turned = torch.cat([F.rms_norm(q, *layer["q_norm"]), F.rms_norm(k, *layer["k_norm"])], dim=-2)
        return turned, v

    def is_current(self) -> bool:
        """Whether the weights are those that were copied."""
        return self.state == self._state()

    def _state(self) -> tuple[int, int]:
        return self.weights[0].data_ptr(), sum(weight._version for weight in self.weights)


def is_watched(model: Any) -> bool:
    """Whether something looks at what its modules compute, or computes it in their place."""
    return any("forward" in vars(module) or module._forward_hooks for module in model.modules())


def _inside(made: torch.Tensor, layer: dict[str, Any]) -> torch.Tensor:
    """The inner activations of a feed-forward part; a gated one was given its gate and then its other entrance."""
    if not layer["gated"]:
        return layer["act"](made)  # type: ignore[no-any-return]
    gate, up = made.chunk(2, dim=-1)
    return layer["act"](gate) * up  # type: ignore[no-any-return]


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


def _beside(*modules: Any) -> tuple[Any, Any]:
    """Weights and biases of projections of one input as those of one projection, its weights column by column."""
    weights, biases = zip(*map(_projection, modules), strict=True)
    if any((bias is None) != (biases[0] is None) for bias in biases):
        raise ValueError("some of its projections have a bias, and others beside them have none")
    columns = torch.cat([weight.detach() for weight in weights]).t().contiguous().t()
    return columns, None if biases[0] is None else torch.cat([bias.detach() for bias in biases])


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
        "qkv": _beside(attention.q_proj, attention.k_proj, attention.v_proj),
        "q_norm": q_norm,
        "k_norm": k_norm,
        "o": _projection(attention.o_proj),
        "queries": attention.q_proj.out_features // attention.head_dim,
        "heads": attention.k_proj.out_features // attention.head_dim,
        "ffn_norm": _norm(layer.post_attention_layernorm),
        "ffn": _beside(ffn.up_proj) if gate is None else _beside(gate, ffn.up_proj),
        "gated": gate is not None,
        "down": _projection(ffn.down_proj),
        "act": ffn.act_fn,
    }
