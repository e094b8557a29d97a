"""A table as a value: rows of plain numbers, and how people, spreadsheets and pages see them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from codenas_hf.quantities import Scale, Unit, quantity

Kind = Unit | Literal["text", "change"]


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: key in the rows and head of the CSV column; carries the unit (`artifact_bytes`, `decode_ms`).
        title: head of the column where people read it.
        kind: how people see a value; the CSV keeps the raw one.
        scale: of an axis that shows the column.
    """

    name: str
    title: str
    kind: Kind = "text"
    scale: Scale = "linear"


def quantity_column(name: str, *, title: str | None = None, scale: Scale = "linear") -> Column:
    """The column of an objective or a measurement, as `quantities` describes it.

    Args:
        name: of the quantity.
        title: in place of the quantity's own.
        scale: on which its study compares it.
    """
    row = quantity(name)
    return Column(name, title or row.title, row.unit, scale)


@dataclass(frozen=True)
class Table:
    """Rows of plain values. A key that is missing, or None, was not measured: its cell is empty, never 0.

    Args:
        name: stem of the files.
        title: heading.
        columns: in order.
        rows: one mapping per row.
        note: what a reader must know to trust it: protocol, what was left out.
        marked: numbers of the rows to set in bold.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    note: str = ""
    marked: frozenset[int] = frozenset()

    def cells(self, row: Mapping[str, Any]) -> list[str]:
        """One row as people read it."""
        return [format_value(row.get(column.name), column.kind) for column in self.columns]

    def to_csv(self) -> str:
        """Raw values with full precision, one header line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        for row in self.rows:
            values = [row.get(column.name) for column in self.columns]
            writer.writerow(["" if value is None else value for value in values])
        return text.getvalue()

    def to_markdown(self, *, heading: bool = True) -> str:
        """A GitHub table; marked rows are bold, columns that are empty throughout are left out."""
        table = self.without_empty_columns()
        lines = [f"## {self.title}", ""] if heading else []
        if not self.rows:
            return "\n".join([*lines, "Nothing measured yet.", ""])
        lines.append("| " + " | ".join(column.title for column in table.columns) + " |")
        lines.append("|" + "|".join(" :-- " if column.kind == "text" else " --: " for column in table.columns) + "|")
        for number, row in enumerate(table.rows):
            cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in table.cells(row)]
            cells = [f"**{cell}**" if cell and number in self.marked else cell for cell in cells]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, *(["", self.note] if self.note else []), ""])

    def without_empty_columns(self) -> Table:
        """The same table without the columns in which nothing was measured."""
        kept = tuple(c for c in self.columns if any(row.get(c.name) is not None for row in self.rows))
        return Table(self.name, self.title, kept or self.columns, self.rows, self.note, self.marked)


def format_value(value: Any, kind: Kind) -> str:
    """A value as people read it: three or four significant digits, decimal units; None gives an empty string."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    match kind:
        case "bytes":
            return format_bytes(value)
        case "ms":
            return f"{significant(value)} ms"
        case "seconds":
            return format_seconds(value)
        case "share":
            return f"{100 * value:.1f} %"
        case "integer":
            return format_count(value)
        case "change":
            return f"{value:+.4f}"
        case _:
            return f"{value:d}" if isinstance(value, int) else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def format_bytes(value: float) -> str:
    """Decimal units: `20_000_000` gives `20.0 MB`; `4e-5` of a byte does not occur."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:.0f} B"


def format_count(value: float) -> str:
    """A count: `1_234_567` gives `1.23 M`, small ones stay exact."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:,.0f}"


def format_seconds(value: float) -> str:
    """`42` gives `42.0 s`, `4000` gives `1 h 06 min`."""
    if value >= 3600:
        return f"{int(value // 3600)} h {int(value % 3600 // 60):02d} min"
    if value >= 120:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    return f"{significant(value)} s"


def significant(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"
