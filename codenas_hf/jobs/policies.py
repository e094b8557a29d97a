"""Who proposes: one table, from which the setting `search.policy` takes the names that it allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..engine import (
    GeneticPolicy,
    GuidedPolicy,
    Objectives,
    Policy,
    RandomPolicy,
    RegularizedEvolution,
    Screened,
)

# From the study's objectives, its reference by objective, and its population. docs/search.md says what each does.
POLICIES: dict[str, Callable[[Objectives, Mapping[str, float], int], Policy]] = {
    "guided": lambda objectives, reference, population: GuidedPolicy(
        objectives=objectives, reference=reference, least=population
    ),
    "genetic": lambda objectives, reference, population: _genetic(objectives, population),
    "screened": lambda objectives, reference, population: Screened(
        policy=_genetic(objectives, population), objectives=objectives
    ),
    "regularized": lambda objectives, reference, population: RegularizedEvolution(objectives=objectives),
    "random": lambda objectives, reference, population: RandomPolicy(),
}


def _genetic(objectives: Objectives, population: int) -> Policy:
    return GeneticPolicy(objectives=objectives, parents=max(2, population))
