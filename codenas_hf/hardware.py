"""What this process may use, found without being told."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

# What a launcher tells its ranks. The engine has the same list (`engine.workers.RANK_VARIABLES`), for it can be used
# alone and imports nothing of ours; a test holds the two together.
LAUNCHER = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"),
    *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)
LAUNCHER_PREFIX = "TORCHELASTIC_"
DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Hardware:
    """The devices of this machine.

    Args:
        device: `cuda` or `cpu`.
        name: of the processor or the first GPU.
        count: GPUs, or cores that this process may run on.
    """

    device: Literal["cpu", "cuda"]
    name: str
    count: int

    @classmethod
    def discover(cls, device: DeviceName = "auto") -> Hardware:
        """Looks without starting a device: no CUDA context is made, so forked children may still make theirs.

        Raises:
            ValueError: `cuda` was asked for and there is none.
        """
        if device != "cpu":
            import torch  # seconds, which nobody waits for who asked for the processor

            gpus = torch.cuda.device_count()
            if gpus:
                return cls("cuda", torch.cuda.get_device_properties(0).name, gpus)
            if device == "cuda":
                raise ValueError("`device` is cuda, but torch sees no GPU here; leave it out to use the CPU")
        return cls("cpu", processor_name(), cores())


def processor_name() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def device_name(device: Any) -> str:
    """The name of a torch device, or of `cpu` or `cuda`."""
    if str(device).startswith("cuda"):
        import torch  # as above

        return str(torch.cuda.get_device_name(device))
    return processor_name()


def missing_extra(module: str) -> str | None:
    """The extra of this package that installs a module, such as `export` for `gguf`; None where no extra does."""
    try:
        wanted = metadata.requires("codenas-hf") or []
    except metadata.PackageNotFoundError:
        return None
    extras: dict[str, set[str]] = {}
    for line in wanted:
        requirement, _, condition = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)", condition)
        name = re.match(r"[\w-]+", requirement.strip())
        if extra and name:
            extras.setdefault(extra[1], set()).add(name[0].replace("-", "_"))
    having = [extra for extra, names in extras.items() if module.split(".")[0] in names]
    return min(having, key=lambda extra: len(extras[extra]), default=None)  # `dev` has them all


def is_main_process() -> bool:
    """True in a plain process and in rank 0 of a launcher."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hides the launcher: what is started in here is a plain process, and does not wait for the other ranks."""
    names = [name for name in os.environ if name in LAUNCHER or name.startswith(LAUNCHER_PREFIX)]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def exclusively(lock: Path) -> Iterator[None]:
    """Holds an advisory lock: of the processes of a job on one machine, one builds a thing, the others then find it.

    A lock and not a barrier: a barrier has a time-out, and preparing 100 GB of text takes longer than that.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
