"""Two texts, one order: ties by project, and whether choosing by the search text flattered the winner."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from study_records import SCALES, make_records, make_result

from codenas_hf.engine import Frame, Objectives
from codenas_hf.engine.intervals import paired_ratio
from codenas_hf.engine.records import TrialRecord
from codenas_hf.report.plots import points_table
from codenas_hf.report.study_view import StudyView, evaluation_of
from codenas_hf.report.tables import front_table
from codenas_hf.report.texts import Flattery, difference, resolution, texts_table, tied

BYTES = [5000.0, 7000.0, 6000.0, 8000.0, 5500.0, 6500.0]


def with_texts(record: TrialRecord, *, gap: float = 0.1, noise: float = 0.0) -> TrialRecord:
    """The record with what a real evaluation of the last rung adds: bits by project, and the report text."""
    if record.evaluation is None or record.rung != 1:
        return record
    bits = record.evaluation.objectives["bits_per_byte"]
    spread = np.random.default_rng(int(record.genome.genome_id[:8], 16)).normal(0, noise, len(BYTES))
    spread -= np.average(spread, weights=BYTES)
    parts = {"bits": [(bits + s) * size for s, size in zip(spread, BYTES, strict=True)], "bytes": BYTES}
    more = {"bits_by_project": parts, "report_bits_per_byte": bits + gap}
    evaluation = dataclasses.replace(record.evaluation, measurements={**record.evaluation.measurements, **more})
    return dataclasses.replace(record, evaluation=evaluation)


def view_of(**how: float) -> StudyView:
    return viewed([with_texts(r, **how) for r in make_records()])


def viewed(records: Sequence[TrialRecord]) -> StudyView:
    done = [evaluation_of(r) for r in records if r.evaluation is not None]
    frame = Frame.derive(Objectives(scales=SCALES), done, ideal={}, reference={})
    return StudyView(name="s", result=make_result(records, frame=frame.to_dict()))


def test_a_difference_is_in_pairs_and_ties_follow_from_its_interval() -> None:
    clear, noisy = view_of(noise=0.0), view_of(noise=1.0)
    assert clear.winner is not None
    others = [r for r in clear.front_members() if not clear.is_winner(r)]
    assert others
    for record in others:
        found = difference(record, clear.winner)
        assert found is not None
        exact = (
            evaluation_of(record).objectives["bits_per_byte"] - evaluation_of(clear.winner).objectives["bits_per_byte"]
        )
        assert found.value == pytest.approx(exact)
        assert not tied(clear, record), "without noise every difference is clear"
    assert not tied(clear, clear.winner)
    ties = [r for r in noisy.front_members() if tied(noisy, r)]
    assert len(ties) == len(noisy.front_members()) - 1, "with much noise nothing is"
    rows = front_table(noisy).rows
    assert sum(row.get("tied") == "tied" for row in rows) == len(ties)
    assert "tied" in front_table(noisy).note
    assert not any(row.get("tied") for row in front_table(clear).rows)
    roles = [row["role"] for row in points_table(noisy).rows]
    assert roles.count("tied") == len(ties)


def test_what_the_text_resolves_stands_below_the_front() -> None:
    clear, noisy = view_of(noise=0.0), view_of(noise=1.0)
    exact, rough = resolution(clear.front_members()), resolution(noisy.front_members())
    assert exact is not None
    assert rough is not None
    assert exact[0] == pytest.approx(0, abs=1e-9)
    assert exact[1] == pytest.approx(rough[1])
    assert exact[1] > 0
    assert rough[0] > 0.1
    assert f"standard error of a difference is {rough[0]:.4f}" in front_table(noisy).note
    assert resolution(viewed(make_records()).front_members()) is None
    assert "standard error" not in front_table(viewed(make_records())).note


def test_other_text_or_few_projects_give_no_difference() -> None:
    parts = {"bits": [1.0, 2.0, 3.0], "bytes": [1.0, 1.0, 1.0]}
    assert paired_ratio(parts, parts) is not None
    assert paired_ratio(parts, {**parts, "bytes": [1.0, 1.0, 2.0]}) is None
    assert paired_ratio({"bits": [1.0, 2.0], "bytes": [1.0, 1.0]}, {"bits": [1.0, 2.0], "bytes": [1.0, 1.0]}) is None
    assert paired_ratio({}, parts) is None


def test_flattery_is_what_the_winner_loses_beyond_what_all_lose() -> None:
    same = Flattery.of(view_of(gap=0.1))
    assert same is not None
    assert same.excess == pytest.approx(0.0, abs=1e-12)
    assert same.report - same.search == pytest.approx(0.1)
    assert same.tau is not None
    assert same.tau.tau == pytest.approx(1.0)
    plain = viewed(make_records())
    assert plain.winner is not None
    chosen = plain.winner.genome.genome_id
    records = [with_texts(r, gap=0.3 if r.genome.genome_id == chosen else 0.1) for r in make_records()]
    flattered = Flattery.of(viewed(records))
    assert flattered is not None
    assert flattered.excess * flattered.report == pytest.approx(0.2 * (1 - 1 / flattered.candidates))
    assert "flattered" in flattered.line()
    assert "not flattered" not in flattered.line()


def test_the_table_stands_in_the_report_only_where_both_texts_were_scored() -> None:
    table = texts_table(view_of(gap=0.1))
    assert [row["report"] for row in table.rows] == sorted(row["report"] for row in table.rows)
    assert len(table.marked) == 1
    assert "report text" in table.note
    plain = viewed(make_records())
    assert texts_table(plain).rows == ()
    assert Flattery.of(plain) is None
