"""What is minimised and what is measured: for each its title, unit, scale and which way is better, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["number", "integer", "bytes", "ms", "seconds", "share"]
Scale = Literal["linear", "log2"]
Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Quantity:
    """One objective or measurement.

    Args:
        name: its key in records, result files and CSV columns; carries the unit (`artifact_bytes`, `decode_ms`).
        title: its name where people read it.
        unit: of the value, and so how people see it.
        scale: on which a search that minimises it compares values; a study keeps the scales that it began with.
        better: which way is better; None where a value is neither good nor bad in itself.
    """

    name: str
    title: str
    unit: Unit
    scale: Scale = "linear"
    better: Direction | None = "lower"


# In the order in which models are compared.
QUANTITIES = (
    Quantity("bits_per_byte", "bits per byte", "number"),
    Quantity("loss", "loss (nats per token)", "number"),
    Quantity("perplexity", "perplexity per token", "number"),
    Quantity("next_token_accuracy", "next-token accuracy", "share", better="higher"),
    Quantity("num_parameters", "parameters", "integer", better=None),
    Quantity("artifact_bytes", "artifact", "bytes", "log2"),
    Quantity("weights_bytes", "weights", "bytes", "log2"),
    Quantity("prefill_ms", "prefill", "ms", "log2"),
    Quantity("decode_ms", "decode per token", "ms", "log2"),
    Quantity("decode_p95_ms", "decode per token, 95th percentile", "ms", "log2"),
    Quantity("peak_memory_bytes", "peak memory", "bytes", "log2"),
    Quantity("train_tokens", "training tokens", "integer", better=None),
    Quantity("train_seconds", "training", "seconds"),
    Quantity("fitness", "fitness", "number", better="higher"),
)
# What a search minimises, in order; the first is what training improves.
OBJECTIVES = ("bits_per_byte", "artifact_bytes", "decode_ms")

_ROWS = {row.name: row for row in QUANTITIES}


def quantity(name: str) -> Quantity:
    """The row of a name; a name without one (of a study with objectives of its own) is a plain number."""
    return _ROWS.get(name) or Quantity(name, name.replace("_", " "), "number")
