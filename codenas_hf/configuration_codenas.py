"""The configuration of a CodeNAS model: every architectural choice is a plain stored field.

One half of the remote-code pair: it is copied beside published weights, so it imports nothing of this package.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

try:
    from transformers import GenerationConfig, PreTrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters
except ImportError as error:
    raise ImportError(
        "a codenas model needs transformers 5.23 or newer, this is an older one; pip install -U transformers"
    ) from error

PER_LAYER_FIELDS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "hidden_act",
    "mlp_type",
)
_CHOICES = {
    "hidden_act": ("silu", "gelu", "relu2"),
    "mlp_type": ("gated", "plain"),
    "norm_type": ("rmsnorm", "layernorm"),
    "position_embedding_type": ("rope", "learned", "alibi", "none"),
}
_FLAGS = ("qk_norm", "residual_scalars", "parallel_residual", "tie_word_embeddings", "use_cache")
# Smallest allowed value of each whole number, and whether None is allowed too.
_WHOLE_NUMBERS: dict[str, tuple[int, bool]] = {
    "vocab_size": (1, False),
    "hidden_size": (1, False),
    "intermediate_size": (1, False),
    "num_hidden_layers": (1, False),
    "num_attention_heads": (1, False),
    "num_key_value_heads": (1, True),
    "head_dim": (1, True),
    "sliding_window": (1, True),
    "conv_kernel_size": (2, False),
    "layer_repeats": (1, False),
    "max_position_embeddings": (1, False),
}
LAYER_TYPES = ("full_attention", "sliding_attention", "conv")

# What transformers itself stores in a config.json or passes to a config, beside the declared fields.
_FOREIGN_KEYS = frozenset(
    {
        "allow_global_per_layer_attribute_access",
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "partial_rotary_factor",
        "per_layer_config",
        "quantization_config",
        "rope_scaling",
        "rope_theta",
        "serialize_explicit_per_layer_config",
        "tie_last_hidden_states",
        "torch_dtype",
        "transformers.js_config",
        "transformers_weights",
    }
)


def nearest_name(name: Any, known: Any) -> str:
    """`; did you mean ...?` with the known name that is most like `name`, for the end of an error message."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)
    return f"; did you mean `{close[0]}`?" if close else ""


def check_value(name: str, value: Any, where: str = "") -> None:
    """Raises where `value` is not allowed for the field `name`, whatever the other fields are."""
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(
            f"{where}`{name}` must be one of {', '.join(_CHOICES[name])}, got {value!r}"
            + nearest_name(value, _CHOICES[name])
        )
    if name in _FLAGS and not isinstance(value, bool):
        raise ValueError(f"{where}`{name}` must be true or false, got {value!r}")
    if name in _WHOLE_NUMBERS:
        least, optional = _WHOLE_NUMBERS[name]
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(
                f"{where}`{name}` must be a whole number of {least} or more{' or None' * optional}, got {value!r}"
            )


