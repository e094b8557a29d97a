"""A reference point without any network: an n-gram model over bytes, on the same text."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..folders import write_json
from .corpus import Corpus
from .passages import SEARCH_BYTES, choose_passages

Bytes = npt.NDArray[np.uint8]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def ngram_bits_per_byte(
    corpus: Corpus, *, order: int = 6, train_bytes: int = 4_000_000, search_bytes: int = SEARCH_BYTES
) -> float:
    """Bits per byte of an interpolated byte n-gram model (Witten and Bell 1991) on the passages of the search text.

    Counts come from the first `train_bytes` of the training split, whose order is random; the result is stored beside
    the corpus, so it is computed once.

    Args:
        corpus: the text.
        order: longest context in bytes, plus one.
        train_bytes: how much text is counted.
        search_bytes: how much text is scored; the same amount is the same text that candidates are scored on.

    Returns:
        Bits per byte.
    """
    path = corpus.folder / "ngram.json"
    key = f"{corpus.digest}-{order}-{train_bytes}-{search_bytes}"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return float(stored["bits_per_byte"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    train = _text(corpus, "train", train_bytes)
    scored = b"".join(passage.text for passage in choose_passages(corpus, "search", max_bytes=search_bytes))
    value = interpolated_bits_per_byte(train, np.frombuffer(scored, np.uint8), order=order)
    write_json(path, {"key": key, "bits_per_byte": value})
    return value


def interpolated_bits_per_byte(train: Bytes, scored: Bytes, *, order: int) -> float:
    """Mean bits per byte of `scored` under counts of `train`.

    p_k(b | c) = (count(c b) + kinds(c) p_{k-1}(b | c')) / (count(c) + kinds(c)), where c' drops the oldest byte of the
    context c and kinds(c) is the number of different bytes seen after c; p_0 is uniform.
    """
    probability = np.full(len(scored), 1 / 256)
    for context in range(order):
        contexts = _context_hashes(train, context)
        pairs, pair_counts = np.unique(_with_byte(contexts, train), return_counts=True)
        order_of = np.unique(contexts, return_counts=True)
        # The context of each distinct pair tells how many kinds of byte follow a context.
        first = np.unique(_with_byte(contexts, train), return_index=True)[1]
        kinds_context, kinds = np.unique(contexts[first], return_counts=True)
        wanted = _context_hashes(scored, context)
        count = _lookup(order_of[0], order_of[1], wanted)
        kind = _lookup(kinds_context, kinds, wanted)
        both = _lookup(pairs, pair_counts, _with_byte(wanted, scored))
        seen = count > 0
        probability = np.where(seen, (both + kind * probability) / np.maximum(count + kind, 1), probability)
    return float(-np.mean(np.log2(probability)))


def _context_hashes(text: Bytes, length: int) -> npt.NDArray[np.uint64]:
    """For each byte a hash of the `length` bytes before it (zeros before the beginning)."""
    hashes = np.zeros(len(text), np.uint64)
    padded = np.concatenate([np.zeros(length, np.uint8), text]).astype(np.uint64)
    for back in range(length):
        hashes = (hashes ^ (padded[back : back + len(text)] + np.uint64(1))) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _with_byte(hashes: npt.NDArray[np.uint64], text: Bytes) -> npt.NDArray[np.uint64]:
    return (hashes ^ (text.astype(np.uint64) << np.uint64(1))) * _MULTIPLIER + np.uint64(1)


def _lookup(
    keys: npt.NDArray[np.uint64], values: npt.NDArray[np.int64], wanted: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0).astype(np.float64)


def _text(corpus: Corpus, split: str, limit: int) -> Bytes:
    return np.frombuffer(b"\0".join(_texts(corpus, split, limit))[:limit], np.uint8)


def _texts(corpus: Corpus, split: str, limit: int) -> Iterator[bytes]:
    taken = 0
    for batch in corpus.batches(split, "text"):
        for text in batch["text"]:
            yield text.encode("utf-8")
            taken += len(text)
            if taken >= limit:
                return
