"""A training curve in a terminal: drawn while it grows, said in lines elsewhere, as JSON for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from codenas_hf.engine.dots import plot

Say = Callable[[str], None]
Watch = Callable[["CurvePoint"], None]


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
        rows = [Text(row, no_wrap=True) for row in plot(x, y, width=width, height=self._height, cut=0.05)]
        self._live.update(Group(*rows, Text(point.line())), refresh=True)
