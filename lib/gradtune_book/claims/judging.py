"""How a statement is judged: holds, fails, within noise, with the number that this rests on.

A statement is one or more comparisons. Each asks whether a number lies below another one or a limit, or near it, or
whether a share is large enough. Its p-value is that of rejecting "no difference" in the direction in which the numbers
point, two-sided, by Welch's t, the paired t, the BCa bootstrap or the binomial distribution, all of SciPy. The p-values
of one statement are corrected by Holm's method. Below a p-value of `LEVEL` a comparison is decided; two runs or fewer
decide nothing. Numbers that a paper prints without error are judged by value alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from gradtune_book.claims.estimates import Estimate, Estimates, Missing

LEVEL = 0.05
RESAMPLES = 1999
FEW = 2
"""Up to so many runs nothing is decided."""

Word = Literal["holds", "fails", "within noise", "not run"]
ALONE, TOO_FEW, COUNTED = "by value alone", "too few runs", "counted, one exception refutes"


@dataclass(frozen=True)
class Comparison:
    """One comparison of a statement.

    Attributes:
        what: What is compared, in words.
        size: The number that it rests on: a difference, which is negative where the first number is the smaller one, or
            a share or correlation, less what is asked of it.
        error: Standard error of `size`, NaN where there is none.
        n: Number of runs behind the smaller sample, 0 where it is not known.
        p: p-value of the direction in which the numbers point; NaN where there is none.
        for_it: Whether the numbers point to the statement being true; None where they point nowhere.
        by: How it was judged.
        absent: Whether the statement is that there is no difference: it holds unless one is significant.
    """

    what: str
    size: float
    error: float
    n: int
    p: float
    for_it: bool | None
    by: str
    absent: bool = False

    def word(self, p: float) -> Word:
        """Return the answer of this comparison with its corrected p-value."""
        if self.absent and self.n > FEW and not math.isnan(p):
            return "fails" if p < LEVEL else "holds"
        tested = self.by not in (ALONE, COUNTED)
        if self.for_it is None or 0 < self.n <= FEW or (tested and not p < LEVEL):
            return "within noise"
        return "holds" if self.for_it else "fails"


@dataclass(frozen=True)
class Finding:
    """What a check found: comparisons, and whether the statement needs every one of them or any."""

    comparisons: tuple[Comparison, ...]
    every: bool = True


@dataclass(frozen=True)
class Answer:
    """The answer to a claim.

    Attributes:
        word: holds, fails, within noise or not run.
        decisive: The comparison that it rests on: the weakest of those that a statement needs, or the strongest of
            those of which it needs one. None where nothing was run.
        p: Its p-value after Holm's correction.
        words: How many comparisons gave which answer, or why there is none.
    """

    word: Word
    decisive: Comparison | None = None
    p: float = math.nan
    words: str = ""


def holm(p: Sequence[float]) -> list[float]:
    """Correct the p-values of several comparisons by Holm's method; NaN stays NaN and does not count.

    Source: Holm 1979. Equal to the method "holm" of statsmodels' `multipletests`.
    """
    known = sorted((value, k) for k, value in enumerate(p) if not math.isnan(value))
    out, highest = [math.nan] * len(p), 0.0
    for rank, (value, k) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        out[k] = highest
    return out


def decide(finding: Finding) -> Answer:
    """Answer a statement from its comparisons.

    A statement that needs every comparison fails as soon as one fails, and holds when all hold. One that needs any
    holds as soon as one holds, and fails when all fail. Between these it is within noise. Without any comparison
    nothing was run.
    """
    if not finding.comparisons:
        return Answer("not run", words="nothing to compare")
    corrected = holm([c.p for c in finding.comparisons])
    words = [c.word(p) for c, p in zip(finding.comparisons, corrected)]
    good, bad = ("holds", "fails") if finding.every else ("fails", "holds")
    word: Word = bad if bad in words else good if set(words) == {good} else "within noise"  # type: ignore[assignment]
    order = {bad: 0, "within noise": 1, good: 2}
    weakest = min(range(len(words)), key=lambda k: (order[words[k]], _strength(finding, corrected, words, k, bad)))
    counted = ", ".join(f"{words.count(w)} {w}" for w in ("holds", "within noise", "fails") if w in words)
    text = "" if len(words) == 1 else f"{len(words)} comparisons: {counted}"
    return Answer(word, finding.comparisons[weakest], corrected[weakest], text)


def _strength(finding: Finding, p: Sequence[float], words: Sequence[str], k: int, bad: str) -> float:
    """Order comparisons of the same answer: the clearest of those that decide against, the least clear of others."""
    c = finding.comparisons[k]
    clear = abs(c.size) if math.isnan(p[k]) else 1 - p[k]
    if words[k] == bad or c.for_it is (not finding.every):
        return -clear
    return clear


# --- comparisons ------------------------------------------------------------------------------------------------------


def below(a: Estimate, b: Estimate, what: str, paired: bool = False, factor: float = 1.0) -> Comparison:
    """Ask whether `a` lies below `factor` times `b`.

    Args:
        a: The number that should be smaller.
        b: The number that should be larger.
        what: What is compared, in words.
        paired: Whether the values of both belong to the same instances in the same order.
        factor: Factor of `b`. With another one than 1 the difference `a - factor b` is tested (Fieller).
    """
    size, error, n, p, by = _difference(a, b, paired, factor)
    return Comparison(what, size, error, n, p, _sign(size, -1), by)


def below_limit(a: Estimate, limit: float, what: str) -> Comparison:
    """Ask whether `a` lies below a limit that is exactly known."""
    size, error, n, p, by = _from_limit(a, limit)
    return Comparison(what, size, error, n, p, _sign(size, -1), by)


def above_limit(a: Estimate, limit: float, what: str) -> Comparison:
    """Ask whether `a` lies above a limit that is exactly known."""
    size, error, n, p, by = _from_limit(a, limit)
    return Comparison(what, size, error, n, p, _sign(size, 1), by)


def near(a: Estimate, b: Estimate, margin: float, what: str, paired: bool = False) -> Comparison:
    """Ask whether `a` and `b` differ by less than a margin, by two one-sided tests.

    The statement holds where the difference lies significantly inside the margin on both sides, and fails where it lies
    significantly outside on one. Estimates without error are judged by value.
    """
    size, error, n, _, by = _difference(a, b, paired, 1.0)
    return _near(size, error, n, _freedom(a, b, paired), margin, what, by)


def near_limit(a: Estimate, limit: float, margin: float, what: str) -> Comparison:
    """Ask whether `a` differs from an exactly known number by less than a margin, as `near` does."""
    size, error, n, _, by = _from_limit(a, limit)
    return _near(size, error, n, max(a.n - 1, 1), margin, what, by)


def apart(a: Estimate, b: Estimate, what: str, paired: bool = False) -> Comparison:
    """Ask whether `a` and `b` cannot be told apart.

    The statement fails where they differ significantly, and holds otherwise: it says no more than that so many runs
    show no difference. By value alone it is not judged.
    """
    size, error, n, p, by = _difference(a, b, paired, 1.0)
    return Comparison(what, size, error, n, p, None, by, absent=True)


def share(counted: tuple[int, int], least: float, what: str) -> Comparison:
    """Ask whether the share of successes exceeds `least`, by the binomial distribution.

    Args:
        counted: Successes and trials.
        least: The share that is asked for, above 0 and at most 1. A share of 1 is refuted by one failure.
        what: What is counted, in words.

    Raises:
        Missing: There is no trial.
    """
    k, n = counted
    if not n:
        raise Missing(f"{what}: there is none yet")
    words, error = f"{what}: {k} of {n}", math.sqrt(k / n * (1 - k / n) / n)
    if least == 1:
        return Comparison(words, k / n, math.nan, n, math.nan, k == n, COUNTED)
    p = float(scipy_stats.binomtest(k, n, least).pvalue)
    return Comparison(f"{words}, share less {least:g}", k / n - least, error, n, p, _sign(k / n - least, 1), "binomial")


def trend(positions: Sequence[float], values: Sequence[float], falling: bool, what: str) -> Comparison:
    """Ask whether values fall (or rise) with their positions, by Kendall's rank correlation.

    Args:
        positions: Position of each value.
        values: Values of single runs, or of cells of a table.
        falling: Whether they should fall.
        what: What is compared, in words.
    """
    found = scipy_stats.kendalltau(positions, values)
    tau = float(found.statistic)
    p, points_there = float(found.pvalue), _sign(tau, -1 if falling else 1)
    return Comparison(what, tau, math.nan, len(values), p, points_there, "Kendall's rank correlation")


def no_trend(positions: Sequence[float], values: Sequence[float], margin: float, what: str) -> Comparison:
    """Ask whether Kendall's rank correlation of values with their positions is smaller than a margin in size.

    Its standard error is that of the hypothesis of no correlation, `sqrt(2 (2n + 5) / (9 n (n - 1)))`.
    """
    n, tau = len(values), float(scipy_stats.kendalltau(positions, values).statistic)
    error = math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
    return _near(tau, error, n, 1e6, margin, what, "Kendall's rank correlation")


def _sign(size: float, wanted: int) -> bool | None:
    """Tell whether a number points into the wanted direction (1 or -1); None where it is 0 or NaN."""
    return None if size == 0 or math.isnan(size) else size * wanted > 0


# --- several comparisons ----------------------------------------------------------------------------------------------


def all_below(t: Estimates, first: Iterable[str], second: Iterable[str], *columns: str) -> Finding:
    """Ask whether each of the first rows lies below each of the second rows, in every column."""
    pairs = [(a, b, c) for c in columns for a in first for b in second if a != b]
    return Finding(tuple(below(t.at(a, c), t.at(b, c), f"{a} − {b}, {c}", t.paired) for a, b, c in pairs))


def falls(t: Estimates, rows: Sequence[str], *columns: str) -> Finding:
    """Ask whether a column falls from each row to the next."""
    pairs = [(a, b, c) for c in columns for a, b in zip(rows[1:], rows)]
    return Finding(tuple(below(t.at(a, c), t.at(b, c), f"{a} − {b}, {c}", t.paired) for a, b, c in pairs))


def any_below(t: Estimates, a: str, b: str, *columns: str) -> Finding:
    """Ask whether a row lies below another one in any of the columns."""
    return Finding(all_below(t, [a], [b], *columns).comparisons, every=False)


def rises_between(t: Estimates, rows: Iterable[str], before: str, after: str) -> Finding:
    """Ask whether the column `after` lies above the column `before` in each row."""
    return Finding(tuple(below(t.at(r, before), t.at(r, after), f"{r}: {before} − {after}", t.paired) for r in rows))


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _difference(a: Estimate, b: Estimate, paired: bool, factor: float) -> tuple[float, float, int, float, str]:
    """Return `a - factor b`, its standard error, n, the two-sided p-value of no difference, and the test's name."""
    size = a.value - factor * b.value
    if a.alone and b.alone:
        return size, math.nan, 0, math.nan, ALONE
    if min(_sample(a), _sample(b)) <= FEW:
        return size, math.nan, min(_sample(a), _sample(b)), math.nan, TOO_FEW
    if "median" in (a.statistic, b.statistic) and a.values and b.values:
        return _bootstrapped(a, b, factor)
    if paired and a.values and b.values:
        gaps = np.subtract(a.values, factor * np.asarray(b.values))
        gaps = gaps[np.isfinite(gaps)]
        return (float(gaps.mean()), *_one_sample(gaps), "paired t")
    error = math.hypot(a.error, factor * b.error)
    p = _two_sided(size, error, _freedom(a, b, False, factor))
    return size, error, min(_sample(a), _sample(b)), p, "Welch's t"


