"""The pictures of a study. Each draws tables and takes nothing else: a picture never knows more than its table."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from codenas_hf.report.cells import Column, Table, format_bytes, format_count, format_value, quantity_column
from codenas_hf.report.drawing import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SURFACE,
    new_figure,
    set_scale,
    styled,
    time_ticks,
    value_formatter,
)
from codenas_hf.report.study_view import StudyView, evaluation_of, short_id
from codenas_hf.report.tables import flatten
from codenas_hf.report.texts import tied

ROLES = {
    "winner": "winner",
    "front": "on the front",
    "tied": "on the front, tied with the winner",
    "other": "dominated",
    "over": "over a limit",
}
PAPER: dict[str, Any] = {"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.75, "pad": 0.8}


def points_table(view: StudyView) -> Table:
    """Every complete trial of the highest rung, with its objectives and its role in the front."""
    front = {r.genome.genome_id for r in view.front_members()}
    rows = []
    for r in view.complete(view.top_rung):
        evaluation = evaluation_of(r)
        member = "tied" if tied(view, r) else "front"
        on_front = member if r.genome.genome_id in front else "other" if evaluation.feasible else "over"
        role = "winner" if view.is_winner(r) else on_front
        rows.append({"genome": short_id(r), "role": role, "generation": r.generation, **evaluation.objectives})
    columns = (
        Column("genome", "genome"),
        Column("role", "role"),
        Column("generation", "generation", "integer"),
        *(view.column(name) for name in view.objectives),
    )
    return Table("points", "Candidates", columns, tuple(rows))


def projections(view: StudyView) -> list[tuple[str, str]]:
    """Pairs of objectives (x, y) that show a front of two or three objectives from every side."""
    names = view.objectives
    return [(x, names[0]) for x in names[1:]] + [(x, y) for i, x in enumerate(names[1:]) for y in names[i + 2 :]]


@styled
def front_figure(
    points: Table, pairs: Sequence[tuple[str, str]], *, limits: Mapping[str, float] | None = None
) -> Figure:
    """The front in each projection: what the search found, what was dominated, where the limits lie, who won."""
    figure, axes = new_figure(4.1 * len(pairs), 3.5, columns=len(pairs))
    columns = {column.name: column for column in points.columns}
    for ax, (x, y) in zip(axes, pairs, strict=True):
        _front_panel(ax, points.rows, columns[x], columns[y])
        for name, line in ((x, ax.axvline), (y, ax.axhline)):
            if limits and name in limits:
                line(limits[name], color=ORANGE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        ax.margins(0.1)
        set_scale(ax, "x", columns[x])
        set_scale(ax, "y", columns[y])
    axes[0].legend(loc="best", fontsize=8, handletextpad=0.3)
    return figure


def _front_panel(ax: Axes, rows: Sequence[Mapping[str, Any]], x: Column, y: Column) -> None:
    """One projection with the staircase of what is reached in it."""
    styles: dict[str, dict[str, Any]] = {
        "over": {"s": 16, "facecolors": "none", "edgecolors": MUTED, "linewidths": 0.8},
        "other": {"s": 16, "color": MUTED, "alpha": 0.55, "linewidths": 0},
        "front": {"s": 34, "color": BLUE, "edgecolors": SURFACE, "linewidths": 0.8, "zorder": 3},
        "tied": {"s": 34, "facecolors": SURFACE, "edgecolors": BLUE, "linewidths": 1.6, "zorder": 3},
        "winner": {"s": 170, "marker": "*", "color": ORANGE, "edgecolors": SURFACE, "linewidths": 0.8, "zorder": 4},
    }
    for role, style in styles.items():
        chosen = [row for row in rows if row["role"] == role]
        if chosen:
            ax.scatter([r[x.name] for r in chosen], [r[y.name] for r in chosen], label=ROLES[role], **style)
    reached = sorted((r[x.name], r[y.name]) for r in rows if r["role"] in ("front", "tied", "winner"))
    stairs: list[tuple[float, float]] = []
    for point in reached:
        if not stairs or point[1] < stairs[-1][1]:
            stairs.append(point)
    if len(stairs) > 1:
        ax.step(*zip(*stairs, strict=True), where="post", color=BLUE, linewidth=1.2, alpha=0.6, zorder=2)
    for row in rows:
        if row["role"] == "winner":
            text = f"{row['genome']}\n{format_value(row[x.name], x.kind)}, {format_value(row[y.name], y.kind)}"
            place: dict[str, Any] = {"xytext": (10, 8), "textcoords": "offset points", "fontsize": 8, "zorder": 2.5}
            ax.annotate(text, (row[x.name], row[y.name]), bbox=PAPER, **place)
    ax.set_xlabel(x.title)
    ax.set_ylabel(y.title)
    ax.set_title(f"{y.title} by {x.title}")


@styled
def hypervolume_figure(table: Table) -> Figure:
    """Hypervolume against the compute that it cost."""
    figure, (ax,) = new_figure(6.4, 3.5)
    costs, volumes = [row["seconds"] for row in table.rows], [row["hypervolume"] for row in table.rows]
    ax.step([0, *costs], [0, *volumes], where="post", color=BLUE, linewidth=2)
    ax.set_xlabel("compute spent on evaluations")
    ax.set_ylabel("hypervolume")
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)
    ax.set_xticks(time_ticks(max(costs, default=1.0)))
    ax.xaxis.set_major_formatter(value_formatter("seconds"))
    ax.set_title(table.title)
    return figure


@styled
def ranks_figure(table: Table, correlation: Table) -> Figure:
    """Ranks at both rungs of every candidate that had both; on the diagonal the cheap rung was right."""
    figure, (ax,) = new_figure(4.4, 4.4)
    low, high = (column for column in table.columns if column.name.startswith("rank"))
    last = len(table.rows) + 0.6
    ax.plot([0.4, last], [0.4, last], color=GRID, linewidth=1.4, zorder=1)
    for kind, marker, color in (("top", "o", BLUE), ("audit", "D", ORANGE)):
        rows = [row for row in table.rows if (row["promoted"] or "top") == kind]
        label = "promoted" if kind == "top" else "random audit"
        if rows:
            x, y = [r[low.name] for r in rows], [r[high.name] for r in rows]
            ax.scatter(
                x, y, s=34, marker=marker, color=color, edgecolors=SURFACE, linewidths=0.8, label=label, zorder=3
            )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlim(0.4, last)
    ax.set_ylim(0.4, last)
    ax.set_aspect("equal")
    ax.set_xlabel(low.title)
    ax.set_ylabel(high.title)
    ax.set_title(_tau_title(table, correlation))
    ax.legend(loc="lower right", fontsize=8)
    return figure


def _tau_title(table: Table, correlation: Table) -> str:
    """Kendall's tau with its interval, for the rungs that the table of ranks compares."""
    rungs = " to ".join(c.name.removeprefix("rank") for c in table.columns if c.name.startswith("rank"))
    row = next((r for r in correlation.rows if r["rungs"] == rungs), None)
    if row is None:
        return table.title
    interval = "" if row["tau_low"] is None else f" [{row['tau_low']:.2f}, {row['tau_high']:.2f}]"
    return f"Kendall tau {row['tau']:.2f}{interval}, n = {row['pairs']}"


