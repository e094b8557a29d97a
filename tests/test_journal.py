"""The journal survives what breaks Optuna's own: torn tails, full disks, locks of the dead."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage

from codenas_hf.engine.journal import GuardedJournal, JobLock, JournalError, SingleJobError, check_local, whole_end


def opened(path: Path, **more: Any) -> JournalStorage:
    return GuardedJournal(path, **more).open()


def study_in(path: Path, **more: Any) -> optuna.Study:
    return optuna.create_study(storage=opened(path, **more), study_name="s", load_if_exists=True)


def finish(study: optuna.Study, value: float) -> None:
    study.tell(study.ask(), value)


@pytest.mark.parametrize(
    "torn", [b'{"op_code":8,"worker_id":"x","tri', b"\0" * 4096, b"\0" * 100 + b"\n", b"x\ny\n", b"{" * 200_000]
)
def test_a_torn_tail_is_cut_off_before_anything_is_written(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "j"
    study = study_in(path)
    for value in range(3):
        finish(study, value)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    again = study_in(path)
    assert [t.value for t in again.trials] == [0, 1, 2]
    finish(again, 3)
    assert path.read_bytes().startswith(whole)
    assert torn not in path.read_bytes()
    assert [t.value for t in study_in(path).trials] == [0, 1, 2, 3]


def test_a_file_that_is_all_torn_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b'{"op_code":0,"stu')
    with open(path, "rb") as file:
        assert whole_end(file) == 0
    finish(study_in(path), 1.0)
    assert len(study_in(path).trials) == 1


DAMAGE = {
    "zeros": lambda line: b"\0" * 20 + line[20:],
    "zeros over the end of the line": lambda line: line[:-20] + b"\0" * 20,
    "half a line": lambda line: line[: len(line) // 2] + b"\n",
    "another file's line": lambda line: b"hello\n",
    "a number": lambda line: b"42\n",
    "no operation": lambda line: b'{"op":1}\n',
    "an unknown operation": lambda line: b'{"op_code":77,"worker_id":"x"}\n',
    "an operation without its fields": lambda line: b'{"op_code":4,"worker_id":"x"}\n',
    "brackets without end": lambda line: b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_in_the_middle_names_file_line_and_remedy(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "a study" / "j"
    path.parent.mkdir()
    study = study_in(path)
    for value in range(3):
        finish(study, value)
    lines = path.read_bytes().splitlines(keepends=True)
    number = [i for i, line in enumerate(lines) if b'"op_code":4' in line][1]  # the second trial begins
    damaged = b"".join([*lines[:number], damage(lines[number]), *lines[number + 1 :]])
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match=rf"{path}, line {number + 1}: expected an operation .*") as raised:
        opened(path)
    assert path.read_bytes() == damaged, "nothing is guessed at"
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700
    # What the message says to type keeps all that stands before the line.
    command = str(raised.value).split("`")[1]
    subprocess.run(["bash", "-c", command], check=True)
    assert [t.value for t in study_in(path).trials] == [0]


@pytest.mark.parametrize("content", [b"print('hello')\n", b"\x89PNG\r\n\x1a\n" * 9, b'{"a": 1}\n', b"x"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=rf"{path}, line 1: .*it is no journal of a study.*move it away"):
        opened(path)
    assert path.read_bytes() == content


def test_an_empty_journal_starts_anew_and_a_folder_is_named(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("zeros", b"\0" * 4096)):
        (tmp_path / name).write_bytes(content)
        finish(study_in(tmp_path / name), 1.0)
        assert len(study_in(tmp_path / name).trials) == 1
    with pytest.raises(JournalError, match="is a folder, expected the journal of a study: move it away"):
        opened(tmp_path)


def test_a_journal_that_may_not_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    finish(study_in(path), 1.0)
    real = os.access
    monkeypatch.setattr("os.access", lambda place, mode: mode != os.W_OK and real(place, mode))
    (tmp_path / "j.lock").unlink()
    before = path.read_bytes()
    path.write_bytes(before + b"torn")
    storage = opened(path)  # on a disk that may only be read
    assert [t.value for t in optuna.load_study(storage=storage, study_name="s").trials] == [1.0]
    assert path.read_bytes() == before + b"torn"
    assert not (tmp_path / "j.lock").exists()

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("codenas_hf.engine.journal.open", refused, raising=False)
    with pytest.raises(JournalError, match=rf"{path} cannot be read \(Permission denied\): become its owner"):
        opened(path)


class _Short:
    """A file on a disk that has `room` bytes left: writes what fits, then raises."""

    def __init__(self, file: Any, room: list[int]) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __enter__(self) -> Any:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def write(self, data: memoryview) -> int:
        if self._room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._file.write(data[: self._room[0]])
        self._room[0] -= written
        return int(written)


def test_a_full_disk_leaves_the_journal_as_it_was_and_waits_for_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    study = study_in(path, full_disk_wait_s=0)
    finish(study, 0.0)
    before, room = path.read_bytes(), [30]
    monkeypatch.setattr("codenas_hf.engine.journal.open", lambda *a, **k: _Short(open(*a, **k), room), raising=False)
    with pytest.raises(OSError, match="free some space and run the same command again"):
        study.ask()
    assert path.read_bytes() == before
    calls = iter([0, 0, 1 << 20])
    monkeypatch.setattr("codenas_hf.engine.journal.time.sleep", lambda _: room.__setitem__(0, next(calls)))
    study = study_in(path, full_disk_wait_s=5)
    finish(study, 1.0)
    assert [t.value for t in study_in(path).trials] == [0.0, 1.0]


@pytest.mark.slow
def test_a_really_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        study = study_in(tmp_path / "j", full_disk_wait_s=0.1)
        with pytest.raises(OSError, match="the disk is full"):  # noqa: PT012
            for value in range(10_000):
                finish(study, value)
        loaded = optuna.load_study(storage=opened(tmp_path / "j"), study_name="s")
        known = [t.value for t in loaded.trials if t.state.is_finished()]
        assert known == list(range(len(known)))
        assert len(known) > 10
        subprocess.run(["mount", "-o", "remount,size=1m", str(tmp_path)], check=True)
        finish(study, -1.0)
        again = study_in(tmp_path / "j")
        assert again.trials[-1].value == -1.0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_other_errors_are_not_waited_for(tmp_path: Path) -> None:
    study = study_in(tmp_path / "j")
    (tmp_path / "j").unlink()
    with pytest.raises(FileNotFoundError):
        study.ask()


def _append_many(path: Path, worker: int) -> None:
    backend = GuardedJournal(path)
    for i in range(200):
        backend.append_logs([{"op_code": 99, "worker_id": str(worker), "i": i}])


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(path, worker)) for worker in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    logs = list(GuardedJournal(path).read_logs(0))
    for worker in range(3):
        assert [log["i"] for log in logs if log["worker_id"] == str(worker)] == list(range(200))


HOLD = "import sys; sys.path[:0] = {path!r}; import light_codenas; from pathlib import Path\n"
HOLD += "from codenas_hf.engine.journal import {what}\n"


def test_the_lock_of_a_killed_writer_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    finish(study_in(path), 0.0)
    program = HOLD.format(path=sys.path, what="GuardedJournal") + (
        f"import time\nwith GuardedJournal(Path({str(path)!r}))._locked():\n"
        "    print('held', flush=True)\n    time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    start = time.monotonic()
    finish(study_in(path), 1.0)
    assert time.monotonic() - start < 5


def test_a_second_job_is_refused_with_the_holders_process_id(tmp_path: Path) -> None:
    program = HOLD.format(path=sys.path, what="JobLock") + (
        f"import time\nlock = JobLock(Path({str(tmp_path / 'lock')!r}))\nlock.acquire()\nprint('held', flush=True)\n"
        "time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(SingleJobError, match=rf"another job \(process {process.pid}\) works on"):
            JobLock(tmp_path / "lock").acquire()
        process.send_signal(signal.SIGKILL)
        process.wait()
    lock = JobLock(tmp_path / "lock")
    lock.acquire()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    lock.release()
    lock.release()
    JobLock(tmp_path / "lock").acquire()


MOUNTS = r"""/dev/root / ext4 rw 0 0
server:/home /net/my\040home nfs4 rw,vers=4.2 0 0
tmpfs /net/my\040home/scratch tmpfs rw 0 0
me@far: /far fuse.sshfs rw 0 0
10.0.0.1@tcp:/fs /lustre lustre rw 0 0
//nas/share /nas cifs rw 0 0
/dev/sdb1 /windows fuseblk rw 0 0
overlay /box fuse.fuse-overlayfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/net/my home/runs/s", "nfs4"),
        ("/far/s", "fuse.sshfs"),
        ("/lustre/a/b", "lustre"),
        ("/nas", "cifs"),
        ("/net/my home/scratch/s", None),
        ("/net/others", None),
        ("/nasty", None),
        ("/windows/s", None),
        ("/box/s", None),
    ],
)
def test_a_journal_on_a_network_file_system_is_refused_with_the_reason(
    tmp_path: Path, folder: str, kind: str | None
) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    if kind is None:
        check_local(Path(folder), mounts=tmp_path / "mounts")
        return
    with pytest.raises(JournalError, match=rf"lies on a network file system \({kind} at .*search.storage=postgresql"):
        check_local(Path(folder), mounts=tmp_path / "mounts")


def test_the_folder_of_these_tests_may_hold_a_journal(tmp_path: Path) -> None:
    check_local(tmp_path / "not" / "there")
