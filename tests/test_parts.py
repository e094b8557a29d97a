"""The processes that read a corpus."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_crash import children_of, wait_until

from codenas_hf.engine.members import process_started

PROGRAM = """
import sys, time
from pathlib import Path
from codenas_hf.data import CorpusSettings, corpus

real = corpus.run_parts

def enough(part):
    print("read", flush=True)
    time.sleep(600)

def run(batches, *, enough_=enough, **known):
    return real(batches, **{**known, "enough": enough_, "workers": 2})

if __name__ == "__main__":
    corpus.run_parts = run
    settings = CorpusSettings(sources=(sys.argv[1],), benchmarks=(), held_out_fraction=0.2)
    corpus.build_corpus(settings, folder=Path(sys.argv[2]), workers=2)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_they_end_with_their_caller(tmp_path: Path, tiny_corpus_folder: Path, how: signal.Signals) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tiny_corpus_folder), str(tmp_path / "corpus")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "read\n"
        workers = children_of(process.pid)
        assert len(workers) >= 3, "the server of workers, what it keeps, and a worker"
        process.send_signal(how)
    wait_until(lambda: not any(process_started(pid) for pid in workers))
