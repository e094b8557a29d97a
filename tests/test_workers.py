"""Whatever a child does is an outcome with a reason; nothing of it stays, and the rank lives on."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
from integer_space import Evaluate, Point

from codenas_hf import hardware
from codenas_hf.engine import workers
from codenas_hf.engine.members import process_started
from codenas_hf.engine.records import Budget, Evaluation, Rung
from codenas_hf.engine.workers import Limits, Outcome, Pool, child_environment, memory_bytes

RUNG = Rung(0, Budget("steps", 50))
PRELOAD = ["light_codenas", "integer_space"]


@pytest.fixture
def pools() -> Iterator[Any]:
    made = []

    def make(evaluator: Any, *, workers: int = 1, **limits: Any) -> Pool:
        environment = {"OMP_NUM_THREADS": "1"}
        pool = Pool(evaluator, workers=workers, limits=Limits(**limits), preload=PRELOAD, environment=environment)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()


def drain(pool: Pool, *, seconds: float = 60) -> list[Outcome]:
    outcomes, deadline = [], time.monotonic() + seconds
    while pool.busy:
        assert time.monotonic() < deadline, "no outcome"
        outcomes += pool.poll(0.5)
    return outcomes


def one(pool: Pool, x: int = 3) -> Outcome:
    pool.start("task", Point(x, 0), rung=RUNG, previous=None)
    (outcome,) = drain(pool)
    assert outcome.task == "task"
    return outcome


@dataclass(frozen=True)
class Alone:
    """Holds a lock as long as its process lives, and memory that the kernel needs a while to take back."""

    lock: Path

    def __call__(self, genome: Any, rung: Rung, previous: Evaluation | None) -> Evaluation:
        fcntl.flock(os.open(self.lock, os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
        genome.__dict__["kept"] = b"\1" * 2**28
        return Evaluation(objectives={"a": 1.0})


def test_the_next_one_begins_when_the_last_is_gone(pools: Any, tmp_path: Path) -> None:
    pool = pools(Alone(tmp_path / "lock"))
    assert [one(pool).failure for _ in range(5)] == [None] * 5


def test_evaluations_come_back(pools: Any) -> None:
    pool = pools(Evaluate(), workers=2)
    assert pool.free == 2
    for x in range(2):
        pool.start(x, Point(x, 1), rung=RUNG, previous=None)
    assert pool.free == 0
    outcomes = {outcome.task: outcome.evaluation for outcome in drain(pool)}
    assert outcomes[0].measurements["threads"] == "1"
    assert outcomes[1].objectives == Evaluate()(Point(1, 1), RUNG, None).objectives
    assert pool.free == 2


def test_each_candidate_has_a_fresh_process(pools: Any, tmp_path: Path) -> None:
    pool = pools(Evaluate(log=tmp_path / "log"))
    for x in range(3):
        one(pool, x)
    processes = [line.split()[3] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(set(processes)) == 3
    assert str(os.getpid()) not in processes


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("raise", "ArithmeticError: no good: 3"),
        ("nan", "ValueError: objective 'a' must be finite, got nan"),
        ("infinity", "ValueError: objective 'b' must be finite, got inf"),
        ("segfault", "killed by SIGSEGV"),
        ("exit", "exit code 3"),
        ("vanish", "ended before it returned an evaluation: exit code 0"),
        ("nothing", "TypeError: the evaluator must return an Evaluation, got NoneType"),
        ("object", "TypeError: an evaluation must consist of JSON values, got object"),
    ],
)
def test_failures_have_a_reason_and_the_next_one_works(pools: Any, spoil: str, reason: str) -> None:
    pool = pools(Evaluate(spoil=spoil))
    outcome = one(pool)
    assert outcome.evaluation is None
    assert reason in (outcome.failure or "")
    assert one(pool, 4).evaluation is not None


def test_a_killed_evaluation_is_started_again_and_then_fails(pools: Any) -> None:
    assert "killed by SIGKILL" in (one(pools(Evaluate(spoil="kill"), kills=2)).failure or "")
    pool = pools(Evaluate(seconds=1.0), kills=1)
    pool.start("task", Point(1, 1), rung=RUNG, previous=None)
    os.kill(pool.process_ids[0], signal.SIGKILL)
    (outcome,) = drain(pool)
    assert outcome.evaluation is not None


def test_time_limit(pools: Any) -> None:
    start = time.monotonic()
    outcome = one(pools(Evaluate(spoil="hang"), seconds=0.3))
    assert outcome.failure == "the time limit of 0.3 s was exceeded"
    assert time.monotonic() - start < 20


def test_memory_limit(pools: Any) -> None:
    outcome = one(pools(Evaluate(spoil="memory"), memory_bytes=100 << 20))
    assert "the memory limit of 100 MiB was exceeded" in (outcome.failure or "")
    assert (memory_bytes(os.getpid()) or 0) > 1 << 20
    assert memory_bytes(2**22 + 1) is None


def test_a_full_disk_is_no_failure_of_the_candidate(pools: Any) -> None:
    pool = pools(Evaluate(spoil="full disk"))
    pool.start("task", Point(3, 0), rung=RUNG, previous=None)
    with pytest.raises(OSError, match="the disk is full"):
        drain(pool)
    assert pool.close() == ("task",)


@pytest.mark.parametrize("tasks", [(3, 4), (4, 3)])
def test_what_ends_together_with_a_full_disk_comes_back_before_the_error(pools: Any, tasks: tuple[int, int]) -> None:
    pool = pools(Evaluate(spoil="full disk"), workers=2)
    for x in tasks:
        pool.start(x, Point(x, 0), rung=RUNG, previous=None)
    answered(pool)
    (outcome,) = pool.poll(1.0)
    assert outcome.task == 4
    assert outcome.evaluation is not None
    assert pool.free == 0, "nothing is started that would be killed at once"
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is full"):
            pool.poll(1.0)
    assert pool.close() == (3,)


def answered(pool: Pool) -> None:
    """Waits until all children have answered."""
    deadline = time.monotonic() + 60
    while len(wait([child.connection for child in pool._busy], 0)) < len(pool.busy):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass(frozen=True)
class Tree:
    """Starts a grandchild that would live on."""

    file: Path

    def __call__(self, genome: Any, rung: Rung, previous: Evaluation | None) -> Evaluation:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.file.write_text(f"{os.getpid()} {child.pid}")
        if genome.x:
            time.sleep(600)
        return Evaluation(objectives={"a": 1.0})


def alive(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + 10
    while (left := [pid for pid in pids if process_started(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def wait_for(file: Path) -> list[int]:
    deadline = time.monotonic() + 60
    while not file.exists() or len(file.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(pid) for pid in file.read_text().split()]


@pytest.mark.parametrize("x", [0, 1])
def test_what_a_child_started_goes_with_it(pools: Any, tmp_path: Path, x: int) -> None:
    pool = pools(Tree(tmp_path / "pids"))
    pool.start("task", Point(x, 0), rung=RUNG, previous=None)
    pids = wait_for(tmp_path / "pids")
    if x:
        assert pool.close() == ("task",)
    else:
        drain(pool)
    assert alive(pids) == []


ORPHANS = """
import sys
sys.path[:0] = {path!r}
import light_codenas
from pathlib import Path
from integer_space import Point
from codenas_hf.engine.records import Budget, Rung
from codenas_hf.engine.workers import Pool
from test_workers_orphans import Sleeper
if __name__ == "__main__":
    pool = Pool(Sleeper(Path({file!r})), workers=1, preload=["light_codenas", "integer_space"])
    pool.start("task", Point(1, 0), rung=Rung(0, Budget("steps", 1)), previous=None)
    while True:
        pool.poll(1.0)
