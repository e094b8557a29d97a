"""Documents of the lm-evaluation-harness tasks: the package's own prompt sets."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from codenas_hf.suite.prompts import load_prompts


def mid_file(**_: Any) -> dict[str, Dataset]:
    """Cuts of real code, whole and in two."""
    rows = [
        {"content": prompt.text + (prompt.reference or ""), "prompt": prompt.text, "reference": prompt.reference}
        for prompt in load_prompts("mid_file")
    ]
    return {"test": Dataset.from_list(rows)}


def next_line(row: dict[str, Any]) -> str:
    """The line after the cut, with its indent."""
    return "\n" + str(row["reference"]).lstrip("\n").partition("\n")[0]
