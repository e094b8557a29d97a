"""Fixtures for all tests: a tiny corpus of generated Python, prepared once per session."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from codenas_hf.data import CorpusSettings, PreparedData, TokenizerSettings, prepare_data
from codenas_hf.folders import StudyFolder

_NOUNS = "account packet vector matrix record window buffer cursor session ledger planet engine garden letter".split()
_VERBS = (
    "load store merge split count rotate filter reverse collect measure compare insert remove update render".split()
)
_LOOPS = (
    "for {a} in {b}s:\n            if {a} is None:\n                continue\n            total += {n}",
    "while {b} > {n}:\n            {b} -= 1\n            total = total * {n} + {b}",
    'with open({a}, encoding="utf-8") as file:\n            total += len(file.read()) + {n}',
    "total = sum({a}.{b} for {a} in self.{b}s if {a}.size != {n})",
)


def python_module(rng: random.Random) -> str:
    """A small module of classes and functions that parses and repeats no other one."""
    lines = [f'"""The {rng.choice(_NOUNS)} and how to {rng.choice(_VERBS)} it."""', "import math", ""]
    for _ in range(rng.randint(2, 5)):
        noun, other = rng.sample(_NOUNS, 2)
        lines += [f"class {noun.title()}{rng.randint(1, 999)}:", f"    {other}s = []", ""]
        for verb in rng.sample(_VERBS, rng.randint(1, 4)):
            a, b = rng.sample(_NOUNS, 2)
            loop = rng.choice(_LOOPS).format(a=a, b=b, n=rng.randint(0, 9999))
            lines += [
                f"    def {verb}_{a}(self, {a}, {b}={rng.randint(0, 99)}):",
                f'        """Return the {b} that the {a} has, {rng.choice(_VERBS)}ed by {rng.randint(1, 99)}."""',
                f"        total = {rng.randint(0, 99)}",
                f"        {loop}",
                f"        return math.{rng.choice(['floor', 'ceil', 'sqrt'])}(total / {rng.randint(1, 99)})",
                "",
            ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Copies of models for other runtimes stay with the tests."""
    os.environ["CODENAS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some dozens of small Python files in eight projects."""
    folder = tmp_path_factory.mktemp("tiny_corpus")
    rng = random.Random(0)
    for project in range(8):
        for module in range(8):
            path = folder / f"project_{project}" / f"module_{module}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(python_module(rng), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """The tiny corpus with a vocabulary of 512, as tokens."""
    return prepare_data(
        # Generated modules share their structure, which the search for renamed copies would take for copying.
        corpus=CorpusSettings(
            sources=(str(tiny_corpus_folder),), benchmarks=(), held_out_fraction=0.2, near_threshold=None
        ),
        tokenizer=TokenizerSettings(),
        vocab_sizes=(512,),
        folder=tmp_path_factory.mktemp("tiny_data"),
    )


@pytest.fixture(scope="session")
def finished_study(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A small real search with its winner released; tests that change it take a copy (`finished_run.make_run`)."""
    from finished_run import search_once  # loads the engine and torch, which few tests need

    return search_once(tmp_path_factory.mktemp("finished"), tiny_data)
