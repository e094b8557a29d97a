"""A genome: an architecture as an immutable value with a canonical hash, and its exact sizes without building it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ..configuration_codenas import PER_LAYER_FIELDS, CodeNASConfig, check_value, nearest_name

_ATTENTION_GENES = ("num_attention_heads", "num_key_value_heads", "head_dim")
LAYER_LETTERS = {"f": "full_attention", "s": "sliding_attention", "c": "conv"}
_SAFETENSORS_DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}


@dataclass(frozen=True, kw_only=True)
class Genome:
    """One architecture. Equal meaning gives an equal value, so an equal `genome_id`, in every process.

    What has no effect is set back to its default (the window of a model without sliding layers, say), a list of equal
    per-layer values becomes one value, and a pattern becomes its shortest form.

    Args:
        vocab_size: entries of the embedding.
        hidden_size: width of the residual stream.
        num_hidden_layers: depth, counting every application of a block.
        num_attention_heads: query heads. This and the next five genes may also be a tuple, one value per stored block.
        num_key_value_heads: a divisor of the query heads; None means as many.
        head_dim: width of a head; None means `hidden_size // num_attention_heads`.
        intermediate_size: width of the feed-forward network.
        hidden_act: silu, gelu or relu2.
        mlp_type: gated or plain.
        norm_type: rmsnorm or layernorm.
        position_embedding_type: rope, learned, alibi or none.
        tie_word_embeddings: whether input embedding and head are one matrix.
        rope_theta: base of the rotary frequencies; has an effect with rope only.
        qk_norm: RMSNorm over each head of queries and keys.
        layer_pattern: letters f (full attention), s (sliding window), c (short convolution), repeated over the blocks.
        sliding_window: tokens that an s layer sees; None exactly where there is none.
        conv_kernel_size: taps of c layers.
        residual_scalars: learned weights of residual stream and embedding before each layer.
        final_logit_softcapping: cap of the logits, or None.
        layer_repeats: how often each stored block is applied in a row; a divisor of `num_hidden_layers`.
        parallel_residual: attention and feed-forward network side by side.
        max_position_embeddings: rows of the position table; a gene with learned positions only.

    Raises:
        ValueError: a value that is not allowed, or genes that contradict each other; names gene and value.
    """

    PER_BLOCK_GENES: ClassVar[tuple[str, ...]] = PER_LAYER_FIELDS

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int | tuple[int, ...]
    num_key_value_heads: int | tuple[int, ...] | None = None
    head_dim: int | tuple[int, ...] | None = None
    intermediate_size: int | tuple[int, ...]
    hidden_act: str | tuple[str, ...] = "silu"
    mlp_type: str | tuple[str, ...] = "gated"
    norm_type: str = "rmsnorm"
    position_embedding_type: str = "rope"
    tie_word_embeddings: bool = True
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    layer_pattern: str = "f"
    sliding_window: int | None = None
    conv_kernel_size: int = 3
    residual_scalars: bool = False
    final_logit_softcapping: float | None = None
    layer_repeats: int = 1
    parallel_residual: bool = False
    max_position_embeddings: int = 1024

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._set(field.name, _plain(getattr(self, field.name)))
        for name in ("rope_theta", "final_logit_softcapping"):
            value = getattr(self, name)
            self._set(name, float(value) if type(value) is int else value)
        for name in ("num_hidden_layers", "layer_repeats", "hidden_size"):
            check_value(name, getattr(self, name))
        if self.num_hidden_layers % self.layer_repeats:
            raise ValueError(
                f"`num_hidden_layers` ({self.num_hidden_layers}) must be a multiple of "
                f"`layer_repeats` ({self.layer_repeats})"
            )
        if self.num_key_value_heads is None:
            self._set("num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            self._set("head_dim", self._default_head_dim())
        self._check()
        self._canonicalise()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _default_head_dim(self) -> Any:
        heads = self.num_attention_heads
        for count in heads if isinstance(heads, tuple) else (heads,):
            check_value("num_attention_heads", count)
            if self.hidden_size % count:
                raise ValueError(
                    f"`head_dim` is needed where `hidden_size` ({self.hidden_size}) is not a multiple of "
                    f"`num_attention_heads` ({count})"
                )
        return tuple(self.hidden_size // n for n in heads) if isinstance(heads, tuple) else self.hidden_size // heads

    def _check(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(value, tuple):
                if name not in self.PER_BLOCK_GENES:
                    raise ValueError(
                        f"`{name}` has one value for the whole model, got {list(value)}; "
                        f"only {', '.join(self.PER_BLOCK_GENES)} may be lists"
                    )
                if len(value) != self.num_blocks:
                    raise ValueError(
                        f"`{name}` must have one value for each of {self.num_blocks} blocks, got {list(value)}"
                    )
            for item in value if isinstance(value, tuple) else (value,):
                check_value(name, item)
        for name in ("rope_theta", "final_logit_softcapping"):
            value = getattr(self, name)
            optional = name == "final_logit_softcapping"
            if not (optional and value is None) and not (isinstance(value, float) and 0 < value < math.inf):
                raise ValueError(f"`{name}` must be a positive number{' or None' * optional}, got {value!r}")
        pattern = self.layer_pattern
        if not isinstance(pattern, str) or not pattern or set(pattern) - set(LAYER_LETTERS):
            raise ValueError(
                f"`layer_pattern` must be letters of {', '.join(LAYER_LETTERS)}, e.g. 'sf', got {pattern!r}"
            )
        letters = self.block_letters
        if set(letters) == {"c"}:
            raise ValueError(
                f"`layer_pattern` needs an attention layer among {self.num_blocks} blocks, got {pattern!r}"
            )
        if "s" in letters and self.sliding_window is None:
            raise ValueError(f"`sliding_window` is needed with `layer_pattern` {pattern!r}, got None")
        for block, letter in enumerate(letters):
            heads, kv_heads, head_dim = (self.at(name, block) for name in _ATTENTION_GENES)
            if letter != "c" and heads % kv_heads:
                raise ValueError(
                    f"`num_attention_heads` ({heads}) must be a multiple of `num_key_value_heads` ({kv_heads}), "
                    f"got block {block}"
                )
            if letter != "c" and self.position_embedding_type == "rope" and head_dim % 2:
                raise ValueError(f"rope needs an even `head_dim`, got {head_dim} in block {block}")

    def _canonicalise(self) -> None:
        letters = self.block_letters
        shortest = next(
            n for n in range(1, len(letters) + 1) if all(letters[i] == letters[i % n] for i in range(len(letters)))
        )
        self._set("layer_pattern", letters[:shortest])
        if "s" not in letters:
            self._set("sliding_window", None)
        if "c" not in letters:
            self._set("conv_kernel_size", 3)
        if self.position_embedding_type != "rope":
            self._set("rope_theta", 10_000.0)
        if self.position_embedding_type != "learned":
            self._set("max_position_embeddings", 1024)
        for name in self.PER_BLOCK_GENES:
            value = getattr(self, name)
            if isinstance(value, tuple):
                if name in _ATTENTION_GENES:  # a convolution has no heads: its entry means nothing
                    usual = _most_common([v for v, letter in zip(value, letters, strict=True) if letter != "c"])
                    value = tuple(usual if letter == "c" else v for v, letter in zip(value, letters, strict=True))
                self._set(name, value[0] if len(set(value)) == 1 else value)

    @property
    def num_blocks(self) -> int:
        """Stored blocks."""
        return self.num_hidden_layers // self.layer_repeats

    @property
    def block_letters(self) -> str:
        """One letter of `layer_pattern` for each stored block."""
        return "".join(self.layer_pattern[i % len(self.layer_pattern)] for i in range(self.num_blocks))

    def at(self, name: str, block: int) -> Any:
        """The value of a gene in one stored block."""
        value = getattr(self, name)
        return value[block] if isinstance(value, tuple) else value

    def to_dict(self) -> dict[str, Any]:
        """All genes, JSON values; `from_dict` is the inverse."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Genome:
        """A genome from its JSON form; absent genes have their defaults.

        Raises:
            ValueError: an unknown gene (the nearest is named), a missing one, or an invalid value.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in data:
            if name not in fields:
                raise ValueError(f"unknown gene `{name}`" + nearest_name(str(name), fields))
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in data]
        if missing:
            raise ValueError(f"a genome needs `{'`, `'.join(missing)}`, got only {', '.join(data) or 'nothing'}")
        return cls(**data)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Genome:
        """Reads a genome from a YAML mapping of genes.

        Raises:
            ValueError: the file holds no mapping, or as in `from_dict`.
        """
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"{path} must hold a mapping from gene to value, got {type(data).__name__}")
        return cls.from_dict(data)

    @cached_property
    def genome_id(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON.

        Genes at their default are left out, so that a gene added later leaves earlier identities as they are.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        genes = {name: value for name, value in self.to_dict().items() if value != defaults[name]}
        text = json.dumps(genes, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_config(
        self,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        max_position_embeddings: int | None = None,
    ) -> CodeNASConfig:
        """The configuration of the model.

        Raises:
            ValueError: another `max_position_embeddings` than the gene's where positions are learned.
        """
        positions = max_position_embeddings or self.max_position_embeddings
        if self.position_embedding_type == "learned" and positions != self.max_position_embeddings:
            raise ValueError(
                f"`max_position_embeddings` is a gene where positions are learned: expected "
                f"{self.max_position_embeddings}, got {positions}"
            )
        letters, repeats = self.block_letters, self.layer_repeats
        usual: dict[str, Any] = {}
        overrides: dict[int, dict[str, Any]] = {}
        for name in self.PER_BLOCK_GENES:
            value = getattr(self, name)
            usual[name] = _most_common(value) if isinstance(value, tuple) else value
            for layer in range(self.num_hidden_layers):
                here = self.at(name, layer // repeats)
                if here != usual[name]:
                    overrides.setdefault(layer, {})[name] = here
        fields: dict[str, Any] = usual | {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "norm_type": self.norm_type,
            "position_embedding_type": self.position_embedding_type,
            "tie_word_embeddings": self.tie_word_embeddings,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "qk_norm": self.qk_norm,
            "layer_types": [LAYER_LETTERS[letters[layer // repeats]] for layer in range(self.num_hidden_layers)],
            "sliding_window": self.sliding_window,
            "conv_kernel_size": self.conv_kernel_size,
            "residual_scalars": self.residual_scalars,
            "final_logit_softcapping": self.final_logit_softcapping,
            "layer_repeats": repeats,
            "parallel_residual": self.parallel_residual,
            "max_position_embeddings": positions,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }
        if overrides:
            fields["per_layer_config"] = overrides
        return CodeNASConfig(**fields)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each stored tensor of the causal language model; a tied head is not stored."""
        width = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, width)}
        if self.position_embedding_type == "learned":
            shapes["model.embed_positions.weight"] = (self.max_position_embeddings, width)
        if self.residual_scalars:
            shapes["model.residual_scale"] = shapes["model.embedding_scale"] = (self.num_hidden_layers,)
        norms = ["model.norm"]
        for block, letter in enumerate(self.block_letters):
            name = f"model.layers.{block}"
            shapes |= {f"{name}.{k}.weight": v for k, v in self._block_shapes(block, letter).items()}
            norms += [f"{name}.input_layernorm"]
            norms += [] if self.parallel_residual else [f"{name}.post_attention_layernorm"]
        for norm in norms:
            shapes[f"{norm}.weight"] = (width,)
            if self.norm_type == "layernorm":
                shapes[f"{norm}.bias"] = (width,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, width)
        return shapes

    def _block_shapes(self, block: int, letter: str) -> dict[str, tuple[int, ...]]:
        width, inner = self.hidden_size, self.at("intermediate_size", block)
        shapes: dict[str, tuple[int, ...]] = {"mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
        if self.at("mlp_type", block) == "gated":
            shapes["mlp.gate_proj"] = (inner, width)
        if letter == "c":
            return shapes | {
                "conv.in_proj": (3 * width, width),
                "conv.conv": (width, 1, self.conv_kernel_size),
                "conv.out_proj": (width, width),
            }
        heads, kv_heads, head_dim = (self.at(name, block) for name in _ATTENTION_GENES)
        if self.qk_norm:
            shapes |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
        return shapes | {
            "self_attn.q_proj": (heads * head_dim, width),
            "self_attn.k_proj": (kv_heads * head_dim, width),
            "self_attn.v_proj": (kv_heads * head_dim, width),
            "self_attn.o_proj": (width, heads * head_dim),
        }

    def num_parameters(self) -> int:
        """Distinct parameters; tied ones count once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def weights_bytes(self, dtype: str = "bfloat16") -> int:
        """Exact size in bytes of `model.safetensors` as `save_pretrained` writes it: header and data.

        Raises:
            ValueError: a dtype that is not float32, bfloat16 or float16.
        """
        if dtype not in _SAFETENSORS_DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(_SAFETENSORS_DTYPES)}, got {dtype!r}")
        name, width = _SAFETENSORS_DTYPES[dtype]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor, shape in sorted(self.parameter_shapes().items()):
            end = offset + width * math.prod(shape)
            header[tensor] = {"dtype": name, "shape": shape, "data_offsets": (offset, end)}
            offset = end
        # 8 bytes that hold the header's length, the header padded to 8 bytes, then the tensors.
        length = len(json.dumps(header, separators=(",", ":")))
        return 8 + -(-length // 8) * 8 + offset


def _plain(value: Any) -> Any:
    """Python's own numbers and tuples, whatever the caller's (NumPy scalars, lists) were."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, float):
        return float(value)
    try:
        return operator.index(value)
    except TypeError:
        return value.item() if hasattr(value, "item") else value


def _most_common(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0]
