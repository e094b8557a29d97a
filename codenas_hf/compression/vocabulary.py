"""A smaller vocabulary for a pretrained model: fewer entries, the same text, no training.

A byte-level BPE tokenizer spells every text from 256 bytes and a list of merges. Leaving entries out never makes a
text unreadable: it is only spelt in more pieces. What stays is what the user's corpus needs most; an entry stays only
with the two parts that merge into it, so each kept merge still happens in its old order.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ..folders import read_json, write_json

_NUM_BYTES = 256
_TOKENS_PER_ENTRY = 20  # of the corpus, below which counts are mostly chance


class VocabularyError(ValueError):
    """A tokenizer that cannot be trimmed, or a corpus that cannot say how."""


def check_tokenizer(state: Mapping[str, Any]) -> None:
    """Refuses what is no byte-level BPE.

    Args:
        state: what `tokenizer.json` holds.

    Raises:
        VocabularyError: says what it is.
    """
    kind = state["model"].get("type")
    if kind != "BPE":
        raise VocabularyError(f"the tokenizer is a {kind}; only byte-level BPE can lose entries and stay exact")
    if state["model"].get("byte_fallback") or not _mentions(state.get("decoder"), "ByteLevel"):
        raise VocabularyError(
            "the tokenizer is BPE over characters; only byte-level BPE can lose entries and stay exact"
        )


def check_bytes(state: Mapping[str, Any]) -> None:
    """Refuses a tokenizer that cannot spell every text; `adopted` adds what it lacks.

    Raises:
        VocabularyError: says how many bytes it lacks.
    """
    check_tokenizer(state)
    missing = [letter for letter in _byte_letters() if letter not in state["model"]["vocab"]]
    if missing:
        raise VocabularyError(f"the tokenizer lacks {len(missing)} of the 256 bytes, so some texts have no spelling")


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> NDArray[np.int64]:
    """How often each entry occurs in some texts, `[vocabulary]`."""
    counts = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True), np.int64)
    for text in texts:
        ids = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        counts += np.bincount(ids, minlength=len(counts))[: len(counts)]
    return counts


def kept_entries(state: Mapping[str, Any], counts: NDArray[np.int64], *, keep: int) -> list[int]:
    """The entries that stay, ascending: bytes, special tokens, and the most frequent others with their parts.

    Args:
        state: what `tokenizer.json` holds.
        counts: from `count_tokens`.
        keep: how many entries.

    Raises:
        VocabularyError: no byte-level BPE, more entries than there are or fewer than must stay, or a corpus too small.
    """
    check_bytes(state)
    vocabulary: dict[str, int] = state["model"]["vocab"]
    needed = {vocabulary[letter] for letter in _byte_letters()}
    needed |= {int(token["id"]) for token in state.get("added_tokens", ())}
    size = len(set(vocabulary.values()) | needed)
    if not len(needed) <= keep <= size:
        raise VocabularyError(
            f"`keep` must lie between {len(needed)} (bytes and special tokens) and {size} (all entries), got {keep}"
        )
    if counts.sum() < _TOKENS_PER_ENTRY * keep:
        raise VocabularyError(
            f"the corpus has {int(counts.sum()):,} tokens, too few to choose {keep:,} entries by; give at least "
            f"{_TOKENS_PER_ENTRY * keep:,} tokens (about {_TOKENS_PER_ENTRY * keep * 4 / 1e6:.1f} MB of text)"
        )
    parts = _parts(state)
    kept = set(needed)
    for entry in np.argsort(-counts, kind="stable"):
        chain = _closure(int(entry), parts, kept)
        if chain is not None and len(kept) + len(chain) <= keep:
            kept |= chain
    # What is left over goes to entries that never occur, in their order: the size is what was asked for.
    for entry in sorted(vocabulary.values()):
        if len(kept) == keep:
            break
        chain = _closure(entry, parts, kept)
        if chain is not None and len(kept) + len(chain) <= keep:
            kept |= chain
    return sorted(kept)


def adopted(
    state: Mapping[str, Any], *, special: Sequence[str], start: str | None
) -> tuple[dict[str, Any], list[int]]:
    """A tokenizer with this package's special tokens as its first entries, exact on every text.

    What the parent does to a text beyond splitting it goes: normalising it (some texts would not come back) and adding
    tokens around it (documents begin with the first special token here). Bytes that the parent lacks are added (of
    SmolLM2's vocabulary 21, which it reads as an unknown token).

    Args:
        state: what `tokenizer.json` holds.
        special: the first entries, in order; the first of them begins and ends documents.
        start: the entry of the parent that did that, where the first of `special` is none of its own.

    Returns:
        The new `tokenizer.json`, and for each entry the parent's entry; -1 for one that the parent lacks.

    Raises:
        VocabularyError: no byte-level BPE.
    """
    check_tokenizer(state)
    result: dict[str, Any] = copy.deepcopy(dict(state))
    words: dict[str, int] = result["model"]["vocab"]
    everything = words | {token["content"]: int(token["id"]) for token in result.get("added_tokens") or ()}
    source = [everything.get(token, -1) for token in special]
    if source[0] < 0 and start is not None:
        source[0] = everything.get(start, -1)
    others = sorted((old, text) for text, old in everything.items() if text not in special)
    missing = [letter for letter in _byte_letters() if letter not in words]
    number = {text: new for new, text in enumerate([*special, *(text for _, text in others), *missing])}
    words = {text: number[text] for text in sorted({*words, *special, *missing}, key=number.__getitem__)}
    result["model"]["vocab"] = words
    known = {token["content"]: token for token in result.get("added_tokens") or ()}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = [known.get(text) or {"content": text, **plain} for text in {**dict.fromkeys(special), **known}]
    result["added_tokens"] = sorted(
        ({**token, "id": number[token["content"]]} for token in tokens), key=lambda token: token["id"]
    )
    result["normalizer"] = result["post_processor"] = result["truncation"] = result["padding"] = None
    return result, [*source, *(old for old, _ in others), *([-1] * len(missing))]


def trimmed_tokenizer(state: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """`tokenizer.json` with only the kept entries, numbered anew in their old order.

    Raises:
        VocabularyError: no byte-level BPE.
    """
    check_tokenizer(state)
    number = {old: new for new, old in enumerate(kept)}
    result: dict[str, Any] = copy.deepcopy(dict(state))
    vocabulary: dict[str, int] = result["model"]["vocab"]
    result["model"]["vocab"] = {text: number[old] for text, old in vocabulary.items() if old in number}
    left = result["model"]["vocab"]
    pairs = [(merge, *_pair(merge)) for merge in result["model"]["merges"]]
    result["model"]["merges"] = [
        merge for merge, first, second in pairs if first in left and second in left and first + second in left
    ]
    for token in result.get("added_tokens", ()):
        token["id"] = number[int(token["id"])]
    _renumber(
        result.get("post_processor"), {token["content"]: token["id"] for token in result.get("added_tokens", ())}
    )
    return result


def _mentions(node: Any, kind: str) -> bool:
    if isinstance(node, Mapping):
        return node.get("type") == kind or any(_mentions(value, kind) for value in node.values())
    return isinstance(node, list) and any(_mentions(value, kind) for value in node)


def _byte_letters() -> list[str]:
    """The letters by which byte-level BPE writes the 256 bytes; printable ones stand for themselves (as in GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(_NUM_BYTES) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(_NUM_BYTES + at) for at in range(len(others))]


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge if isinstance(merge, list | tuple) else merge.split(" ")
    return first, second


def _parts(state: Mapping[str, Any]) -> dict[int, list[tuple[int, int]]]:
    """For each entry the pairs of entries that merge into it, the earliest first."""
    vocabulary: dict[str, int] = state["model"]["vocab"]
    found: dict[int, list[tuple[int, int]]] = {}
    for merge in state["model"]["merges"]:
        first, second = _pair(merge)
        if first + second in vocabulary:
            found.setdefault(vocabulary[first + second], []).append((vocabulary[first], vocabulary[second]))
    return found


def _closure(entry: int, parts: Mapping[int, list[tuple[int, int]]], kept: set[int]) -> set[int] | None:
    """What must be added so that `entry` can be spelt; empty where it is there, None where nothing merges into it."""
    if entry in kept:
        return set()
    if entry not in parts:
        return None
    first, second = parts[entry][0]
    left = _closure(first, parts, kept)
    right = _closure(second, parts, kept)
    return None if left is None or right is None else {entry} | left | right


def _renumber(node: Any, ids: Mapping[str, int]) -> None:
    """Ids of special tokens inside a post-processor, wherever it keeps them."""
    if isinstance(node, dict):
        special = node.get("special_tokens")
        if isinstance(special, dict):
            for entry in special.values():
                entry["ids"] = [ids[token] for token in entry["tokens"]]
        for name in ("sep", "cls"):  # written as [token, id]
            if isinstance(node.get(name), list) and len(node[name]) == 2 and node[name][0] in ids:
                node[name][1] = ids[node[name][0]]
        for value in node.values():
            _renumber(value, ids)
    elif isinstance(node, list):
        for value in node:
            _renumber(value, ids)


def save_tokenizer(
    state: Mapping[str, Any], folder: Path, *, special: Sequence[str], chat_template: str | None
) -> None:
    """Writes a tokenizer under a class that all versions of transformers know.

    Args:
        state: what `tokenizer.json` holds.
        folder: where to.
        special: start (and end) of text first, padding last, between them what else is special.
        chat_template: None for none.
    """
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=special[0],
        eos_token=special[0],
        pad_token=special[-1],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={f"{text.strip('<|>')}_token": text for text in special[1:-1]},
    )
    fast.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    value = read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    if chat_template is not None:
        value["chat_template"] = chat_template
    write_json(path, value)
