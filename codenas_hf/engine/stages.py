"""Stages that adapt: who goes on is decided by what its further training is forecast to bring to the front.

Fixed stages send the same number on in every generation. Here each candidate's value at the last rung is forecast: its
learning curve is a power law of the budget, and what such laws miss is learned from those that went the whole way.
Whoever is likely to enter the front, for what the rest of its training costs, goes on. A forecast that is too sure
of itself would show: each is stored with its interval in the trial that it started.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .gaussian import GaussianProcess
from .improvement import expected_improvement
from .objectives import Frame, Objectives
from .pareto import Floats
from .promotion import corner_of
from .records import Evaluation, TrialRecord
from .surrogate import Features

_FEW = 6  # genomes at the last rung below which nothing but their mean is learned from them
_WARM_UP = 1 / 3  # of a learning curve: no power law
_EXPONENT = 0.1  # of a loss of a language model, where no curve is stored
_NORMAL_90 = 1.645


@dataclass(frozen=True)
class Forecast:
    """What a trial is expected to come out at after the last rung.

    Args:
        mean: of the objective that training improves, scaled.
        deviation: its standard deviation.
        chance: of entering the front of the last rung.
        goes: whether it is sent on for that.
    """

    mean: float
    deviation: float
    chance: float
    goes: bool

    def to_dict(self) -> dict[str, float]:
        """JSON form: the mean, the ends of an interval that shall hold nine in ten, the chance."""
        reach = _NORMAL_90 * self.deviation
        return {"mean": self.mean, "low": self.mean - reach, "high": self.mean + reach, "chance": self.chance}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What may be read of a study when candidates of one rung are judged.

    Args:
        reached: evaluated trials at the last rung.
        below: evaluated trials of earlier generations at the candidates' rung, whose genomes are in `reached`.
        pending: evaluated there too and sent on, of generations whose outcomes may not be read yet.
        ratio: of the last budget to that of the candidates' rung; 1 where that rung trains nothing, so that what
            training brings is learned from `reached` alone.
        frame: the study's fixed points.
        improves: the objective that training improves.
    """

    reached: Sequence[TrialRecord]
    below: Sequence[TrialRecord]
    pending: Sequence[TrialRecord]
    ratio: float
    frame: Frame
    improves: str


def forecasts(
    candidates: Sequence[TrialRecord], *, standing: Standing, worth: float, price: str | None
) -> list[Forecast]:
    """Of each candidate, decided in the order of expected gain in hypervolume for its price.

    Whoever is sent on counts as if it had come out as forecast, so of two that are alike one goes.

    Args:
        candidates: of a generation at one rung, evaluated; those beyond the limits never go.
        standing: the rest of the record.
        worth: the chance that a candidate of median price must have.
        price: measurement to which the seconds of further training are proportional; None prices all alike.
    """
    objectives = standing.frame.objectives
    quality = objectives.names.index(standing.improves)
    trials = [*candidates, *standing.pending, *standing.below]
    mean, own, shared = _forecast(trials, standing, quality=quality)
    points = objectives.matrix(_evaluations(trials))
    points[:, quality] = mean
    corner = corner_of(standing.frame, points[: len(candidates)], quality)
    order = [quality, *(at for at in range(len(corner)) if at != quality)]
    points, corner = points[:, order], corner[order]
    ended = objectives.matrix([e for e in _evaluations(standing.reached) if e.feasible])[:, order]
    front = np.vstack([ended, points[len(candidates) :][: len(standing.pending)]])
    prices = np.array([1.0 if price is None else e.measurements.get(price, 1.0) for e in _evaluations(candidates)])
    prices = np.maximum(prices / np.median(prices), 1e-9)
    left, result = list(range(len(candidates))), {}
    while left:
        gains = expected_improvement(points[left, 0], own[left], points[left, 1:], front=front, reference=corner)
        at = left.pop(int(np.argmax(gains / prices[left])))  # of equals the first
        chance = _chance(points[at], float(own[at]), front=front, corner=corner)
        goes = chance >= worth * prices[at] and _evaluations([candidates[at]])[0].feasible
        if goes:
            front = np.vstack([front, points[at]])
        result[at] = Forecast(float(mean[at]), math.hypot(float(own[at]), shared), chance, goes)
    return [result[at] for at in range(len(candidates))]


