"""Three machines that share a study: two hosts that search, one with the database, each with an address of its own.

They are network and process namespaces of this machine: one cannot see the processes of another, and a link that is
taken down says nothing to anybody. The clock of one host is an hour ahead in all of these.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import pytest
from integer_space import IntegerSpace
from test_crash import log_of, straight, wait_until

from benchmarks.postgres import Postgres, binaries
from codenas_hf.engine.objectives import Objectives
from codenas_hf.engine.storage import open_storage
from codenas_hf.engine.study import Study

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300)]
PROGRAM = Path(__file__).parent / "search_program.py"
DATABASE = "10.77.0.1"
OPTIONS = ("workers=1", "heartbeat=0.3", "lease=2", "seconds=0.5", "generations=3")


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class Hosts:
    """The machines `near` and `far`, each with a link of its own to the one with the database."""

    names = ("near", "far")

    def __init__(self) -> None:
        self._key = f"codenas-{os.getpid()}"

    def space(self, host: str) -> str:
        return f"{self._key}-{host}"

    def create(self) -> None:
        database = self.space("database")
        run("ip", "netns", "add", database)
        run("ip", "-n", database, "link", "set", "lo", "up")
        run("ip", "-n", database, "addr", "add", f"{DATABASE}/32", "dev", "lo")
        for number, host in enumerate(self.names, start=1):
            here, there = self.space(host), ("name", host, "netns", database)
            run("ip", "netns", "add", here)
            run("ip", "link", "add", "name", "uplink", "netns", here, "type", "veth", "peer", *there)
            for space, link, last in ((here, "uplink", 2), (database, host, 1)):
                run("ip", "-n", space, "addr", "add", f"10.77.{number}.{last}/24", "dev", link)
                run("ip", "-n", space, "link", "set", link, "up")
            run("ip", "-n", here, "link", "set", "lo", "up")
            run("ip", "-n", here, "route", "add", DATABASE, "via", f"10.77.{number}.1")

    def link(self, host: str, state: str) -> None:
        """Takes the link of a host `down` or `up`, at the other end: the host itself is told nothing."""
        run("ip", "-n", self.space("database"), "link", "set", host, state)

    def delete(self) -> None:
        for host in (*self.names, "database"):
            subprocess.run(["ip", "netns", "del", self.space(host)], capture_output=True)

    def start(self, host: str, folder: Path, storage: str, *options: str) -> subprocess.Popen[str]:
        """A launcher on a host, whose processes no other host sees."""
        inside = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts")
        named = ("sh", "-c", f'hostname {host} && exec "$@"', "sh")
        words = (f"storage={storage}", f"study={host}", f"records={host}.json", *OPTIONS, *options)
        return subprocess.Popen(
            ["ip", "netns", "exec", self.space(host), *inside, *named, sys.executable, str(PROGRAM), folder, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    found = Hosts()
    try:
        found.create()
    except (OSError, subprocess.CalledProcessError) as error:
        found.delete()
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
    yield found
    found.delete()


@pytest.fixture(scope="module")
def server(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    if binaries() is None:
        pytest.skip("no PostgreSQL server program in /usr/lib/postgresql/*/bin: apt-get install postgresql")
    within = ("ip", "netns", "exec", hosts.space("database"))
    found = Postgres(Path(str(tmp_path_factory.mktemp("server"))), address=DATABASE, within=within)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The records of the same search on one machine, undisturbed."""
    return straight(tmp_path_factory.mktemp("straight") / "s", "seconds=0", "generations=3")


