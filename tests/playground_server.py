"""A tiny random model and a running playground for the playground's tests."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chooser import PlaygroundSettings
from interface import Page, launch_options

from benchmarks.playground_load import random_model

CODE = "def add(a, b):\n    return a + b\n\n\ndef double(value):\n    return value * 2\n"


@dataclass(frozen=True)
class Server:
    """A page, its demo and where it listens."""

    page: Page
    demo: Any
    url: str


def make_runs(folder: Path) -> Path:
    """`folder/runs` with two winners, alpha and beta."""
    for seed, name in enumerate(("alpha", "beta")):
        winner = random_model(folder / "runs" / name / "winner", seed=seed, layers=2 + seed)
        (winner / "README.md").write_text(f"---\nlicense: mit\n---\n# Card of {name}\n\n<script>alert(1)</script>\n")
    return folder / "runs"


def text_of(markup: str) -> str:
    """What a browser shows of some HTML."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


@contextmanager
def served(settings: PlaygroundSettings) -> Iterator[Server]:
    """The playground on a free local port, closed at the end."""
    page = Page(settings)
    demo = page.build()
    _, url, _ = demo.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, mcp_server=True, **launch_options()
    )
    try:
        yield Server(page, demo, url)
    finally:
        demo.close()
