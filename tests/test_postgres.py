"""Two launchers share one study on a real PostgreSQL server; one is killed, the other finishes."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from integer_space import IntegerSpace, Point
from test_crash import children_of, log_of, straight, wait_until
from test_driver import started

from benchmarks.postgres import Postgres, binaries
from codenas_hf.engine import SearchResult
from codenas_hf.engine.members import Members
from codenas_hf.engine.objectives import Objectives
from codenas_hf.engine.storage import open_storage
from codenas_hf.engine.study import Study

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]
SPACE = IntegerSpace()
OBJECTIVES = Objectives(scales={"a": "linear", "b": "linear"})
OPTIONS = ("workers=2", "heartbeat=0.5", "lease=4", "generations=4")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A fresh server on loopback, which ends with the tests."""
    if binaries() is None:
        pytest.skip("no PostgreSQL server program in /usr/lib/postgresql/*/bin: apt-get install postgresql")
    found = Postgres(Path(str(tmp_path_factory.mktemp("postgres"))))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def database(server: Postgres, request: pytest.FixtureRequest) -> str:
    """A fresh database for each test."""
    name = request.node.name.replace("[", "_").replace("]", "").replace("-", "_")
    return server.create(name[-60:])  # longer ones are cut off, and then two are alike


def launched(folder: Path, database: str, which: str, *options: str) -> subprocess.Popen[str]:
    return started(folder, f"storage={database}", f"study={which}", f"records={which}.json", *OPTIONS, *options)


def result_of(folder: Path, database: str) -> SearchResult:
    return SearchResult.open(folder, space=SPACE, storage=database, name="killed")


def records(folder: Path, which: str) -> Any:
    return json.loads((folder / f"{which}.json").read_text())


def test_a_claim_passes_over_what_another_process_takes(database: str, tmp_path: Path) -> None:
    """64 processes that read all that waits, and then queue up for the first of it, come to nothing on two cores."""
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as another:
        another.execute(f"ALTER DATABASE \"{database.rsplit('/', 1)[1]}\" SET lock_timeout = '5s'")  # for the others
    storage = open_storage(database, folder=tmp_path)
    study = Study(storage, name="s", space=SPACE, rungs=1, objectives=OBJECTIVES)
    for x in range(3):
        study.add(0, Point(x, 0), generation=0)
    with psycopg.connect(database.replace("+psycopg", "")) as another:
        another.execute("SELECT FROM trials WHERE state = 'WAITING' ORDER BY trial_id LIMIT 1 FOR UPDATE")
        claims = [study.claim(member=0, worker="here:1") for _ in range(3)]
        assert [claim and claim.record.number for claim in claims] == [1, 2, None]
    last = study.claim(member=0, worker="here:1")
    assert last is not None
    assert last.record.number == 0


def test_a_process_keeps_one_connection(database: str, tmp_path: Path) -> None:
    """A server has a hundred, and refuses what is beyond: with two each, 64 processes failed now and then."""
    storage = open_storage(database, folder=tmp_path)
    study = Study(storage, name="s", space=SPACE, rungs=1, objectives=OBJECTIVES)
    members = Members(storage, study.members_study, rank=0, heartbeat_s=0.05, lease_s=30)
    members.join()
    try:
        wait_until(lambda: members.living()[members.number].user_attrs["heartbeat"] >= 5)
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as another:
            wait_until(lambda: another.execute(query).fetchone() == (1,))
    finally:
        members.leave()