@styled
def genes_figure(table: Table) -> Figure:
    """Share of each objective's variance that each gene explains alone."""
    shares = [column for column in table.columns if column.name.endswith("_share")]
    rows = list(reversed(table.rows[:12]))
    figure, axes = new_figure(2.7 * len(shares) + 1.1, 0.34 * len(rows) + 1.3, columns=len(shares), share_y=True)
    for ax, column, color in zip(axes, shares, (BLUE, GREEN, PURPLE, ORANGE) * len(shares), strict=False):
        values = [row.get(column.name) or 0.0 for row in rows]
        ax.barh([row["gene"] for row in rows], values, color=color, height=0.62)
        for y, row in enumerate(rows):
            text = format_value(row.get(column.name), "share") or "not known"
            ax.text((row.get(column.name) or 0.0) + 0.015, y, text, va="center", fontsize=8, color=MUTED)
        ax.set_xlim(0, max(1.0, *values) * 1.2)
        ax.set_xticks([0, 0.5, 1])
        ax.xaxis.set_major_formatter(value_formatter("share"))
        ax.set_title(column.title)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0, labelcolor=INK)
    return figure


def curves_table(view: StudyView) -> Table:
    """Learning curves of the candidates of the top rung: the training loss at each point that a trial recorded.

    The measurement `curve` is a list of mappings with `step` and `loss`, in nats per token. With the `tokens` and
    `bytes` of training it is shown in bits per byte, which compare across vocabularies; where a trial lacks them, all
    stay in nats.
    """
    roles = {row["genome"]: row["role"] for row in points_table(view).rows}
    complete = [(short_id(r), evaluation_of(r).measurements) for r in view.complete(view.top_rung)]
    told = [(genome, measured) for genome, measured in complete if measured.get("curve")]
    scaled = all(measured.get("tokens") and measured.get("bytes") for _, measured in told)
    name, unit = ("bits_per_byte", "bits per byte") if scaled else ("loss", "nats per token")
    rows = []
    for genome, measured in told:
        factor = measured["tokens"] / measured["bytes"] / math.log(2) if scaled else 1.0
        rows += [
            {"genome": genome, "role": roles[genome], "step": point["step"], name: factor * point["loss"]}
            for point in measured["curve"]
        ]
    columns = (
        Column("genome", "genome"),
        Column("role", "role"),
        Column("step", "step", "integer"),
        quantity_column(name, title=f"training loss ({unit})"),
    )
    return Table("curves", "Learning curves", columns, tuple(rows))


