"""What a Linux kernel offers to lock a process in: namespaces, Landlock, seccomp, resource limits.

Standard library only, and runnable outside the package: `jail.py` loads it in a bare interpreter. System calls go
through `ctypes`, because Python 3.11 wraps few of them; numbers are those of x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_DROP, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38

# name: (x86_64, aarch64); None where the architecture has no such call
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "ptrace": (101, 117),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "mount": (165, 40), "umount2": (166, 39),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "mount_setattr": (442, 442),
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "bpf": (321, 280),
    "perf_event_open": (298, 241), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "ioprio_set": (251, 30),
    "chmod": (90, None), "fchmod": (91, 52), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None),
    "fchmodat": (268, 53), "fchmodat2": (452, 452), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_KILL, _TGKILL, _CLONE, _CLONE3, _PRLIMIT = (62, 129), (234, 131), (56, 220), (435, 435), (302, 261)

_FORKS: tuple[tuple[int, ...], tuple[int, ...]] = ((57, 58), ())


class ConfinementError(OSError):
    """A layer could not be put on."""


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise ConfinementError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, value: int, extra: object = 0) -> None:
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), extra, 0, 0), f"prctl {option}")


def die_with_parent() -> None:
    """SIGKILL for this process once its parent is gone."""
    _prctl(_SET_PDEATHSIG, 9)


def hide_memory() -> None:
    """No other process of the same user may trace this one or read its memory."""
    _prctl(_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Descendants whose parents end become children of this process."""
    _prctl(_SUBREAPER, 1)


def limit_resources(*, memory_bytes: int, cpu_seconds: int, processes: int, file_bytes: int, files: int) -> None:
    """Hard limits of address space, processor time, processes, file size and open files; no core dumps."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def drop_privileges(uid: int | None) -> None:
    """Becomes `uid` where root is to be left; then no capability is left and none can be regained."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for capability in range(64):
        _LIBC.prctl(_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)  # fails beyond the last one, or without right
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    _check(_LIBC.capset(header, ctypes.create_string_buffer(24)), "capset")
    _prctl(_NO_NEW_PRIVS, 1)


# Namespaces ----------------------------------------------------------------------------------------------------------


def enter_namespaces() -> None:
    """Own mounts, processes (for children), network and IPC; in an own user namespace unless root may do without.

    Raises:
        ConfinementError: the kernel, or whoever started this container, does not allow it.
    """
    flags = _NEW_NS | _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS
    if os.geteuid() == 0 and _LIBC.unshare(flags) == 0:
        return
    uid, gid = os.geteuid(), os.getegid()
    _check(_LIBC.unshare(flags | _NEW_USER), "unshare")
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise ConfinementError(error.errno, f"mapping users: {error}") from error


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    result = _LIBC.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _check(result, f"mount {target}")


def _bind_read_only(source: str, target: str) -> None:
    _mount(source, target, None, _BIND | _REC)
    attributes = struct.pack("=QQQQ", 1 | 2, 0, 0, 0)  # read only, no set-uid, everything below too
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    if _LIBC.syscall(442, -100, os.fsencode(target), 0x8000, buffer, len(attributes)) < 0:
        _mount("none", target, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _REC)


