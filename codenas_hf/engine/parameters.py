"""Genes as Optuna parameters, so that Optuna's dashboard shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from optuna.distributions import CategoricalDistribution

from .records import Space


def shown_genes(space: Space | None) -> dict[str, CategoricalDistribution]:
    """The genes of a space whose values a storage can hold, by name; none for a space without `genes`."""
    genes = cast(Mapping[str, Sequence[Any]], getattr(space, "genes", None) or {})
    return {
        gene: CategoricalDistribution(tuple(choices))
        for gene, choices in genes.items()
        if len(choices) > 0
        and all(choice is None or isinstance(choice, bool | int | float | str) for choice in choices)
    }


def is_choice(value: Any, choices: Sequence[Any]) -> bool:
    """Whether `value` is one of `choices`, of the same type: True is not 1."""
    return any(value == choice and type(value) is type(choice) for choice in choices)
