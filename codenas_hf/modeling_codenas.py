"""The CodeNAS decoder: whatever `CodeNASConfig` can say, built exactly, or refused.

One half of the remote-code pair: it is copied beside published weights, so it imports torch, transformers and its
sibling, nothing else. Where a configuration equals a stock architecture (Llama, Qwen3, ...) the order of floating
point operations equals that architecture's, so that an export is bit-equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import (
    create_causal_mask,
    create_recurrent_attention_mask,
    create_sliding_window_causal_mask,
    find_packed_sequence_indices,
)
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_codenas import CodeNASConfig

_MASKS: dict[str, Callable[..., Any]] = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
    "conv": create_recurrent_attention_mask,
}
# Attention functions that take a `position_bias`; the others would drop it without a word.
_TAKES_POSITION_BIAS = ("eager", "sdpa", "flex_attention")


class CodeNASRMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich, 2019) in float32, scaled in the input's dtype as Llama does."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalises the last dimension."""
        # Without its weight the fused operation rounds where Llama's three steps do: bit-equal on a CPU, and faster.
        normed = nn.functional.rms_norm(hidden_states, self.weight.shape, None, self.variance_epsilon)
        return self.weight * normed


def _make_norm(config: CodeNASConfig) -> nn.Module:
    kind = CodeNASRMSNorm if config.norm_type == "rmsnorm" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class CodeNASRotaryEmbedding(nn.Module):
    """Rotary position embedding (Su et al., 2021) for one head width."""

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.config = config
        self.rope_type: str = config.rope_parameters["rope_type"]
        default = self.rope_type == "default"
        compute = self.compute_default_rope_parameters if default else ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = compute(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: Any, **_: Any) -> tuple[torch.Tensor, float]:
        """Inverse frequencies [head_dim / 2] and the scale of cosine and sine, which is 1."""
        base, dim = config.rope_parameters["rope_theta"], config.head_dim
        return 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, each [batch or 1, length, head_dim], in the dtype of `x`."""
        frequencies = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = torch.cat((frequencies, frequencies), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates x [batch, heads, length, head_dim] by the angles given as [batch or 1, 1, length, head_dim]."""
    return (x * cos) + (_rotate_half(x) * sin)


def alibi_slopes(heads: int) -> torch.Tensor:
    """The slope of each head's linear bias [heads] (Press et al., 2022), also where `heads` is no power of two."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes)


def _repeat_heads(x: torch.Tensor, times: int) -> torch.Tensor:
    if times == 1:
        return x
    batch, heads, length, dim = x.shape
    return x[:, :, None].expand(batch, heads, times, length, dim).reshape(batch, heads * times, length, dim)


def eager_attention_forward(
    module: CodeNASAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations; returns [batch, length, heads, head_dim] and the attention weights."""
    key, value = _repeat_heads(key, module.num_key_value_groups), _repeat_heads(value, module.num_key_value_groups)
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if position_bias is not None:
        weights = weights + position_bias
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class CodeNASAttention(nn.Module):
    """Causal self-attention; heads, head width and key-value heads may differ from layer to layer."""

    def __init__(self, config: CodeNASConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config  # the global one: a resolved layer config is a copy that set_attn_implementation misses
        self.layer_idx = layer_idx
        layer = config.per_layer_config[layer_idx]
        self.head_dim: int = layer.head_dim
        self.num_heads: int = layer.num_attention_heads
        self.num_key_value_groups: int = layer.num_attention_heads // layer.num_key_value_heads
        self.scaling: float = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        sliding = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if sliding else None
        width, kv_width = self.num_heads * self.head_dim, layer.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = CodeNASRMSNorm(self.head_dim, config.norm_eps)
            self.k_norm = CodeNASRMSNorm(self.head_dim, config.norm_eps)
        if config.position_embedding_type == "alibi":
            self.slopes = nn.Buffer(alibi_slopes(self.num_heads), persistent=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        position_embeddings: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
        alibi_distance: torch.Tensor | None = None,
        depth: int,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states [batch, length, hidden_size] to the same shape; `depth` is the layer's place in the cache."""
        input_shape = hidden_states.shape[:-1]
        head_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(head_shape)
        key = self.k_proj(hidden_states).view(head_shape)
        value = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if position_embeddings is not None:
            cos, sin = position_embeddings[self.head_dim]
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, depth)
        if alibi_distance is not None:
            slopes = self.slopes.to(query.dtype)[None, :, None, None]
            bias = slopes * alibi_distance[:, None, :, : key.shape[2]].to(query.dtype)
            if self.config._attn_implementation == "flex_attention":
                bias = bias.expand(query.shape[0], -1, -1, -1)  # it indexes the batch, where the others broadcast
            kwargs["position_bias"] = bias
        if self.sliding_window is not None:
            kwargs["sliding_window"] = self.sliding_window
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*input_shape, -1).contiguous()), weights


