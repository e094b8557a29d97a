"""Processes that evaluate: a fresh one per candidate, forked from a server that has the heavy imports done.

A child can raise, hang, eat memory, be killed or exit: that is a failed evaluation with its reason, never the end of
the rank. One spare child per worker is started ahead, so that starting costs no time between two candidates.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from . import main_program
from .records import Evaluation, Evaluator, Genome, Rung

logger = logging.getLogger(__name__)

# What a launcher tells its ranks. A child is no rank: with these it would try to join the group of the ranks.
RANK_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"),
    *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)
RANK_PREFIX = "TORCHELASTIC_"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_MEMORY_POLL_S = 0.25
_END_S = 5.0  # of a killed process; longer only where the kernel itself does not answer
_PR_SET_PDEATHSIG = 1
_START_TRIES = 5
_SERVER_GONE = 255  # what multiprocessing says when the server of children was killed, and its children with it
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Limits:
    """What one evaluation may use.

    Args:
        seconds: wall clock; None means no limit.
        memory_bytes: proportional set size of the child, looked at four times a second; None means no limit.
        kills: how often an evaluation that somebody else killed (SIGKILL or SIGTERM, so also the kernel when memory is
            short) is started again before it counts as failed.
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    kills: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a task: exactly one of the two is set."""

    task: Any
    evaluation: Evaluation | None
    failure: str | None


@dataclass
class _Child:
    process: Any
    connection: Connection
    task: Any = None
    job: tuple[Genome, Rung, Evaluation | None] | None = None
    deadline: float = math.inf
    kills: int = 0
    killed_for: str | None = None
    memory_seen: float = field(default=-math.inf)


class Pool:
    """Children of this process that evaluate, at most `workers` at a time.

    Args:
        evaluator: what each child calls; must be picklable.
        workers: how many evaluate at the same time.
        limits: of each evaluation.
        preload: modules that the server of children imports once.
        environment: variables of the children, beside the own ones without what tells a rank that it is one.

    Raises:
        TypeError: the evaluator cannot be pickled.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        workers: int,
        limits: Limits = Limits(),  # frozen
        preload: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        try:
            self._evaluator = pickle.dumps(evaluator)
        except Exception as error:
            raise TypeError(
                f"the evaluator must be picklable, for it runs in fresh processes: {error}; define it at the top of a "
                "module and keep open files, models and locks out of its attributes"
            ) from error
        self._workers = workers
        self._limits = limits
        self._environment = child_environment(environment or {})
        self._context = multiprocessing.get_context("forkserver")
        last = f"{main_program.__name__.rpartition('.')[0]}.main_import"
        self._context.set_forkserver_preload([*preload, __name__, last])
        self._busy: list[_Child] = []
        self._spare: list[_Child] = []
        self._dying: list[_Child] = []
        self._full: OSError | None = None
        _start_server(self._environment)
        for _ in range(workers):
            self._add_spare()

    @property
    def free(self) -> int:
        """How many more tasks can be started now; none once the disk was full."""
        return 0 if self._full else self._workers - len(self._busy)

    @property
    def busy(self) -> tuple[Any, ...]:
        """The tasks that run."""
        return tuple(child.task for child in self._busy)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of the children that evaluate now."""
        return tuple(child.process.pid for child in self._busy)

    def start(self, task: Any, genome: Genome, *, rung: Rung, previous: Evaluation | None) -> None:
        """Starts an evaluation. `task` comes back in its `Outcome`."""
        self._launch(task, (genome, rung, previous), kills=0)

    def poll(self, timeout: float) -> list[Outcome]:
        """Waits at most `timeout` seconds for an outcome; returns those that are there, in the order of starting.

        Raises:
            OSError: an evaluation met a full disk, and what was there beside it is returned already; its task still
                counts as running.
        """
        if self._full is not None:
            raise self._full
        self._bury()
        if not self._busy:
            time.sleep(max(0.0, timeout))
            return []
        now = time.monotonic()
        nearest = min(child.deadline for child in self._busy) - now
        pause = _MEMORY_POLL_S if self._limits.memory_bytes is not None else math.inf
        connections = [child.connection for child in self._busy]
        while timeout > 0 and len(self._spare) < self._workers and not wait(connections, 0):
            self._add_spare()  # only while nobody waits for us
        ready = wait(connections, max(0.0, min(timeout, nearest, pause)))
        outcomes = []
        for child in list(self._busy):
            if child.connection in ready:
                self._busy.remove(child)
                outcome = self._collect(child)
                if outcome is not None:
                    outcomes.append(outcome)
            else:
                self._enforce(child)
        return outcomes

    def close(self) -> tuple[Any, ...]:
        """Kills all children; returns the tasks that were running."""
        running = self.busy
        for child in (*self._busy, *self._spare):
            _kill(child)
        for child in (*self._busy, *self._spare, *self._dying):
            _end(child)
        self._busy, self._spare, self._dying = [], [], []
        return running

    def _bury(self) -> None:
        """Forgets those that have answered and are gone."""
        for child in list(self._dying):
            if wait([child.process.sentinel], 0):
                self._dying.remove(child)
                _end(child)

    def _add_spare(self) -> None:
        ours, theirs = self._context.Pipe()
        for attempt in range(_START_TRIES):
            process = self._context.Process(target=_serve, args=(self._evaluator, theirs, self._environment))
            try:
                process.start()
                break
            except (EOFError, ConnectionError):  # the server of children was killed just now: a new one comes
                if attempt == _START_TRIES - 1:
                    raise
                time.sleep(0.1)
        theirs.close()
        self._spare.append(_Child(process, ours))

    def _launch(self, task: Any, job: tuple[Genome, Rung, Evaluation | None], *, kills: int) -> None:
        if not self._spare:
            self._add_spare()
        child = self._spare.pop(0)
        child.task, child.job, child.kills = task, job, kills
        child.deadline = time.monotonic() + (self._limits.seconds or math.inf)
        before = [dying.process.pid for dying in self._dying]  # it waits, not we, until their memory and GPU are free
        with suppress(OSError):  # it died while it waited; poll finds it
            child.connection.send((before, *job))
        self._busy.append(child)

    def _collect(self, child: _Child) -> Outcome | None:
        try:
            kind, text = json.loads(child.connection.recv_bytes())
        except (EOFError, OSError):
            return self._lost(child)
        _kill(child)  # it has said all; what it may have started goes with it
        if kind == "full disk":  # no fault of the candidate: it must be evaluated again
            self._busy.append(child)
            self._full = OSError(  # for the next poll: this one may have outcomes
                errno.ENOSPC,
                f"the disk is full ({text}): free some space and run the same command again, nothing is lost",
            )
            return None
        self._dying.append(child)
        if kind == "failure":
            return Outcome(child.task, None, text)
        return Outcome(child.task, Evaluation.from_dict(json.loads(text)), None)

    def _lost(self, child: _Child) -> Outcome | None:
        child.process.join(timeout=_END_S)
        code = child.process.exitcode
        _end(child)
        if child.killed_for is not None:
            return Outcome(child.task, None, child.killed_for)
        outside = (-signal.SIGKILL, -signal.SIGTERM, _SERVER_GONE)
        if code in outside and child.kills < self._limits.kills and child.job is not None:
            logger.warning("An evaluation was killed from outside (%s) and is started again.", _exit(code))
            self._launch(child.task, child.job, kills=child.kills + 1)
            return None
        return Outcome(child.task, None, f"the process ended before it returned an evaluation: {_exit(code)}")

    def _enforce(self, child: _Child) -> None:
        if child.killed_for is not None:
            return
        now, limits = time.monotonic(), self._limits
        if now >= child.deadline:
            child.killed_for = f"the time limit of {limits.seconds:g} s was exceeded"
        elif limits.memory_bytes is not None and now - child.memory_seen >= _MEMORY_POLL_S:
            child.memory_seen = now
            used = memory_bytes(child.process.pid)
            if used is not None and used > limits.memory_bytes:
                child.killed_for = (
                    f"the memory limit of {limits.memory_bytes / 2**20:.0f} MiB was exceeded: {used / 2**20:.0f} MiB"
                )
        if child.killed_for is not None:
            _kill(child)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: ours and `extra`, without what tells a rank that it is one."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in RANK_VARIABLES and not name.startswith(RANK_PREFIX)
    }
    return {**kept, **extra}


def _start_server(environment: Mapping[str, str]) -> None:
    """Starts the server of children in their environment: thread counts are read when numpy and torch are imported."""
    saved = dict(os.environ)
    # Python 3.11 does not tell the server where we import from, and then skips what it cannot preload in silence.
    path = os.pathsep.join(entry or os.curdir for entry in sys.path)
    _replace_environment({**environment, "PYTHONPATH": path, main_program.VARIABLE: main_program.describe()})
    try:
        forkserver.ensure_running()
    finally:
        _replace_environment(saved)


def memory_bytes(pid: int) -> int | None:
    """Proportional set size of a process: what it shares with others is counted in parts. None when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _serve(evaluator: bytes, connection: Connection, environment: Mapping[str, str]) -> None:
    """The life of a child: one evaluation, one answer."""
    os.setpgid(0, 0)  # a group of its own: Ctrl-C reaches the rank only, and a kill reaches what the child starts
    _die_with_the_rank()
    _replace_environment(environment)
    try:
        evaluate: Evaluator | Exception = pickle.loads(evaluator)  # what the rank itself pickled
    except Exception as error:
        evaluate = error
    try:
        before, genome, rung, previous = connection.recv()
    except EOFError:  # the rank needs no more children
        os._exit(0)
    _outlive(before)
    try:
        if isinstance(evaluate, Exception):
            raise evaluate
        answer = ("evaluation", _to_json(evaluate(genome, rung, previous)))
    except Exception as error:
        full = getattr(error, "errno", None) in _FULL_DISK or os.strerror(errno.ENOSPC) in str(error)
        answer = ("full disk" if full else "failure", f"{type(error).__name__}: {error}")
    connection.send_bytes(json.dumps(answer).encode())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _outlive(pids: Sequence[int]) -> None:
    """Waits until processes that were killed are gone."""
    deadline = time.monotonic() + _END_S
    for pid in pids:
        try:
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.0002)
        except (ProcessLookupError, PermissionError):  # gone; or its number is somebody else's by now
            continue


def _to_json(evaluation: Any) -> str:
    if not isinstance(evaluation, Evaluation):
        raise TypeError(f"the evaluator must return an Evaluation, got {type(evaluation).__name__}")

    def plain(value: Any) -> Any:
        if hasattr(value, "item"):  # a number of numpy's
            return value.item()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"an evaluation must consist of JSON values, got {type(value).__name__}")

    return json.dumps(evaluation.to_dict(), default=plain, allow_nan=False)


def _die_with_the_rank() -> None:
    """Two ways, since either alone has a hole.

    The kernel kills a child whose server died, and the server ends with its rank; but that is Linux only, and lost if
    the server died before this line. The thread sees the rank's end of a pipe close.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="rank-watch", daemon=True).start()


def _kill(child: _Child) -> None:
    pid = child.process.pid
    for kill in (os.killpg, os.kill):  # the group exists only once the child has made it
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _end(child: _Child) -> None:
    """Kills it and waits until it is gone."""
    _kill(child)
    child.process.join(timeout=_END_S)
    child.connection.close()


def _exit(code: int | None) -> str:
    if code is None:
        return "unknown"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _replace_environment(environment: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
