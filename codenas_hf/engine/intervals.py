"""95 % intervals from resampling projects: whoever writes one file writes the next alike, so files are no sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES, SEED = 4000, 0
_Z = 1.959963985


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def clears_zero(self) -> bool:
        """True when 0 lies outside."""
        return self.low > 0 or self.high < 0


def by_project(values: Floats | Ints, project: Ints, *, projects: int) -> Floats:
    """Sums [projects] of values [n]."""
    return np.bincount(project, weights=values, minlength=projects).astype(np.float64)


def paired_ratio(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> Interval | None:
    """Bits per byte of one model minus those of another on the same text, with its interval.

    Args:
        first, second: `bits` and `bytes` of each project, in one order, as `measure.score.Score` gives them.

    Returns:
        None where either is unknown, of other text, or of fewer than three projects.
    """
    if not first or not second or list(first["bytes"]) != list(second["bytes"]):
        return None
    bits = np.asarray(first["bits"], np.float64) - np.asarray(second["bits"], np.float64)
    return ratio_interval(bits, np.asarray(first["bytes"], np.float64))


def ratio_interval(amounts: Floats, sizes: Floats) -> Interval | None:
    """The ratio of two sums with its interval, from resampling their common parts; None with fewer than three.

    Percentiles of the bootstrap, moved outwards as Hesterberg (2015, The American Statistician 69:371) does: with few
    parts they would lie too close together. Seeded, so that the same numbers give the same interval.

    Args:
        amounts: [projects], such as bits.
        sizes: [projects], such as bytes; parts of size 0 are left out.
    """
    amounts, sizes = amounts[sizes > 0], sizes[sizes > 0]
    parts = len(sizes)
    if parts < 3:
        return None
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(parts, np.full(parts, 1 / parts), size=RESAMPLES).astype(np.float64)
    ratios = (drawn @ amounts) / (drawn @ sizes)
    tail = _normal_tail(math.sqrt(parts / (parts - 1)) * t_quantile(parts - 1))
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(float(amounts.sum() / sizes.sum()), float(low), float(high))


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by the Cornish-Fisher expansion (exact for 1 and 2)."""
    if freedom <= 2:
        return 12.706204736 if freedom == 1 else 4.302652730
    z, n = _Z, freedom
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, start=1))


def _normal_tail(x: float) -> float:
    """Share of a standard normal beyond x."""
    return 0.5 * math.erfc(x / math.sqrt(2))
