"""The example functions that a prompt can be given, and starts to try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read_examples() -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Example functions by title, and starts (title, prompt, titles of shots) from `examples.json`."""
    data = json.loads((HERE / "examples.json").read_text(encoding="utf-8"))
    return {shot["title"]: shot["code"] for shot in data["shots"]}, data["starts"]


def apply_picks(text: str, picked: list[str], shots: dict[str, str]) -> str:
    """The examples text with picked shots added and unpicked ones taken out; what a visitor wrote stays."""
    for title, code in shots.items():
        if title in picked and code not in text:
            text = f"{text.rstrip()}\n\n\n{code}\n" if text.strip() else f"{code}\n"
        elif title not in picked and code in text:
            text = text.replace(code, "")
    blocks = [block.strip("\n") for block in text.split("\n\n\n") if block.strip()]
    return "\n\n\n".join(blocks) + "\n" if blocks else ""


def with_line_end(prompt: str) -> str:
    """The prompt with a line end where its last line is a whole header or docstring.

    Gradio's code editor takes the last line end off what a button puts into it; small models would go on in that line.
    """
    return f"{prompt}\n" if prompt.endswith((":", '"""', "'''")) else prompt
