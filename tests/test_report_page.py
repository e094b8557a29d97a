"""Pictures and the page: complete, self-contained, safe, and quiet about what was not measured."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from study_records import SCALES, PlainGenome, make_records, make_result

from codenas_hf.engine.objectives import Frame, Objectives
from codenas_hf.engine.records import TrialRecord
from codenas_hf.report.architecture import Tensor
from codenas_hf.report.drawing import INKS, round_ticks, time_ticks, to_svg
from codenas_hf.report.page import write_report
from codenas_hf.report.plots import curves_figure, curves_table, hypervolume_figure, points_table, projections
from codenas_hf.report.study_view import StudyView
from codenas_hf.report.tables import hypervolume_table

TENSORS = {
    "model.embed_tokens.weight": Tensor((64, 8), 1024),
    "model.layers.0.self_attn.q_proj.weight": Tensor((8, 8), 128),
    "model.layers.0.mlp.up_proj.weight": Tensor((16, 8), 256),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = make_records()
    done = [r.evaluation for r in records if r.evaluation is not None]
    frame = Frame.derive(Objectives(scales=SCALES), done, ideal={}, reference={})
    result = make_result(records, limits={"artifact_bytes": 14e6}, frame=frame.to_dict())
    folder = tmp_path_factory.mktemp("report")
    write_report(result, folder=folder, name="a & b", tensors=TENSORS, facts={"device": "two <cores>"})
    return folder


def test_every_table_and_picture_is_written(report: Path) -> None:
    names = {path.name for path in report.iterdir()}
    tables = ["front", "trials", "seconds", "hypervolume", "rank_correlation", "genes", "budget_artifact_bytes"]
    assert {f"{name}.{end}" for name in tables for end in ("csv", "md")} <= names
    pictures = ["front", "hypervolume", "ranks", "importance", "curves", "parallel", "architecture"]
    assert {f"{name}.{end}" for name in pictures for end in ("png", "svg")} <= names
    assert "| fitness |" in (report / "front.md").read_text()


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            self.links += [value or ""] if name in ("src", "href", "xlink:href") else []
        assert tag not in ("script", "iframe", "link")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_stands_alone(report: Path) -> None:
    page = (report / "index.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert all(link.startswith("#") for link in reader.links)
    assert not re.search(r"url\((?!#)|@import", page)
    assert len(reader.ids) == len(set(reader.ids))
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    assert page.count("<svg") == 9


def test_the_page_is_dark_where_the_system_is(report: Path) -> None:
    page = (report / "index.html").read_text()
    for ink, (name, dark) in INKS.items():
        assert f"--{name}: {ink}" in page
        assert f"--{name}: {dark}" in page
        assert not re.search(rf"(fill|stroke): {ink}", page), f"{ink} does not turn dark"
    assert "prefers-color-scheme: dark" in (report / "front.svg").read_text()


def test_text_of_others_cannot_become_markup(report: Path) -> None:
    page = (report / "index.html").read_text()
    assert "<h1>a &amp; b</h1>" in page
    assert "two &lt;cores&gt;" in page


def test_the_same_table_gives_the_same_picture() -> None:
    table = hypervolume_table(StudyView(name="s", result=make_result(make_records(generations=1))))
    first, second = (to_svg(hypervolume_figure(table), name="x", label='a "b" <c>') for _ in range(2))
    assert first == second
    assert 'aria-label="a &quot;b&quot; &lt;c>"' in first


def test_a_study_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    waiting = TrialRecord(0, PlainGenome((("a", 1),)), 0, "waiting")
    page = write_report(make_result([waiting]), folder=tmp_path, name="s").read_text()
    assert "1 to come" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "trials.csv", "trials.md"]


def test_one_rung_and_one_trial_are_enough(tmp_path: Path) -> None:
    records = make_records(generations=1, population=2, top=1)[:1]
    page = write_report(make_result(records), folder=tmp_path, name="s").read_text()
    assert "Kendall" not in page
    assert "would buy" not in page
    assert "Gene importance" not in page
    assert (tmp_path / "front.png").exists()


def test_projections_show_every_pair_once() -> None:
    view = StudyView(name="s", result=make_result(make_records()))
    pairs = {frozenset(pair) for pair in projections(view)}
    assert len(pairs) == 3
    roles = {row["role"] for row in points_table(view).rows}
    assert roles <= {"front", "other", "over"}


def test_curves_are_what_training_recorded() -> None:
    records = make_records(generations=1, top=1)
    top = next(r for r in records if r.rung == 1)
    assert top.evaluation is not None
    # As training.loop writes a point.
    point = {"step": 10, "tokens": 40_960, "seconds": 1.5, "loss": 3.0}
    top.evaluation.measurements["curve"] = [point]  # type: ignore[index]
    table = curves_table(StudyView(name="s", result=make_result([top])))
    assert [(row["step"], row["loss"]) for row in table.rows] == [(10, 3.0)]
    assert table.columns[3].title == "training loss (nats per token)"


def test_curves_of_several_vocabularies_compare() -> None:
    """The loss of a token that is twice as long is twice as high: in bits per byte the better one is lower."""
    trials = [r for r in make_records(generations=1) if r.rung == 1][:2]
    for trial, (loss, size) in zip(trials, ((3.0, 200), (4.0, 400)), strict=True):
        assert trial.evaluation is not None
        point = {"step": 10, "tokens": 100, "seconds": 1.5, "loss": loss}
        trial.evaluation.measurements.update(curve=[point], tokens=100, bytes=size)  # type: ignore[attr-defined]
    table = curves_table(StudyView(name="s", result=make_result(trials)))
    wanted = [loss / math.log(2) * 100 / size for loss, size in ((3.0, 200), (4.0, 400))]
    assert [row["bits_per_byte"] for row in table.rows] == pytest.approx(wanted)
    assert table.columns[3].title == "training loss (bits per byte)"
    assert to_svg(curves_figure(table), name="x", label="y")
    del trials[0].evaluation.measurements["bytes"]  # type: ignore[attr-defined,union-attr]  # of an earlier version
    table = curves_table(StudyView(name="s", result=make_result(trials)))
    assert [row["loss"] for row in table.rows] == [3.0, 4.0]


def test_ticks_are_round_and_few() -> None:
    assert round_ticks(1.5e6, 40e6)[0] in (2e6, 3e6)
    for low, high in ((1.9e6, 2.1e6), (0.5, 0.6), (1, 1e9)):
        assert 1 <= len(round_ticks(low, high)) <= 6
        assert all(low <= tick <= high for tick in round_ticks(low, high))
    assert round_ticks(4e5, 4.5e6) == [5e5, 1e6, 2e6]  # 700 kB would meet its neighbours
    assert time_ticks(3600) == [0, 1200, 2400, 3600]