class Search:
    """One search on both hosts."""

    def __init__(self, hosts: Hosts, server: Postgres, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.storage = server.create(folder.name)
        # By its socket file, which no network name space hides; opened once.
        self.local = open_storage(
            f"postgresql+psycopg://search@/{folder.name}?host={server.home}&port={server.port}", folder=folder
        )
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start_both(self) -> None:
        """The near one leads; returns when both have finished something."""
        self.running["near"] = self.hosts.start("near", self.folder, self.storage)
        wait_until(lambda: len(log_of(self.folder)) >= 1)
        self.running["far"] = self.hosts.start("far", self.folder, self.storage, "clock=3600")
        wait_until(lambda: self.workers() == {"near", "far"})

    def cut(self, host: str) -> tuple[int, int]:
        """Takes the link of a host down while it evaluates; returns the rung and the number of its trial."""
        while True:
            wait_until(lambda: self.holds(host) is not None)
            self.hosts.link(host, "down")
            time.sleep(0.2)  # what it had sent already arrives
            held = self.holds(host)
            if held is not None:
                return held
            self.hosts.link(host, "up")  # it was between two of them

    def records(self) -> tuple[Any, ...]:
        time.sleep(0.1)  # it is asked again and again
        return self.study.snapshot().records

    def told_by(self, place: tuple[int, int]) -> str | None:
        """The host whose outcome a trial has; waits until it has one."""

        def found() -> Any:
            return [r for r in self.records() if (r.rung, r.number) == place and r.state == "complete"]

        wait_until(found)
        return host_of(found()[0])

    @cached_property
    def study(self) -> Study:
        objectives = Objectives(scales={"a": "linear", "b": "linear"})
        return Study(self.local, name="killed", space=IntegerSpace(), rungs=2, objectives=objectives)

    def holds(self, host: str) -> tuple[int, int] | None:
        running = [record for record in self.records() if record.state == "running"]
        return next(((r.rung, r.number) for r in running if host_of(r) == host), None)

    def workers(self) -> set[str | None]:
        return {host_of(record) for record in self.records() if record.state == "complete"}

    def finished(self) -> set[str]:
        return {f"{r.rung} {r.genome.x} {r.genome.y}" for r in self.records() if r.state == "complete"}

    def ends(self, host: str) -> str:
        """Waits for the launcher of a host; returns what it said."""
        output, errors = self.running[host].communicate(timeout=120)
        assert output == "done\n", errors
        return errors

    def told(self, host: str) -> Any:
        """The records as a host has read them; in the storage every trial stands once."""
        trials = [
            (study, trial.user_attrs["genome_id"])
            for study in optuna.get_all_study_names(self.local)
            if "/rung" in study
            for trial in optuna.load_study(study_name=study, storage=self.local).trials
        ]
        assert len(trials) == len(set(trials))
        return json.loads((self.folder / f"{host}.json").read_text())

    def close(self) -> None:
        for host, process in self.running.items():
            self.hosts.link(host, "up")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.communicate()


def host_of(record: Any) -> str | None:
    return record.worker.partition(":")[0] if record.worker else None


@pytest.fixture
def search(hosts: Hosts, server: Postgres, tmp_path: Path) -> Iterator[Search]:
    both = Search(hosts, server, tmp_path)
    yield both
    both.close()


def test_a_host_vanishes_and_the_other_finishes(tmp_path: Path, search: Search, expected: Any) -> None:
    search.start_both()
    search.cut("far")
    known, at = search.finished(), len(log_of(tmp_path))
    errors = search.ends("near")
    assert "Process far:" in errors
    assert "is gone" in errors
    assert search.told("near") == expected
    assert known <= search.finished()
    assert not known & set(log_of(tmp_path)[at:]), "a finished evaluation was repeated"


def test_a_host_comes_back_after_its_trial_was_given_to_another(search: Search, expected: Any) -> None:
    search.start_both()
    lost = search.cut("far")
    while search.told_by(lost) != "near":  # its outcome was on its way already
        search.hosts.link("far", "up")
        lost = search.cut("far")
    search.hosts.link("far", "up")
    search.ends("near")
    assert "another process has it now" in search.ends("far")
    assert search.told("near") == search.told("far") == expected
    assert search.told_by(lost) == "near", "the outcome that was told first stays"


def test_the_database_restarts(tmp_path: Path, search: Search, server: Postgres, expected: Any) -> None:
    search.start_both()
    known, at = search.finished(), len(log_of(tmp_path))
    server.kill()
    time.sleep(1)
    server.start()
    for host in search.hosts.names:
        assert "The database server does not answer, trying again" in search.ends(host)
        assert search.told(host) == expected
    assert known <= search.finished()
    assert not known & set(log_of(tmp_path)[at:]), "a finished evaluation was repeated"
