"""Which space a search takes when nobody names one, and whether a space can fill the limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..architecture.genome import Genome
from ..architecture.space import SearchSpace
from ..compression.squeezing import SqueezeGenome
from ..hardware import Hardware
from ..report.cells import format_value
from ..strict_yaml import read_yaml
from .settings import RunSettings, config_path

AUTO = "auto"
LARGE_FROM = 20_000_000
SHIPPED = ("tiny", "medium", "large")  # by size; `large_free` is for those who ask for it


def load_space(name: str) -> SearchSpace:
    """A search space by the name of its file in configs/spaces, or by path; without limits."""
    return SearchSpace.from_yaml(config_path(name, kind="spaces"))


class SqueezeGenomes:
    """Rebuilds the genomes of a finished squeeze, whose space needs the parent that it cut."""

    genome_from_dict = staticmethod(SqueezeGenome.from_dict)


def recorded_space(name: str) -> Any:
    """What rebuilds the genomes of a study's record: its space, or that of squeezes."""
    path = config_path(name, kind="spaces")
    return SqueezeGenomes() if "neuron_shares" in read_yaml(path) else load_space(name)


def with_space(settings: RunSettings) -> RunSettings:
    """The settings with `space=auto` decided, from limits and device alone; others as they are."""
    if settings.space != AUTO:
        return settings
    device, limits = Hardware.discover(settings.device).device, settings.limits
    name = pick_space(limits.bytes, device=device, fewest_bytes=limits.min_bytes, share=_share(settings))
    return dataclasses.replace(settings, space=name)


def _share(settings: RunSettings) -> float:
    """Of the bytes in bfloat16, about how many the format to ship takes."""
    return settings.ship.form.matrix.bits / 16


def pick_space(limit_bytes: int | None, *, device: str, fewest_bytes: int | None = None, share: float = 1.0) -> str:
    """The smallest shipped space that can fill half of the limit; on a GPU the largest, unless the limit is narrow.

    Args:
        limit_bytes: the most that may be shipped.
        device: `cpu` or `cuda`.
        fewest_bytes: that a winner must have.
        share: of the bytes in bfloat16, that what ships takes.
    """
    if device == "cuda" and (limit_bytes is None or limit_bytes / share >= LARGE_FROM):
        return SHIPPED[-1]
    wanted = max((limit_bytes or 0) / 2, fewest_bytes or 0) / share
    return next((name for name in SHIPPED if largest_bytes(load_space(name)) >= wanted), SHIPPED[-1])


def largest_bytes(space: SearchSpace) -> int:
    """Bytes of weights of about the largest architecture: the best of a sample, and of changes that make it larger."""
    rng = np.random.default_rng(0)
    best = max((space.sample(rng) for _ in range(64)), key=Genome.weights_bytes)
    for _ in range(192):
        best = max(best, space.mutate(best, rng), key=Genome.weights_bytes)
    return best.weights_bytes()


def limit_lines(settings: RunSettings, *, space: SearchSpace, device: str) -> list[str]:
    """The limits, and in one line what to change where the space cannot fill half of them.

    Args:
        settings: with a space that is decided.
        space: within the limits.
        device: of the search.
    """
    limits = settings.limits
    said = [] if limits.bytes is None else [f"{format_value(limits.bytes, 'bytes')} to ship"]
    said += [] if limits.decode_ms is None else [f"{limits.decode_ms:g} ms for a token"]
    if not said:
        return ["limits    none: limits.bytes=4MB and limits.decode_ms=5 would take the best model that fits"]
    lines = [f"limits    {', '.join(said)}: the best model that fits wins; limits.bytes= limits.decode_ms= set others"]
    if limits.bytes is None:
        return lines
    share = _share(settings)
    largest = round(largest_bytes(space) * share)
    if largest >= limits.bytes / 2:
        return lines
    better = pick_space(limits.bytes, device=device, share=share)
    if limits.decode_ms is not None and share * largest_bytes(load_space(settings.space)) >= limits.bytes / 2:
        advice = f"limits.decode_ms={limits.decode_ms:g} keeps larger ones out: raise it, or lower limits.bytes"
    elif better == settings.space:
        advice = f"no shipped space has larger ones: limits.bytes={format_value(largest, 'bytes').replace(' ', '')}"
    else:
        advice = f"space={better} has larger ones"
    return [
        *lines,
        f"          the largest architecture of `{settings.space}` within them has {format_value(largest, 'bytes')}, "
        f"less than half of limits.bytes: {advice}",
    ]
