"""Runs a program that nobody has read, and says whether its checks hold.

The program runs locked in (see `confinement.py`), the checks run in another process that never executes a line of the
program (see `jail.py`); only that process holds what a verdict needs. So a program can end early, patch built-ins,
walk frames, write to every file descriptor or return objects that claim to equal everything: it does not pass.
A source without checks that can be taken out (`split_checks`) passes when it runs to its end, and then the verdict is
worth as much as the program's own word.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import secrets
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codenas_hf.sandbox import confinement
from codenas_hf.sandbox.program_checks import REFUSED_BUILTINS, CheckedProgram, split_checks, used_names

Level = Literal["namespaces", "landlock"]

STDOUT_BYTES = 64 * 2**10
DISK_BYTES = 64 * 2**20
FILE_BYTES = 8 * 2**20
_JAIL = Path(__file__).with_name("jail.py")
_COUNTER = itertools.count()


class SandboxUnavailable(RuntimeError):
    """This machine offers nothing that would hold a hostile program, so none is run."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Args:
        passed: every check holds.
        reason: why, or why not, for people.
        stdout: what the program wrote, both streams, at most 64 KiB.
        seconds: wall time from the moment that the program could start.
    """

    passed: bool
    reason: str
    stdout: str
    seconds: float


@dataclass(frozen=True)
class Capabilities:
    """How programs are locked in on this machine.

    Args:
        level: `namespaces` (own file tree, process tree, network), or `landlock` (files, signals and TCP restricted
            by Landlock and seccomp, no new processes).
        seccomp: whether system calls are filtered.
        own_user: whether programs run as a user that owns nothing.
        notes: what is weaker here than it could be, and why; empty at best.
    """

    level: Level
    seccomp: bool
    own_user: bool
    notes: tuple[str, ...]


def _tell(config: dict[str, Any], job: dict[str, Any], *, timeout_s: float) -> tuple[dict[str, Any], str, float]:
    """Starts the jail and listens until there is a verdict. Returns the verdict, the output and the seconds."""
    verdict_read, verdict_write = os.pipe()
    leash_read, leash_write = os.pipe()
    done_read, done_write = os.pipe()
    inside = (verdict_write, leash_read, done_write)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_JAIL), *map(str, inside)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            cwd="/",
            pass_fds=inside,
            start_new_session=True,
        )
    finally:
        for descriptor in inside:
            os.close(descriptor)
    assert process.stdin is not None
    assert process.stdout is not None
    output, lines = bytearray(), b""
    start, deadline = time.perf_counter(), time.perf_counter() + 30  # of starting; a busy machine is slow
    started = False
    result: dict[str, Any] = {"unavailable": "the sandbox did not start within 30 s"}
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(config).encode() + b"\n" + json.dumps(job).encode())
            process.stdin.close()
        os.set_blocking(process.stdout.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(verdict_read, selectors.EVENT_READ)
            while (left := deadline - time.perf_counter()) > 0 and result is not None:
                ready = {key.fd for key, _ in selector.select(left)}
                if process.stdout.fileno() in ready and not _drain(process.stdout.fileno(), output):
                    selector.unregister(process.stdout)
                if verdict_read in ready:
                    part = os.read(verdict_read, 1 << 16)
                    lines += part
                    if not started and lines.startswith(b'{"started": true}\n'):
                        lines, started = lines.partition(b"\n")[2], True
                        start, deadline = time.perf_counter(), time.perf_counter() + timeout_s
                        result = {"passed": False, "reason": f"timed out after {timeout_s:g} s"}
                    if not part:  # the judge is gone, with or without a verdict
                        result = _verdict(lines, job["nonce"])
                        break
        seconds = time.perf_counter() - start
    finally:
        os.close(leash_write)
        process.kill()
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()
        process.wait()
        _wait_for_end(done_read, seconds=10)
        _drain(process.stdout.fileno(), output)
        process.stdout.close()
        os.close(verdict_read)
        os.close(done_read)
    return result, output.decode(errors="replace"), seconds


def _drain(descriptor: int, output: bytearray) -> bool:
    """Takes what is there; keeps the first 64 KiB. False at the end of the stream."""
    for _ in range(256):  # a program that writes without end must not keep us here
        try:
            part = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return True
        if not part:
            return False
        output += part[: max(0, STDOUT_BYTES - len(output))]
    return True


def _wait_for_end(descriptor: int, *, seconds: float) -> None:
    """Waits until the warden is gone, and with it everything that the program started."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        selector.select(seconds)


def _verdict(lines: bytes, nonce: str) -> dict[str, Any]:
    try:
        message = json.loads(lines)
        if "unavailable" in message:
            return {"unavailable": str(message["unavailable"])}
        if secrets.compare_digest(str(message["nonce"]), nonce):
            return {"passed": message["passed"] is True, "reason": str(message["reason"])}
    except (ValueError, KeyError, TypeError):
        pass
    return {"passed": False, "reason": "the checks ended without a verdict"}


