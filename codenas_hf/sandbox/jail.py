"""The inside of the sandbox: runs as a script in a bare interpreter, started by `sandbox.py`.

Three processes. The *judge* (this one) reads the checks and the nonce, but only after the others were forked, so that
no memory of theirs ever held them; it runs the checks and alone can write the verdict. The *warden* is its child
(process 1 of an own process namespace where there are namespaces); it watches memory and disk, and at its end nothing
of the program lives on. The *runner* is the warden's child, locked in, and is the only one that executes the program.
Judge and runner exchange plain data; an object stays in the runner, and the judge holds a `Remote` in its place, so an
object that claims to equal everything equals nothing here. Where the judge comes to the end of what it can tell, it
says so (`unsure`).
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import types
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import confinement  # type: ignore[import-not-found]  # the package itself is not importable here
from jail_link import Link, message_of  # type: ignore[import-not-found]
from jail_remote import is_remote  # type: ignore[import-not-found]
from jail_types import Limit, ProgramError  # type: ignore[import-not-found]

sys.path.pop(0)

_VERDICT, _LEASH, _DONE = map(int, sys.argv[1:4]) if len(sys.argv) > 3 else (-1, -1, -1)


def _names(link: Link, job: dict[str, Any]) -> dict[str, Any]:
    """What the checks see: their imports and prelude, and the program's names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for part in ("imports", "prelude"):
        exec(compile(job[part], part, "exec", dont_inherit=True), names)
    names["__builtins__"] = {key: item for key, item in vars(builtins).items() if key not in job["refused"]}
    for name in job["names"]:
        with contextlib.suppress(KeyError):
            found = link.ask("name", 0, (name,))
            if is_remote(found) and found._kind == "module":
                # A program could have changed its copy of a module, so the checks get one of their own.
                if found._name not in job["modules"]:
                    raise Limit(
                        f"the checks use the module {found._name} of the program: hand them over with an import"
                    )
                found = importlib.import_module(found._name)
            names[name] = found
    return names


def run_checks(link: Link, job: dict[str, Any]) -> dict[str, Any]:
    """Has the program run, then runs the checks on it.

    Returns:
        `passed`, `reason`, and `unsure` where it may be the judge that failed.
    """
    defined = False
    try:
        for source in job["programs"]:
            link.ask("run", 0, (source,))
        defined = True
        if job["checks"] is None:
            return {"passed": True, "reason": "ran to its end; it holds no checks of its own that could be judged"}
        names = _names(link, job)
        exec(compile(job["checks"], "checks.py", "exec", dont_inherit=True), names)
        if Limit.first is None:
            return {"passed": True, "reason": "passed"}
        reason, unsure = Limit.first, True
    except Limit as error:
        reason, unsure = str(error), True
    except EOFError:
        reason, unsure = "the program ended before its checks did", False
    except AssertionError as error:
        reason, unsure = f"failed: {message_of(error) or 'a check does not hold'}", not (link.exact and job["exact"])
    except MemoryError:
        reason, unsure = "out of memory", True
    except BaseException as error:
        # Of errors, only those that the program raised in plain words are surely its own.
        reason, unsure = f"{type(error).__name__}: {message_of(error)}", not (link.exact and job["exact"])
    return {"passed": False, "reason": reason, "unsure": defined and unsure}