@styled
def curves_figure(table: Table) -> Figure:
    """Learning curves of the highest rung: the front in colour, the winner on top."""
    figure, (ax,) = new_figure(6.4, 3.5)
    styles: dict[str, dict[str, Any]] = {
        "over": {"color": MUTED, "linewidth": 0.8, "alpha": 0.4, "linestyle": (0, (3, 2)), "zorder": 1},
        "other": {"color": MUTED, "linewidth": 0.8, "alpha": 0.5, "zorder": 1},
        "front": {"color": BLUE, "linewidth": 1.3, "alpha": 0.9, "zorder": 2},
        "tied": {"color": BLUE, "linewidth": 1.3, "alpha": 0.9, "linestyle": (0, (5, 1)), "zorder": 2},
        "winner": {"color": ORANGE, "linewidth": 2.2, "zorder": 3},
    }
    named = set()
    for (_, role), points in groupby(table.rows, key=lambda row: (row["genome"], row["role"])):
        line = list(points)
        label = None if role in named else ROLES[role]
        named.add(role)
        ax.plot([p["step"] for p in line], [p[table.columns[3].name] for p in line], label=label, **styles[role])
    ax.set_xlabel(table.columns[2].title)
    ax.set_ylabel(table.columns[3].title)
    ax.set_title(table.title)
    ax.legend(loc="upper right", fontsize=8)
    return figure


@styled
def architecture_figure(table: Table) -> Figure:
    """An architecture from input to output: one bar per layer, as long as its parameters."""
    stack = _stack(table)
    widest = max((sum(part.get("num_parameters") or 0 for part in parts) for _, parts in stack), default=1) or 1
    described = [" · ".join(part["what"] for part in parts if part["part"] != "norms") for _, parts in stack]
    figure, (ax,) = new_figure(6.4 + 0.068 * max(map(len, described), default=0), 0.36 * len(stack) + 0.8)
    colors = {"attention": BLUE, "convolution": ORANGE, "feed-forward": GREEN, "embedding": PURPLE, "head": PURPLE}
    for y, (name, parts) in enumerate(stack):
        left = 0.0
        for part in parts:
            width = (part.get("num_parameters") or 0) / widest
            color = colors.get(part["part"], MUTED)
            if width > 0.03:
                shape = FancyBboxPatch((left, y - 0.3), width, 0.6, boxstyle="round,pad=0,rounding_size=0.012")
                shape.set(facecolor=color, edgecolor=SURFACE, linewidth=1, mutation_aspect=12)
                ax.add_patch(shape)
            elif width:
                ax.barh(y, max(width, 0.003), left=left, height=0.6, color=color, linewidth=0)
            left += width
        params, size = (sum(part.get(key) or 0 for part in parts) for key in ("num_parameters", "num_bytes"))
        ax.text(-0.02, y, name, ha="right", va="center", fontsize=8.5)
        if params:
            ax.text(1.22, y, format_count(params), ha="right", va="center", fontsize=8.5, color=MUTED)
            ax.text(1.44, y, format_bytes(size), ha="right", va="center", fontsize=8.5, color=MUTED)
        ax.text(1.5, y, described[y], ha="left", va="center", fontsize=8.5)
    for kind in dict.fromkeys(row["part"] for row in table.rows if row["part"] in colors and row["part"] != "head"):
        ax.bar(0, 0, color=colors[kind], label=kind)
    ax.set_xlim(-0.02, 1.51)
    ax.set_ylim(len(stack) - 0.4, -0.6)
    ax.axis("off")
    ax.set_title(f"{table.title}: {table.note.rstrip('.')}")
    figure.legend(loc="outside lower left", ncols=4, fontsize=8)
    return figure