def _config(level: Level, *, folder: Path, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
    own_user = level == "namespaces" and os.geteuid() == 0
    # A user of its own for every program: the kernel counts processes per user.
    uid = 0x30000000 + 2 * (os.getpid() * 64 + next(_COUNTER) % 64) if own_user else None
    return {
        "level": level,
        "folder": str(folder),
        "memory_bytes": memory_bytes,
        "cpu_seconds": math.ceil(timeout_s) + 1,
        "disk_bytes": DISK_BYTES,
        "file_bytes": FILE_BYTES,
        "processes": 32 if level == "namespaces" else 0,
        "seccomp": confinement.has_seccomp_filter(),
        "uid": uid,
    }


def _run(
    program: CheckedProgram,
    *,
    prelude: str,
    refused: frozenset[str],
    level: Level,
    timeout_s: float,
    memory_bytes: int,
) -> tuple[dict[str, Any], str, float]:
    job = {
        "nonce": secrets.token_hex(16),
        "program": program.program,
        "checks": program.checks,
        "imports": program.imports,
        "prelude": prelude,
        "names": list(program.names),
        "refused": sorted(refused),
    }
    folder = Path(tempfile.mkdtemp(prefix="codenas_sandbox_"))
    try:
        config = _config(level, folder=folder, memory_bytes=memory_bytes, timeout_s=timeout_s)
        return _tell(config, job, timeout_s=timeout_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def capabilities() -> Capabilities:
    """Tries out, once per process, how programs can be locked in here.

    Raises:
        SandboxUnavailable: neither namespaces nor Landlock with seccomp are to be had.
    """
    if sys.platform != "linux":
        raise SandboxUnavailable(f"generated code is run only on Linux (or WSL2), this is {sys.platform}")
    notes: list[str] = []
    probe = CheckedProgram("", None, "", ())
    levels: tuple[Level, ...] = ("namespaces", "landlock")
    for level in levels:
        if level == "landlock" and not (confinement.landlock_abi() >= 6 and confinement.has_seccomp_filter()):
            notes.append("landlock: needs Linux 6.12 or later, and seccomp on x86_64 or aarch64")
            continue
        result, _, _ = _run(
            probe, prelude="", refused=frozenset(), level=level, timeout_s=10.0, memory_bytes=512 * 2**20
        )
        if result.get("passed"):
            seccomp = confinement.has_seccomp_filter()
            if not seccomp:
                notes.append(f"seccomp: no filter for this processor ({os.uname().machine})")
            return Capabilities(level, seccomp, level == "namespaces" and os.geteuid() == 0, tuple(notes))
        notes.append(f"{level}: {result.get('unavailable', result.get('reason'))}")
    raise SandboxUnavailable(
        "generated code is not run, because nothing here would hold it: "
        + "; ".join(notes)
        + ". Allow user namespaces (for a container: --security-opt seccomp=unconfined), or use a newer kernel"
    )


def run_program(
    source: str,
    *,
    timeout_s: float = 3.0,
    memory_bytes: int = 512 * 2**20,
    checks: str | None = None,
    prelude: str = "",
    entry_point: str | None = None,
    level: Level | None = None,
) -> Outcome:
    """Runs a program locked in, and its checks outside of it.

    Args:
        source: the program, with its checks at its end unless `checks` are given.
        timeout_s: wall time that program and checks may take together.
        memory_bytes: memory of all processes of the program together.
        checks: trusted statements, run outside of the program; they see `entry_point` and other names of the program
            as stand-ins whose calls go to the program and bring plain data back.
        prelude: trusted statements run before `checks`, such as the helpers that a task's prompt defines.
        entry_point: name of the function under test, taken from the program even where `prelude` defines it.
        level: forces one way of locking in; None takes the best of this machine.

    Raises:
        SandboxUnavailable: this machine has nothing to hold the program with.
        ValueError: a limit that is not positive.
    """
    if not timeout_s > 0 or not memory_bytes > 0:
        raise ValueError(f"`timeout_s` and `memory_bytes` must be above 0, got {timeout_s!r} and {memory_bytes!r}")
    level = level or capabilities().level
    refused: frozenset[str] = frozenset()
    try:
        if checks is None:
            program, refused = split_checks(source), REFUSED_BUILTINS
        else:
            names = {*used_names(checks, prelude=prelude), *((entry_point,) if entry_point else ())}
            compile(source, "program.py", "exec", dont_inherit=True)
            program = CheckedProgram(source, checks, "", tuple(sorted(names)))
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return Outcome(False, f"{type(error).__name__}: {error}", "", 0.0)
    result, output, seconds = _run(
        program, prelude=prelude, refused=refused, level=level, timeout_s=timeout_s, memory_bytes=memory_bytes
    )
    if "unavailable" in result:
        raise SandboxUnavailable(f"the sandbox ({level}) could not be set up: {result['unavailable']}")
    return Outcome(result["passed"], result["reason"], output, seconds)
