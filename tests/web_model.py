"""What the tests of pages share: a small trained release, prompts, a plain server, Chromium."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.playground_load import random_model

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
READY = "document.getElementById('loading').hidden && !document.getElementById('complete').disabled"
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


def prompts_of(text: str, count: int) -> list[str]:
    """Pieces of text cut anywhere, also inside words, indents and characters of several bytes."""
    rng = random.Random(0)
    found = []
    for number in range(count):
        end = rng.randrange(300, len(text))
        piece = text[end - rng.randrange(20, 300) : end]
        found.append(piece + ("# déjà 漢" if number % 20 == 19 else ""))
    return found


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


@contextmanager
def chromium(*, npm: bool = False) -> Iterator[Any]:
    """A headless browser; skips the test where there is none, or no npm for the page's engine."""
    if npm and shutil.which("npm") is None:
        pytest.skip("npm is needed to fetch the page's engine; install Node.js 20 or newer")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def until(page: Any, expression: str, *, seconds: float = 60) -> None:
    """Waits until an expression is true in the page, whose policy forbids playwright's own way of asking again."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < end, f"{expression}: {page.locator('body').inner_text()}"
        page.wait_for_timeout(50)
