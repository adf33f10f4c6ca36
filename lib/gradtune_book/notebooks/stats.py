"""Summaries of repeated runs, and verdicts on a paper's claims."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

Statistic = Callable[..., np.ndarray]

PLUS_MINUS = "\u00a0±\u00a0"
"""Stands between a value and its error, with spaces at which no table cell breaks."""


def bootstrap_error(values: ArrayLike, statistic: Statistic = np.nanmean, sets: int = 1000, seed: int = 0) -> float:
    """Estimate the standard error of a statistic by the bootstrap (OnePass, Table 1).

    It is the statistic's standard deviation over resamples with replacement. Resamples on which the statistic is NaN
    are left out.

    Args:
        values: Values `[N]`.
        statistic: Function of `(values, axis=...)`.
        sets: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        The standard error, NaN for fewer than two values.
    """
    x = np.asarray(values, dtype=float)
    return float("nan") if len(x) < 2 else float(bootstrap_band(x, statistic, sets, seed))


def bootstrap_band(values: ArrayLike, statistic: Statistic, sets: int = 200, seed: int = 0) -> np.ndarray:
    """Estimate the standard error of a statistic for every column, as `bootstrap_error` does for one.

    Whole rows are drawn, so that curves stay curves.

    Memory: `sets` copies of `values`.

    Args:
        values: Values `[N, ...]`, a row per run.
        statistic: Function of `(values, axis=...)`.
        sets: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        The standard errors `[...]`.
    """
    x = np.asarray(values, dtype=float)
    drawn = x[np.random.default_rng(seed).integers(len(x), size=(sets, len(x)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of resamples with nothing but NaN
        return np.asarray(np.nanstd(statistic(drawn, axis=1), axis=0, ddof=1))


def nanmedian(values: ArrayLike, axis: int = 0) -> np.ndarray:
    """Compute `np.nanmedian` by one sort, which is many times as fast on large arrays with NaN."""
    x = np.sort(np.asarray(values, dtype=float), axis=axis)  # NaN goes to the end
    count = np.expand_dims((~np.isnan(x)).sum(axis=axis), axis)
    middle = [
        np.take_along_axis(x, np.maximum(k, 0), axis=axis) for k in ((count - 1) // 2, count // 2 % x.shape[axis])
    ]
    return np.squeeze((middle[0] + middle[1]) / 2, axis=axis)


def cdf(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Compute the empirical distribution function of values `[N]` with failures (OnePass, Figure 9).

    Returns:
        The finite values in order, and for each the share of all values, failures (NaN and infinities) included, that
        are at most as large. The shares end below 1 where there are failures.
    """
    x = np.asarray(values, dtype=float)
    kept = np.sort(x[np.isfinite(x)])
    return kept, np.arange(1, len(kept) + 1) / max(len(x), 1)


def peers(values: ArrayLike, errors: ArrayLike) -> np.ndarray:
    """Tell which values lie within the error bar of the smallest one, itself included (bold in OnePass, Table 1).

    Args:
        values: Values `[N]`. One that is NaN is no peer.
        errors: Standard error of each value, `[N]`. One that is NaN counts as 0.

    Returns:
        True for each peer, `[N]`.
    """
    x, e = np.asarray(values, dtype=float), np.nan_to_num(np.asarray(errors, dtype=float))
    if np.isnan(x).all():
        return np.zeros(len(x), dtype=bool)
    best = int(np.nanargmin(x))
    return x <= x[best] + e[best]


def apart(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return how many standard errors of their difference two (value, standard error) pairs lie apart, in size.

    Without an error, the same value is 0 and another is infinitely far.
    """
    gap, error = abs(a[0] - b[0]), float(np.hypot(a[1], b[1]))
    if error:
        return gap / error
    return float("inf") if gap else 0.0


def mean_error(values: ArrayLike) -> tuple[float, float, int, int]:
    """Return mean and standard error of the values `[N]` that are not NaN, their number, and the number of NaNs.

    The standard error is `s / sqrt(n)` of these n values, NaN for fewer than two. The mean of none is NaN.
    """
    x = np.asarray(values, dtype=float)
    kept = x[~np.isnan(x)]
    error = float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else float("nan")
    return (float(kept.mean()) if len(kept) else float("nan")), error, len(kept), len(x) - len(kept)


def plus_minus(mean: float, error: float, digits: int = 3) -> str:
    """Write `mean ± error` with `digits` decimals, joined by `PLUS_MINUS`; the mean alone where the error is NaN."""
    return f"{mean:.{digits}f}" + ("" if np.isnan(error) else f"{PLUS_MINUS}{error:.{digits}f}")


def mean_plus_minus(values: ArrayLike, digits: int = 1) -> str:
    """Write mean ± standard error of the values that are not NaN; of a single one the value alone."""
    return plus_minus(*mean_error(values)[:2], digits)


def verdict(checks: Mapping[str, bool | None]) -> str:
    """Sum up checks in words: "reproduced" when every one holds, "not" when none does, "partly" between.

    It is "not run" when no check has been run. Where some have not been run it says how many have.

    Args:
        checks: Whether each check holds, by name; None for one that has not been run.
    """
    known = [ok for ok in checks.values() if ok is not None]
    if not known:
        return "not run"
    word = "reproduced" if all(known) else "partly" if any(known) else "not"
    return word if len(known) == len(checks) else f"{word} ({len(known)} of {len(checks)} claims run)"


def bound(difference: float) -> str:
    """Write a difference, not negative, as the tightest of a few round bounds, such as "< 1e-12".

    Rounding errors differ between processors; the bound does not. From 1e-2 on the difference itself is written, with
    two digits.
    """
    for limit in ("1e-12", "1e-10", "1e-8", "1e-6", "1e-4", "1e-2"):
        if difference < float(limit):
            return f"< {limit}"
    return f"{difference:.2g}"
