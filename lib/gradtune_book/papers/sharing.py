"""What sharing one hyperparameter over a window of steps does to the noise of its hypergradient (FDS, Theorem 4.1).

`g [S, T]` are per-step hypergradients of S independent trainings, and `mu [T]` their mean over all trainings, which
counts as the right answer. Sharing over windows replaces each entry by the mean of its window. There is less noise, and
a bias where mu drifts inside the window. Windows are those of `Hypers.window`: step t of T lies in window
`floor(n t / T)` of n, so that they need not be equally long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradtune.errors import GradtuneError, at_least

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """The quantities of Theorem 4.1.

    Attributes:
        mu: mean `[T]` of the hypergradients.
        variance: their variance `[T]`.
        epsilon: largest drift, `max |mu_{t+1} - mu_t|`.
        c: largest `|correlation|` of two different steps.
    """

    mu: Array
    variance: Array
    epsilon: float
    c: float


def windows(steps: int, count: int) -> NDArray[np.int64]:
    """Return the number of the window that holds each step, `[T]`.

    Args:
        steps: T.
        count: number of windows.

    Raises:
        GradtuneError: `count` is not from 1 to T.
    """
    at_least(1, steps=steps)
    if not 1 <= count <= steps:
        raise GradtuneError(f"{count} windows over {steps} steps; expected 1 to {steps}")
    return np.arange(steps) * count // steps


def shared(g: ArrayLike, count: int) -> Array:
    """Return hypergradients with every entry replaced by the mean of its window.

    This is what shared hyperparameters see of them, divided by the window's length.

    Args:
        g: hypergradients `[..., T]`.
        count: number of windows.

    Returns:
        The means, in the shape of `g`.

    Raises:
        GradtuneError: `count` is not from 1 to T.
    """
    g = np.asarray(g, dtype=float)
    index = windows(g.shape[-1], count)
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    means = np.add.reduceat(g, starts, axis=-1) / np.bincount(index)
    return means[..., index]


def squared_error(g: ArrayLike, mu: ArrayLike, count: int) -> float:
    """Return `MSE_W` with `W = T / count`.

    It is the squared difference of the shared hypergradients and `mu`, averaged over trainings and steps.

    Args:
        g: hypergradients `[S, T]`.
        mu: right answer `[T]`.
        count: number of windows.

    Raises:
        GradtuneError: `count` is not from 1 to T.
    """
    return float(np.mean((shared(g, count) - np.asarray(mu)) ** 2))


def expected_error(mu: ArrayLike, covariance: ArrayLike, count: int) -> float:
    """Return the expectation of `squared_error` in closed form (FDS, eq. 15 and 17).

    It is the variance of each window's mean plus the spread of mu inside it.

    Args:
        mu: mean `[T]` of the hypergradients.
        covariance: their covariance `[T, T]`.
        count: number of windows.

    Raises:
        GradtuneError: `count` is not from 1 to T.
    """
    mu, covariance = np.asarray(mu, dtype=float), np.asarray(covariance, dtype=float)
    noise = [covariance[np.ix_(k, k)].mean() * len(k) for k in _members(len(mu), count)]
    return float((np.sum(noise) + np.sum((mu - shared(mu, count)) ** 2)) / len(mu))


def bound(variance: ArrayLike, epsilon: float, c: float, count: int) -> float:
    """Return the upper bound on `MSE_W` (FDS, eq. 5).

    Where `count` windows divide T, it is, with `W = T / count`::

        (1 + c (W - 1)) / W MSE_1 + epsilon^2 (W^2 - 1) / 12

    Else it is the mean over the steps of the same expression with their own window's length. It uses these moments
    alone, not that the hypergradients are Gaussian.

    Args:
        variance: variance `[T]` of each step's hypergradient, so that `MSE_1` is its mean.
        epsilon: largest drift of the mean from a step to the next.
        c: largest correlation of two steps, in `[0, 1]`.
        count: number of windows.

    Raises:
        GradtuneError: `c` is outside `[0, 1]`, `epsilon` or a variance is negative, or `count` is not from 1 to T.
    """
    variance = np.asarray(variance, dtype=float)
    if not (0 <= c <= 1 and epsilon >= 0 and (variance >= 0).all()):
        raise GradtuneError(f"c = {c}, epsilon = {epsilon}; expected c in [0, 1], epsilon >= 0 and variances >= 0")
    index = windows(len(variance), count)
    w = np.bincount(index)[index]
    return float(np.mean((1 + c * (w - 1)) / w * variance + epsilon**2 * (w**2 - 1) / 12))


def measured(g: ArrayLike) -> Noise:
    """Return the quantities of the theorem for the empirical distribution of hypergradients.

    With them, `bound` holds exactly for `squared_error(g, noise.mu, count)`. Both maxima are over many noisy estimates,
    and so too large on average: of 250 steps that are independent, 100 trainings show a correlation of about 0.45
    somewhere.

    Args:
        g: hypergradients `[S, T]`.

    Raises:
        GradtuneError: there are fewer than two trainings, or entries are not finite.
    """
    g = np.asarray(g, dtype=float)
    if g.ndim != 2 or len(g) < 2 or not np.isfinite(g).all():
        raise GradtuneError(f"g has shape {g.shape}; expected [S, T] with S >= 2 trainings and finite entries")
    variance = g.var(axis=0)
    return Noise(g.mean(axis=0), variance, _largest_drift(g), float(np.abs(_correlations(g)).max(initial=0.0)))


def mean_correlation(g: ArrayLike) -> float:
    """Return the mean `|correlation|` of two different steps over all pairs: what the noise is like on average.

    Args:
        g: hypergradients `[S, T]`.
    """
    g = np.asarray(g, dtype=float)
    pairs = g.shape[1] * (g.shape[1] - 1)
    return float(np.abs(_correlations(g)).sum() / pairs) if pairs else 0.0


def profiles(steps: int, count: int, epsilon: float, seed: int = 0) -> Array:
    """Return profiles of mu that drift by at most epsilon a step (FDS, Figure 5).

    The first rises by epsilon at every step, the second is constant, and the others are random walks with steps uniform
    in `[-epsilon, epsilon]`.

    Args:
        steps: T.
        count: number of profiles, at least 2.
        epsilon: largest drift.
        seed: seed of the random walks.

    Returns:
        The profiles `[count, T]`, each from 0 on.

    Raises:
        GradtuneError: `count` is below 2.
    """
    at_least(2, count=count)
    drift = np.random.default_rng(seed).uniform(-epsilon, epsilon, size=(count, steps))
    drift[0], drift[1] = epsilon, 0.0
    return np.cumsum(drift, axis=1) - drift[:, :1]


def equal_correlation(variance: ArrayLike, c: float) -> Array:
    """Return the covariance `[T, T]` of steps with one correlation between any two: the theorem's worst case.

    Args:
        variance: variances `[T]`.
        c: the correlation.
    """
    deviation = np.sqrt(np.asarray(variance, dtype=float))
    return np.outer(deviation, deviation) * (c + (1 - c) * np.eye(len(deviation)))


def counts(steps: int, points: int = 40) -> list[int]:
    """Return numbers n of windows whose lengths `T / n` are evenly spaced on a logarithmic axis from 1 to T.

    Args:
        steps: T.
        points: number of lengths. Equal n count once.

    Returns:
        The numbers, largest first.
    """
    lengths = np.geomspace(1, steps, points)
    return sorted({round(steps / float(w)) for w in lengths}, reverse=True)


def _members(steps: int, count: int) -> list[NDArray[np.int64]]:
    return np.split(np.arange(steps), np.flatnonzero(np.diff(windows(steps, count))) + 1)


def _largest_drift(g: Array) -> float:
    return float(np.abs(np.diff(g.mean(axis=0))).max(initial=0.0))


def _correlations(g: Array) -> Array:
    """Return the correlations of the steps, with zeros on the diagonal and where a step does not vary."""
    centred = g - g.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(norm > 0, norm, 1.0)
    found: Array = (unit.T @ unit).clip(-1, 1)  # rounding may leave the range by a digit
    np.fill_diagonal(found, 0.0)
    return found
