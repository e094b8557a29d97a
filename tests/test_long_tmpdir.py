"""A batch system's long TMPDIR: sockets of worker processes still fit."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from codenas_hf.folders import keep_sockets_short

PROGRAM = """
import multiprocessing, os, sys
from codenas_hf.folders import keep_sockets_short
if __name__ == "__main__":
    keep_sockets_short()
    keep_sockets_short()
    context = multiprocessing.get_context("forkserver")
    with context.Pool(1) as pool:
        print(pool.apply(os.path.basename, ("a/answer",)))
    print(multiprocessing.util.get_temp_dir())
"""


@pytest.mark.parametrize("letters", [200, 10])
def test_children_start_below_a_long_tmpdir(tmp_path: Path, letters: int) -> None:
    folder = tmp_path / ("x" * letters)
    folder.mkdir()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        names = {"TMPDIR": str(folder) if letters > 100 else short}
        done = subprocess.run(
            [sys.executable, str(program)], env={**os.environ, **names}, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    answer, used = done.stdout.split()
    assert answer == "answer"
    assert used.startswith(short) == (letters < 100)
    assert not Path(used).exists()


def test_no_short_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 200)
    monkeypatch.setattr("multiprocessing.process._current_process._config", {}, raising=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OSError, match="set TMPDIR to a short folder"):
        keep_sockets_short()