class CodeNASShortConv(nn.Module):
    """Gated short causal convolution over time, as in LFM2 (Liquid AI, 2025): `out(C * conv(B * x))`.

    Its cache state is the last `conv_kernel_size` gated inputs, however long the text is.
    """

    def __init__(self, config: CodeNASConfig) -> None:
        super().__init__()
        size, self.kernel_size = config.hidden_size, config.conv_kernel_size
        self.in_proj = nn.Linear(size, 3 * size, bias=False)
        self.conv = nn.Conv1d(size, size, self.kernel_size, groups=size, bias=False)
        self.out_proj = nn.Linear(size, size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        documents: torch.Tensor | None = None,
        depth: int,
        **kwargs: Any,
    ) -> torch.Tensor:
        """hidden_states [batch, length, hidden_size] to the same shape.

        `attention_mask` [batch, length] is 0 at padding; `documents` [batch, length] numbers packed documents.
        """
        length, kernel = hidden_states.shape[1], self.kernel_size
        if attention_mask is not None:
            hidden_states = hidden_states * attention_mask[..., None].to(hidden_states.dtype)
        gate_in, gate_out, x = self.in_proj(hidden_states).chunk(3, dim=-1)
        x = gate_in * x
        if past_key_values is not None:
            states = past_key_values.update_conv_state(x.transpose(1, 2), depth, conv_kernel_size=kernel)
            x = states.transpose(1, 2)
        x = nn.functional.pad(x, (0, 0, kernel - 1, 0))[:, -(length + kernel - 1) :]
        taps = self.conv.weight[:, 0].to(x.dtype)
        mixed = x[:, kernel - 1 :] * taps[:, kernel - 1]
        for back in range(1, kernel):
            earlier = x[:, kernel - 1 - back : kernel - 1 - back + length]
            if documents is not None:
                before = nn.functional.pad(documents, (back, 0), value=-1)[:, :length]
                earlier = earlier * (before == documents)[..., None].to(x.dtype)
            mixed = mixed + earlier * taps[:, kernel - 1 - back]
        output: torch.Tensor = self.out_proj(gate_out * mixed)
        return output


