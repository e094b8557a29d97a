"""Searches of others on the search table, each run as its users run it, in the same virtual time with two workers.

Nothing of ours stands between: whoever is idle asks, what is finished is told at once, and a genome that is drawn
again is trained again. Numeric genes are integers (the position among their values), the others are categories, and
the objectives are those of our study, bytes on a log scale.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import optuna

from benchmarks.replay import LONG, POPULATION, WORKERS, Entry, Run, TableSpace, evaluate, objectives
from benchmarks.search_table import BUDGETS
from codenas_hf.engine import Evaluation


class Asked(Protocol):
    """A trial of somebody else's: a genome, the budgets to report in turn, and what to do with each outcome."""

    genome: Entry
    budgets: tuple[int, ...]

    def tell(self, budget: int, values: list[float]) -> bool:
        """Takes the scaled objectives at one budget; whether the trial goes on."""
        ...


Ask = Callable[[], Asked]


def native(ask: Ask, *, space: TableSpace, seed: int, limit: float) -> Run:
    """One search of a peer, until so many virtual seconds are spent."""
    run, clock, order = Run(space), 0.0, itertools.count()
    busy: list[tuple[float, int, Asked, int, Evaluation]] = []

    def begin(trial: Asked, stage: int) -> None:
        after = trial.budgets[stage - 1] if stage else 0
        evaluation, seconds = evaluate(trial.genome, trial.budgets[stage], after=after, seed=seed)
        heapq.heappush(busy, (clock + seconds, next(order), trial, stage, evaluation))

    while True:
        while len(busy) < WORKERS:
            begin(ask(), 0)
        clock, _, trial, stage, evaluation = heapq.heappop(busy)
        if clock > limit:
            return run
        run.trials += 1
        if trial.budgets[stage] == LONG:
            run.add(clock, trial.genome, evaluation.objectives["bits_per_byte"])
        goes = trial.tell(trial.budgets[stage], objectives().matrix([evaluation])[0].tolist())
        if goes and stage + 1 < len(trial.budgets):
            begin(trial, stage + 1)


class _OptunaTrial:
    budgets: tuple[int, ...] = (LONG,)

    def __init__(self, study: optuna.Study, space: TableSpace) -> None:
        self._study, self._trial = study, study.ask()
        self.genome = Entry(tuple(self._value(gene, values) for gene, values in space.genes.items()))

    def _value(self, gene: str, values: tuple[Any, ...]) -> Any:
        if len(values) == 1:
            return values[0]
        if isinstance(values[0], str):
            return self._trial.suggest_categorical(gene, values)
        return values[self._trial.suggest_int(gene, 0, len(values) - 1)]

    def tell(self, budget: int, values: list[float]) -> bool:
        self._study.tell(self._trial, values)
        return False


def with_optuna(sampler: Callable[[int], optuna.samplers.BaseSampler]) -> Callable[[TableSpace, int], Ask]:
    """An Optuna sampler, made from a seed."""

    def start(space: TableSpace, seed: int) -> Ask:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(directions=["minimize"] * len(objectives().names), sampler=sampler(seed))
        return lambda: _OptunaTrial(study, space)

    return start


class _MoashaTrial:
    budgets: tuple[int, ...] = BUDGETS

    def __init__(self, scheduler: Any, space: TableSpace, trial: Any) -> None:
        self._scheduler, self._trial = scheduler, trial
        self.genome = space.genome_from_dict(trial.config)

    def tell(self, budget: int, values: list[float]) -> bool:
        result = {"steps": budget, **dict(zip(objectives().names, values, strict=True))}
        return bool(self._scheduler.on_trial_result(self._trial, result) == "CONTINUE")


def moasha(space: TableSpace, seed: int) -> Ask:
    """Syne Tune's multi-objective asynchronous successive halving on the table's five budgets.

    Raises:
        ImportError: Syne Tune is not installed.
    """
    import datetime

    from syne_tune.backend.trial_status import Trial
    from syne_tune.config_space import choice
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    np.random.seed(seed)  # its draws use the global generator
    scheduler = MOASHA(
        {gene: choice(list(values)) for gene, values in space.genes.items()},
        metrics=list(objectives().names),
        time_attr="steps",
        max_t=LONG,
        grace_period=BUDGETS[0],
        reduction_factor=2,
        random_seed=seed,
    )
    numbers = itertools.count()

    def ask() -> Asked:
        suggestion = scheduler.suggest()
        trial = Trial(next(numbers), suggestion.config, datetime.datetime.now(datetime.UTC))
        scheduler.on_trial_add(trial)
        return _MoashaTrial(scheduler, space, trial)

    return ask


PEERS: dict[str, Callable[[TableSpace, int], Ask]] = {
    "Optuna TPE": with_optuna(lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True)),
    "Optuna NSGA-II": with_optuna(lambda s: optuna.samplers.NSGAIISampler(seed=s, population_size=POPULATION)),
    "Optuna GP": with_optuna(lambda seed: optuna.samplers.GPSampler(seed=seed)),
    "Syne Tune MOASHA": moasha,
}
