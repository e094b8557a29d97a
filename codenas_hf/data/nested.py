"""Tokens of a smaller vocabulary out of those of a larger one, without encoding the text again.

BPE applies its merges in order. A merge that makes a new token can only be followed by later ones, so with the first k
merges a text is cut exactly where the first k steps of the larger tokenizer cut it. Every token of the larger
vocabulary therefore stands for a fixed run of tokens of the smaller one: what the smaller tokenizer makes of the token
alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ..folders.files import TOKENIZER
from .storage import DataError
from .tokenizer import SPECIAL_TOKENS


@dataclass(frozen=True)
class TokenSplitter:
    """Cuts tokens of a larger vocabulary into those of a smaller one.

    Args:
        counts: int64 [larger vocabulary], how many smaller tokens each one becomes.
        starts: int64 [larger vocabulary], where they begin in `pieces`.
        pieces: uint16, the smaller tokens, one run after the other.
    """

    counts: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    pieces: npt.NDArray[np.uint16]

    @classmethod
    def between(cls, larger: Path, smaller: Path) -> TokenSplitter:
        """Reads two tokenizer folders.

        Raises:
            DataError: the smaller one's merges are not the first merges of the larger one.
        """
        large, small = (json.loads((folder / TOKENIZER).read_text("utf-8")) for folder in (larger, smaller))
        merges = small["model"]["merges"]
        same = large["model"]["merges"][: len(merges)] == merges and large["pre_tokenizer"] == small["pre_tokenizer"]
        if not same:
            raise DataError(
                f"the tokens of {smaller} cannot be derived from those of {larger}: expected the same pre-tokenizer "
                f"and its merges to be the other's first ones; encode the text with it instead"
            )
        alone = Tokenizer.from_str(json.dumps({**small, "pre_tokenizer": None, "added_tokens": []}))
        names = sorted(large["model"]["vocab"], key=large["model"]["vocab"].__getitem__)
        runs = [[number] for number in range(len(SPECIAL_TOKENS))]
        runs += [found.ids for found in alone.encode_batch(names[len(SPECIAL_TOKENS) :], add_special_tokens=False)]
        counts = np.array([len(run) for run in runs], np.int64)
        return cls(counts, np.cumsum(counts) - counts, np.concatenate([np.array(run, np.uint16) for run in runs]))

    def split(self, tokens: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        """The same text in smaller tokens."""
        counts = self.counts[tokens]
        ends = np.cumsum(counts)
        inside = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        pieces: npt.NDArray[np.uint16] = self.pieces[np.repeat(self.starts[tokens], counts) + inside]
        return pieces