class CodeNASMLP(nn.Module):
    """Feed-forward network: gated (Shazeer, 2020) or plain."""

    def __init__(self, config: CodeNASConfig, layer_idx: int) -> None:
        super().__init__()
        layer = config.per_layer_config[layer_idx]
        self.gated: bool = layer.mlp_type == "gated"
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, layer.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, layer.intermediate_size, bias=False)
        self.down_proj = nn.Linear(layer.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[layer.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size] to the same shape."""
        if self.gated:
            output: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        else:
            output = self.down_proj(self.act_fn(self.up_proj(x)))
        return output


class CodeNASDecoderLayer(GradientCheckpointingLayer):
    """One stored block; `layer_repeats` may apply it several times, each time at another `depth`."""

    def __init__(self, config: CodeNASConfig, layer_idx: int) -> None:
        super().__init__()
        self.is_conv = config.layer_types[layer_idx] == "conv"
        if self.is_conv:
            self.conv = CodeNASShortConv(config)
        else:
            self.self_attn = CodeNASAttention(config, layer_idx)
        self.mlp = CodeNASMLP(config, layer_idx)
        self.input_layernorm = _make_norm(config)
        self.parallel = config.parallel_residual
        if not self.parallel:
            self.post_attention_layernorm = _make_norm(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        scalars: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """hidden_states [batch, length, hidden_size] to the same shape.

        With `scalars` [2] the layer starts from a weighted sum of its input and the embeddings (modded-nanogpt's x0).
        """
        if scalars is not None and embeddings is not None:
            hidden_states = scalars[0] * hidden_states + scalars[1] * embeddings
        normed = self.input_layernorm(hidden_states)
        mixed = self.conv(normed, **kwargs) if self.is_conv else self.self_attn(normed, **kwargs)[0]
        hidden_states = hidden_states + mixed
        if not self.parallel:
            normed = self.post_attention_layernorm(hidden_states)
        hidden_states = hidden_states + self.mlp(normed)
        return hidden_states


class CodeNASPreTrainedModel(PreTrainedModel):
    """What all CodeNAS models share: initialisation, and what they support."""

    config: CodeNASConfig
    config_class = CodeNASConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CodeNASDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": CodeNASDecoderLayer, "attentions": CodeNASAttention}  # noqa: RUF012

    def _flash_attn_can_dispatch(self, *args: Any, **kwargs: Any) -> Any:
        if self.config.position_embedding_type == "alibi":
            raise ValueError(
                "flash attention cannot express the bias of `position_embedding_type` 'alibi'; "
                "use attn_implementation 'sdpa', 'eager' or 'flex_attention'"
            )
        return super()._flash_attn_can_dispatch(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Loading builds on the meta device: buffers outside the state dict have to be filled here as well.
        super()._init_weights(module)
        if isinstance(module, CodeNASAttention) and hasattr(module, "slopes"):
            init.copy_(module.slopes, alibi_slopes(module.num_heads))
        elif isinstance(module, CodeNASShortConv):
            init.normal_(module.conv.weight, mean=0.0, std=module.kernel_size**-0.5)
        elif isinstance(module, CodeNASModel) and module.config.residual_scalars:
            init.ones_(module.residual_scale)
            init.constant_(module.embedding_scale, 0.1)


class CodeNASModel(CodeNASPreTrainedModel):
    """The decoder without a head."""

    def __init__(self, config: CodeNASConfig) -> None:
        super().__init__(config)
        config.validate_architecture()
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        repeats = config.layer_repeats
        self.layers = nn.ModuleList(CodeNASDecoderLayer(config, i * repeats) for i in range(config.num_blocks))
        self.norm = _make_norm(config)
        self.rotary_emb = None
        if config.position_embedding_type == "rope":
            by_width = {
                layer.head_dim: layer
                for layer, kind in zip(config.per_layer_config, config.layer_types, strict=True)
                if kind != "conv"
            }
            self.rotary_emb = nn.ModuleDict({str(d): CodeNASRotaryEmbedding(c) for d, c in by_width.items()})
        # Reading a config takes microseconds, which decoding feels: what is read for every layer is kept here.
        self._kinds = tuple(config.layer_types)
        self._repeats = repeats
        self._position = config.position_embedding_type
        self._has_scalars = config.residual_scalars
        pairs = zip(config.per_layer_config, config.layer_types, strict=True)
        self._narrowest_head = min(layer.head_dim for layer, kind in pairs if kind != "conv")
        if config.residual_scalars:
            self.residual_scale = nn.Parameter(torch.ones(config.num_hidden_layers))
            self.embedding_scale = nn.Parameter(torch.full((config.num_hidden_layers,), 0.1))
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, Any] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the decoder.

        Args:
            input_ids: [batch, length], or give `inputs_embeds` [batch, length, hidden_size].
            attention_mask: [batch, past + length], 0 at padding; or one prepared mask per layer type.
            position_ids: [batch, length]. Without mask and cache, positions that start again mark packed documents,
                and no layer then looks across a boundary.
            past_key_values: the cache.
            use_cache: whether to fill and return a cache; None means the config's value.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("give exactly one of `input_ids` and `inputs_embeds`")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        self._refuse_backend(inputs_embeds.device.type)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        masks, documents = self._masks(inputs_embeds, attention_mask, past_key_values, position_ids)
        positions: torch.Tensor
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            positions = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past).unsqueeze(0)
            if self._position == "learned":
                self._check_length(inputs_embeds.shape[1] + past)
        else:
            positions = position_ids

        hidden_states = inputs_embeds
        if self._position == "learned":
            hidden_states = hidden_states + self.embed_positions(positions)
        rotations = None
        if self.rotary_emb is not None:
            rotations = {}
            for width, rotary in self.rotary_emb.items():
                cos, sin = rotary(hidden_states, positions)
                rotations[int(width)] = (cos.unsqueeze(1), sin.unsqueeze(1))
        distances = {}
        if self._position == "alibi":
            distances = {kind: self._distance(kind, inputs_embeds, past_key_values) for kind in masks}
        scalars: tuple[torch.Tensor, ...] | list[None] = [None] * len(self._kinds)
        if self._has_scalars:
            scalars = torch.stack((self.residual_scale, self.embedding_scale), dim=1).unbind(0)
        embeddings = hidden_states if self._has_scalars else None

        for depth, kind in enumerate(self._kinds[: self.config.num_hidden_layers]):
            hidden_states = self.layers[depth // self._repeats](
                hidden_states,
                scalars[depth],
                embeddings,
                attention_mask=masks[kind],
                position_ids=positions,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=rotations,
                alibi_distance=distances.get(kind),
                documents=documents,
                depth=depth,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _masks(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict[str, Any] | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None,
    ) -> tuple[dict[str, Any], torch.Tensor | None]:
        """One mask per layer type, and the document numbers [batch, length] that a convolution needs when packed."""
        if isinstance(attention_mask, dict):
            return attention_mask, None
        kinds = dict.fromkeys(self._kinds)
        documents = None
        if "conv" in kinds and attention_mask is None and past_key_values is None and position_ids is not None:
            documents = find_packed_sequence_indices(position_ids.expand(inputs_embeds.shape[0], -1))
        arguments = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        return {kind: _MASKS[kind](**arguments) for kind in kinds}, documents

    def _distance(self, kind: str, inputs_embeds: torch.Tensor, past_key_values: Cache | None) -> torch.Tensor:
        """Key position minus query position [1, length, key length], for the layers of one type."""
        length, device = inputs_embeds.shape[1], inputs_embeds.device
        past, key_length, offset = 0, length, 0
        if past_key_values is not None and kind != "conv":
            past = past_key_values.get_seq_length()
            key_length, offset = past_key_values.get_mask_sizes(length, self._kinds.index(kind))
        query = torch.arange(length, device=device) + past
        key = torch.arange(key_length, device=device) + offset
        return (key[None, :] - query[:, None])[None]

    def _check_length(self, length: int | torch.Tensor) -> None:
        """Learned positions end. A static cache counts on the device: reading it would break the graph."""
        if not isinstance(length, torch.Tensor) and length > self.config.max_position_embeddings:
            raise ValueError(
                f"the text has {length} tokens, but the model learned {self.config.max_position_embeddings} positions "
                f"(`max_position_embeddings`); cut it"
            )

    def _refuse_backend(self, device: str) -> None:
        """A backend that cannot express a gene would answer with another model's numbers."""
        backend, config = self.config._attn_implementation, self.config
        if self._position == "alibi" and backend not in _TAKES_POSITION_BIAS:
            raise ValueError(
                f"attn_implementation {backend!r} cannot express the bias of `position_embedding_type` 'alibi'; "
                f"use one of {', '.join(_TAKES_POSITION_BIAS)}"
            )
        if backend == "flex_attention" and device == "cpu" and self._narrowest_head < 32:
            # Found with torch 2.13: heads of 16 give wrong numbers or NaN there, for stock Llama as well.
            raise ValueError(f"flex_attention on a CPU needs `head_dim` 32 or more, got {self._narrowest_head}")
        if backend == "vllm":
            reasons = {
                "layer_repeats": config.layer_repeats > 1,
                "layer_types": "conv" in config.layer_types,
                "final_logit_softcapping": config.final_logit_softcapping is not None,
            }
            for name, forbids in reasons.items():
                if forbids:
                    raise ValueError(f"vLLM's transformers backend cannot express `{name}` = {getattr(config, name)}")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of a linear head, a block of tokens at a time.

    All logits of a batch never exist at once, and their gradient is taken while a block's logits are at hand (as in
    Liger Kernel, Hsu et al., 2024), so it costs the same three matrix products as the plain loss.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        chunk: int,
        softcap: float | None,
        ignore_index: int,
    ) -> torch.Tensor:
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden_states) if needs_grad else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_grad else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, hidden_states.shape[0], chunk):
                x = hidden_states[start : start + chunk].to(dtype)
                target = targets[start : start + chunk]
                kept = target != ignore_index
                logits = x @ matrix.t()
                slope = None
                if softcap is not None:
                    squashed = torch.tanh(logits / softcap)
                    logits, slope = softcap * squashed, 1 - squashed.float() ** 2
                logits = logits.float()
                picked = target.where(kept, 0)[:, None]
                logits = logits - logits.amax(dim=-1, keepdim=True)
                chosen = logits.gather(1, picked)
                probabilities = logits.exp_()
                mass = probabilities.sum(dim=-1, keepdim=True)
                total += ((mass.log() - chosen)[:, 0] * kept).sum()
                if grad_hidden is not None and grad_weight is not None:
                    grad = probabilities.mul_(kept[:, None] / mass)
                    grad.scatter_add_(1, picked, -kept[:, None].float())
                    grad = (grad if slope is None else grad * slope).to(dtype)
                    grad_hidden[start : start + chunk] = grad @ matrix
                    grad_weight += grad.t() @ x
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale, None, None, None, None


