"""Genomes from files: YAML of this project, or the JSON architectures of an earlier one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..strict_yaml import SettingsError
from .genome import Genome

# The earlier project's names, from its `ArchitectureConfig`; its defaults where a file leaves a field out.
_ACTIVATIONS = {
    "gelu": ("gelu", "plain"),
    "silu": ("silu", "plain"),
    "geglu": ("gelu", "gated"),
    "swiglu": ("silu", "gated"),
}
_POSITIONS = {"rope": "rope", "alibi": "alibi", "absolute": "learned"}
_NORMS = ("layernorm", "rmsnorm")
_NEEDED = (
    "num_layers",
    "hidden_dim",
    "num_heads",
    "ffn_multiplier",
    "normalization",
    "activation",
    "position_encoding",
)
# Exact attention under two names. Its other types existed by name only, or differ in their computation.
_TYPES = ("transformer", "flash_attention")
_IGNORED = ("attention_dropout", "residual_dropout", "model_type")


def read_genome(path: Path) -> Genome:
    """A genome from a YAML or JSON file, in this project's genes or an earlier project's names.

    Raises:
        FileNotFoundError: no such file.
        SettingsError: not YAML or JSON, a gene that is unknown, given twice or impossible, or something of the earlier
            project that does not exist here; names the file.
    """
    if not path.exists():
        raise FileNotFoundError(f"no genome file {path}; see configs/genomes/ for examples")
    if path.suffix != ".json":
        return Genome.from_yaml(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
        if not isinstance(data, dict):
            raise ValueError(f"expected an object of genes, got {type(data).__name__}")
        data = data.get("architecture", data)
        if not isinstance(data, dict):
            raise ValueError(f"`architecture` must hold an object, got {data!r}")
        return genome_from_architecture(data) if "hidden_dim" in data else Genome.from_dict(data)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{path} is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise SettingsError(f"{path} is not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice; keep one of them")
    return dict(pairs)


def genome_from_architecture(data: Mapping[str, Any]) -> Genome:
    """The genome of a JSON architecture of the earlier project.

    Dropout rates are no genes and are left out: they are settings of training. That project fed `quantization` and
    `pruning_ratio` into an estimate of the size and changed no weight; here only what changes a model exists.

    Raises:
        ValueError: a field is missing or unknown, or has a value that does not exist here.
    """
    others = ("arch_type", "vocab_size", "max_seq_length", "quantization", "pruning_ratio")
    known = (*_NEEDED, *others, *_IGNORED)
    for name in data:
        if name not in known:
            raise ValueError(f"unknown field `{name}` of an architecture; known are {', '.join(known)}")
    missing = [name for name in _NEEDED if name not in data]
    if missing:
        raise ValueError(f"an architecture needs `{'`, `'.join(missing)}`, got only {', '.join(data)}")
    _must_be_one_of(data, "arch_type", _TYPES, "transformer")
    _must_be_one_of(data, "normalization", _NORMS)
    _must_be_one_of(data, "activation", tuple(_ACTIVATIONS))
    _must_be_one_of(data, "position_encoding", tuple(_POSITIONS))
    _must_be_one_of(data, "quantization", ("fp16", "bf16", "none"), "fp16")
    if data.get("pruning_ratio", 0.0):
        raise ValueError(f"`pruning_ratio` is {data['pruning_ratio']}, expected 0: nothing here prunes by name only")
    for name in ("hidden_dim", "ffn_multiplier"):
        value = data[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a positive number, got {value!r}")
    act, mlp = _ACTIVATIONS[data["activation"]]
    return Genome(
        vocab_size=data.get("vocab_size", 50_000),
        hidden_size=data["hidden_dim"],
        num_hidden_layers=data["num_layers"],
        num_attention_heads=data["num_heads"],
        intermediate_size=int(data["hidden_dim"] * data["ffn_multiplier"]),
        hidden_act=act,
        mlp_type=mlp,
        norm_type=data["normalization"],
        position_embedding_type=_POSITIONS[data["position_encoding"]],
        max_position_embeddings=data.get("max_seq_length", 2048),
    )


def _must_be_one_of(data: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str | None = None) -> None:
    value = data.get(name, default)
    if value not in allowed:
        raise ValueError(f"`{name}` is {value!r}, which does not exist here; expected one of {', '.join(allowed)}")
