"""How much of the suite is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codenas_hf.folders.ranges import check_range
from codenas_hf.generation.decode import SHIPPED, DecodeSettings

SuiteName = Literal["quick", "full"]


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """What is measured, and how much of it.

    Args:
        prompts: prompts of each set; None takes all.
        new_tokens: length of the completions that are judged.
        samples: completions per prompt under the shipped decoding.
        humaneval: HumanEval tasks answered greedily; None takes all, 0 none.
        humaneval_samples: further answers per task at temperature 0.2, for pass@1, and as many at 0.8, for pass@10;
            0 draws none.
        infilling: single-line gaps made from HumanEval; None takes all, 0 none.
        task_files: files of further tasks, see `read_task_file`.
        file_tasks: tasks of each of these; None takes all.
        held_out: folder whose sub-folders are projects that the model never saw: bits per byte and next lines.
        held_out_bytes: of text that is scored there; None takes all.
        next_lines: lines completed there; 0 completes none.
        task_tokens: length of answers to tasks.
        batch_size: sequences decoded at once.
        latency: whether latency is timed; nothing else should run on the device meanwhile.
        extra: task sets from the Hub: `mbpp`, `humaneval_plus`.
        shipped: the decoding that users start with, reported beside greedy.

    Raises:
        ValueError: a count that makes no sense.
    """

    prompts: int | None = 40
    new_tokens: int = 64
    samples: int = 1
    humaneval: int | None = 40
    humaneval_samples: int = 0
    infilling: int | None = 40
    task_files: tuple[Path, ...] = ()
    file_tasks: int | None = 40
    held_out: Path | None = None
    held_out_bytes: int | None = 200_000
    next_lines: int = 100
    task_tokens: int = 160
    batch_size: int = 20
    latency: bool = True
    extra: tuple[str, ...] = ()
    shipped: DecodeSettings = SHIPPED

    def __post_init__(self) -> None:
        check_range(self, "new_tokens", least=8)
        check_range(self, "samples", "task_tokens", "batch_size", least=1)
        check_range(self, "prompts", least=1, optional=True)
        check_range(self, "humaneval", "infilling", least=0, optional=True)
        check_range(self, "file_tasks", "held_out_bytes", least=1, optional=True)
        check_range(self, "humaneval_samples", "next_lines", least=0)


SUITES: dict[SuiteName, SuiteSettings] = {
    "quick": SuiteSettings(),
    "full": SuiteSettings(
        prompts=None,
        new_tokens=128,
        samples=2,
        humaneval=None,
        humaneval_samples=20,
        infilling=None,
        file_tasks=None,
        held_out_bytes=2_000_000,
        next_lines=1000,
    ),
}