def _descendants(root: int) -> list[int]:
    """Processes below `root`, found in /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat") as file:
                children.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _resident_bytes(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/statm") as file:
            total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def _folder_bytes(folder: str, entries: int = 4096) -> int:
    """Bytes below a folder; infinite beyond so many entries."""
    total = 0
    for parent, folders, files in os.walk(folder):
        entries -= len(folders) + len(files)
        if entries < 0:
            return 1 << 60
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def watch(runner: int, config: dict[str, Any]) -> None:
    """The warden: ends with the runner, with the leash, or when memory or disk run over; leaves no process behind."""
    alone = config["level"] == "landlock"  # no process namespace whose end would clean up
    while True:
        ready, _, _ = select.select([_LEASH], [], [], 0.02)
        if ready:
            break
        ended = False
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                ended = ended or pid == runner
        if ended or _resident_bytes(_descendants(os.getpid())) > config["memory_bytes"]:
            break
        if alone and _folder_bytes(config["folder"]) > config["disk_bytes"]:
            break
    deadline = time.monotonic() + 5
    while alone and time.monotonic() < deadline:
        below = _descendants(os.getpid())
        if not below:
            break
        for sign in (signal.SIGSTOP, signal.SIGKILL):
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0] > 0:
                pass
    if not alone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # from process 1: everything in the namespace
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
    os._exit(0)


def limits(config: dict[str, Any], *, processes: int) -> None:
    """Resource limits of one process of the sandbox."""
    confinement.limit_resources(
        memory_bytes=config["memory_bytes"],
        cpu_seconds=config["cpu_seconds"],
        processes=processes,
        file_bytes=config["file_bytes"],
        files=64,
    )


def _open_sites(sites: list[str]) -> None:
    """Makes installed packages importable."""
    sys.path.extend(sites)
    if sites:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy would start threads, which not every level allows


def run_program(connection: socket.socket, config: dict[str, Any]) -> None:
    """The runner: locks itself in, then serves the judge."""
    keep = connection.fileno()
    for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else map(str, range(256)):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
    os.chdir("/tmp" if config["level"] == "namespaces" else config["folder"])
    # Where the warden cannot see processes, and so cannot add up their memory, there may be few.
    limits(config, processes=min(config["processes"], 32 if os.path.exists("/proc/self") else 4) or 1)
    confinement.drop_privileges(config["uid"])
    confinement.die_with_parent()
    if config["level"] == "landlock":
        confinement.restrict_files(readable=config["sites"], writable=[config["folder"]])
    if config["seccomp"]:
        confinement.filter_system_calls(processes=config["processes"] > 0)
    os.environ.clear()
    _open_sites(config["sites"])
    program = types.ModuleType("__main__" if config["main"] else "program")
    sys.modules["__main__"] = sys.modules["program"] = program
    sys.argv = ["program.py"]
    link = Link(connection, judge=False)
    link.send({"ready": True})
    try:
        link.serve(program.__dict__)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(0)


def main() -> None:
    """The judge."""
    confinement.die_with_parent()
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1)
    config = json.loads(line)
    mine, theirs = socket.socketpair()
    try:
        if config["level"] == "namespaces":
            confinement.enter_namespaces()
        warden = os.fork()
        if warden == 0:
            confinement.die_with_parent()
            mine.close()
            os.close(_VERDICT)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            if config["level"] == "namespaces":
                confinement.enter_new_root(
                    config["folder"], readable=config["sites"], disk_bytes=config["disk_bytes"], owner=config["uid"]
                )
            confinement.adopt_orphans()
            confinement.hide_memory()
            runner = os.fork()
            if runner == 0:
                run_program(theirs, config)
            theirs.close()
            watch(runner, config)
        theirs.close()
        os.close(_DONE)
        os.close(_LEASH)
        link = Link(mine, judge=True)
        if link.receive() != {"ready": True}:
            raise ProgramError("the runner did not start")
        confinement.hide_memory()
        limits(config, processes=1)
        confinement.drop_privileges(None if config["uid"] is None else config["uid"] + 1)
        if config["level"] == "landlock":
            confinement.restrict_files(readable=config["sites"], writable=[])
        if config["seccomp"]:
            confinement.filter_system_calls(processes=False)
        _open_sites(config["sites"])
        link.on_many = lambda: os.write(_VERDICT, b'{"busy": true}\n')
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        try:
            os.write(_VERDICT, json.dumps({"unavailable": reason}).encode() + b"\n")
        except OSError:  # warden and runner have no verdict to write: their output says why
            os.write(1, reason.encode() + b"\n")
        os._exit(1)
    os.write(_VERDICT, b'{"started": true}\n')
    with open(0, "rb", closefd=False) as file:
        job = json.loads(file.read())
    verdict = run_checks(link, job)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    verdict |= {"nonce": job["nonce"], "reason": verdict["reason"][:1000]}
    os.write(_VERDICT, json.dumps(verdict).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