def _sample(a: Estimate) -> int:
    """Number of runs; one more than decides nothing where an error is printed and n is not."""
    return a.n or FEW + 1


def _one_sample(gaps: np.ndarray) -> tuple[float, int, float]:
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    return error, len(gaps), _two_sided(float(gaps.mean()), error, len(gaps) - 1)


def _from_limit(a: Estimate, limit: float) -> tuple[float, float, int, float, str]:
    size = a.value - limit
    if a.alone:
        return size, math.nan, 0, math.nan, ALONE
    if _sample(a) <= FEW:
        return size, math.nan, a.n, math.nan, TOO_FEW
    if a.statistic == "median" and a.values:
        return _bootstrapped(a, Estimate(limit, 0.0), 1.0)
    return size, a.error, a.n, _two_sided(size, a.error, max(a.n - 1, 1)), "t"


def _two_sided(size: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if size == 0 else 0.0
    return float(2 * scipy_stats.t.sf(abs(size) / error, freedom))


def _freedom(a: Estimate, b: Estimate, paired: bool, factor: float = 1.0) -> float:
    """Degrees of freedom: n - 1 of pairs, else Welch and Satterthwaite's; without n those of the normal law."""
    if paired and a.values and b.values:
        return max(min(a.n, b.n) - 1, 1)
    parts = [(a.error**2, a.n), ((factor * b.error) ** 2, b.n)]
    if any(n == 0 for _, n in parts):
        return 1e6
    total = sum((v**2 / max(n - 1, 1) for v, n in parts), start=0.0)
    return sum(v for v, _ in parts) ** 2 / total if total > 0 else float(min(a.n, b.n))


def _near(size: float, error: float, n: int, freedom: float, margin: float, what: str, by: str) -> Comparison:
    words = f"{what} (margin {margin:.3g})"
    if math.isnan(error):
        return Comparison(words, size, error, n, math.nan, abs(size) < margin, by)
    if error == 0:
        return Comparison(words, size, error, n, 0.0, abs(size) < margin, by)
    low, high = (scipy_stats.t.sf((margin + side * size) / error, freedom) for side in (1, -1))
    inside, outside = float(max(low, high)), float(min(1.0, 2 * min(1 - low, 1 - high)))
    return Comparison(words, size, error, n, min(inside, outside), inside < outside, f"two one-sided tests, {by}")


def _bootstrapped(a: Estimate, b: Estimate, factor: float) -> tuple[float, float, int, float, str]:
    """Test a difference of medians: the p-value is 1 less the level at which the BCa interval reaches zero."""
    samples = [np.asarray(e.values)[np.isfinite(e.values)] for e in (a, b) if e.values]
    fixed = 0.0 if len(samples) == 2 else factor * b.value

    def gap(*x: np.ndarray, axis: int = -1) -> np.ndarray:
        other = factor * np.median(x[1], axis=axis) if len(x) == 2 else fixed
        return np.asarray(np.median(x[0], axis=axis) - other)

    found = scipy_stats.bootstrap(
        samples, gap, n_resamples=RESAMPLES, vectorized=True, method="BCa", rng=np.random.default_rng(0)
    )
    size, n = float(gap(*samples)), min(map(len, samples))
    drawn = np.asarray(found.bootstrap_distribution)
    return size, float(drawn.std(ddof=1)), n, _level_that_reaches_zero(samples, gap, found), "BCa bootstrap"


def _level_that_reaches_zero(samples: list[np.ndarray], gap: object, found: object) -> float:
    low, high = 1 / (RESAMPLES + 1), 1.0
    for _ in range(12):
        p = math.sqrt(low * high)
        interval = scipy_stats.bootstrap(
            samples, gap, n_resamples=0, bootstrap_result=found, confidence_level=1 - p, vectorized=True, method="BCa"
        ).confidence_interval
        low, high = (low, p) if interval.low > 0 or interval.high < 0 else (p, high)
    return high
