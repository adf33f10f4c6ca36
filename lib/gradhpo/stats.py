"""Summaries of repeated runs, and verdicts on a paper's claims."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

Statistic = Callable[..., np.ndarray]


def bootstrap_error(values: ArrayLike, statistic: Statistic = np.nanmean, sets: int = 1000, seed: int = 0) -> float:
    """Standard error of `statistic` by the bootstrap: its standard deviation over `sets` resamples with replacement
    (OnePass, Table 1).

    `statistic` takes `(values, axis=...)`; resamples on which it is NaN are left out. NaN for fewer than two values.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float("nan")
    drawn = x[np.random.default_rng(seed).integers(len(x), size=(sets, len(x)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of resamples with nothing but NaN
        return float(np.nanstd(statistic(drawn, axis=1), ddof=1))


def mean_error(values: ArrayLike) -> tuple[float, float, int, int]:
    """Mean and standard error (s / sqrt(n)) of the values that are not NaN, their number n, and the number of NaNs."""
    x = np.asarray(values, dtype=float)
    kept = x[~np.isnan(x)]
    error = float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else float("nan")
    return (float(kept.mean()) if len(kept) else float("nan")), error, len(kept), len(x) - len(kept)


def plus_minus(mean: float, error: float, digits: int = 3) -> str:
    """`mean ± error` with a fixed number of decimals."""
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def verdict(checks: Mapping[str, bool | None]) -> str:
    """ "reproduced" when every check holds, "not" when none does, "partly" between; "not run" when there is nothing
    to check (None)."""
    known = [ok for ok in checks.values() if ok is not None]
    if not known:
        return "not run"
    return "reproduced" if all(known) else "partly" if any(known) else "not"


def bound(difference: float) -> str:
    """A difference as the tightest of a few round bounds, such as "< 1e-12": rounding errors are not the same on all
    processors, this is."""
    for limit in ("1e-12", "1e-10", "1e-8", "1e-6", "1e-4", "1e-2"):
        if difference < float(limit):
            return f"< {limit}"
    return f"{difference:.2g}"
