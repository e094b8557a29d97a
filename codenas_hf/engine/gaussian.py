"""A Gaussian process for a few hundred points, its hyperparameters chosen by marginal likelihood. Pure numpy.

Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, sections 2.2 and 5.4.1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .pareto import Floats

_MIXES = (0.0, 0.03, 0.2, 0.6, 1.0)
_LENGTHS = (0.5, 1.0, 2.0, 4.0)
_NOISES = 10.0 ** np.arange(-5, 1.5, 0.5)


@dataclass(frozen=True)
class GaussianProcess:
    """Posterior over a function of feature vectors.

    The covariance is a mixture of a linear one over products of pairs of features (a Bayesian ridge on a quadratic,
    which extrapolates) and a Matern 5/2 one (which bends where the data ask for it), plus noise.

    Args:
        centre: mean of the features, `[features]`.
        scale: their standard deviations, `[features]`.
        points: standardised training features, `[n, features]`.
        mix: share of the linear covariance.
        length: length scale of the Matern covariance, in units of the typical distance of two points.
        solved: `(K + noise)^-1 y`, `[n]`.
        factor: lower Cholesky factor of `K + noise`, `[n, n]`.
        offset: mean of the targets.
        variance: of the process, in squared units of the targets.
        noise: variance of the noise in units of `variance`.
    """

    centre: Floats
    scale: Floats
    points: Floats
    mix: float
    length: float
    solved: Floats
    factor: Floats
    offset: float
    variance: float
    noise: float

    @classmethod
    def fit(cls, inputs: Floats, targets: Floats) -> GaussianProcess:
        """Fits `[n, features]` to `[n]`.

        Raises:
            ValueError: fewer than 3 rows, or not as many targets as inputs.
        """
        if len(inputs) != len(targets) or len(inputs) < 3:
            raise ValueError(f"a Gaussian process needs 3 rows or more, got {len(inputs)} and {len(targets)} targets")
        centre, spread = inputs.mean(axis=0), inputs.std(axis=0)
        scale = np.where(spread > 1e-12, spread, 1.0)
        points = (inputs - centre) / scale
        offset = float(targets.mean())
        centred = targets - offset
        n, best = len(points), (-np.inf, 0.0, 1.0, 1.0)
        for mix, length in itertools.product(_MIXES, _LENGTHS):
            if mix == 1.0 and length != _LENGTHS[0]:
                continue  # nothing but the linear part: the length has no effect
            values, vectors = np.linalg.eigh(_covariance(points, points, mix=mix, length=length))
            projected = (vectors.T @ centred) ** 2
            spectrum = np.maximum(values, 0.0)[:, None] + _NOISES
            variance = np.maximum((projected[:, None] / spectrum).mean(axis=0), 1e-300)
            evidence = -0.5 * (n * np.log(variance) + np.log(spectrum).sum(axis=0))
            at = int(evidence.argmax())
            if evidence[at] > best[0]:
                best = (float(evidence[at]), mix, length, float(_NOISES[at]))
        _, mix, length, noise = best
        covariance = _covariance(points, points, mix=mix, length=length) + noise * np.eye(n)
        factor = np.asarray(np.linalg.cholesky(covariance), dtype=float)
        solved = np.asarray(np.linalg.solve(factor.T, np.linalg.solve(factor, centred)), dtype=float)
        variance = float(centred @ solved) / n
        return cls(centre, scale, points, mix, length, solved, factor, offset, variance, noise)

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Mean `[n]` and standard deviation `[n]` of the function without noise at `[n, features]`."""
        points = (inputs - self.centre) / self.scale
        cross = _covariance(points, self.points, mix=self.mix, length=self.length)
        explained = np.linalg.solve(self.factor, cross.T)
        variance = _self_covariance(points, mix=self.mix) - (explained**2).sum(axis=0)
        return self.offset + cross @ self.solved, np.sqrt(self.variance * np.maximum(variance, 0.0))

    def outlook(self, inputs: Floats) -> Outlook:
        """What further observations at some of `[n, features]` would leave uncertain at all of them."""
        points = (inputs - self.centre) / self.scale
        cross = _covariance(points, self.points, mix=self.mix, length=self.length)
        explained = np.asarray(np.linalg.solve(self.factor, cross.T), dtype=np.float64)
        variance = _self_covariance(points, mix=self.mix) - (explained**2).sum(axis=0)
        return Outlook(self, points, explained, len(explained), variance)

    def candour(self) -> float:
        """How many times larger its errors at points left out are than it says, 1 or more.

        The likelihood of a few points may take noise for structure. Rasmussen and Williams 2006, section 5.4.2.
        """
        precision = np.square(np.linalg.inv(self.factor)).sum(axis=0)  # the diagonal of (K + noise)^-1
        errors = self.solved / np.sqrt(precision * (self.variance + 1e-300))
        return max(1.0, float(np.sqrt(np.square(errors).mean())))


@dataclass
class Outlook:
    """The uncertainty of a process at some points while more of them are going to be observed.

    How uncertain a Gaussian process will be does not depend on what will be observed there, only on where.

    Args:
        process: the fitted one.
        points: standardised, `[n, features]`.
        explained: what the training points and those observed since explain of them, `[used or more, n]`.
        used: rows of it that say something.
        variance: what is left, in units of the process's, `[n]`.
    """

    process: GaussianProcess
    points: Floats
    explained: Floats
    used: int
    variance: Floats

    @property
    def deviation(self) -> Floats:
        """Standard deviation of the function without noise, `[n]`."""
        return np.asarray(np.sqrt(self.process.variance * np.maximum(self.variance, 0.0)))

    def observe(self, at: int) -> None:
        """One of the points will be observed, with noise."""
        own, known = self.process, self.explained[: self.used]
        joint = _covariance(self.points, self.points[at : at + 1], mix=own.mix, length=own.length)[:, 0]
        told = (joint - known.T @ known[:, at]) / np.sqrt(max(self.variance[at], 0.0) + own.noise)
        if self.used == len(self.explained):  # room for as many again
            self.explained = np.vstack([self.explained, np.empty_like(self.explained)])
        self.explained[self.used] = told
        self.used += 1
        self.variance = self.variance - told**2


def _covariance(first: Floats, second: Floats, *, mix: float, length: float) -> Floats:
    inner = first @ second.T / max(1, first.shape[1])
    linear = (1.0 + inner) ** 2 - 1.0  # all features and their products, without the constant
    squares = (first**2).mean(axis=1)[:, None] + (second**2).mean(axis=1) - 2 * inner
    distance = np.sqrt(5.0 * np.maximum(squares, 0.0)) / length
    matern = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
    return np.asarray(mix * linear + (1.0 - mix) * matern)


def _self_covariance(points: Floats, *, mix: float) -> Floats:
    inner = (points**2).mean(axis=1)
    return np.asarray(mix * ((1.0 + inner) ** 2 - 1.0) + (1.0 - mix))
