"""A model drawn layer by layer from its own parameters, and its facts and card; works for any architecture."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from html import escape
from typing import Any

from chooser import LoadedModel

from codenas_hf.quantities import quantity

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
WIDTH, ROW, GAP, LEFT = 420, 40, 8, 12


@dataclass(frozen=True)
class Part:
    """One drawn box: `count` equal layers, or the embedding, or the head, with parameters by kind."""

    title: str
    detail: str
    attention: int
    mlp: int
    other: int
    count: int = 1

    @property
    def each(self) -> int:
        return self.attention + self.mlp + self.other


def parts_of(model: Any) -> list[Part]:
    """The parts of `model` from input to output, neighbouring equal layers joined; counts are exact."""
    layers: dict[int, dict[str, int]] = {}
    embedding, head = 0, 0
    for name, parameter in model.named_parameters():  # a tied head appears once, as the embedding
        match = LAYER.search(name)
        if match:
            kind = "attention" if "attn" in name or "attention" in name else "mlp"
            kind = "other" if "norm" in name or re.search(r"\.ln_", name) else kind
            layer = layers.setdefault(int(match[1]), {"attention": 0, "mlp": 0, "other": 0})
            layer[kind] += parameter.numel()
        elif re.search(r"embed|wte|wpe", name):
            embedding += parameter.numel()
        else:
            head += parameter.numel()
    drawn = [(_layer_detail(model.config, index), *counts.values()) for index, counts in sorted(layers.items())]
    parts = [Part("Embedding", _embedding_detail(model.config), 0, 0, embedding)]
    first = 1
    for (detail, attention, mlp, other), group in itertools.groupby(drawn):
        count = len(list(group))
        title = f"Layer {first}" if count == 1 else f"Layers {first} to {first + count - 1}"
        parts.append(Part(title, detail, attention, mlp, other, count))
        first += count
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    parts.append(
        Part("Head", "shares the embedding's weights" if tied else "own weights, and the last norm", 0, 0, head)
    )
    return parts


def _embedding_detail(config: Any) -> str:
    hidden = getattr(config, "hidden_size", None)
    return f"{config.vocab_size:,} tokens" + (f" x {hidden:,}" if hidden else "")


def _layer_detail(config: Any, index: int) -> str:
    """Heads, feed-forward width and activation as far as the configuration says them."""
    own = config.per_layer_config[index] if getattr(config, "is_heterogeneous", False) else config
    heads, shared = getattr(own, "num_attention_heads", None), getattr(own, "num_key_value_heads", None)
    width = getattr(own, "intermediate_size", None) or getattr(own, "n_inner", None)
    act = getattr(own, "hidden_act", None) or getattr(own, "activation_function", None)
    words = []
    if heads:
        words.append(f"{heads} heads" + (f" on {shared} key-value" if shared and shared != heads else ""))
    if width:
        words.append(f"feed-forward {width:,}" + (f" {act}" if act else ""))
    return ", ".join(words)


def picture_svg(model: Any) -> str:
    """The parts as boxes stacked from input to output; a bar in each shows its share of all parameters."""
    parts = parts_of(model)
    total = max(1, sum(part.each * part.count for part in parts))
    height = len(parts) * (ROW + GAP) + GAP
    boxes = []
    for row, part in enumerate(parts):
        y = GAP + row * (ROW + GAP)
        boxes.append(f'<rect class="box" x="1" y="{y}" width="{WIDTH - 2}" height="{ROW}" rx="6"/>')
        title = part.title if part.count == 1 else f"{part.title} (each {_count(part.each)})"
        share = part.each * part.count / total
        boxes.append(f'<text class="title" x="{LEFT}" y="{y + 16}">{escape(title)}</text>')
        boxes.append(f'<text class="detail" x="{LEFT}" y="{y + 30}">{escape(part.detail)}</text>')
        label = f"{_count(part.each * part.count)} · {share:.0%}"
        boxes.append(f'<text class="share" x="{WIDTH - LEFT}" y="{y + 16}">{escape(label)}</text>')
        x = float(LEFT)
        for kind in ("attention", "mlp", "other"):
            length = getattr(part, kind) * part.count / total * (WIDTH - 2 * LEFT)
            if length:
                boxes.append(f'<rect class="{kind}" x="{x:.1f}" y="{y + ROW - 6}" width="{length:.1f}" height="3"/>')
            x += length
    text = f"{len(parts)} parts, {total:,} parameters"
    return (
        f'<svg class="picture" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text}">{"".join(boxes)}</svg>'
        '<p class="legend"><i class="attention"></i>attention <i class="mlp"></i>feed-forward '
        '<i class="other"></i>embedding, norms, head</p>'
    )


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def facts_of(loaded: LoadedModel) -> dict[str, str]:
    """Name and value of what is known about the model; measured values come from its own record and nowhere else."""
    facts = {
        "Parameters": f"{loaded.num_parameters:,}",
        "Weights": f"{loaded.weights_bytes / 1e6:,.1f} MB",
        "Vocabulary": f"{loaded.model.config.vocab_size:,} tokens",
        "Context": f"{loaded.context:,} tokens",
        "Architecture": str(loaded.model.config.model_type),
    }
    known = loaded.record.quantities()
    for row in map(quantity, ("bits_per_byte", "decode_ms")):
        if row.name in known:
            facts[row.title.capitalize()] = f"{known[row.name]:.3f}" + (" ms" if row.unit == "ms" else "")
    return facts


def about_html(loaded: LoadedModel) -> str:
    """Facts and picture of one model."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts_of(loaded).items())
    return f'<div class="about"><h4>{escape(loaded.name)}</h4><dl>{rows}</dl>{picture_svg(loaded.model)}</div>'


def card_markdown(loaded: LoadedModel) -> str:
    """The model's card without its YAML header, pictures left out (they lie beside it, where no visitor can reach)."""
    text = re.sub(r"\A---\n.*?\n---\n", "", loaded.card, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    return text.strip() or "This model has no card."
