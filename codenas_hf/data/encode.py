"""Encoding in bulk: what the tokenizer itself would return, several times faster.

`tokenizers` carries a normalised copy and an alignment along with every piece; `tiktoken` runs the same expression and
the same merges without them. It is used only where the result is the same:

- `tiktoken` joins two neighbours whenever their bytes together are an entry, the lowest id first; BPE joins only the
  pairs in its list of merges. Where the ids rise along that list and every entry, encoded alone, comes out as itself,
  no other pair that makes up an entry ever meets: inside an entry's bytes both have taken the same steps.
- The two have different engines for regular expressions, whose Unicode tables need not be of one age and whose ideas
  of white space beyond ASCII may differ. Text with a character for which that could matter goes to `tokenizers`.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import tiktoken
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..hardware import cores
from .filters import BEYOND_ASCII
from .tokenizer import SPECIAL_TOKENS

_PLAIN_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


class BulkEncoder:
    """Encodes many texts; special tokens spelled out in them are plain text.

    Args:
        backend: from `load_backend`.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self.fast = _same_in_tiktoken(backend)
        self._threads = cores()

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint16]]:
        """The token ids of each text, without any added ones."""
        quick = [number for number, text in enumerate(texts) if self.fast is not None and _is_settled(text)]
        slow = sorted(set(range(len(texts))).difference(quick))
        with ThreadPoolExecutor(self._threads) as pool:  # both libraries let other threads run while they encode
            pending = pool.map(self._quickly, (texts[number] for number in quick))
            encodings = self.backend.encode_batch_fast([texts[number] for number in slow], add_special_tokens=False)
            found = {
                number: np.array(encoding.ids, np.uint16) for number, encoding in zip(slow, encodings, strict=True)
            }
            found.update(zip(quick, pending, strict=True))
        return [found[number] for number in range(len(texts))]

    def _quickly(self, text: str) -> npt.NDArray[np.uint16]:
        assert self.fast is not None
        return np.array(self.fast.encode_ordinary(text), np.uint16)


def _is_settled(text: str) -> bool:
    """Whether every engine sees the same kinds of characters in it."""
    return text.isascii() or all(map(_is_settled_character, set(BEYOND_ASCII.findall(text))))


@functools.cache
def _is_settled_character(character: str) -> bool:
    """Letter, number, or neither, in Unicode 3.2 as today; not white space, nor another case of an ASCII letter."""
    kind = unicodedata.category(character)[0]
    if kind not in "LMNPS" or character.casefold().isascii():
        return False
    first = unicodedata.ucd_3_2_0.category(character)[0]  # C where it was not assigned: neither letter nor number
    return kind == first if {kind, first} & {"L", "N"} else first != "Z"


def _same_in_tiktoken(backend: Tokenizer) -> tiktoken.Encoding | None:
    """The same tokenizer for `tiktoken`; None where it cannot be shown to be the same."""
    value = json.loads(backend.to_str())
    model = value["model"]
    vocabulary: dict[str, int] = model.pop("vocab")
    merges: list[list[str]] = model.pop("merges")
    match value["pre_tokenizer"]:
        case {
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ]
        } if value["normalizer"] is None and model == _PLAIN_BPE:
            pass
        case _:
            return None
    ids = np.array([vocabulary["".join(pair)] for pair in merges])
    entries = {entry: number for entry, number in vocabulary.items() if entry not in SPECIAL_TOKENS}
    if not np.all(np.diff(ids) > 0) or any(len(backend.model.tokenize(entry)) != 1 for entry in entries):
        return None
    byte = {character: number for number, character in bytes_to_unicode().items()}
    ranks = {bytes(byte[character] for character in entry): number for entry, number in entries.items()}
    return tiktoken.Encoding("codenas_hf", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
