"""Curves as text, in characters of 2 x 4 dots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Braille: the bit of each of the 2 x 4 dots of a character, by column and row.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def plot(x: Sequence[float], y: Sequence[float], *, width: int, height: int, cut: float = 0.0) -> list[str]:
    """A curve as lines of text.

    Args:
        x: [n], shares from 0 to 1.
        y: [n].
        width, height: of the drawing, in characters.
        cut: share of the points that may lie above the drawing, such as the steep beginning of a falling curve.

    Returns:
        `height` lines, with the highest value at the left of the first and the lowest at that of the last.
    """
    values = np.asarray(y, dtype=np.float64)
    low = float(values.min(initial=np.inf))
    high = float(np.quantile(values, 1 - cut)) if len(values) else low
    span = max(high - low, 1e-9)
    cells = np.zeros((height, width), dtype=np.int64)
    for share, value in zip(x, values, strict=True):
        column = min(int(share * 2 * width), 2 * width - 1)
        row = min(max(int((high - value) / span * (4 * height - 1)), 0), 4 * height - 1)
        cells[row // 4, column // 2] |= _DOTS[column % 2][row % 4]
    labels = [f"{high:8.3f}", *[" " * 8] * (height - 2), f"{low:8.3f}"]
    return [f"{label} │{''.join(chr(0x2800 + int(c)) for c in row)}" for label, row in zip(labels, cells, strict=True)]
