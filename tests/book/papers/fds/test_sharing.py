"""Theorem 4.1 of FDS: the bound by Monte Carlo, its closed form, and windows that do not divide the horizon."""

from __future__ import annotations

import numpy as np
import pytest

from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune_book.papers import sharing

T, EPSILON, C = 60, 0.05, 0.1


def _draws(mu: np.ndarray, covariance: np.ndarray, n: int = 4000) -> np.ndarray:
    return np.random.default_rng(1).multivariate_normal(mu, covariance, size=n)


@pytest.mark.parametrize("profile", range(4))
def test_the_theorem_holds_for_gaussian_draws(profile: int) -> None:
    """Mean squared errors of 4000 draws stay below the bound for every number of windows, whether it divides T or not,
    and agree with the closed form within their own sampling error."""
    mu = sharing.profiles(T, 4, EPSILON)[profile]
    variance = np.random.default_rng(0).uniform(0.5, 1.5, T)
    covariance = sharing.equal_correlation(variance, C)
    g = _draws(mu, covariance)
    for count in (60, 30, 25, 17, 12, 7, 4, 3, 2, 1):
        errors = ((sharing.shared(g, count) - mu) ** 2).mean(axis=1)
        sampling = errors.std() / np.sqrt(len(errors))
        assert sharing.squared_error(g, mu, count) <= sharing.bound(variance, EPSILON, C, count) + 3 * sampling
        assert sharing.expected_error(mu, covariance, count) == pytest.approx(errors.mean(), abs=5 * sampling)
        assert sharing.expected_error(mu, covariance, count) <= sharing.bound(variance, EPSILON, C, count) + 1e-12


def test_the_bound_is_reached_by_the_worst_case() -> None:
    """Equal variances, one correlation c and a drift of epsilon at every step leave no room."""
    covariance = sharing.equal_correlation(np.full(T, 0.7), C)
    for count in (60, 20, 7, 1):
        expected = sharing.expected_error(sharing.profiles(T, 2, EPSILON)[0], covariance, count)
        assert expected == pytest.approx(sharing.bound(np.full(T, 0.7), EPSILON, C, count), rel=1e-12)


def test_a_smaller_bound_would_fail() -> None:
    """What the Monte Carlo test can see: halving either term of the bound breaks it."""
    variance, mu = np.ones(T), sharing.profiles(T, 2, EPSILON)[0]
    g = _draws(mu, sharing.equal_correlation(variance, C))
    assert sharing.squared_error(g, mu, 30) > sharing.bound(variance, EPSILON, C, 30) * 0.9
    assert sharing.squared_error(g, mu, 1) > sharing.bound(variance, 0.9 * EPSILON, C, 1)


def test_equation_5_where_windows_divide_the_horizon() -> None:
    variance = np.random.default_rng(0).uniform(size=T)
    for w in (1, 2, 5, 12, 60):
        printed = (1 + C * (w - 1)) / w * variance.mean() + EPSILON**2 * (w**2 - 1) / 12
        assert sharing.bound(variance, EPSILON, C, T // w) == pytest.approx(printed, rel=1e-13)


def test_measured_moments_bound_the_very_sample() -> None:
    """Nothing Gaussian is needed: the theorem is about two moments, so it holds for the sample as it is."""
    g = np.random.default_rng(2).exponential(size=(7, T)).cumsum(axis=1) * 0.1
    noise = sharing.measured(g)
    assert noise.epsilon == pytest.approx(np.abs(np.diff(noise.mu)).max()) and 0 <= noise.c <= 1
    for count in range(1, T + 1):
        error = sharing.squared_error(g, noise.mu, count)
        assert error <= sharing.bound(noise.variance, noise.epsilon, noise.c, count) + 1e-12
    assert sharing.squared_error(g, noise.mu, T) == pytest.approx(noise.variance.mean())
    assert sharing.mean_correlation(g) < noise.c


def test_two_trainings_are_correlated_by_one_at_most() -> None:
    for seed in range(50):  # the correlation of two points is 1 or -1 up to rounding
        noise = sharing.measured(np.random.default_rng(seed).normal(size=(2, 30)))
        assert 1 - 1e-12 < noise.c <= 1
        assert np.isfinite(sharing.bound(noise.variance, noise.epsilon, noise.c, 3))


@pytest.mark.parametrize(("steps", "count"), [(10, 3), (7, 7), (250, 31), (500, 7), (5, 1)])
def test_windows_are_those_of_the_hyperparameters(steps: int, count: int) -> None:
    """floor(n t / T): whole, in order, none empty, lengths that differ by one at most, as the library indexes them."""
    index = sharing.windows(steps, count)
    hypers = Hypers([Hyper("lr", 0.1, windows=count)], [2], horizon=steps)
    assert index.tolist() == [hypers.window("lr", t) for t in range(steps)]
    lengths = np.bincount(index, minlength=count)
    assert lengths.sum() == steps and lengths.min() >= 1 and lengths.max() - lengths.min() <= 1
    assert sharing.shared(np.arange(steps), count) == pytest.approx(
        [np.arange(steps)[index == k].mean() for k in index]
    )


def test_numbers_of_windows_span_the_horizon() -> None:
    found = sharing.counts(250)
    assert found[0] == 250 and found[-1] == 1 and found == sorted(set(found), reverse=True)


def test_bad_input_is_named() -> None:
    with pytest.raises(GradtuneError, match="11 windows over 10 steps; expected 1 to 10"):
        sharing.windows(10, 11)
    with pytest.raises(GradtuneError, match=r"c = 1.5, epsilon = 0.1; expected c in \[0, 1\]"):
        sharing.bound(np.ones(3), 0.1, 1.5, 1)
    with pytest.raises(GradtuneError, match=r"g has shape \(1, 4\); expected \[S, T\] with S >= 2"):
        sharing.measured(np.ones((1, 4)))
