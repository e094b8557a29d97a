"""The text of a run: corpus, tokenizers and tokens, made or found, and described."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from ..data import PreparedData, overview, prepare_data, prepare_for_tokenizer, prepare_text
from ..hardware import exclusively
from ..report.cells import Column, Table
from ..suite.prompts import PromptKind, prompt_file
from .settings import RunSettings
from .spaces import load_space, with_space

__all__ = ["load_space", "overview", "prepare", "prepare_all", "vocabulary_table"]


def prepare(
    settings: RunSettings,
    *,
    vocab_sizes: Sequence[int] = (),
    tokenizer: Path | None = None,
    text_alone: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> PreparedData:
    """Corpus, tokenizers and tokens of these settings: built, or found from an earlier run.

    Of the processes of a job on one machine one builds and the others then find it. Where the corpus is cleaned of
    benchmarks it is cleaned of this project's own prompts too.

    Args:
        settings: name the text.
        vocab_sizes: of the tokenizers that are trained on it.
        tokenizer: folder of one that is there already; it is taken instead.
        text_alone: no tokenizer at all.
        say: told how far it is and how long it will take, a line every few seconds.
    """
    folder = (settings.folder / "data").resolve()
    corpus = settings.corpus
    if corpus.benchmarks:
        prompts = tuple(str(prompt_file(kind)) for kind in get_args(PromptKind))
        corpus = replace(corpus, benchmarks=(*corpus.benchmarks, *prompts))
    with exclusively(folder / ".lock"):
        if text_alone:
            return prepare_text(corpus, folder=folder, on_progress=progress_lines(say))
        if tokenizer is not None:
            return prepare_for_tokenizer(tokenizer, corpus=corpus, folder=folder, on_progress=progress_lines(say))
        return prepare_data(
            corpus=corpus,
            tokenizer=settings.tokenizer,
            vocab_sizes=vocab_sizes,
            folder=folder,
            on_progress=progress_lines(say),
        )


def progress_lines(
    say: Callable[[str], None], *, of: str = "data", every_s: float = 5.0
) -> Callable[[str, float, float], None]:
    """Says how far a preparation is, at most every few seconds, and how long the present part will take.

    Args:
        say: told a line at a time.
        of: what is prepared, the line's first word.
        every_s: seconds from one line to the next, at least.
    """
    part, began, said = "", 0.0, time.monotonic()

    def on_progress(what: str, done: float, total: float) -> None:
        nonlocal part, began, said
        now = time.monotonic()
        if what != part:
            part, began = what, now
        if 0 < done < total and now - said >= every_s:
            said = now
            left = (now - began) * (total - done) / done
            say(f"{of:<9} {done / total:.0%} of the {what}, about {left:.0f} s left")

    return on_progress


def prepare_all(settings: RunSettings, *, vocab_sizes: Sequence[int] = ()) -> PreparedData:
    """What a search with these settings would prepare, or with other vocabulary sizes than its space has."""
    return prepare(settings, vocab_sizes=vocab_sizes or load_space(with_space(settings).space).vocab_sizes)


def vocabulary_table(data: PreparedData) -> Table:
    """One row for each tokenizer: how many bytes of held-out text one token of it stands for."""
    rows: list[dict[str, Any]] = [
        {
            "vocab_size": size,
            "bytes_per_token": data.tokens(size, "search").bytes_per_token,
            "folder": str(data.tokenizer(size)),
        }
        for size in data.vocab_sizes
    ]
    columns = (
        Column("vocab_size", "vocabulary", "integer"),
        Column("bytes_per_token", "held-out bytes per token"),
        Column("folder", "folder"),
    )
    return Table("tokenizers", "Tokenizers", columns, tuple(rows))