"""

SLEEPER = """
import light_codenas
import os, time
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Sleeper:
    file: Path
    def __call__(self, genome, rung, previous):
        self.file.write_text(f"{os.getpid()} {os.getppid()}")
        while True:
            sum(range(10**6))  # busy: never waits for anything
"""


def test_children_die_with_their_rank(tmp_path: Path) -> None:
    (tmp_path / "test_workers_orphans.py").write_text(SLEEPER)
    program = tmp_path / "program.py"
    path = [str(tmp_path), *sys.path]
    program.write_text(ORPHANS.format(path=path, file=str(tmp_path / "pids")))
    with subprocess.Popen([sys.executable, str(program)]) as process:
        pids = wait_for(tmp_path / "pids")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert alive(pids) == []


def test_an_evaluator_that_cannot_be_pickled_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="the evaluator must be picklable"):
        Pool(lambda genome, rung, previous: None, workers=1)  # type: ignore[arg-type, return-value]


def test_a_child_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "yes")
    environment = child_environment({"OMP_NUM_THREADS": "3"})
    assert environment["KEPT"] == "yes"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert not [name for name in environment if "RANK" in name or "MASTER" in name or "TORCHELASTIC" in name]


COUNTING = """
import sys
sys.path[:0] = {path!r}
import light_codenas
from pathlib import Path
with open({file!r}, "a") as file:
    file.write(__name__ + "\\n")
