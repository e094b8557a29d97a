"""The versioned prompt sets that completions are judged on.

`short`: a signature, a class header or an import. `few_shot`: two or three whole functions, then a header.
`mid_file`: real code cut between two lines, with what follows. The first two were written for this project, the third
is cut from the standard library of Python 3.11 (PSF licence), which therefore may not be trained on: hand
`prompt_file(kind)` to the corpus builder as a benchmark to be removed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

PromptKind = Literal["short", "few_shot", "mid_file"]
_FOLDER = Path(__file__).with_name("prompt_sets")


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Args:
        prompt_id: name that never changes, such as `short/1/017`.
        kind: the set it belongs to.
        text: what the model is given; ends without white space.
        reference: what a person wrote next; None where nobody did.
        source: where the text comes from.
        licence: SPDX name of its licence.
    """

    prompt_id: str
    kind: PromptKind
    text: str
    reference: str | None
    source: str
    licence: str


def prompt_file(kind: PromptKind, *, version: int = 1) -> Path:
    """The JSONL file of a set.

    Raises:
        ValueError: there is no such set.
    """
    path = _FOLDER / f"{kind}.v{version}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in _FOLDER.glob("*.jsonl")))
        raise ValueError(f"no prompt set {kind!r} in version {version}; there are {known}")
    return path


def load_prompts(kind: PromptKind, *, version: int = 1, count: int | None = None) -> list[Prompt]:
    """Reads a set.

    Args:
        kind: `short`, `few_shot` or `mid_file`.
        version: of the set.
        count: so many prompts, evenly spread over the set; None takes all.

    Raises:
        ValueError: there is no such set.
    """
    lines = prompt_file(kind, version=version).read_text(encoding="utf-8").splitlines()
    prompts = [
        Prompt(
            prompt_id=row["id"],
            kind=kind,
            text=row["prompt"],
            reference=row.get("reference"),
            source=row["source"],
            licence=row["licence"],
        )
        for row in map(json.loads, lines)
    ]
    if count is None or count >= len(prompts):
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
