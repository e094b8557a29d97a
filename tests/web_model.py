"""A small trained release for the page's tests, and a plain server for the page."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.playground_load import random_model

ROOT = Path(__file__).parent.parent
TEXTS = ("codenas_hf/folders/record.py", "codenas_hf/generation/decode.py", "codenas_hf/release/hub.py")


def source_text() -> str:
    """Some Python of this project."""
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in TEXTS)


def trained_release(folder: Path, *, steps: int = 60) -> Path:
    """A Llama that has read some Python of this project, so that its choices are rarely near ties; some seconds."""
    random_model(folder, hidden=64, layers=2, vocab_size=700, context=512)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    ids = torch.tensor(tokenizer(source_text(), add_special_tokens=False)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(ids) - 129, (8,), generator=rng)
        rows = torch.stack([ids[start : start + 128] for start in starts.tolist()])
        model(rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return folder


@contextmanager
def plain_server(folder: Path) -> Iterator[str]:
    """`python -m http.server` for a folder; its address."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        yield "http://127.0.0.1:" + server.stdout.readline().split(" port ")[1].split(" ")[0]
    finally:
        server.terminate()
        server.wait()
