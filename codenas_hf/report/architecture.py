"""An architecture layer by layer: what each part is, how many parameters and bytes it has."""

from __future__ import annotations

import json
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from codenas_hf.report.cells import Column, Table, format_bytes, format_count, quantity_column

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)")
ATTENTION = re.compile(r"attn|attention|q_proj|k_proj|v_proj|o_proj|Wqkv")
CONVOLUTION = re.compile(r"^conv\.")
FEED_FORWARD = re.compile(r"mlp|ffn|feed_forward|gate_proj|up_proj|down_proj|experts")
# Where the parts after the last layer sort.
_LAST = 10**6
# A head that shares the embedding is there, and costs nothing.
TIED_HEAD: dict[str, Any] = {"part": "head", "what": "tied to the embedding"}
ELEMENT_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class Tensor:
    """Shape of one stored tensor, and its bytes."""

    shape: tuple[int, ...]
    num_bytes: int


def tensors_of_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of every `*.safetensors` file in a folder, read from the headers alone.

    Raises:
        FileNotFoundError: the folder holds no such file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors file: expected a release folder or a saved model")
    found: dict[str, Tensor] = {}
    for file in files:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                shape = tuple(entry["shape"])
                found[name] = Tensor(shape, prod(shape) * ELEMENT_BYTES[entry["dtype"]])
    return found


def tensors_of_model(model: Any, *, element_bytes: int = 2) -> dict[str, Tensor]:
    """The parameters of a `torch.nn.Module` as they would be stored; works on the meta device. A tied one counts once.

    Args:
        model: the module.
        element_bytes: bytes of one stored number; 2 is bfloat16.
    """
    return {n: Tensor(tuple(p.shape), p.numel() * element_bytes) for n, p in model.named_parameters()}


def architecture_table(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Table:
    """One row per part in the order of the forward pass: embedding, each layer's attention and feed-forward, head.

    Args:
        tensors: name to tensor.
        config: `config.json`, for what shapes do not say: heads, activation, norm; may be absent.
    """
    parts: dict[tuple[int, str], list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in tensors.items():
        parts[_part(name)].append((name, tensor))
    rows: list[dict[str, Any]] = []
    for (layer, kind), members in sorted(parts.items(), key=lambda item: _order(item[0])):
        rows.append(
            {
                "layer": layer if 0 <= layer < _LAST else None,
                "part": kind,
                "what": _describe(layer, kind, dict(members), config or {}),
                "num_parameters": sum(prod(t.shape) for _, t in members),
                "num_bytes": sum(t.num_bytes for _, t in members),
            }
        )
    rows += [TIED_HEAD] if config and config.get("tie_word_embeddings") and (_LAST, "head") not in parts else []
    columns = (
        Column("layer", "layer", "integer"),
        Column("part", "part"),
        Column("what", "what"),
        quantity_column("num_parameters"),
        Column("num_bytes", "bytes", "bytes"),
    )
    params, size = (sum(row.get(key) or 0 for row in rows) for key in ("num_parameters", "num_bytes"))
    note = f"{format_count(params)} parameters, {format_bytes(size)} of weights."
    return Table("architecture", "Architecture", columns, tuple(rows), note)


def architecture_text(table: Table) -> str:
    """The architecture for a terminal, one part a line, with a bar for its share of the parameters."""
    total = sum(row.get("num_parameters") or 0 for row in table.rows) or 1
    lines = []
    for row in table.rows:
        count = row.get("num_parameters") or 0
        layer = "" if row.get("layer") is None else str(row["layer"])
        bar = "█" * round(24 * count / total) or ("▏" if count else "")
        lines.append(f"{layer:>3}  {row['part']:<13} {row['what']:<48} {format_count(count):>9}  {bar}".rstrip())
    return "\n".join([*lines, "", table.note])


def _part(name: str) -> tuple[int, str]:
    """Layer number (-1 before, `_LAST` after) and part of a tensor."""
    inside = LAYER.search(name)
    if inside:
        rest = inside[2]
        if "norm" in rest.lower() or rest.startswith("ln_"):
            return int(inside[1]), "norms"
        kinds = {"convolution": CONVOLUTION, "attention": ATTENTION, "feed-forward": FEED_FORWARD}
        return int(inside[1]), next((kind for kind, words in kinds.items() if words.search(rest)), "other")
    if "lm_head" in name or "embed_out" in name:
        return _LAST, "head"
    if "norm" in name.lower() or "ln_f" in name:
        return _LAST, "final norm"
    if re.search(r"wpe|position", name):
        return -1, "positions"
    return -1, "residual scalars" if name.endswith("_scale") else "embedding"


def _order(key: tuple[int, str]) -> tuple[int, int]:
    order = [
        "embedding",
        "positions",
        "residual scalars",
        "norms",
        "attention",
        "convolution",
        "feed-forward",
        "other",
    ]
    order += ["final norm", "head"]
    return key[0], order.index(key[1])


def _describe(layer: int, kind: str, members: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """What a part is, from the shapes and what the config says of that layer."""
    repeats = config.get("layer_repeats") or 1
    local = {**config, **(config.get("per_layer_config") or {}).get(str(layer * repeats), {})}
    times = f", applied {repeats} times" if repeats > 1 else ""
    shapes = [t.shape for t in members.values()]
    widest = max((s for s in shapes if len(s) >= 2), key=prod, default=())
    if kind == "attention":
        heads = local.get("num_attention_heads") or local.get("n_head")
        kv = local.get("num_key_value_heads") or heads
        size = local.get("head_dim")
        grouped = "" if not heads or kv == heads else f", {kv} key-value"
        if not heads:
            return _shape(widest)
        types = config.get("layer_types") or ()
        sliding = layer * repeats < len(types) and types[layer * repeats] == "sliding_attention"
        window = f", window {config.get('sliding_window')}" if sliding else ""
        return f"{heads} heads" + (f" of {size}" if size else "") + grouped + window + times
    if kind == "convolution":
        return f"convolution over {config.get('conv_kernel_size') or min(widest)} tokens" + times
    if kind == "feed-forward":
        inner = local.get("intermediate_size") or local.get("n_inner") or (max(widest) if widest else None)
        gated = "gated " if any("gate" in name for name in members) else ""
        act = local.get("hidden_act") or local.get("activation_function") or ""
        return f"{gated}{act} to {inner}".strip()
    if kind in ("norms", "final norm"):
        return str(local.get("norm_type") or ("rmsnorm" if "rms_norm_eps" in local else "norm"))
    if kind in ("embedding", "head", "positions"):
        return " x ".join(f"{n:,}" for n in widest)
    return _shape(widest)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