@strict
class CodeNASConfig(PreTrainedConfig):
    """Architecture of a decoder-only language model.

    Values may differ from layer to layer through transformers' own `per_layer_config`, a mapping from layer index to
    the fields in `PER_LAYER_FIELDS` that differ there.

    Args:
        vocab_size: entries of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward network.
        num_hidden_layers: depth, counting every application of a block (see `layer_repeats`).
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads, a divisor of the query heads; None means as many as query heads.
        head_dim: width of a head; None means `hidden_size // num_attention_heads`.
        hidden_act: activation of the feed-forward network.
        mlp_type: `gated` (three matrices) or `plain` (two).
        norm_type: `rmsnorm`, or `layernorm` with a bias.
        position_embedding_type: `rope`, `learned`, `alibi` or `none`.
        qk_norm: RMSNorm over each head of queries and keys, before rope (as in Qwen3).
        layer_types: `full_attention`, `sliding_attention` or `conv` for each layer; None means full attention.
        sliding_window: tokens that a sliding layer sees, itself included; set exactly when there is such a layer.
        conv_kernel_size: taps of the gated short causal convolution (as in LFM2); used by `conv` layers.
        residual_scalars: each layer starts from `a * hidden + b * embedding` with learned scalars a and b.
        final_logit_softcapping: logits become `c * tanh(logits / c)`; None means unchanged.
        layer_repeats: each stored block is applied so often in a row: the depth grows, the bytes stay.
        parallel_residual: attention and feed-forward network read one shared norm and add up (as in GPT-J).
        max_position_embeddings: longest context that the model is meant for; rows of `learned` positions.
        initializer_range: standard deviation of a fresh matrix.
        norm_eps: added to the variance in norms.
        attention_dropout: dropout of attention weights in training.
        rope_parameters: as everywhere in transformers; the default is theta 10,000.

    Annotations are strings (the future import), which turns the generic type checks of `@strict` off: the checks here
    say what is allowed, and they raise a ValueError.

    Raises:
        ValueError: an unknown field, a value that is not allowed, or fields that contradict each other.
    """

    model_type = "codenas"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_pp_plan: ClassVar[dict[str, Any] | None] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Literal["silu", "gelu", "relu2"] = "silu"
    mlp_type: Literal["gated", "plain"] = "gated"
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    position_embedding_type: Literal["rope", "learned", "alibi", "none"] = "rope"
    qk_norm: bool = False
    layer_types: list[str] = None  # type: ignore[assignment]
    sliding_window: int | None = None
    conv_kernel_size: int = 3
    residual_scalars: bool = False
    final_logit_softcapping: float | int | None = None
    layer_repeats: int = 1
    parallel_residual: bool = False
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    use_cache: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: RopeParameters | dict[str, Any] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_unknown(kwargs)
        self._validate_values()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"`head_dim` is needed where `hidden_size` ({self.hidden_size}) is not a multiple of "
                    f"`num_attention_heads` ({self.num_attention_heads}); give `head_dim`, e.g. 32"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        super().__post_init__(**kwargs)
        self.base_model_tp_plan = self._tensor_parallel_plan()  # type: ignore[misc]
        # huggingface_hub would run this next, but wrap the error in a class that is no ValueError.
        self.validate_architecture()

    def _tensor_parallel_plan(self) -> dict[str, Any]:
        """How tensor parallelism splits the model: only the modules that it has. Convolutions stay whole."""
        plan = {f"layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"}
        plan |= {"layers.*.self_attn.o_proj": "rowwise"}
        plan |= {"layers.*.mlp.up_proj": "colwise", "layers.*.mlp.down_proj": "rowwise"}
        if self.qk_norm:
            plan |= {f"layers.*.self_attn.{name}_norm": "replicated_with_grad_allreduce" for name in "qk"}
        if any(layer.mlp_type == "gated" for layer in self.per_layer_config):
            plan["layers.*.mlp.gate_proj"] = "colwise"
        return plan

    def __eq__(self, other: object) -> bool:
        # The dataclass would compare fields one by one, which is refused where layers differ.
        return isinstance(other, CodeNASConfig) and self.__dict__ == other.__dict__

    def _refuse_unknown(self, kwargs: Mapping[str, Any]) -> None:
        """transformers stores unknown keys silently; a misspelled gene would then build a different model."""
        allowed = _FOREIGN_KEYS | GenerationConfig._get_default_generation_params().keys()
        for name, value in kwargs.items():
            if name not in allowed and not name.startswith("_"):
                fields = [field for field in self.__dataclass_fields__ if not field.startswith("_")]
                raise ValueError(
                    f"unknown field `{name}` (value {value!r}) for {type(self).__name__}" + nearest_name(name, fields)
                )
        for layer, overrides in (kwargs.get("per_layer_config") or {}).items():
            for name, value in overrides.items():
                if name not in PER_LAYER_FIELDS:
                    raise ValueError(
                        f"`per_layer_config[{layer}]` sets `{name}` to {value!r}, but between layers only "
                        f"{', '.join(PER_LAYER_FIELDS)} may differ" + nearest_name(name, PER_LAYER_FIELDS)
                    )

    @property
    def num_blocks(self) -> int:
        """Stored blocks; each is applied `layer_repeats` times in a row."""
        return self.num_hidden_layers // self.layer_repeats

    def validate_architecture(self) -> None:
        """Refuses what cannot be built exactly as asked; runs when a config is made, saved and built.

        Raises:
            ValueError: names the field, its value and what is allowed.
        """
        self._validate_values()
        if self.num_hidden_layers % self.layer_repeats:
            raise ValueError(
                f"`num_hidden_layers` ({self.num_hidden_layers}) must be a multiple of "
                f"`layer_repeats` ({self.layer_repeats})"
            )
        self._validate_layer_types()
        rope = self.rope_parameters or {}
        if (kind := rope.get("rope_type", "default")) not in (known := ["default", *ROPE_INIT_FUNCTIONS]):
            raise ValueError(f"`rope_parameters` names the rope_type {kind!r}; allowed are {', '.join(known)}")
        # Resolving a layer is slow, and where no value differs one layer says it all.
        layers = enumerate(self.per_layer_config) if self.is_heterogeneous else [(0, self)]
        for index, layer in layers:
            self._validate_layer(index, layer)
        for index, kind in enumerate(self.layer_types):
            first = index - index % self.layer_repeats
            if kind != self.layer_types[first]:
                raise ValueError(
                    f"layers {first} and {index} are one block (`layer_repeats` is {self.layer_repeats}), so "
                    f"`layer_types` must be equal, got {self.layer_types[first]} and {kind}"
                )

    def _validate_values(self) -> None:
        for name in (*_CHOICES, *_FLAGS, *_WHOLE_NUMBERS):
            check_value(name, self._getattr_without_heterogeneous_validation(name))
        for name in ("initializer_range", "norm_eps", "final_logit_softcapping", "attention_dropout"):
            value = getattr(self, name)
            if value is None and name == "final_logit_softcapping":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
                raise ValueError(f"`{name}` must be a number of 0 or more, got {value!r}")
        if self.final_logit_softcapping == 0:
            raise ValueError("`final_logit_softcapping` must be above 0, or None for no cap, got 0")
        if self.attention_dropout >= 1:
            raise ValueError(f"`attention_dropout` must be below 1, got {self.attention_dropout}")

    def _validate_layer_types(self) -> None:
        types = self.layer_types
        for kind in types:
            if kind not in LAYER_TYPES:
                raise ValueError(
                    f"`layer_types` may hold {', '.join(LAYER_TYPES)}, got {kind!r}" + nearest_name(kind, LAYER_TYPES)
                )
        if len(types) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` must name all {self.num_hidden_layers} layers (`num_hidden_layers`), got {len(types)}"
            )
        if all(kind == "conv" for kind in types):
            raise ValueError("`layer_types` needs at least one attention layer, got only conv")
        if ("sliding_attention" in types) != (self.sliding_window is not None):
            raise ValueError(
                f"`sliding_window` must be set exactly when `layer_types` has a sliding_attention layer, "
                f"got {self.sliding_window} with {sorted(set(types))}"
            )

    def _validate_layer(self, index: int, layer: PreTrainedConfig) -> None:
        where = f"layer {index}: " if self.is_heterogeneous else ""
        for name in PER_LAYER_FIELDS:
            check_value(name, getattr(layer, name), where)
        if layer.num_attention_heads % layer.num_key_value_heads:
            raise ValueError(
                f"{where}`num_attention_heads` ({layer.num_attention_heads}) must be a multiple of "
                f"`num_key_value_heads` ({layer.num_key_value_heads})"
            )
        if self.position_embedding_type == "rope" and layer.head_dim % 2:
            raise ValueError(f"{where}rope needs an even `head_dim`, got {layer.head_dim}")
        first = index - index % self.layer_repeats
        if index != first:
            head = self.per_layer_config[first]
            for name in PER_LAYER_FIELDS:
                if getattr(layer, name) != getattr(head, name):
                    raise ValueError(
                        f"layers {first} and {index} are one block (`layer_repeats` is {self.layer_repeats}), so "
                        f"`{name}` must be equal, got {getattr(head, name)!r} and {getattr(layer, name)!r}"
                    )


__all__ = ["CodeNASConfig"]
