"""Stand-ins for GPUs: what torch says of them, and evaluators that use them in workers. No torch here."""

import os
import sys
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import light_codenas  # noqa: F401  # before codenas_hf

from codenas_hf import hardware
from codenas_hf.engine.records import Evaluation, Rung


class FakeCuda:
    """`torch.cuda` of a machine with GPUs.

    Args:
        majors: compute capability of each.
        nvml: the library that counts without the driver is there; the driver looks at the environment once only.
    """

    def __init__(self, majors: Sequence[int] = (8, 8), *, nvml: bool = True) -> None:
        self.majors, self.nvml = majors, nvml
        self.counted: int | None = None
        self.current = 0
        self.emptied = 0

    def device_count(self) -> int:
        named = os.environ.get(hardware.VISIBLE)
        count = len(self.majors) if named is None else len([name for name in named.split(",") if name])
        if not self.nvml:
            self.counted = count = count if self.counted is None else self.counted
        return count

    def get_device_properties(self, index: int) -> Any:
        return types.SimpleNamespace(name=f"GPU of {self.majors[index]}", major=self.majors[index])

    def set_device(self, index: int) -> None:
        self.current = index

    def is_available(self) -> bool:
        return bool(self.majors)

    def is_initialized(self) -> bool:
        return True

    def empty_cache(self) -> None:
        self.emptied += 1


@dataclass(frozen=True)
class Unequal:
    """GPU 0 is fast; an evaluation on GPU 1 lasts until GPU 0 has done `ahead`. Nobody else is on a GPU meanwhile.

    None on GPU 0 ends before the one on GPU 1 has begun, however slowly its process starts.
    """

    folder: Path
    ahead: int

    def __call__(self, genome: Any, rung: Rung, previous: Evaluation | None) -> Evaluation:
        torch: Any = types.ModuleType("torch")
        torch.cuda = FakeCuda()
        sys.modules["torch"] = torch
        gpu = hardware.take_gpu()
        alone = self.folder / f"on{gpu}"
        alone.touch(exist_ok=False)
        begun = self.folder / "begun"
        if gpu == "1":
            begun.touch()
        while len(list(self.folder.glob("done0-*"))) < self.ahead if gpu == "1" else not begun.exists():
            time.sleep(0.02)
        alone.unlink()
        (self.folder / f"done{gpu}-{os.getpid()}").touch()
        seen = {"gpu": gpu, "visible": os.environ[hardware.VISIBLE], "count": torch.cuda.device_count()}
        return Evaluation(objectives={"a": 1.0}, measurements=seen)
