"""The report of a study: tables as CSV and Markdown, pictures, and one HTML page that opens without a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from codenas_hf.engine.result import SearchResult
from codenas_hf.report.architecture import Tensor, architecture_table
from codenas_hf.report.cells import Table, format_count, format_value
from codenas_hf.report.comparison import budget_table
from codenas_hf.report.drawing import INKS, save, to_svg
from codenas_hf.report.plots import (
    architecture_figure,
    curves_figure,
    curves_table,
    front_figure,
    genes_figure,
    hypervolume_figure,
    parallel_figure,
    parallel_table,
    points_table,
    projections,
    ranks_figure,
)
from codenas_hf.report.study_view import StudyView, short_id
from codenas_hf.report.tables import (
    correlation_table,
    flatten,
    front_table,
    gene_table,
    hypervolume_table,
    parameters_of,
    rank_table,
    seconds_table,
    trials_table,
)
from codenas_hf.report.texts import texts_table

TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass(kw_only=True)
class Part:
    """One section of the page: its pictures, its tables, and tables that open on demand."""

    id: str
    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    wide: bool = False

    @cached_property
    def svgs(self) -> list[Markup]:
        """The pictures, inline; one that only repeats the section's heading loses its own."""
        for axes in (axes for figure in self.figures for axes in figure.axes):
            if axes.get_title(loc="left") == self.title:
                axes.set_title("", loc="left")
        labels = [f"{self.title}, picture {i + 1}" for i in range(len(self.figures))]
        return [
            Markup(to_svg(f, name=f"{self.id}{i}", label=label))  # our own SVG, not text of others
            for i, (f, label) in enumerate(zip(self.figures, labels, strict=True))
        ]


def write_report(
    result: SearchResult,
    *,
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the report of a study, finished or not; what has not been measured is left out.

    Args:
        result: the record of the search.
        folder: created; gets `index.html`, one `.csv` and one `.md` per table, one `.png` and one `.svg` per picture.
        name: the study's name, the title of the page.
        tensors: the winner's tensors (`tensors_of_folder`, `tensors_of_model`); None leaves its architecture out.
        config: the winner's `config.json`.
        facts: what stands at the foot of the page: device, versions, commit, data digest, seed.

    Returns:
        Path of `index.html`.
    """
    view = StudyView(name=name, result=result, facts=facts or {})
    folder.mkdir(parents=True, exist_ok=True)
    groups = report_parts(view, tensors=tensors, config=config)
    for part in (part for group in groups for part in group):
        for table in (*part.tables, *part.folded):
            (folder / f"{table.name}.csv").write_text(table.to_csv(), encoding="utf-8")
            (folder / f"{table.name}.md").write_text(table.to_markdown(), encoding="utf-8")
        if len(part.figures) == 1:
            save(part.figures[0], folder / f"{part.id}.png", label=part.title)
    if view.complete() and len(view.objectives) > 1:
        figure = front_figure(points_table(view), projections(view), limits=view.limits)
        save(figure, folder / "front.png", label=f"Pareto front of {name}")
    page = folder / "index.html"
    page.write_text(render_page(view, groups), encoding="utf-8")
    return page


def report_parts(
    view: StudyView, *, tensors: Mapping[str, Tensor] | None = None, config: Mapping[str, Any] | None = None
) -> list[list[Part]]:
    """The sections of a report, in rows of one or two; a section without anything measured is absent."""
    trials = Part(id="all", title="Trials", folded=[trials_table(view)])
    if not view.complete():
        return [[trials]]
    points = points_table(view)
    panels = [front_figure(points, [pair], limits=view.limits) for pair in projections(view)]
    members = front_table(view)
    groups = [[Part(id="front", title=members.title, text=_front_text(view), figures=panels, tables=[members])]]
    growth = hypervolume_table(view)
    cost = Part(
        id="hypervolume", title=growth.title, text=growth.note, figures=[hypervolume_figure(growth)], folded=[growth]
    )
    groups.append([cost, *_rank_part(view)])
    texts = texts_table(view)
    if texts.rows:
        groups.append([Part(id=texts.name, title=texts.title, tables=[texts])])
    budgets = [budget_table(view, name) for name in view.objectives[1:]] if len(points.rows) > 1 else []
    bought = [Part(id=t.name, title=t.title, tables=[t]) for t in budgets if t.rows]
    groups += [bought] if bought else []
    if tensors:
        layers = architecture_table(tensors, config)
        picture = architecture_figure(layers)
        part = Part(
            id="architecture", title="The winner, layer by layer", figures=[picture], folded=[layers], wide=True
        )
        groups.append([part])
    groups += _gene_parts(view)
    curves = curves_table(view)
    spent = Part(id="time", title="Where the time went", tables=[seconds_table(view)])
    if curves.rows:
        groups.append([Part(id="curves", title=curves.title, figures=[curves_figure(curves)], wide=True)])
    return [*groups, [spent], [trials]]


def render_page(view: StudyView, groups: Iterable[Sequence[Part]]) -> str:
    """One HTML document without any reference to another file."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    complete = sum(r.state == "complete" for r in view.records)
    failed = sum(r.state == "fail" for r in view.records)
    pending = len(view.records) - complete - failed
    state = f"{complete} evaluations complete, {failed} failed" + (f", {pending} to come" if pending else "")
    return template.render(
        title=view.name,
        subtitle=state,
        inks=INKS,
        tiles=_tiles(view),
        groups=[group for group in groups if group],
        facts=[(name.replace("_", " "), value) for name, value in flatten(view.facts).items()],
    )


def _front_text(view: StudyView) -> str:
    """What the pictures of the front show, in a sentence."""
    return (
        f"All candidates that reached rung {view.top_rung}. Lower is better on every axis; the line is what the front "
        "reaches in that projection" + (", dashed lines are the limits." if view.limits else ".")
    )


def _rank_part(view: StudyView) -> list[Part]:
    """How well the cheap rung predicted the next; nothing before two candidates have been at both."""
    correlation = correlation_table(view)
    if not correlation.rows:
        return []
    pairs = rank_table(view, low=view.top_rung - 1)
    figures = [ranks_figure(pairs, correlation)]
    title = "How well the cheap rung predicts the next"
    return [Part(id="ranks", title=title, figures=figures, tables=[correlation], folded=[pairs])]


def _gene_parts(view: StudyView) -> list[list[Part]]:
    """Gene importance, and genes beside objectives."""
    genes = gene_table(view)
    if not genes.rows:
        return []
    together = parallel_table(view, genes=[row["gene"] for row in genes.rows[:4]])
    importance = Part(id="importance", title=genes.title, figures=[genes_figure(genes)], folded=[genes], wide=True)
    if len(together.rows) < 2:
        return [[importance]]
    return [
        [importance],
        [Part(id="parallel", title=together.title, figures=[parallel_figure(together)], wide=True)],
    ]


def _tiles(view: StudyView) -> list[tuple[str, str]]:
    """The winner in a few numbers."""
    if view.winner is None or view.winner.evaluation is None:
        return []
    tiles = [("winner", short_id(view.winner))]
    for name, value in zip(view.objectives, view.values(view.winner), strict=True):
        column = view.column(name)
        tiles.append((column.title, format_value(value, column.kind)))
    count = parameters_of(view.winner)
    return [*tiles, ("parameters", format_count(count))] if count is not None else tiles
