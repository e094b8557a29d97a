"""What this process may use, found without being told."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import multiprocessing
import os
import platform
import re
import sys
import tempfile
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
VISIBLE = "CUDA_VISIBLE_DEVICES"
_TURNS = 64  # workers of one GPU, at most
_held: list[int] = []  # locks that end with this process
DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Hardware:
    """The devices of this machine.

    Args:
        device: `cuda` or `cpu`.
        name: of the processor, or of the GPUs, each kind once.
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
                names = [torch.cuda.get_device_properties(index).name for index in range(gpus)]
                return cls("cuda", ", ".join(dict.fromkeys(names)), gpus)
            if device == "cuda":
                raise ValueError("`device` is cuda, but torch sees no GPU here; leave it out to use the CPU")
        return cls("cpu", processor_name(), cores())

    @property
    def share(self) -> int:
        """How many of them each process of the launcher has on this machine, 1 or more."""
        ranks = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))
        return max(1, self.count // int(ranks))


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; makes no CUDA context."""
    import torch  # as above

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return tuple(named[:count] if named else map(str, range(count)))


def take_gpu() -> str | None:
    """Gives a worker one GPU for itself, and hides the others from it and from whatever it starts.

    Whichever has the fewest workers of this user on this machine, of all ranks and studies; the next worker of a fast
    GPU finds it free sooner, so unequal ones share a queue in proportion to their speed. It is to be called before
    anything starts CUDA. Locks tell, which the kernel frees however a worker ends.

    Returns:
        Its name; None in a main process, which keeps all of them, and where there are not two.
    """
    if multiprocessing.parent_process() is None:
        return None
    names = visible_gpus()
    if len(names) < 2:
        return None
    import torch  # as above

    folder = Path(tempfile.gettempdir()) / f"codenas-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for turn in range(_TURNS):
        for index, name in enumerate(names):
            descriptor = os.open(folder / f"{name.replace(os.sep, '_')}.{turn}", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            _held.append(descriptor)
            os.environ[VISIBLE] = name
            if torch.cuda.device_count() > 1:  # without NVML the driver has counted them, and looks no more
                torch.cuda.set_device(index)
            return name
    return None


def free_gpu_memory() -> None:
    """Gives back what this process keeps of a GPU's memory for later; its workers need it."""
    import torch  # as above

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


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


def num_processes() -> int:
    """Processes of the launcher, on all machines; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_main_process() -> bool:
    """True in a plain process and in rank 0 of a launcher."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hides the launcher: what is started in here, or trained, is alone, and does not wait for the other ranks.

    What all Accelerators of a process share is afterwards as it was: who comes later finds the launcher again.
    """
    names = [name for name in os.environ if name in LAUNCHER or name.startswith(LAUNCHER_PREFIX)]
    hidden = {name: os.environ.pop(name) for name in names}
    before = {name: dict(state) for name, state in _accelerate_states().items()}
    for state in _accelerate_states().values():
        state.clear()
    try:
        yield
    finally:
        os.environ.update(hidden)
        for name, state in _accelerate_states().items():
            state.clear()
            state.update(before.get(name, {}))


def _accelerate_states() -> dict[str, dict[str, Any]]:
    """What accelerate keeps for a whole process; nothing while nobody has imported it."""
    module = sys.modules.get("accelerate.state")
    names = ("PartialState", "AcceleratorState", "GradientState") if module is not None else ()
    return {name: getattr(module, name)._shared_state for name in names}


@contextlib.contextmanager
def exclusively(lock: Path) -> Iterator[None]:
    """Holds an advisory lock: of the processes of a job on one machine, one builds a thing, the others then find it.

    A lock and not a barrier: a barrier has a time-out, and preparing 100 GB of text takes longer than that.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
