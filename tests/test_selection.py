"""Which projects become validation, and how the passes count."""

import pytest

from codenas_hf.data.selection import choose_validation
from codenas_hf.data.storage import DataError


def choose(sizes, fraction=0.1, maximum=10**9, seed=0):
    return choose_validation(sizes, seed=seed, fraction=fraction, maximum=maximum)


def test_share_is_near_the_wanted_one_for_many_seeds():
    sizes = {f"p{number}": 100 + 37 * number % 300 for number in range(100)}
    total = sum(sizes.values())
    picks = [choose(sizes, seed=seed) for seed in range(20)]
    for chosen in picks:
        assert 0.1 * total <= sum(sizes[name] for name in chosen) <= 0.15 * total
    assert len({frozenset(chosen) for chosen in picks}) > 10
    assert choose(dict(reversed(sizes.items()))) == choose(sizes)


def test_a_giant_is_never_the_validation_split():
    sizes = {"giant": 10_000} | {f"p{number}": 100 for number in range(20)}
    for seed in range(20):
        assert "giant" not in choose(sizes, seed=seed)


def test_upper_limit():
    sizes = {f"p{number}": 100 for number in range(100)}
    assert len(choose(sizes, maximum=200)) == 2


def test_two_unequal_projects():
    assert choose({"large": 1000, "small": 300}) == {"small"}


@pytest.mark.parametrize("sizes", [{"only": 100}, {"a": 100, "b": 100}, {}])
def test_impossible_splits(sizes):
    with pytest.raises(DataError, match=f"cannot be split by project.* got {len(sizes)} projects"):
        choose(sizes)
