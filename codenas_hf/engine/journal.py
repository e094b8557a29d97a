"""The journal file, made safe: torn tails, full disks, stale locks.

Optuna's journal is JSON lines, one operation each. Two things break it (seen on Optuna 5.0): a full disk or a power
cut leaves half a line, after which the next write is lost and every later open fails; and its lock file survives a
SIGKILL and then costs 30 seconds. Here the torn tail is cut off before anything is appended, a failed append is rolled
back, and the lock is `flock`, which the kernel releases when its holder dies. Damage before the tail is not guessed
at: it is named with its line.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shlex
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

logger = logging.getLogger(__name__)

_TAIL_BYTES = 1 << 16
_OUTCOME = 6  # Optuna's JournalOperation.SET_TRIAL_STATE_VALUES; the number is the file format
_FIRST = b'{"op_code":'  # how every line begins
# Kinds of file systems that several machines see. `flock`, which keeps a second job out, holds there for one machine
# only, or not at all; and what one machine appended, another may see late or in pieces.
_SHARED = frozenset(
    "nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph afs ocfs2 gfs2 orangefs glusterfs sshfs davfs curlftpfs s3fs "
    "goofys mountpoint-s3 gcsfuse blobfuse blobfuse2 hf-mount rclone juicefs seaweedfs moosefs".split()
)


class SingleJobError(RuntimeError):
    """Another job works on this journal."""


class JournalError(ValueError):
    """The journal cannot be read; says where and how to mend it."""


def check_local(folder: Path, *, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Refuses a folder for a journal that lies on a network file system.

    Args:
        folder: of the study, there or not.
        mounts: what the kernel has mounted where.

    Raises:
        JournalError: it does; names the file system.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    place, found = folder.resolve(), ("", "")
    for line in lines:
        _, point, kind, *_ = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), word) for word in line.split(" "))
        if len(point) >= len(found[0]) and place.is_relative_to(point):  # a later mount hides an earlier one
            found = (point, kind)
    point, kind = found
    if kind in _SHARED or kind.partition("fuse.")[2] in _SHARED:
        raise JournalError(
            f"{folder} lies on a network file system ({kind} at {point}), where the lock of a journal does not keep "
            "another machine out and its lines may arrive in pieces: use a folder of this machine, or a database, "
            "search.storage=postgresql+psycopg://user@host/database, beside which the folder may stay where it is"
        )


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


class GuardedJournal(BaseJournalBackend):
    """Optuna's journal file with the guards above.

    Args:
        path: the journal; created when missing.
        full_disk_wait_s: how long an append waits for space before it gives up; nothing is lost while it waits.

    Raises:
        JournalError: a folder lies there, or a file that is no journal, or one that may not be read.
    """

    def __init__(self, path: Path, *, full_disk_wait_s: float = 60.0) -> None:
        self._path = path
        self._full_disk_wait_s = full_disk_wait_s
        self._offsets = array("q", [0])  # where each line that was read begins
        if path.is_dir():
            raise JournalError(f"{path} is a folder, expected the journal of a study: move it away")
        try:
            with open(path, "rb" if path.exists() else "ab"):
                pass
        except PermissionError as error:
            raise JournalError(
                f"{path} cannot be read ({error.strerror}): become its owner, or ask for the right (chmod u+rw)"
            ) from error
        if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):  # else it is only read
            with self._locked(), open(path, "r+b", buffering=0) as file:
                file.truncate(self._whole_end(file))

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The operations from a number on; a torn tail means nothing, as while another process writes.

        Raises:
            JournalError: a damaged line before others that are whole.
        """
        with open(self._path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            known = min(log_number_from, len(self._offsets) - 1)
            end = file.seek(self._offsets[known])
            for number, line in enumerate(file, start=known):
                end += len(line)
                if end > size:
                    return
                operation = _operation(line)
                if operation is None:
                    following = sum(_operation(later) is not None for later in file)
                    if following:
                        raise self._damage(number, line, f"{following} whole lines follow it")
                    return
                if number + 1 == len(self._offsets):
                    self._offsets.append(end)
                if number >= log_number_from:
                    yield operation

    def open(self) -> JournalStorage:
        """The storage that this journal keeps.

        Raises:
            JournalError: a line is damaged, or does not fit those before it.
        """
        try:
            return JournalStorage(self)
        except JournalError:
            raise
        except Exception as error:  # Optuna's replay trusts its lines and fails in any way on one that is no operation
            number = len(self._offsets) - 2
            with open(self._path, "rb") as file:
                file.seek(self._offsets[number])
                line = file.readline()
            raise self._damage(number, line, f"{type(error).__name__}: {error}") from error

    def _damage(self, number: int, line: bytes, reason: str) -> JournalError:
        keep = (
            f"or keep what stands before it with `sed -i '{number + 1},$d' {shlex.quote(str(self._path))}` (what is "
            "cut off is evaluated again)"
            if number
            else "or move it away, and the search starts anew"
        )
        return JournalError(
            f"{self._path}, line {number + 1}: expected an operation of the study, got {line[:40]!r} ({reason}): put "
            f"a copy of the file back, {keep}"
        )

    def _whole_end(self, file: BinaryIO) -> int:
        end = whole_end(file)
        file.seek(0)
        head = file.read(_TAIL_BYTES).lstrip(b"\0")[: len(_FIRST)]
        if end == 0 and not _FIRST.startswith(head):  # text of somebody else's is not torn, and must not be cut off
            file.seek(0)
            raise self._damage(0, file.readline(), "no line of it is one, so it is no journal of a study")
        return end

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
            end = self._whole_end(file)
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
        if _operation(line) is not None:
            return end
        end -= len(line)
    return 0


def _operation(line: bytes) -> dict[str, Any] | None:
    """What a whole line says; None for anything else."""
    try:
        value = json.loads(line, object_pairs_hook=_sharing) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("op_code"), int) else None


def _sharing(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose names and short texts are those of all others: thousands of evaluations say the same words."""
    known = sys.intern
    return {known(name): known(value) if type(value) is str and len(value) <= 64 else value for name, value in pairs}
