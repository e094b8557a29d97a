"""How pictures look, and how they leave: one set of inks for paper and screen, light and dark."""

from __future__ import annotations

import functools
import io
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Formatter, FuncFormatter, NullLocator

from codenas_hf.report.cells import Column, Kind, format_bytes, significant

P = ParamSpec("P")

INK, MUTED, GRID, SURFACE = "#1b2129", "#67717c", "#dce1e6", "#fefefe"
BLUE, ORANGE, GREEN, PURPLE = "#2462c7", "#cf6210", "#1f8259", "#7a4dc2"

# Ink to the name of its CSS variable and its value on a dark page.
INKS: dict[str, tuple[str, str]] = {
    INK: ("ink", "#e7eaed"),
    MUTED: ("muted", "#9aa5b1"),
    GRID: ("grid", "#343d47"),
    SURFACE: ("surface", "#161b21"),
    BLUE: ("blue", "#74a9ff"),
    ORANGE: ("orange", "#f2994f"),
    GREEN: ("green", "#5cc79a"),
    PURPLE: ("purple", "#b898f6"),
}
RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": SURFACE,
    "svg.fonttype": "none",
    "svg.hashsalt": "codenas",
}


def new_figure(width: float, height: float, *, columns: int = 1, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` axes in a row; size in inches. It belongs to no global state and needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, sharey=share_y, squeeze=False)
    return figure, list(axes[0])


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorates a function that draws: every artist that it makes takes the style of this module."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(RC):
            return draw(*args, **kwargs)

    return wrapper


def to_svg(figure: Figure, *, name: str, label: str) -> str:
    """The figure as one `<svg>` element that takes its inks from CSS variables and falls back to the light ones.

    Args:
        figure: what `new_figure` made.
        name: prefix of its ids, so that several pictures can stand on one page.
        label: what a screen reader says.
    """
    text = io.StringIO()
    with rc_context(RC):
        _settle(figure)
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
        figure.patch.set_visible(True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for ink, (variable, _) in INKS.items():
        svg = svg.replace(ink, f"var(--{variable}, {ink})")
    svg = svg.replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans'")
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', r'\1 style="--width: \2pt"', svg, count=1)
    quoted = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{quoted}"', 1)


def save(figure: Figure, path: Path, *, label: str) -> None:
    """Writes `path` as PNG (light, 160 dpi) and beside it an SVG that turns dark where the reader's system is."""
    with rc_context(RC):
        _settle(figure)
        FigureCanvasAgg(figure).print_figure(str(path.with_suffix(".png")), dpi=160, facecolor=SURFACE)
    dark = "; ".join(f"--{name}: {value}" for name, value in INKS.values())
    style = f"<style>@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    svg = to_svg(figure, name=path.stem, label=label)
    head, rest = svg.split(">", 1)
    path.with_suffix(".svg").write_text(f"{head}>{style}{rest}\n", encoding="utf-8")


def _settle(figure: Figure) -> None:
    """Lays the figure out once: to measure every text again for each file takes longer than to draw it."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def set_scale(axes: Axes, which: str, column: Column) -> None:
    """The scale on which a column is compared, with ticks people read.

    Call it after the data is drawn.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    if column.scale == "log2":
        (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=2)
        axis.set_major_locator(FixedLocator(round_ticks(*(axes.get_xlim() if which == "x" else axes.get_ylim()))))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(value_formatter(column.kind))


def time_ticks(longest: float, *, most: int = 6) -> list[float]:
    """Round times from 0 to `longest` seconds, at most `most` of them."""
    steps = [m * unit for unit in (1e-3, 1e-2, 0.1, 1, 10) for m in (1, 2, 5)]
    steps += [60 * m for m in (1, 2, 5, 10, 20, 30)] + [3600 * m for m in (1, 2, 4, 8, 12, 24)]
    step = next((s for s in steps if longest / s < most), longest or 1.0)
    return [i * step for i in range(int(longest // step) + 1)]


def round_ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round numbers between two positive ends, spread evenly on a logarithmic axis; at most `most` of them.

    No two are so near that their labels would meet.
    """
    least = math.log(high / low) / most
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [10.0**d for d in decades if low <= 10.0**d <= high]
    ticks = ticks[:: math.ceil(len(ticks) / most) or 1]
    for steps in ((1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(range(2, 20)), tuple(n / 4 for n in range(4, 80))):
        found = sorted({s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high})
        if len(found) > most or any(math.log(b / a) < least for a, b in itertools.pairwise(found)):
            break
        ticks = found
    return ticks


def value_formatter(kind: Kind) -> Formatter:
    """Tick labels with units."""
    if kind == "bytes":
        return FuncFormatter(lambda value, _: format_bytes(value).replace(".00 ", " ").replace(".0 ", " "))
    if kind == "ms":
        return FuncFormatter(lambda value, _: f"{value:.3g} ms")
    if kind == "seconds":
        return FuncFormatter(lambda value, _: _short_time(value))
    if kind == "share":
        return FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
    return FuncFormatter(lambda value, _: f"{value:g}" if abs(value) < 100 else significant(value))


def _short_time(seconds: float) -> str:
    """`90` gives `1.5 min`: for ticks, where every label has one unit."""
    unit, size = next(((u, s) for u, s in (("h", 3600), ("min", 60)) if seconds >= s), ("s", 1))
    return f"{seconds / size:.3g} {unit}"
