"""Fingerprints: near-duplicates, renamed copies, line windows."""

import random

import numpy as np
from conftest import python_module
from datasketch import MinHash

from codenas_hf.data.dedup import (
    PERMUTATIONS,
    Clusters,
    band_keys,
    fingerprint,
    join_near_duplicates,
    line_windows,
    runs,
    signatures,
    token_codes,
)


def clusters_of(texts, *, threshold=0.7, renamed=False):
    prints = [fingerprint(text, window_lines=10) for text in texts]
    signature = signatures([found.clones if renamed else found.shingles for found in prints])
    clusters = Clusters(len(texts))
    rows = np.arange(len(texts))
    join_near_duplicates(clusters, keys=band_keys(signature), signature=signature, indices=rows, threshold=threshold)
    return clusters.roots().tolist()


def test_small_edits_make_a_near_duplicate_and_other_modules_do_not():
    rng = random.Random(1)
    texts = [python_module(rng) + python_module(rng) for _ in range(6)]
    lines = texts[2].splitlines()
    lines[3:3] = ["# a new comment", "import os"]
    assert clusters_of([*texts, "\n".join(lines)]) == [0, 1, 2, 3, 4, 5, 2]


def test_a_copy_with_other_names_is_found_by_its_structure_only():
    rng = random.Random(2)
    text = "".join(python_module(rng) for _ in range(3))
    other = "def solve(n):\n" + "".join(f"    if n % {i} == {i}:\n        n = n ** 2 - {i}\n" for i in range(2, 40))
    copy = text
    for noun in ("account", "total", "packet", "math", "vector", "matrix", "session", "planet", "self", "garden"):
        copy = copy.replace(noun, noun[::-1] + "x")
    assert clusters_of([text, other, copy]) == [0, 1, 2]
    assert clusters_of([text, other, copy], renamed=True, threshold=0.9) == [0, 1, 0]


def test_signatures_estimate_jaccard_as_datasketch_does():
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 2**63, size=3000, dtype=np.uint64)
    first, second = np.unique(pool[:2000]), np.unique(pool[500:2500])
    exact = 1500 / 2500
    ours = signatures([first, second])
    assert ours.shape == (2, PERMUTATIONS)
    peers = []
    for items in (first, second):
        peer = MinHash(num_perm=PERMUTATIONS, hashfunc=lambda value: value & 0xFFFFFFFF)
        peer.update_batch(items.tolist())
        peers.append(peer)
    # Three standard deviations of a mean of 128 draws with probability 0.6.
    assert abs(np.mean(ours[0] == ours[1]) - exact) < 0.13
    assert abs(peers[0].jaccard(peers[1]) - exact) < 0.13


def test_runs_are_those_of_a_direct_count():
    codes = token_codes("a b c d a b c e")
    hashes = runs(codes, 3)
    assert len(hashes) == 6
    assert hashes[0] == hashes[4]
    assert len(set(hashes.tolist())) == 5
    assert len(runs(codes, 9)) == 0


def test_windows_ignore_white_space_and_start_after_comment_and_imports():
    head = "# licence\n# more\n\nimport os\nfrom a import (\n    b,\n    c,\n)\n"
    body = "".join(f"x{i}  =   {i}\n\n" for i in range(12))
    windows, start = line_windows(head + body, 10)
    assert start == 7
    assert len(windows) == 19 - 10 + 1
    plain, _ = line_windows("".join(f"x{i} = {i}\n" for i in range(12)), 10)
    assert windows[start:].tolist() == plain.tolist()
    assert len(line_windows("x = 1\n" * 9, 10)[0]) == 0
    assert len(line_windows("x = 1\n" * 20, 0)[0]) == 0


def test_clusters_are_transitive():
    clusters = Clusters(5)
    clusters.join(3, 4)
    clusters.join(1, 3)
    assert clusters.roots().tolist() == [0, 1, 2, 1, 1]
