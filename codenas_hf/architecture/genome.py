"""A genome: an architecture as an immutable value with a canonical hash, and its exact sizes without building it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ..configuration_codenas import PER_LAYER_FIELDS, CodeNASConfig, check_value, nearest_name
from ..strict_yaml import SettingsError, read_yaml
from .genes import LAYER_LETTERS, Gene, plain, row

_HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")
_POSITIVE = {"rope_theta": False, "final_logit_softcapping": True}  # numbers above 0, and whether None is allowed too
_SAFETENSORS_DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}


@dataclass(frozen=True, kw_only=True)
class Genome:
    """One architecture. Equal meaning gives an equal value, so an equal `genome_id`, in every process.

    What has no effect is set back to its default (the window of a model without sliding layers, say), a list of equal
    per-layer values becomes one value, and a pattern becomes its shortest form.

    Each field is a row of the table of genes (`GENES`): its metadata says where the gene acts and what makes it idle.

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

    vocab_size: int = field(metadata=row(decides=False))
    hidden_size: int = field(metadata=row(where="layout"))
    num_hidden_layers: int = field(metadata=row(where="layout"))
    num_attention_heads: int | tuple[int, ...] = field(metadata=row(where="attention"))
    num_key_value_heads: int | tuple[int, ...] | None = field(default=None, metadata=row(where="attention"))
    head_dim: int | tuple[int, ...] | None = field(default=None, metadata=row(where="attention"))
    intermediate_size: int | tuple[int, ...] = field(metadata=row(where="network", decides=False))
    hidden_act: str | tuple[str, ...] = field(default="silu", metadata=row(where="network"))
    mlp_type: str | tuple[str, ...] = field(default="gated", metadata=row(where="network"))
    norm_type: str = field(default="rmsnorm", metadata=row())
    position_embedding_type: str = field(default="rope", metadata=row())
    tie_word_embeddings: bool = field(default=True, metadata=row(decides=False))
    rope_theta: float = field(default=10_000.0, metadata=row(needs=("position_embedding_type", "rope"), decides=False))
    qk_norm: bool = field(default=False, metadata=row())
    layer_pattern: str = field(default="f", metadata=row(where="layout"))
    sliding_window: int | None = field(default=None, metadata=row(needs=("layer_pattern", "s"), filled=True))
    conv_kernel_size: int = field(default=3, metadata=row(needs=("layer_pattern", "c"), decides=False))
    residual_scalars: bool = field(default=False, metadata=row())
    final_logit_softcapping: float | None = field(default=None, metadata=row())
    layer_repeats: int = field(default=1, metadata=row(where="layout"))
    parallel_residual: bool = field(default=False, metadata=row())
    max_position_embeddings: int = field(
        default=1024, metadata=row(needs=("position_embedding_type", "learned"), decides=False)
    )

    def __post_init__(self) -> None:
        for name in _NAMES:
            self._set(name, plain(getattr(self, name)))
        for name in _POSITIVE:
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
        for name in _NAMES:
            value = getattr(self, name)
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
                check_gene(name, item)
                if item is None and isinstance(value, tuple):
                    raise ValueError(f"`{name}` must have a number for each block, got {list(value)}")
        pattern = self.layer_pattern
        letters = self.block_letters
        if set(letters) == {"c"}:
            raise ValueError(
                f"`layer_pattern` needs an attention layer among {self.num_blocks} blocks, got {pattern!r}"
            )
        for name, gene in _CONDITIONAL.items():
            if gene.filled and getattr(self, name) is None and gene.acts(self.__dict__, letters):
                other = gene.needs[0] if gene.needs else ""
                raise ValueError(f"`{name}` is needed with `{other}` {getattr(self, other)!r}, got None")
        for block, letter in enumerate(letters):
            heads, kv_heads, head_dim = (self.at(name, block) for name in _HEADS)
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
        for name, gene in _CONDITIONAL.items():
            if not gene.acts(self.__dict__, letters):
                self._set(name, self.__dataclass_fields__[name].default)
        for name in self.PER_BLOCK_GENES:
            value = getattr(self, name)
            if isinstance(value, tuple):
                if name in _IN_ATTENTION:  # a convolution has no heads: its entry means nothing
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
            SettingsError: as in `read_yaml` and in `from_dict`; names the file.
        """
        try:
            return cls.from_dict(read_yaml(Path(path), kind="genes"))
        except SettingsError:
            raise
        except ValueError as error:
            raise SettingsError(f"{path}: {error}") from error

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
        fields: dict[str, Any] = {
            name: usual.get(name, getattr(self, name)) for name in _NAMES if name in CodeNASConfig.__dataclass_fields__
        }
        fields |= {
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "layer_types": [LAYER_LETTERS[letters[layer // repeats]] for layer in range(self.num_hidden_layers)],
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
        heads, kv_heads, head_dim = (self.at(name, block) for name in _HEADS)
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


def check_gene(name: str, value: Any) -> None:
    """Raises where `value` is none that the gene may have, in one block where blocks may differ.

    Raises:
        ValueError: names the gene, what is allowed and the value.
    """
    check_value(name, value)
    if name in _POSITIVE and not (value is None and _POSITIVE[name]):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value < math.inf):
            raise ValueError(f"`{name}` must be a positive number{' or None' * _POSITIVE[name]}, got {value!r}")
    letters = isinstance(value, str) and value and not set(value) - set(LAYER_LETTERS)
    if name == "layer_pattern" and not letters:
        raise ValueError(f"`layer_pattern` must be letters of {', '.join(LAYER_LETTERS)}, e.g. 'sf', got {value!r}")


def _most_common(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0]


# The table: one row for each field of `Genome` that says how it counts.
GENES: dict[str, Gene] = {f.name: f.metadata["gene"] for f in dataclasses.fields(Genome) if "gene" in f.metadata}
_NAMES = tuple(f.name for f in dataclasses.fields(Genome))
_IN_ATTENTION = frozenset(name for name, gene in GENES.items() if gene.where == "attention")
_CONDITIONAL = {name: gene for name, gene in GENES.items() if gene.needs}
