"""A training curve in a terminal: drawn while it grows, said in lines elsewhere, as JSON for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

Say = Callable[[str], None]
Watch = Callable[["CurvePoint"], None]

# Braille: the bit of each of the 2 x 4 dots of a character, by column and row.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Where a training stands.

    Args:
        step, tokens, seconds: what it has had.
        bits_per_byte: of the training text since the point before.
        share: of the budget.
    """

    step: int
    tokens: int
    seconds: float
    bits_per_byte: float
    share: float

    def line(self) -> str:
        """For people."""
        speed = self.tokens / self.seconds if self.seconds else 0.0
        left = self.seconds * (1 / self.share - 1) if self.share else 0.0
        return (
            f"{self.share:6.0%}    step {self.step:,}: {self.bits_per_byte:.4f} bits per byte of training text, "
            f"{speed:,.0f} tokens a second, about {left:.0f} s left"
        )


def curve_lines(say: Say) -> Watch:
    """Says where a training stands: at first often, later each time that a tenth more time has passed."""
    said = 0.0

    def watch(point: CurvePoint) -> None:
        nonlocal said
        if point.seconds >= max(1.1 * said, said + 5.0):
            said = point.seconds
            say(point.line())

    return watch


def curve_json(say: Say) -> Watch:
    """Every point as one line of JSON."""
    return lambda point: say(json.dumps({"event": "point", **asdict(point)}))


class LiveCurve:
    """The curve drawn in a terminal as it grows; use it as a context, and as what `train` tells its points."""

    def __init__(self, *, console: Console | None = None, height: int = 10) -> None:
        self._console = console or Console()
        self._height = height
        self._points: list[CurvePoint] = []
        self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> LiveCurve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, point: CurvePoint) -> None:
        """Adds a point."""
        if not self._points:
            self._live.start()
        self._points.append(point)
        width = max(20, min(100, self._console.width - 12))
        x, y = [p.share for p in self._points], [p.bits_per_byte for p in self._points]
        rows = [Text(row, no_wrap=True) for row in plot(x, y, width=width, height=self._height)]
        self._live.update(Group(*rows, Text(point.line())), refresh=True)


def plot(x: Sequence[float], y: Sequence[float], *, width: int, height: int) -> list[str]:
    """A curve as lines of text.

    Args:
        x: [n], shares from 0 to 1.
        y: [n]; the steep beginning is cut off at the top.
        width, height: of the drawing, in characters of 2 x 4 dots.

    Returns:
        `height` lines, with the value of the first and the last at their left.
    """
    values = np.asarray(y, dtype=np.float64)
    low = float(values.min(initial=np.inf))
    high = float(np.quantile(values, 0.95)) if len(values) else low
    span = max(high - low, 1e-9)
    cells = np.zeros((height, width), dtype=np.int64)
    for share, value in zip(x, values, strict=True):
        column = min(int(share * 2 * width), 2 * width - 1)
        row = min(max(int((high - value) / span * (4 * height - 1)), 0), 4 * height - 1)
        cells[row // 4, column // 2] |= _DOTS[column % 2][row % 4]
    labels = [f"{high:8.3f}", *[" " * 8] * (height - 2), f"{low:8.3f}"]
    return [f"{label} │{''.join(chr(0x2800 + int(c)) for c in row)}" for label, row in zip(labels, cells, strict=True)]
