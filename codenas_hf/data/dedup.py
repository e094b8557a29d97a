"""Fingerprints of a text and what they are compared for: near-duplicates, leaking line windows, benchmark text."""

from __future__ import annotations

import itertools
import keyword
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import rensa

UInt64 = npt.NDArray[np.uint64]

PERMUTATIONS = 128
BANDS = 16
ROWS = PERMUTATIONS // BANDS
SHINGLE_WORDS = 7
CLONE_WORDS = 24
BENCHMARK_WORDS = 13

_TOKENS = re.compile(r"\w+|[^\w\s]")
_WORD = np.uint64(1 << 32)
_IDENTIFIER = np.uint64(1 << 33)
_LOW = np.uint64(0xFFFFFFFF)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_KEYWORDS = frozenset(keyword.kwlist)


class _TokenCodes(dict[str, int]):
    """Token to code, filled on demand: CRC-32, bit 32 for words, bit 33 for words that a programmer may rename."""

    def __missing__(self, token: str) -> int:
        code = zlib.crc32(token.encode("utf-8", "surrogatepass"))
        if token[0] == "_" or token[0].isalnum():
            code |= 1 << 32
            if token not in _KEYWORDS:
                code |= 1 << 33
        if len(self) > 2_000_000:  # bounds the memory of a long run; the codes do not depend on it
            self.clear()
        self[token] = code
        return code


_CODES = _TokenCodes()


@dataclass(frozen=True)
class Fingerprint:
    """What is remembered of a text.

    Args:
        shingles: distinct hashes of its runs of `SHINGLE_WORDS` tokens.
        clones: the same with every name and number made equal and runs of `CLONE_WORDS`: equal for renamed copies.
        words: hashes of its runs of `BENCHMARK_WORDS` words, punctuation left out, in order.
        windows: hashes of its windows of normalised lines, in order.
        body: the first window that starts after the leading comment and imports.
    """

    shingles: UInt64
    clones: UInt64
    words: UInt64
    windows: UInt64
    body: int


def fingerprint(text: str, *, window_lines: int, near: bool = True, words: bool = True) -> Fingerprint:
    """Fingerprints one text in one pass over its tokens.

    Args:
        text: the text.
        window_lines: lines of a window; 0 leaves the windows out.
        near: hash what near-duplicates and renamed copies are found by.
        words: hash what benchmark text is found by.
    """
    codes = token_codes(text) if near or words else np.zeros(0, np.uint64)
    plain = codes & _LOW
    renamed = np.where(codes & _IDENTIFIER, np.uint64(1), plain)
    windows, body = line_windows(text, window_lines)
    return Fingerprint(
        shingles=np.unique(runs(plain, SHINGLE_WORDS)) if near else plain[:0],
        clones=np.unique(runs(renamed, CLONE_WORDS)) if near else plain[:0],
        words=runs(plain[(codes & _WORD) != 0], BENCHMARK_WORDS) if words else plain[:0],
        windows=windows,
        body=body,
    )


def token_codes(text: str) -> UInt64:
    """Codes of the words and punctuation marks of a text, in order."""
    tokens = _TOKENS.findall(text)
    return np.fromiter(map(_CODES.__getitem__, tokens), dtype=np.uint64, count=len(tokens))


def runs(codes: UInt64, length: int) -> UInt64:
    """Hashes of all runs of `length` consecutive codes; none when there are fewer codes.

    Returns:
        uint64 [max(0, n - length + 1)].
    """
    count = len(codes) - length + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for start in range(length):
        hashes *= _MULTIPLIER
        hashes += codes[start : start + count]
    hashes ^= hashes >> np.uint64(31)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(29)
    return hashes


