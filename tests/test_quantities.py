"""Titles, units, scales and directions stand in one table, and everything that shows a quantity asks it."""

import ast
from pathlib import Path
from typing import get_args

import pytest

from codenas_hf.engine.objectives import Objectives
from codenas_hf.jobs.search import SCALES
from codenas_hf.jobs.status import COLUMNS
from codenas_hf.quantities import OBJECTIVES, QUANTITIES, Scale, Unit, quantity
from codenas_hf.report.cells import Kind, quantity_column

PACKAGE = Path(__file__).parent.parent / "codenas_hf"


def test_every_quantity_has_one_row() -> None:
    names = [row.name for row in QUANTITIES]
    assert len(set(names)) == len(names)
    titles = [row.title for row in QUANTITIES]
    assert len(set(titles)) == len(titles)
    assert {row.unit for row in QUANTITIES} <= set(get_args(Unit))
    assert {row.scale for row in QUANTITIES} <= set(get_args(Scale))


def test_objectives_are_minimised_and_have_rows() -> None:
    assert set(OBJECTIVES) <= {row.name for row in QUANTITIES}
    assert all(quantity(name).better == "lower" for name in OBJECTIVES)


def test_a_search_takes_its_objectives_and_scales_from_the_table() -> None:
    assert tuple(SCALES) == OBJECTIVES
    assert Objectives(scales=SCALES).scales == {name: quantity(name).scale for name in OBJECTIVES}


def test_columns_take_title_and_unit_from_the_table() -> None:
    column = quantity_column("artifact_bytes", scale="log2")
    assert (column.title, column.kind, column.scale) == ("artifact", "bytes", "log2")
    assert quantity_column("artifact_bytes", title="winner").title == "winner"
    units = {column.name: column.kind for column in COLUMNS}
    assert all(units[name] == quantity(name).unit for name in OBJECTIVES)


@pytest.mark.parametrize("name", ["wall_ms", "shipped_bytes", "f_seconds", "dead_share"])
def test_a_name_without_a_row_is_a_plain_number_whatever_it_ends_on(name: str) -> None:
    row = quantity(name)
    assert (row.title, row.unit, row.scale) == (name.replace("_", " "), "number", "linear")


def test_kinds_hold_every_unit() -> None:
    kinds = {value for part in get_args(Kind) for value in get_args(part)}
    assert set(get_args(Unit)) < kinds


def test_no_report_writes_the_title_of_a_quantity_again() -> None:
    names = {row.name for row in QUANTITIES}
    for path in sorted((PACKAGE / "report").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Column":
                first = node.args[0]
                assert not (isinstance(first, ast.Constant) and first.value in names), f"{path.name}:{node.lineno}"
