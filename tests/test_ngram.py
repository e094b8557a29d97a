"""The reference point."""

import numpy as np
import pytest

from codenas_hf.data import ngram_bits_per_byte
from codenas_hf.data.ngram import interpolated_bits_per_byte


def test_random_bytes_cost_eight_bits_and_repetition_almost_none():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 60_000).astype(np.uint8)
    assert interpolated_bits_per_byte(noise[:50_000], noise[50_000:], order=1) == pytest.approx(8, abs=0.02)
    again = np.frombuffer(b"def f(x):\n" * 1000, np.uint8)
    assert interpolated_bits_per_byte(again, again[:1000], order=6) < 0.05


def test_order_one_is_the_closed_form():
    train, scored = np.frombuffer(b"aaab", np.uint8), np.frombuffer(b"abc", np.uint8)
    probabilities = [(3 + 2 / 256) / 6, (1 + 2 / 256) / 6, (2 / 256) / 6]
    expected = -np.mean(np.log2(probabilities))
    assert interpolated_bits_per_byte(train, scored, order=1) == pytest.approx(expected)


def test_probabilities_of_all_bytes_sum_to_one():
    train = np.frombuffer(b"the cat sat on the mat, the rat sat on the cat" * 3, np.uint8)
    total = 0.0
    for byte in range(256):
        text = np.concatenate([train[:7], [byte]]).astype(np.uint8)
        bits = [interpolated_bits_per_byte(train, text[:n], order=4) * n for n in (7, 8)]
        total += 2.0 ** -(bits[1] - bits[0])
    assert total == pytest.approx(1, abs=1e-6)


def test_it_is_stored_beside_the_corpus(tiny_data, monkeypatch):
    value = ngram_bits_per_byte(tiny_data.corpus)
    assert 0.2 < value < 4
    monkeypatch.setattr("codenas_hf.data.ngram.interpolated_bits_per_byte", lambda *a, **k: pytest.fail("again"))
    assert ngram_bits_per_byte(tiny_data.corpus) == value
