"""Which projects become training, search and report text."""

import numpy as np
import pytest

from codenas_hf.data.split import deal, promises
from codenas_hf.data.storage import DataError


def sides(sizes, fraction=0.05, maximum=10**9, seed=0):
    found = deal(sizes, seed=seed, fraction=fraction, maximum=maximum)
    assert not found["search"] & found["report"]
    assert len(found["search"] | found["report"]) <= max(2, len(sizes) // 2)
    return found["search"], found["report"]


def heavy_tailed(count, seed=0):
    rng = np.random.default_rng(seed)
    return {f"p{number}": int(size) for number, size in enumerate(np.exp(rng.normal(11, 2, count))) if size > 0}


@pytest.mark.parametrize("count", [40, 41, 60, 200])
@pytest.mark.parametrize("seed", range(6))
def test_ten_projects_in_each_and_none_above_a_fifth(count, seed):
    for sizes in ({f"p{n}": 1000 for n in range(count)}, heavy_tailed(count, seed)):
        for side in sides(sizes, seed=seed):
            assert len(side) >= 10
            total = sum(sizes[name] for name in side)
            assert max(sizes[name] for name in side) <= 0.2 * total


def test_share_is_near_the_wanted_one_and_drawn_by_the_seed():
    sizes = {f"p{number}": 100 + 37 * number % 300 for number in range(400)}
    total = sum(sizes.values())
    picks = [sides(sizes, seed=seed) for seed in range(10)]
    for pick in picks:
        for side in pick:
            assert 0.05 * total <= sum(sizes[name] for name in side) <= 0.075 * total
    assert len({frozenset(side) for pick in picks for side in pick}) == 20
    assert sides(dict(reversed(sizes.items()))) == sides(sizes)
    assert all(sum(sizes[name] for name in side) < 8000 for side in sides(sizes, maximum=5000))


def test_a_giant_stays_with_training():
    sizes = {"giant": 100_000} | {f"p{number}": 100 for number in range(20)}
    for seed in range(20):
        assert not any("giant" in side for side in sides(sizes, seed=seed))


@pytest.mark.parametrize("sizes", [[100, 90, 80], [7, 7, 7], [1000, 900, 1], [5, 5, 5, 5], [9, 8, 7, 6, 5, 4, 3]])
def test_few_projects(sizes):
    named = {f"p{number}": size for number, size in enumerate(sizes)}
    for seed in range(5):
        assert all(len(side) == 1 for side in sides(named, seed=seed))
        assert (
            max(sizes) not in {named[name] for side in sides(named, seed=seed) for name in side}
            or len(set(sizes)) == 1
        )


@pytest.mark.parametrize("sizes", [{}, {"only": 100}, {"a": 100, "b": 100}])
def test_too_few_to_deal(sizes):
    with pytest.raises(DataError, match=f"expected three projects or files, got {len(sizes)}"):
        deal(sizes, seed=0, fraction=0.1, maximum=10**9)


def test_what_cannot_be_promised_is_said():
    many = {f"p{n}": 10_000 for n in range(10)}
    assert promises({"search": many, "report": many}, whole=40) == []
    (one,) = promises({"search": {"a": 1}, "report": {"a": 1}}, whole=1)
    assert one.startswith("one project: training, search and report text are files of it")
    (two,) = promises({"search": {"a": 1}, "report": {"a": 1}}, whole=2)
    assert "files of the smaller one" in two
    few = promises({"search": {"a": 90_000, "b": 10_000}, "report": many}, whole=12)
    assert few[0].startswith("few projects (2 in search text and 10 in report text)")
    assert few[1].startswith("one project has 90% of the search text")
    assert "report text has 10,000 bytes only" in promises({"search": many, "report": {"a": 10_000}}, whole=9)[1]