def enter_new_root(root: str, *, readable: Iterable[str] = (), disk_bytes: int, owner: int | None) -> None:
    """A file tree that holds the system's libraries and this interpreter, read only, and an empty `/tmp`.

    Args:
        root: an empty folder, on which the new tree is mounted; nothing is written into it.
        readable: further folders to show, read only.
        disk_bytes: size of `/tmp` and of everything else that can be written.
        owner: user id that owns `/tmp`; None keeps the current one.

    Raises:
        ConfinementError: a mount was refused.
    """
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, f"size={disk_bytes},nr_inodes=4096,mode=755")
    shown: list[str] = []
    for path in [
        "/usr",
        "/lib",
        "/lib32",
        "/lib64",
        "/bin",
        "/etc/ld.so.cache",
        "/etc/localtime",
        *_interpreter(),
        *readable,
    ]:
        target = root + path
        if not os.path.lexists(path) or any(path == done or path.startswith(done + "/") for done in shown):
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
        else:
            os.makedirs(target) if os.path.isdir(path) else open(target, "x").close()
            _bind_read_only(path, target)
            shown.append(path)
    for folder in ("/proc", "/dev", "/tmp"):
        os.makedirs(root + folder, exist_ok=True)  # an environment that is shown may lie below /tmp
    for device in ("null", "zero", "random", "urandom"):
        open(f"{root}/dev/{device}", "x").close()
        _mount(f"/dev/{device}", f"{root}/dev/{device}", None, _BIND)
    try:
        _mount("proc", root + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    except ConfinementError:
        pass  # containers often forbid it; without it nothing can be read there at all
    os.chmod(root + "/tmp", 0o711)  # the judge, another user in the same tree, may pass to what is shown below it
    if owner is not None:
        os.chown(root + "/tmp", owner, owner)
    os.chdir(root)
    number = 155 if platform.machine() == "x86_64" else 41
    _check(_LIBC.syscall(number, b".", b"."), "pivot_root")
    _check(_LIBC.umount2(b".", 2), "umount of the old root")
    os.chdir("/tmp")


def _interpreter() -> list[str]:
    """Folders that this interpreter needs to import the standard library."""
    return sorted({os.path.realpath(sys.base_prefix), os.path.realpath(os.path.dirname(os.__file__))}, key=len)


# Landlock ------------------------------------------------------------------------------------------------------------


def landlock_abi() -> int:
    """Version of Landlock that the kernel offers; 0 where there is none."""
    return max(0, int(_LIBC.syscall(444, None, 0, 1)))


def restrict_files(*, readable: Iterable[str] = (), writable: Iterable[str]) -> None:
    """Landlock: read the system, the interpreter and `readable`, write below `writable`; no TCP, no signals outside.

    Raises:
        ConfinementError: the kernel has no Landlock.
    """
    abi = landlock_abi()
    rights = (1 << {0: 13, 1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    attributes = struct.pack("=QQQ", rights, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _check(_LIBC.syscall(444, ctypes.create_string_buffer(attributes, 24), size, 0), "landlock")
    devices_and_sockets = 1 << 6 | 1 << 9 | 1 << 11
    rules = [
        (path, 0b1101) for path in ("/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", *_interpreter(), *readable)
    ]
    rules += [("/dev/urandom", 0b100), ("/dev/null", 0b110), *((path, ~devices_and_sockets) for path in writable)]
    for path, allowed in rules:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            allowed &= 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14
        rule = struct.pack("=Qi", allowed & rights, descriptor)
        _check(_LIBC.syscall(445, ruleset, 1, ctypes.create_string_buffer(rule, 12), 0), f"landlock {path}")
        os.close(descriptor)
    _prctl(_NO_NEW_PRIVS, 1)
    _check(_LIBC.syscall(446, ruleset, 0), "landlock")
    os.close(ruleset)


# Seccomp -------------------------------------------------------------------------------------------------------------


def has_seccomp_filter() -> bool:
    """Whether `filter_system_calls` knows this processor and the kernel takes filters."""
    return platform.machine() in _ARCHITECTURES and _LIBC.prctl(21, 0, 0, 0, 0) >= 0


def filter_system_calls(*, processes: bool) -> None:
    """Seccomp: no sockets, no signals to other processes, no tracing, no shared memory, no mounts, no mode changes.

    Refused calls fail with EPERM, so that programs see an ordinary error.

    Args:
        processes: whether new processes and threads may be made; root is bound by no limit on their number.

    Raises:
        ConfinementError: the kernel refused the filter.
    """
    column, audit = _ARCHITECTURES[platform.machine()]
    program = bytearray()

    def put(code: int, jump_true: int, jump_false: int, value: int) -> None:
        program.extend(struct.pack("=HBBI", code, jump_true, jump_false, value & 0xFFFFFFFF))

    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    permit, refuse, kill, missing = 0x7FFF0000, 0x00050001, 0x80000000, 0x00050026
    put(load, 0, 0, 4)
    put(equal, 1, 0, audit)
    put(give, 0, 0, kill)
    put(load, 0, 0, 0)
    if column == 0:  # the x32 calls have other numbers
        put(at_least, 0, 1, 0x40000000)
        put(give, 0, 0, kill)
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            put(equal, 0, 1, number)
            put(give, 0, 0, refuse)
    for number in (_KILL[column], _TGKILL[column]):  # a process may signal itself (abort does)
        put(equal, 0, 4, number)
        put(load, 0, 0, 16)
        put(equal, 0, 1, os.getpid())
        put(give, 0, 0, permit)
        put(give, 0, 0, refuse)
    put(equal, 0, 4, _PRLIMIT[column])  # only its own limits
    put(load, 0, 0, 16)
    put(equal, 0, 1, 0)
    put(give, 0, 0, permit)
    put(give, 0, 0, refuse)
    put(equal, 0, 1, _CLONE3[column])  # its flags lie in memory, where no filter looks; libc falls back to clone
    put(give, 0, 0, missing)
    if not processes:
        for number in (_CLONE[column], *_FORKS[column]):
            put(equal, 0, 1, number)
            put(give, 0, 0, refuse)
    put(equal, 0, 4, _CLONE[column])
    put(load, 0, 0, 16)
    put(any_bit, 0, 1, _NEW_USER | _NEW_NS | _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS)
    put(give, 0, 0, refuse)
    put(give, 0, 0, permit)
    put(give, 0, 0, permit)
    code = ctypes.create_string_buffer(bytes(program), len(program))
    filters = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    _prctl(_NO_NEW_PRIVS, 1)
    _prctl(_SET_SECCOMP, 2, filters)