class CodeNASForCausalLM(CodeNASPreTrainedModel, GenerationMixin):
    """The decoder with a language model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]  # noqa: RUF012

    def __init__(self, config: CodeNASConfig) -> None:
        super().__init__(config)
        self.model = CodeNASModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        loss_chunk_tokens: int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the decoder and its head.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache: as in `CodeNASModel`.
            labels: [batch, length], the same as `input_ids`; the model shifts them; -100 is not scored.
            logits_to_keep: how many last positions get logits; 0 means all.
            loss_chunk_tokens: with `labels`, compute the loss this many tokens at a time and return no logits.

        Returns:
            `loss` in nats per scored token (or per `num_items_in_batch`), `logits` [batch, kept, vocab_size].
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        logits = loss = None
        if labels is not None and loss_chunk_tokens is not None:
            loss = self._chunked_loss(hidden_states, labels, loss_chunk_tokens, **kwargs)
        else:
            logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
            if self.config.final_logit_softcapping is not None:
                logits = self.config.final_logit_softcapping * torch.tanh(logits / self.config.final_logit_softcapping)
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _chunked_loss(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        chunk: int,
        *,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> torch.Tensor:
        if type(self.lm_head) is not nn.Linear or self.lm_head.bias is not None:
            raise ValueError(
                f"`loss_chunk_tokens` needs a plain lm_head, got {type(self.lm_head).__name__}; leave it unset"
            )
        if chunk < 1:
            raise ValueError(f"`loss_chunk_tokens` must be 1 or more, got {chunk}")
        if shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        targets = shift_labels.reshape(-1).to(hidden_states.device)
        total = _ChunkedCrossEntropy.apply(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            self.lm_head.weight,
            targets,
            chunk,
            self.config.final_logit_softcapping,
            ignore_index,
        )
        if num_items_in_batch is None:
            return total / (targets != ignore_index).sum()
        if isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.to(total.device)
        return total / num_items_in_batch


class CodeNASForSequenceClassification(GenericForSequenceClassification, CodeNASPreTrainedModel):
    """The decoder with a head that classifies a whole text by its last token."""


class CodeNASForTokenClassification(GenericForTokenClassification, CodeNASPreTrainedModel):
    """The decoder with a head that classifies each token."""


__all__ = [
    "CodeNASForCausalLM",
    "CodeNASForSequenceClassification",
    "CodeNASForTokenClassification",
    "CodeNASModel",
    "CodeNASPreTrainedModel",
]
