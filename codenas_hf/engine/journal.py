"""The journal file, made safe: torn tails, full disks, stale locks.

Optuna's journal is JSON lines, one operation each. Two things break it (seen on Optuna 5.0): a full disk or a power
cut leaves half a line, after which the next write is lost and every later open fails; and its lock file survives a
SIGKILL and then costs 30 seconds. Here the torn tail is cut off before anything is appended, a failed append is rolled
back, and the lock is `flock`, which the kernel releases when its holder dies.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

logger = logging.getLogger(__name__)

_TAIL_BYTES = 1 << 16
_OUTCOME = 6  # Optuna's JournalOperation.SET_TRIAL_STATE_VALUES; the number is the file format


class SingleJobError(RuntimeError):
    """Another job works on this journal."""


class JobLock:
    """One job per journal, held until released or until the process dies, however it dies.

    Args:
        path: the lock file; the holder's process id stands in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            SingleJobError: another process holds it.
        """
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise SingleJobError(
                f"another job (process {holder}) works on {self.path.parent}: wait until it ends, stop it, or use "
                "another folder; several jobs can share one study only on a server database (`storage`)"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives the lock back; does nothing when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class GuardedJournal(JournalFileBackend):
    """Optuna's journal file with the guards above.

    Args:
        path: the journal; created when missing.
        full_disk_wait_s: how long an append waits for space before it gives up; nothing is lost while it waits.
    """

    def __init__(self, path: Path, *, full_disk_wait_s: float = 60.0) -> None:
        super().__init__(str(path))
        self._path = path
        self._full_disk_wait_s = full_disk_wait_s
        if os.access(path, os.W_OK):  # else it is only read
            with self._locked(), open(path, "r+b", buffering=0) as file:
                file.truncate(whole_end(file))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends whole lines or nothing; an outcome, with all before it, is on the disk when it returns.

        Anything else may be lost in a power cut (never in a crash of processes): the search decides and does it again.

        Raises:
            OSError: the disk is still full after the wait; the journal is as it was before.
        """
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        durable = any(log["op_code"] == _OUTCOME and TrialState(log["state"]).is_finished() for log in logs)
        deadline = time.monotonic() + self._full_disk_wait_s
        warned = False
        while True:
            try:
                return self._append(data, durable=durable)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if time.monotonic() >= deadline:
                    raise OSError(
                        error.errno,
                        "the disk is full; what is finished is kept: free some space and run the same command again",
                        str(self._path),
                    ) from error
                if not warned:
                    logger.error("The disk of %s is full: waiting %g s for space.", self._path, self._full_disk_wait_s)
                    warned = True
                time.sleep(min(5.0, max(0.05, self._full_disk_wait_s / 10)))

    def _append(self, data: bytes, *, durable: bool) -> None:
        with self._locked(), open(self._path, "r+b", buffering=0) as file:
            end = whole_end(file)
            file.truncate(end)
            file.seek(end)
            try:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                if durable:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def whole_end(file: BinaryIO) -> int:
    """Where the last whole line of a journal ends, in bytes; what follows was torn off and means nothing.

    A line that ends in a newline but is not JSON (blocks of zeros after a power cut) is torn as well.
    """
    end = file.seek(0, os.SEEK_END)
    while end:
        start = end
        tail = b""
        while start and b"\n" not in tail[:-1]:
            size = min(_TAIL_BYTES, start)
            start -= size
            file.seek(start)
            tail = file.read(size) + tail
        line = tail[tail.rfind(b"\n", 0, len(tail) - 1) + 1 :]
        if line.endswith(b"\n") and _is_json(line):
            return end
        end -= len(line)
    return 0


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