from integer_space import Evaluate, Point
from codenas_hf.engine.records import Budget, Rung
from codenas_hf.engine.workers import Pool
if __name__ == "__main__":
    pool = Pool(Evaluate(), workers=2, preload=["light_codenas", "integer_space"])
    for x in range(6):
        pool.start(x, Point(x, 0), rung=Rung(0, Budget("steps", 1)), previous=None)
        while pool.busy:
            assert all(outcome.evaluation is not None for outcome in pool.poll(1.0))
    pool.close()
"""


@pytest.mark.parametrize("how", ["path", "module"])
def test_the_main_program_is_imported_once_for_all_children(tmp_path: Path, how: str) -> None:
    (tmp_path / "counting.py").write_text(COUNTING.format(path=sys.path, file=str(tmp_path / "imports")))
    command = [str(tmp_path / "counting.py")] if how == "path" else ["-m", "counting"]
    subprocess.run([sys.executable, *command], check=True, cwd=tmp_path, timeout=100)
    assert (tmp_path / "imports").read_text().split() == ["__main__", "__mp_main__"]


OF_THE_ENGINE = """
from codenas_hf.engine import Budget, Evaluation, Rung
from codenas_hf.engine.workers import Pool
with open({file!r}, "a") as file:
    file.write(__name__ + "\\n")
class Answer:
    def __call__(self, genome, rung, previous):
        return Evaluation(objectives={{"a": float(genome)}})
if __name__ == "__main__":
    pool = Pool(Answer(), workers=1)
    for x in range(3):
        pool.start(x, x, rung=Rung(0, Budget("steps", 1)), previous=None)
        while pool.busy:
            assert all(outcome.evaluation is not None for outcome in pool.poll(1.0))
    pool.close()
"""


def test_a_main_program_may_use_the_engine(tmp_path: Path) -> None:
    """It is imported once there too, though the engine itself imports it."""
    program = tmp_path / "program.py"
    program.write_text(OF_THE_ENGINE.format(file=str(tmp_path / "imports")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, str(program)], check=True, cwd=tmp_path, timeout=100, env=environment)
    assert (tmp_path / "imports").read_text().split() == ["__main__", "__mp_main__"]


def test_a_main_program_that_cannot_be_imported_again_is_an_outcome(tmp_path: Path) -> None:
    """No guard: the program starts processes while children import it."""
    program = COUNTING.format(path=sys.path, file=str(tmp_path / "imports")).replace(
        'if __name__ == "__main__"', "if True"
    )
    program = program.replace("assert all(outcome.evaluation is not None", "print([outcome.failure")
    program = program.replace("for outcome in pool.poll(1.0))", "for outcome in pool.poll(1.0)])")
    (tmp_path / "counting.py").write_text(program)
    done = subprocess.run([sys.executable, str(tmp_path / "counting.py")], capture_output=True, text=True, timeout=100)
    assert "the process ended before it returned an evaluation: exit code 1" in done.stdout
    assert "freeze_support" in done.stderr  # Python's own advice: guard the main program


def test_the_engine_and_the_rest_mean_the_same_launcher() -> None:
    assert set(hardware.LAUNCHER) == set(workers.RANK_VARIABLES)
    assert hardware.LAUNCHER_PREFIX == workers.RANK_PREFIX
