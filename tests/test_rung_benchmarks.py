"""How the benchmarks of the main job and of its rungs judge what they measured."""

import pytest

from benchmarks.main_job import HEADERS, body_parses, headers
from benchmarks.rungs import KINDS, SHAPES, Steps, rows_of


@pytest.mark.parametrize(
    ("text", "parses"),
    [
        ("\n    c = a + b\n    return c\n", True),
        ("\n    c = a + b\n    return c\n\ndef broken(:", True),
        ("\n    if a:\n        return b\n    return (a +", True),
        ("\n    return a\n", False),
        ("\n", False),
        ("", False),
        ("\n    >>> from 10\n    from pd.0\n    from pd.0\n", False),
        ("\nx = 1\ny = 2\n", False),
    ],
)
def test_what_counts_as_a_body(text: str, parses: bool) -> None:
    assert body_parses("def add(a, b):", text) is parses


def test_the_headers_are_of_twenty_functions() -> None:
    found = headers()
    assert len(set(found)) == HEADERS
    assert all(header.startswith("def ") and header.endswith(":") for header in found)


def test_a_kind_of_budget_is_judged_by_the_ranking_at_the_end() -> None:
    """Equal seconds rank the five as they end, equal tokens the other way round; a rung beyond an end is left out."""
    end = {name: 2.0 + place / 10 for place, name in enumerate(SHAPES)}
    steps: Steps = {"final": {"": 1000}, "tokens": {"20": 20}, "bytes": {"20": 2000}, "seconds": {"20": 30}}
    runs = [
        {
            "shape": name,
            "seed": seed,
            "steps": steps,
            "bits_per_byte": {"1000": end[name], "30": end[name] + 1, "20": 4 - end[name]},
        }
        for seed in (0, 1)
        for name in SHAPES
    ]
    rows = {row["equal"]: row for row in rows_of(runs, levels=[20])}
    assert set(rows) == {"tokens", "seconds"} < set(KINDS)
    assert rows["seconds"]["tau"] == pytest.approx(1)
    assert rows["seconds"]["first_place_costs_percent"] == pytest.approx(0)
    assert rows["tokens"]["tau"] == pytest.approx(-1)
    assert rows["tokens"]["first_place_costs_percent"] == pytest.approx(20)
