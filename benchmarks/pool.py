"""The runs of a benchmark as processes of their own, each with one thread, so many at a time.

A run is a command that leaves a result file; what has its file is never run again, so a benchmark goes on where it
was stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def work_off(
    wanted: Callable[[], Mapping[Path, Sequence[str]]], *, module: str, workers: int, keep_going: bool = False
) -> set[Path]:
    """Runs what has no result file yet.

    Args:
        wanted: result file to the words after `python -m module`, in order; asked again after every end, since what
            is done may say what else is wanted.
        module: that each process runs.
        workers: processes at a time.
        keep_going: whether the others go on where one leaves no file.

    Returns:
        The files that runs did not leave.

    Raises:
        SystemExit: a run left no file; with `keep_going` never.
    """
    active: dict[Path, subprocess.Popen[bytes]] = {}
    failed: set[Path] = set()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    while True:
        for path, process in list(active.items()):
            if process.poll() is not None:
                del active[path]
                if not path.exists():
                    failed.add(path)
                    if not keep_going:
                        raise SystemExit(f"{path} was not written; the traceback is above")
                print(f"{path.stem}: {'failed' if path in failed else 'done'}", flush=True)
        runs = wanted()
        missing = [path for path in runs if not path.exists() and path not in active and path not in failed]
        if not missing and not active:
            return failed
        for path in missing[: workers - len(active)]:
            active[path] = subprocess.Popen([sys.executable, "-m", module, *runs[path]], env=environment)
        time.sleep(0.5)
