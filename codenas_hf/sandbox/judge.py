"""Runs a program that nobody has read, and says whether its checks hold.

The program runs locked in (see `confinement.py`), the checks run in another process that never executes a line of the
program (see `jail.py`); only that process holds what a verdict needs. So a program can end early, patch built-ins,
walk frames, write to every file descriptor or return objects that claim to equal everything: it does not pass.
A source without checks that can be taken out (`split_checks`) passes when it runs to its end, and then the verdict is
worth as much as the program's own word.

Not everything that Python can compare crosses between two processes. Where the judge fails a program for what may be a
limit of its own, program and checks are run once more as plain Python would, together: what fails there too has
failed, what does not *cannot be judged*, and is neither passed nor failed.
"""

from __future__ import annotations

import ast
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from codenas_hf.sandbox import confinement
from codenas_hf.sandbox.program_checks import (
    MODULES,
    REFUSED_BUILTINS,
    needed_names,
    package_folders,
    reach_the_process,
    split_checks,
)

Level = Literal["namespaces", "landlock"]

STDOUT_BYTES = 64 * 2**10
DISK_BYTES = 64 * 2**20
FILE_BYTES = 8 * 2**20
_PAUSES = (0.1, 1.0)  # seconds before a jail that could not be set up is tried again
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
        judged: False where nothing is known: neither that the checks hold nor that they do not.
    """

    passed: bool
    reason: str
    stdout: str
    seconds: float
    judged: bool = True


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
                    # Much was asked, so that the conversation itself may have taken the time.
                    result["unsure"] = b'{"busy": true}\n' in lines
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
        message = json.loads(lines.splitlines()[-1])
        if "unavailable" in message:
            return {"unavailable": str(message["unavailable"])}
        if secrets.compare_digest(str(message["nonce"]), nonce):
            return {
                "passed": message["passed"] is True,
                "reason": str(message["reason"]),
                "unsure": message.get("unsure") is True,
            }
    except (ValueError, LookupError, TypeError):
        pass
    return {"passed": False, "reason": "the checks ended without a verdict"}


def _config(level: Level, job: _Job, *, folder: Path, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
    own_user = level == "namespaces" and os.geteuid() == 0
    # A user of its own for every program: the kernel counts processes per user.
    uid = 0x30000000 + 2 * (os.getpid() * 64 + next(_COUNTER) % 64) if own_user else None
    return {
        "level": level,
        "folder": str(folder),
        "main": job.main,
        "sites": list(job.sites),
        "memory_bytes": memory_bytes,
        "cpu_seconds": math.ceil(timeout_s) + 1,
        "disk_bytes": DISK_BYTES,
        "file_bytes": FILE_BYTES,
        "processes": 32 if level == "namespaces" else 0,
        "seccomp": confinement.has_seccomp_filter(),
        "uid": uid,
    }


@dataclass(frozen=True)
class _Job:
    """What one jail is to do.

    Args:
        programs: sources that run locked in, one after the other, in one module.
        main: whether that module is `__main__`.
        checks: run by the judge; None runs the programs and no more.
        imports: import statements of the checks.
        prelude: statements before them.
        names: names that the checks need of the program.
        refused: built-ins that the checks do not get.
        modules: modules of which the checks get a copy of their own where the program imported them.
        exact: whether nothing but values can pass between checks and program.
        sites: folders of installed packages.
    """

    programs: tuple[str, ...]
    main: bool = True
    checks: str | None = None
    imports: str = ""
    prelude: str = ""
    names: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    exact: bool = True
    sites: tuple[str, ...] = ()


def _run(job: _Job, *, level: Level, timeout_s: float, memory_bytes: int) -> tuple[dict[str, Any], str, float]:
    """One jail from its start to its verdict.

    A jail that could not be set up has run nothing of the program, so another one is no second chance for it; a busy
    machine may be out of memory or processes for a moment.
    """
    for pause in (*_PAUSES, None):
        folder = Path(tempfile.mkdtemp(prefix="codenas_sandbox_"))
        try:
            config = _config(level, job, folder=folder, memory_bytes=memory_bytes, timeout_s=timeout_s)
            result, output, seconds = _tell(
                config, {**asdict(job), "nonce": secrets.token_hex(16)}, timeout_s=timeout_s
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if "unavailable" not in result or pause is None:
            break
        time.sleep(pause)
    if "unavailable" in result and output.strip():  # an error of the other two processes goes to their output
        result = {"unavailable": f"{result['unavailable']}; {output.strip().splitlines()[-1]}"}
    return result, output, seconds


@functools.cache
def capabilities() -> Capabilities:
    """Tries out, once per process, how programs can be locked in here.

    Raises:
        SandboxUnavailable: neither namespaces nor Landlock with seccomp are to be had.
    """
    if sys.platform != "linux":
        raise SandboxUnavailable(f"generated code is run only on Linux (or WSL2), this is {sys.platform}")
    notes: list[str] = []
    levels: tuple[Level, ...] = ("namespaces", "landlock")
    for level in levels:
        if level == "landlock" and not (confinement.landlock_abi() >= 6 and confinement.has_seccomp_filter()):
            notes.append("landlock: needs Linux 6.12 or later, and seccomp on x86_64 or aarch64")
            continue
        result, _, _ = _run(_Job(("",)), level=level, timeout_s=10.0, memory_bytes=512 * 2**20)
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
    plain: tuple[str, ...]
    try:
        if checks is None:
            job, plain = _job_of_source(source), (source,)
        else:
            job, plain = _job_of_checks(source, checks, prelude, entry_point), (prelude, source, checks)
    except _CannotBeJudged as error:
        return Outcome(False, f"cannot be judged: {error}", "", 0.0, judged=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return Outcome(False, f"{type(error).__name__}: {error}", "", 0.0)
    result, output, seconds = _run(job, level=level, timeout_s=timeout_s, memory_bytes=memory_bytes)
    reason = result.get("reason", "")
    if result.get("unsure"):
        again = _Job(plain, main=job.main, sites=job.sites)
        result, output, seconds = _run(again, level=level, timeout_s=timeout_s, memory_bytes=memory_bytes)
        if result.get("passed"):
            return Outcome(False, f"cannot be judged: {reason}", output, seconds, judged=False)
        if not reason.startswith("failed"):
            reason = result.get("reason", "")
    if "unavailable" in result:
        raise SandboxUnavailable(f"the sandbox ({level}) could not be set up: {result['unavailable']}")
    return Outcome(result["passed"], reason, output, seconds)


class _CannotBeJudged(Exception):
    """Nothing can be said of any program under these checks here."""


def _job_of_source(source: str) -> _Job:
    program = split_checks(source)
    sites, _ = package_folders([source])
    return _Job(
        (program.program,),
        checks=program.checks,
        imports=program.imports,
        names=program.names,
        refused=tuple(sorted(REFUSED_BUILTINS)),
        modules=tuple(sorted(MODULES)),
        exact=program.checks is not None and not reach_the_process(program.checks),
        sites=sites,
    )


def _job_of_checks(source: str, checks: str, prelude: str, entry_point: str | None) -> _Job:
    try:
        sites, missing = package_folders([checks, prelude])
        exact = not reach_the_process(checks)
        ast.parse(prelude)
    except (SyntaxError, ValueError) as error:
        raise _CannotBeJudged(f"the checks do not parse: {error}") from error
    if missing:
        raise _CannotBeJudged(f"the checks import what is not installed here: pip install {' '.join(missing)}")
    compile(source, "program.py", "exec", dont_inherit=True)
    needed = needed_names(checks, prelude=prelude, program=source, entry_point=entry_point)
    return _Job(
        (source,),
        main=False,  # `if __name__ == "__main__"` is not for checks
        checks=checks,
        prelude=prelude,
        names=tuple(needed),
        modules=(*sorted(MODULES), "numpy"),
        exact=exact,
        sites=tuple(sorted({*sites, *package_folders([source])[0]})),
    )
