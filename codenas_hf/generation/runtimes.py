"""What computes logits: one question, whatever answers it.

A runtime is asked for the logits that follow some tokens. It keeps what it has computed: of a question that begins
like the one before (the next token, an editor's next keystroke, the same few-shot examples) only the rest is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Runtime:
    """Base of all runtimes; a subclass computes tokens behind a kept prefix, and forgets.

    Args:
        name: torch, llama.cpp or onnxruntime.
        context_tokens: most tokens that it takes; None where nothing bounds them.
        file: that it reads; None for what was loaded otherwise.
    """

    def __init__(self, name: str, *, context_tokens: int | None, file: Path | None = None) -> None:
        self.name, self.context_tokens, self.file = name, context_tokens, file
        self._kept: list[int] = []
        self._lock = threading.Lock()
        self.computed_tokens = 0

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits `[vocabulary]` behind the last of some tokens. Any thread may ask.

        Raises:
            ValueError: no token, or more than the context holds.
        """
        ids = list(token_ids)
        if not ids:
            raise ValueError("`token_ids` is empty: there is nothing to continue")
        if self.context_tokens is not None and len(ids) > self.context_tokens:
            raise ValueError(f"{len(ids)} tokens do not fit a context of {self.context_tokens}; give fewer")
        with self._lock:
            # The last one is computed again where all are known: its logits are asked for.
            same = min(_common(self._kept, ids), len(ids) - 1)
            if same < len(self._kept):
                same = self._forget(same)
                del self._kept[same:]
            try:
                found = self._compute(ids[same:])
            except BaseException:
                self._kept.clear()  # nobody knows how far it came
                self._forget(0)
                raise
            self._kept = ids
            self.computed_tokens += len(ids) - same
            return found

    def all_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits `[tokens, vocabulary]` behind each of some tokens, for scoring.

        Raises:
            ValueError: as `logits`.
        """
        return np.stack([self.logits(token_ids[: at + 1]).copy() for at in range(len(token_ids))])

    def in_batches(self, count: int) -> bool:
        """Whether so many sequences are decoded faster together than one after the other."""
        return False

    def generate_many(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        steps: Sequence[int],
        pad: int,
        choose: Callable[[int, NDArray[np.float32]], int | None],
        push: Callable[[list[int]], list[bool]],
    ) -> None:
        """Draws several sequences at once, beside what is kept; asked only of a runtime that does it in batches.

        Args:
            prompts: tokens of each row.
            steps: most tokens of each row, which `push` watches over; all may end sooner where the context is full.
            pad: the padding token.
            choose: the next token of a row from its logits `[vocabulary]`; None for a row that is done.
            push: told the new token of every row; says which rows are done.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Gives memory back; the runtime is of no use after it."""

    def _compute(self, ids: list[int]) -> NDArray[np.float32]:
        raise NotImplementedError

    def _forget(self, length: int) -> int:
        """Drops everything behind the first `length` tokens; returns how many are left, 0 where it can keep none."""
        raise NotImplementedError


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginnings."""
    if len(first) <= len(second) and list(second[: len(first)]) == first:
        return len(first)
    return next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
