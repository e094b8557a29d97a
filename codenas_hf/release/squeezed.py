"""What a card says of the parent that a model was cut from."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from codenas_hf.folders import Record
from codenas_hf.folders.typed import plain


def base_model(record: Record) -> str | None:
    """The parent's id on the Hub; None where it is not known by one."""
    parent = "" if record.squeezed is None else record.squeezed.parent
    return parent if parent.count("/") == 1 and " " not in parent else None


def applied_genome(record: Record) -> str | None:
    """The genes of a squeeze that nobody searched, as YAML; None for any other release."""
    if record.squeezed is None or record.trial is not None or record.start is not None:
        return None
    return yaml.safe_dump(plain(record.squeezed.genome), sort_keys=False, default_flow_style=None).strip()


def squeezed_text(record: Record) -> str | None:
    """What was done to a parent, as sentences; None for a model of our own.

    After a further training the text is another one: what the parent has on the text before is not said then.
    """
    squeezed = record.squeezed
    if squeezed is None:
        return None
    genome = squeezed.genome

    def each(name: str) -> str:
        values = genome.get(name) or {}
        found = list(values.values()) if isinstance(values, Mapping) else [values]
        return ", ".join(map(str, found if len(set(map(str, found))) > 1 else found[:1]))

    licence = f"licence {squeezed.licence}" if squeezed.licence else "licence not stated"
    parts = [
        f"It was cut from **{squeezed.parent}** ({licence}"
        + (f", {squeezed.parent_parameters:,} parameters" if squeezed.parent_parameters else "")
        + "):",
        f"{genome.get('vocab_size', 0):,} entries of the vocabulary stay (every text still has an exact spelling),",
        f"{each('neurons')} feed-forward neurons and {each('groups')} key-value heads in a layer,",
        f"stored as {genome.get('embedding')} (embedding), {each('attention')} (attention, from first to last layer) "
        f"and {each('feed_forward')} (feed-forward).",
    ]
    if genome.get("without_layers"):
        parts.append(f"Layers {', '.join(map(str, genome['without_layers']))} are left out.")
    healed = f"Then it was healed by a short training: {squeezed.healing}." if squeezed.healing else None
    parts.append(healed or "Nothing was trained for it: what stays makes up for what left in closed form.")
    if squeezed.parent_bits_per_byte is not None and record.start is None:
        parts.append(f"On the same report text the parent has {squeezed.parent_bits_per_byte:.4f} bits per byte.")
    return " ".join(parts)
