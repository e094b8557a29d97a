"""A short storm of kills; `benchmarks/storm.py` is the long one, with its result file."""

from pathlib import Path

import pytest

from benchmarks import storm
from benchmarks.postgres import Postgres, binaries


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_or_repeated_on_a_journal() -> None:
    outcome = storm.search(0, kills=8, server=None, expected={}, generations=3)
    assert outcome.kills.total() > 0
    assert (outcome.lost, outcome.repeated, outcome.other, outcome.orphans) == (0, 0, 0, 0)


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_nothing_is_lost_or_repeated_on_a_database_that_is_killed_too(tmp_path: Path) -> None:
    if binaries() is None:
        pytest.skip("no PostgreSQL server program in /usr/lib/postgresql/*/bin: apt-get install postgresql")
    (tmp_path / "server").mkdir()
    server = Postgres(tmp_path / "server")
    try:
        server.start()
        outcome = storm.search(1, kills=8, server=server, expected={}, generations=3)
    finally:
        server.stop()
    assert outcome.kills.total() > 0
    assert (outcome.lost, outcome.repeated, outcome.other, outcome.orphans) == (0, 0, 0, 0)