def _forecast(trials: Sequence[TrialRecord], standing: Standing, *, quality: int) -> tuple[Floats, Floats, float]:
    """The improved objective at the last rung, scaled: mean and standard deviation of each trial `[n]`, and of what
    all may be wrong by together, which changes no order."""
    objectives: Objectives = standing.frame.objectives
    values = objectives.matrix(_evaluations(trials))
    here = values[:, quality]
    law = here * standing.ratio ** -_exponents(_evaluations(trials))
    own = 0.25 * float(here.std()) + 1e-9
    ended = {trial.genome.genome_id: trial for trial in standing.reached}
    rows = [at for at, trial in enumerate(trials) if trial.genome.genome_id in ended]
    if not rows:
        return law, np.full(len(law), own), 0.5 * float(np.abs(law - here).mean())
    ends = objectives.matrix(_evaluations([ended[trials[at].genome.genome_id] for at in rows]))[:, quality]
    missed = ends - law[rows]
    if len(rows) < _FEW:
        own = max(own, float(missed.std()))
        return law + missed.mean(), np.full(len(law), own), own / math.sqrt(len(rows))
    genomes = [trial.genome for trial in trials]
    inputs = np.hstack([Features.of(genomes).plain(genomes), values])
    process = GaussianProcess.fit(inputs[rows], missed)
    change, deviation = process.predict(inputs)
    noise = process.noise * process.variance
    return law + change, process.candour() * np.sqrt(deviation**2 + noise) + 1e-9, 0.0


def _exponents(evaluations: Sequence[Evaluation]) -> Floats:
    """Of the power law of each learning curve, `[n]`: its own slope, drawn to that of all as far as it is noisy.

    Empirical Bayes (Efron and Morris 1975, https://doi.org/10.1080/01621459.1975.10479864). Read are the points of
    `measurements["curve"]`, each with a `step` and a `loss`.
    """
    slopes, errors = np.full(len(evaluations), np.nan), np.full(len(evaluations), np.inf)
    for at, evaluation in enumerate(evaluations):
        points = np.array([(p["step"], p["loss"]) for p in evaluation.measurements.get("curve", ())], dtype=float)
        points = points.reshape(-1, 2)
        points = np.log(points[(points > 0).all(axis=1) & (points[:, 0] >= _WARM_UP * points[:, 0].max(initial=0))])
        if len(points) < 2:
            continue
        x, y = (points - points.mean(axis=0)).T
        slopes[at] = -float(x @ y) / float(x @ x)
        if len(points) > 2:
            errors[at] = float(np.square(y + slopes[at] * x).sum()) / (len(points) - 2) / float(x @ x)
    if np.isnan(slopes).all():
        return np.full(len(slopes), _EXPONENT)
    mean, certain = float(np.nanmean(slopes)), np.isfinite(errors)
    spread = max(0.0, float(slopes[certain].var() - errors[certain].mean())) if certain.any() else 0.0
    own = spread / (spread + errors + 1e-300)
    return np.where(np.isnan(slopes), mean, mean + own * (np.nan_to_num(slopes) - mean))


def _chance(point: Floats, deviation: float, *, front: Floats, corner: Floats) -> float:
    """That the first value comes out below those of all members of the front that are as good in the others."""
    if (point[1:] >= corner[1:]).any():
        return 0.0
    as_good = front[(front[:, 1:] <= point[1:]).all(axis=1)]
    bar = min(float(corner[0]), float(as_good[:, 0].min(initial=np.inf)))
    return 0.5 * math.erfc((float(point[0]) - bar) / deviation / math.sqrt(2))


def _evaluations(trials: Sequence[TrialRecord]) -> list[Evaluation]:
    return [trial.evaluation for trial in trials if trial.evaluation is not None]
