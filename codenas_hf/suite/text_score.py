"""Bits per byte of plain texts, for any model with its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from codenas_hf.generation.torch_runtime import context_tokens
from codenas_hf.measure.rows import IGNORED, sum_rows
from codenas_hf.measure.score import Score

_WINDOW = 2048  # of models whose config does not bound the context


def score_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    projects: Sequence[str] | None = None,
    batch_size: int = 8,
) -> Score:
    """Scores texts, each from its start token on, in windows that do not overlap.

    A window after the first sees one token of the one before; this is what lm-evaluation-harness does for
    `loglikelihood_rolling`, so both give the same number.

    Args:
        model: a causal language model, or a `measure.score.ReaderModel`.
        tokenizer: its tokenizer.
        texts: what is scored.
        prompts: what stands before each text and is seen but not scored.
        projects: what each text belongs to; the score's interval comes from resampling these. None takes every text
            for itself.
        batch_size: most windows in one forward pass.

    Raises:
        ValueError: no text, or other numbers of prompts or projects than of texts.
    """
    if not any(texts):
        raise ValueError("`texts` holds no text: give at least one character")
    for name, others in (("prompts", prompts), ("projects", projects)):
        if others is not None and len(others) != len(texts):
            raise ValueError(f"`{name}` must be one per text ({len(texts)}), got {len(others)}")
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    length = min(context_tokens(model) or _WINDOW, _WINDOW)
    windows: list[tuple[int, list[int], list[int]]] = []
    for index, text in enumerate(texts):
        before = _ids(tokenizer, prompts[index]) if prompts is not None else []
        scored = _ids(tokenizer, text)
        ids = ([bos] if bos is not None else []) + before + scored
        targets = [IGNORED] * (len(ids) - len(scored)) + scored
        for start in range(0, len(ids) - 1, length):
            wanted = targets[start + 1 : start + length + 1]
            if any(target != IGNORED for target in wanted):
                windows.append((index, ids[start : start + len(wanted)], wanted))
    shape = (len(windows), max((len(row) for _, row, _ in windows), default=0))
    inputs, targets_of = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    for place, (_, row, wanted) in enumerate(windows):  # padded on the right, where causal attention does not look
        inputs[place, : len(row)], targets_of[place, : len(wanted)] = row, wanted
    rows = sum_rows(model, inputs, targets_of, batch_size=batch_size)
    # The bytes of a text lie with its first window: where a token ends, its bytes need not end a character.
    text_of = np.array([index for index, _, _ in windows], np.int64)
    row_bytes = np.zeros(len(windows), np.int64)
    first = np.unique(text_of, return_index=True)[1]
    row_bytes[first] = [len(texts[index].encode()) for index in text_of[first]]
    names = list(projects) if projects is not None else [str(index) for index in range(len(texts))]
    known = sorted(set(names))
    number = {name: place for place, name in enumerate(known)}
    project = np.array([number[names[index]] for index in text_of], np.int64)
    return Score(rows=rows, row_bytes=row_bytes, project=project, projects=tuple(known))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
