"""What this process may use, found without being told."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
    def discover(cls, device: str = "auto") -> Hardware:
        """Looks without starting a device: no CUDA context is made, so forked children may still make theirs.

        Raises:
            ValueError: `cuda` was asked for and there is none.
        """
        gpus = torch.cuda.device_count() if device != "cpu" else 0
        if gpus:
            return cls("cuda", torch.cuda.get_device_properties(0).name, gpus)
        if device == "cuda":
            raise ValueError("`device` is cuda, but torch sees no GPU here; leave it out to use the CPU")
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
        return cls("cpu", name, len(os.sched_getaffinity(0)))


def is_main_process() -> bool:
    """True in a plain process and in rank 0 of a launcher."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hides the launcher: what is started in here is a plain process, and does not wait for the other ranks."""
    names = [name for name in os.environ if name in _LAUNCHER or name.startswith("TORCHELASTIC_")]
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
