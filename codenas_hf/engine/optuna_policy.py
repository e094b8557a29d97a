"""Optuna's samplers as policies, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from .evolution import draw_new
from .objectives import Objectives
from .records import Genome, TrialRecord


@dataclass(frozen=True, kw_only=True)
class OptunaPolicy:
    """Any Optuna sampler as a policy.

    The space needs `genes`, a mapping of names to choices. Where the JSON form of its genomes is not the choice of
    each gene, it offers `choices_of(genome)` and `genome_from_choices(choices)`; of a gene that is drawn for each
    block (in `per_block`), a choice is a tuple, and Optuna sees one parameter for each of `max_blocks` blocks.

    Args:
        name: stands in the study's identity.
        sampler: seed to sampler, such as `lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True)`.
        objectives: scales and limits of the study.
    """

    name: str
    sampler: Callable[[int], optuna.samplers.BaseSampler]
    objectives: Objectives

    def __repr__(self) -> str:
        return f"OptunaPolicy({self.name})"

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """At most `n` new genomes.

        Raises:
            TypeError: the space has no `genes`.
        """
        parameters = _Parameters.of(space)
        sampler = self.sampler(int(rng.integers(2**31)))
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(directions=["minimize"] * len(self.objectives.names), sampler=sampler)
        finally:
            optuna.logging.set_verbosity(verbosity)
        complete = 0
        for record in (record for record in records if record.rung == 0):
            attributes: dict[str, Any] = {}
            if record.evaluation is not None:
                attributes = _generation(sampler, complete)
                complete += 1
            study.add_trial(self._trial(record, parameters, attributes))

        def child() -> Genome:
            trial = study.ask(fixed_distributions=dict(parameters.distributions))
            return parameters.genome(trial.params) or _sampled(space, rng)

        return draw_new(
            child,
            records,
            n=n,
            accept=lambda genome: space.validate(genome) is None,
            again=lambda _: _sampled(space, rng),
        )

    def _trial(
        self, record: TrialRecord, parameters: _Parameters, attributes: Mapping[str, Any]
    ) -> optuna.trial.FrozenTrial:
        known: dict[str, Any] = {
            "params": parameters.positions(record.genome),
            "distributions": dict(parameters.distributions),
            "system_attrs": dict(attributes),
        }
        if record.evaluation is None:  # what waits counts as running, so that samplers with a liar keep away from it
            state = TrialState.FAIL if record.state == "fail" else TrialState.RUNNING
            return create_trial(state=state, **known)
        values = self.objectives.matrix([record.evaluation])[0].tolist()
        return create_trial(values=values, constraints=dict(record.evaluation.constraints) or None, **known)


@dataclass(frozen=True)
class _Parameters:
    """A space as Optuna's parameters: positions of choices, since Optuna takes no lists and confuses True with 1.

    Args:
        space: the space.
        genes: its genes.
        blocks: how many parameters stand for each gene that is drawn per block.
        distributions: by name of the parameter; those of blocks are called `gene[3]`.
    """

    space: Any
    genes: Mapping[str, Sequence[Any]]
    blocks: Mapping[str, int]
    distributions: Mapping[str, CategoricalDistribution]

    @classmethod
    def of(cls, space: Any) -> _Parameters:
        genes: Mapping[str, Sequence[Any]] | None = getattr(space, "genes", None)
        if not genes:
            raise TypeError("OptunaPolicy needs a space with `genes`, a mapping of names to choices")
        per_block = tuple(getattr(space, "per_block", ()))
        blocks = dict.fromkeys(per_block, getattr(space, "max_blocks", 1))
        distributions = {}
        for gene, values in genes.items():
            for name in _names(gene, blocks):
                distributions[name] = CategoricalDistribution(tuple(range(len(values))))
        return cls(space, genes, blocks, distributions)

    def positions(self, genome: Genome) -> dict[str, int]:
        """The parameters of a genome; blocks that it does not have repeat the last one."""
        choices_of = getattr(self.space, "choices_of", None)
        choices = genome.to_dict() if choices_of is None else choices_of(genome)
        found = {}
        for gene, values in self.genes.items():
            given = choices[gene] if gene in self.blocks else (choices[gene],)
            for index, name in enumerate(_names(gene, self.blocks)):
                found[name] = _position(values, given[min(index, len(given) - 1)])
        return found

    def genome(self, positions: Mapping[str, int]) -> Genome | None:
        """The genome of some parameters; None where they contradict each other."""
        choices = {}
        for gene, values in self.genes.items():
            drawn = tuple(values[positions[name]] for name in _names(gene, self.blocks))
            choices[gene] = drawn if gene in self.blocks else drawn[0]
        make = getattr(self.space, "genome_from_choices", None) or self.space.genome_from_dict
        try:
            genome: Genome = make(choices)
        except ValueError:
            return None
        return genome


def _names(gene: str, blocks: Mapping[str, int]) -> list[str]:
    return [f"{gene}[{index}]" for index in range(blocks[gene])] if gene in blocks else [gene]


def _position(values: Sequence[Any], value: Any) -> int:
    return next(i for i, choice in enumerate(values) if choice == value and type(choice) is type(value))


def _sampled(space: Any, rng: np.random.Generator) -> Genome:
    genome: Genome = space.sample(rng)
    return genome


def _generation(sampler: optuna.samplers.BaseSampler, complete: int) -> dict[str, Any]:
    """What a genetic sampler notes at a trial when it draws it: without, it would stay in its generation 0 for ever.

    Args:
        sampler: any sampler.
        complete: how many complete trials came before; asked one by one, a generation begins when one is full.
    """
    if not isinstance(sampler, optuna.samplers.BaseGASampler) or sampler.population_size is None:
        return {}
    return {sampler._get_generation_key(): complete // sampler.population_size}