def _stack(table: Table) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Rows of an architecture table as bars: each layer one bar of its parts, other parts one bar each."""
    order = {"attention": 0, "convolution": 0, "feed-forward": 1, "other": 2, "norms": 3}
    stack = []
    for layer, group in groupby(table.rows, key=lambda row: row.get("layer")):
        rows = list(group)
        if layer is None:
            stack += [(row["part"], [row]) for row in rows]
        else:
            stack.append((f"layer {layer}", sorted(rows, key=lambda row: order[row["part"]])))
    return stack


def parallel_table(view: StudyView, *, genes: Sequence[str]) -> Table:
    """The candidates of the highest rung with the named genes and their objectives, for parallel coordinates."""
    roles = {row["genome"]: row["role"] for row in points_table(view).rows}
    rows = []
    for r in view.complete(view.top_rung):
        flat = flatten(r.genome.to_dict())
        chosen = {gene: flat.get(gene, "-") for gene in genes}
        rows.append({"genome": short_id(r), "role": roles[short_id(r)], **chosen, **evaluation_of(r).objectives})
    columns = (
        Column("genome", "genome"),
        Column("role", "role"),
        *(Column(gene, gene) for gene in genes),
        *(view.column(name) for name in view.objectives),
    )
    return Table("parallel", "Genes and objectives together (of objectives, lower is better)", columns, tuple(rows))


@styled
def parallel_figure(table: Table) -> Figure:
    """One upright axis per gene and objective, one line per candidate; the front in colour."""
    columns = table.columns[2:]
    figure, (ax,) = new_figure(max(6.4, 1.25 * len(columns)), 3.9)
    places = {column.name: _places(table, column) for column in columns}
    styles = {
        "over": (MUTED, 0.6, 0.3),
        "other": (MUTED, 0.8, 0.45),
        "front": (BLUE, 1.3, 0.9),
        "tied": (BLUE, 1.3, 0.9),
        "winner": (ORANGE, 2.4, 1),
    }
    for role, (color, width, alpha) in styles.items():
        for row in (r for r in table.rows if r["role"] == role):
            heights = [places[c.name][0](row[c.name]) for c in columns]
            ax.plot(range(len(columns)), heights, color=color, linewidth=width, alpha=alpha)
    for x, column in enumerate(columns):
        ax.axvline(x, color=GRID, linewidth=1.2, zorder=0)
        for height, text in places[column.name][1]:
            ax.text(x + 0.03, height, text, fontsize=7.5, va="center", bbox=PAPER, zorder=4)
    ax.set_xticks(range(len(columns)), [textwrap.fill(c.title.replace("_", " "), 13) for c in columns])
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0, labelcolor=INK)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_title(table.title)
    return figure


def _places(table: Table, column: Column) -> tuple[Any, list[tuple[float, str]]]:
    """How high a value stands on its axis (0 to 1), and the labels of the axis."""
    values = {row[column.name] for row in table.rows}
    if column.kind == "text":
        order = sorted(values, key=_natural)
        height = {v: (i + 0.5) / len(order) for i, v in enumerate(order)}
        return height.__getitem__, [(h, str(v)) for v, h in height.items()]
    points = {v: math.log2(v) if column.scale == "log2" else v for v in values}
    low, high = min(points.values()), max(points.values())
    ends = [(0.0, min(values)), (1.0, max(values))]
    return lambda v: (points[v] - low) / ((high - low) or 1.0), [(h, format_value(v, column.kind)) for h, v in ends]


def _natural(text: str) -> tuple[int, float, str]:
    """Numbers in their order before words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
