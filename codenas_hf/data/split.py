"""Which projects become training, search and report text."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping

from .storage import DataError

SPLITS = ("train", "search", "report")
HELD_OUT = SPLITS[1:]
FEWEST_PROJECTS = 10
LARGEST_SHARE = 0.2
_AIM = 0.15  # leaves room for the files that later leave because they share lines with another split
FEWEST_BYTES = 32_000


def lots(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order that depends on them and the seed only."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name))


def deal(sizes: Mapping[str, int], *, seed: int, fraction: float, maximum: int) -> dict[str, set[str]]:
    """Deals projects to search and report text in turn, in a random order; training text keeps the others.

    Only the smaller projects are dealt, so that no giant becomes a whole side: each side wants a quarter of the
    projects, ten at most, and `fraction` of the bytes. Then whatever makes more than a fifth of a side of more than
    five projects is outweighed, or gives way to a smaller one. At least half of the projects stay with training.

    Args:
        sizes: bytes of each project; three or more.
        seed: of the order.
        fraction: share of all bytes that each side shall have.
        maximum: upper limit of that.

    Raises:
        DataError: there are fewer than three projects.
    """
    count = len(sizes)
    if count < 3:
        raise DataError(
            f"the corpus cannot be split into training, search and report text: expected three projects or files, got "
            f"{count}; add sources"
        )
    target = min(fraction * sum(sizes.values()), float(maximum))
    wanted = min(FEWEST_PROJECTS, max(1, count // 4))
    ascending = sorted(sizes.values())
    largest = max(target * LARGEST_SHARE, ascending[min(count - 2, 3 * wanted - 1)])
    order = [name for name in lots(sizes, seed) if sizes[name] <= largest]
    if len(order) == count:  # all are of one size: the last stays with training, whatever happens
        order.pop()
    sides: dict[str, set[str]] = {name: set() for name in HELD_OUT}
    room = max(2, count // 2)
    turn = itertools.cycle(HELD_OUT)
    for name in order:
        for side in itertools.islice(turn, len(HELD_OUT)):
            taken = sum(sizes[other] for other in sides[side])
            few = len(sides[side]) < wanted
            if few or (taken < target and taken + sizes[name] <= 1.5 * target):
                sides[side].add(name)
                room -= 1
                break
        if not room:
            break
    free = [name for name in order if name not in sides["search"] | sides["report"]]
    for share in (_AIM, LARGEST_SHARE):
        for name, names in sides.items():
            sides[name] = _balanced(names, sizes, free=free, least=wanted, share=share)
    return sides


def _balanced(side: set[str], sizes: Mapping[str, int], *, free: list[str], least: int, share: float) -> set[str]:
    """The side without a project that makes more than `share` of it.

    Small members are exchanged for larger ones until the largest is no more; where that does not do, the largest is
    exchanged for the next smaller one, or given back. A side that no exchange helps stays as it is.

    Args:
        side: names; too few of them cannot be helped.
        sizes: bytes of each project.
        free: what nobody has; changed in place.
        least: projects that the side must keep.
        share: of the side's bytes.
    """

    def weight(name: str) -> tuple[int, str]:
        return sizes[name], name

    found, left = set(side), set(free)
    while len(found) * share > 1:
        giant, dwarf = max(found, key=weight), min(found, key=weight)
        if sizes[giant] <= share * sum(sizes[name] for name in found):
            free[:] = sorted(left)
            return found
        other = max((name for name in left if sizes[name] < sizes[giant]), key=weight, default=None)
        leaves = giant if other is None or sizes[other] <= sizes[dwarf] else dwarf
        if other is not None:
            left.remove(other)
            found.add(other)
        elif len(found) <= least:
            break
        found.remove(leaves)
        left.add(leaves)
    return side


def promises(projects: Mapping[str, Mapping[str, int]], *, whole: int) -> list[str]:
    """What a split cannot promise, a line each.

    Args:
        projects: for search and report text, the bytes of each project.
        whole: projects of the whole corpus.
    """
    if whole == 1:
        return [
            "one project: training, search and report text are files of it, so scores flatter what knows this "
            "project, and intervals come from files"
        ]
    if whole == 2:
        return ["two projects: search and report text are files of the smaller one, so intervals come from files"]
    lines = []
    if min(map(len, projects.values())) < FEWEST_PROJECTS:
        counts = " and ".join(f"{len(found)} in {name} text" for name, found in projects.items())
        lines.append(
            f"few projects ({counts}): intervals from resampling them say little; add sources until there "
            f"are {4 * FEWEST_PROJECTS} projects"
        )
    for name, found in projects.items():
        share = max(found.values()) / sum(found.values())
        if sum(found.values()) < FEWEST_BYTES:
            lines.append(f"the {name} text has {sum(found.values()):,} bytes only: small differences say nothing")
        if share > LARGEST_SHARE:
            lines.append(f"one project has {share:.0%} of the {name} text: the score is for a good part a score of it")
    return lines