def line_windows(text: str, lines: int) -> tuple[UInt64, int]:
    """Hashes of the windows of `lines` non-blank lines, white space inside a line made equal.

    Returns:
        uint64 hashes in order (none for a shorter text, or for `lines` 0), and the index of the first window after the
        leading comment and imports.
    """
    kept = [" ".join(line.split()) for line in text.splitlines()] if lines else []
    kept = [line for line in kept if line]
    if not lines or len(kept) < lines:
        return np.zeros(0, np.uint64), 0
    codes = np.fromiter(
        (zlib.crc32(line.encode("utf-8", "surrogatepass")) | (len(line) << 32) for line in kept), np.uint64, len(kept)
    )
    return runs(codes, lines), _body_start(kept)


def _body_start(lines: Sequence[str]) -> int:
    """Index of the first line that is neither comment nor import."""
    open_import = False
    for index, line in enumerate(lines):
        if open_import:
            open_import = ")" not in line
        elif re.match(r"(?:import|from)\s", line):
            open_import = "(" in line and ")" not in line
        elif not line.startswith("#"):
            return index
    return len(lines)


def signatures(sets: Sequence[UInt64]) -> npt.NDArray[np.uint32]:
    """MinHash signatures of sets of hashes (rensa, 128 permutations).

    Returns:
        uint32 [len(sets), PERMUTATIONS].
    """
    if not sets:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    offsets = np.zeros(len(sets) + 1, np.uint64)
    np.cumsum([len(items) for items in sets], out=offsets[1:])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), offsets, PERMUTATIONS, 42)
    return np.asarray(matrix.to_rows(), dtype=np.uint32).reshape(len(sets), PERMUTATIONS)


def band_keys(signature: npt.NDArray[np.uint32]) -> UInt64:
    """One hash per band of each signature: equal in any band makes two texts candidates.

    Returns:
        uint64 [n, BANDS].
    """
    keys = np.zeros((len(signature), BANDS), np.uint64)
    parts = signature.reshape(len(signature), BANDS, ROWS).astype(np.uint64)
    for row in range(ROWS):
        keys *= _MULTIPLIER
        keys += parts[:, :, row]
        keys ^= keys >> np.uint64(29)
    return keys


class Clusters:
    """Union-find over text indices; the smallest index of a cluster stands for it."""

    def __init__(self, count: int) -> None:
        self.parent = np.arange(count, dtype=np.int64)

    def find(self, index: int) -> int:
        """The index that stands for the cluster of `index`."""
        parent = self.parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    def join(self, first: int, second: int) -> None:
        """Makes one cluster of two."""
        a, b = self.find(first), self.find(second)
        if a != b:
            self.parent[max(a, b)] = min(a, b)

    def roots(self) -> npt.NDArray[np.int64]:
        """For every index the one that stands for its cluster."""
        return np.array([self.find(index) for index in range(len(self.parent))], dtype=np.int64)


def join_near_duplicates(
    clusters: Clusters,
    *,
    keys: UInt64,
    signature: npt.NDArray[np.uint32],
    indices: npt.NDArray[np.int64],
    threshold: float,
) -> int:
    """Joins texts whose estimated Jaccard similarity reaches `threshold`, among those that share a band.

    Args:
        clusters: joined in place.
        keys: uint64 [n, BANDS], may be a memory map: one column is read at a time.
        signature: uint32 [n, PERMUTATIONS], may be a memory map: only candidates are read.
        indices: int64 [n], the text of each row.
        threshold: smallest share of equal signature entries.

    Returns:
        The number of pairs that were compared.
    """
    compared = 0
    for band in range(keys.shape[1]):
        column = np.array(keys[:, band])
        order = np.argsort(column, kind="stable")
        column = column[order]
        starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
        ends = np.r_[starts[1:], len(column)]
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            members = order[start:end]
            # Rows are in text order, so the first member is the one that would be kept; each is compared with it and
            # with its neighbour, which finds chains without comparing all pairs of a large bucket.
            for left, right in {(int(members[0]), int(m)) for m in members[1:]} | {
                (int(a), int(b)) for a, b in itertools.pairwise(members)
            }:
                a, b = int(indices[left]), int(indices[right])
                if clusters.find(a) == clusters.find(b):
                    continue
                compared += 1
                if np.mean(signature[left] == signature[right]) >= threshold:
                    clusters.join(a, b)
    return compared
