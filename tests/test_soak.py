"""A search stays as light as it began: the short form of benchmarks/soak.py."""

from pathlib import Path

import pytest

from benchmarks.soak import opened, rows_of, soak


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_does_not_grow(tmp_path: Path) -> None:
    """A leak of half a megabyte for each evaluation, such as a kept model or record, is seen here already."""
    result, notes = soak(tmp_path / "runs" / "soak", evaluations=250, seconds=0.0)
    assert result.finished
    assert not result.failures
    early = next(note for note in notes if note["evaluations"] >= 50)
    assert notes[-1]["memory_mb"] - early["memory_mb"] < 100
    assert [row["evaluations"] for row in rows_of(notes, parts=4)][-1] == len(result.records)
    assert set(opened(tmp_path / "runs" / "soak")) == {"open_s", "status_s"}