def test_two_launchers_share_a_study(tmp_path: Path, database: str) -> None:
    expected = straight(tmp_path / "straight", "seconds=0", "generations=4")
    both = [launched(tmp_path, database, which, "seconds=0.5") for which in ("first", "second")]
    for process in both:
        output, errors = process.communicate(timeout=300)
        assert output == "done\n", errors
    assert records(tmp_path, "first") == records(tmp_path, "second") == expected
    workers = [record.worker for record in result_of(tmp_path, database).records]
    assert {worker.split(":")[1] for worker in workers if worker} == {str(process.pid) for process in both}
    lines = log_of(tmp_path)
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_the_other_launcher_finishes_when_the_main_one_is_gone(tmp_path: Path, database: str, how: str) -> None:
    """Killed: its host sees that the process is gone. Frozen: only its missing heartbeats tell."""
    expected = straight(tmp_path / "straight", "seconds=0", "generations=4")
    first = launched(tmp_path, database, "first", "seconds=0.5")
    wait_until(lambda: len(log_of(tmp_path)) >= 2)
    second = launched(tmp_path, database, "second", "seconds=0.5", *(["far=yes"] if how == "frozen" else []))
    at = len(log_of(tmp_path))
    wait_until(lambda: members(database) == 2 and len(log_of(tmp_path)) > at + 4)
    below = children_of(first.pid)  # each is a group of its own
    for pid in (first.pid, *below):
        os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    try:
        output, errors = second.communicate(timeout=300)
    finally:
        for pid in (first.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        first.communicate()
    assert output == "done\n", errors
    assert "is gone" in errors
    assert records(tmp_path, "second") == expected
    third = launched(tmp_path, database, "third")  # a finished search returns at once
    assert third.communicate(timeout=100)[0] == "done\n"
    assert records(tmp_path, "third") == expected


def members(database: str) -> int:
    study = optuna.load_study(storage=database, study_name="killed/members")
    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)))


def test_a_server_that_is_away_for_a_while_is_waited_for(tmp_path: Path, database: str) -> None:
    expected = straight(tmp_path / "straight", "seconds=0", "generations=4")
    process = launched(tmp_path, database, "first", "seconds=0.3")
    wait_until(lambda: len(log_of(tmp_path)) >= 4)
    server, name = database.replace("+psycopg", "").rsplit("/", 1)
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        # Every connection to the study ends, and no new one is let in for two seconds.
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        time.sleep(2)
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    output, errors = process.communicate(timeout=300)
    assert output == "done\n", errors
    assert "The database server does not answer, trying again" in errors
    assert records(tmp_path, "first") == expected


@pytest.mark.parametrize("kind", ["take", "claim", "tell", "heartbeat", "poll", "propose"])
def test_a_server_that_goes_away_behind_any_question_is_waited_for(tmp_path: Path, database: str, kind: str) -> None:
    """Behind a claim it is written, and its trial runs in the name of a process that has not read so."""
    at = random.Random(f"{kind}{os.environ.get('CODENAS_TEST_SEED', '')}").randint(2, 12 if kind == "poll" else 6)
    options = ("generations=2", f"cut={kind}:{at}", "heartbeat=0.2")
    expected = straight(tmp_path / "straight", "seconds=0", "generations=2")
    process = launched(tmp_path, database, "first", "seconds=0.3", *options)
    try:
        output, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it does not end: {process.communicate()[1][-5000:]}")
    assert output == "done\n", errors
    assert f"cut behind {kind}" in errors
    # Only the heartbeat notices it where Optuna itself tries again, to add a trial.
    assert "The database server does not answer, trying again" in errors or "heartbeat was not recorded" in errors
    assert records(tmp_path, "first") == expected
    lines = log_of(tmp_path)
    assert len(lines) == len(set(lines)), "nothing is evaluated twice"


def test_heartbeats_keep_a_far_member_alive(tmp_path: Path, database: str) -> None:
    """Without them the second launcher, which cannot see the first one's process, would take over after 4 s."""
    first = launched(tmp_path, database, "first", "seconds=6", "population=3", "keep=1", "generations=1")
    wait_until(lambda: (tmp_path / "first").exists() and members_or_none(database) == 1)
    second = launched(tmp_path, database, "second", "seconds=6", "population=3", "keep=1", "generations=1", "far=yes")
    time.sleep(1)
    for process in (first, second):
        output, errors = process.communicate(timeout=300)
        assert output == "done\n", errors
        assert "is gone" not in errors
    lines = log_of(tmp_path)
    assert len(lines) == len(set(lines)) == 5


def members_or_none(database: str) -> int | None:
    try:
        return members(database)
    except Exception:
        return None
