"""Numbers with their uncertainty, and tables of them: what a claim is judged on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.notebooks.stats import bootstrap_error, mean_error

T = TypeVar("T")

Statistic = Literal["mean", "median"]


class Missing(GradtuneError):
    """A number that a claim needs is not there: its runs are not recorded, or the paper does not print it."""


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: The number.
        error: Its standard error, NaN where there is none.
        n: Number of independent runs behind it, 0 where the source does not say.
        values: The values of these runs, where they are known, in an order that the estimates of a table share.
        statistic: What `value` is of `values`.
    """

    value: float
    error: float = math.nan
    n: int = 0
    values: tuple[float, ...] = ()
    statistic: Statistic = "mean"

    @property
    def alone(self) -> bool:
        """Whether nothing says how uncertain the number is, as of most numbers that papers print."""
        return not self.values and not math.isfinite(self.error)

    def moved(self, by: float) -> Estimate:
        """Return the same estimate with `by` added to the number and to the values behind it."""
        return replace(self, value=self.value + by, values=tuple(v + by for v in self.values))


def mean_of(values: ArrayLike) -> Estimate:
    """Estimate a mean from the values `[N]` of independent runs; those that are NaN do not count.

    Raises:
        Missing: No value is a number.
    """
    x = [float(v) for v in np.asarray(values, dtype=float)]
    value, error, n, _ = mean_error(x)
    if not n:
        raise Missing("no run has this number")
    return Estimate(value, error, n, tuple(x))


def median_of(values: ArrayLike) -> Estimate:
    """Estimate a median as `mean_of` does a mean; its error is by the bootstrap.

    Raises:
        Missing: No value is a number.
    """
    x = np.asarray(values, dtype=float)
    kept = x[~np.isnan(x)]
    if not len(kept):
        raise Missing("no run has this number")
    error = bootstrap_error(kept, np.median)
    return Estimate(float(np.median(kept)), error, len(kept), tuple(map(float, x)), "median")


@dataclass(frozen=True)
class Estimates:
    """A table of estimates.

    Attributes:
        cells: Estimates by row (mostly a method) and column (mostly a quantity).
        paired: Whether the values of all cells belong to the same instances in the same order, so that two cells are
            compared instance by instance.
        counts: Numbers of successes and of trials by name, for claims that count.
    """

    cells: Mapping[tuple[str, str], Estimate] = field(default_factory=dict)
    paired: bool = False
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def at(self, row: str, column: str) -> Estimate:
        """Return one estimate.

        Raises:
            Missing: The table has none there.
        """
        if (found := self.cells.get((row, column))) is None:
            raise Missing(f"no number for {row}, {column}")
        return found

    def count(self, name: str) -> tuple[int, int]:
        """Return a number of successes and of trials.

        Raises:
            Missing: Nothing was counted under this name.
        """
        if name not in self.counts:
            raise Missing(f"nothing counted: {name}")
        return self.counts[name]

    def rows(self, column: str) -> list[str]:
        """Return the rows that have a number in a column, in order of appearance."""
        return [row for row, name in self.cells if name == column]

    def changed(self, row: str, column: str, estimate: Estimate) -> Estimates:
        """Return the same table with one cell replaced."""
        return replace(self, cells={**self.cells, (row, column): estimate})


def measured(
    frame: pd.DataFrame,
    row: str,
    columns: Sequence[str],
    of: Callable[[Any], Estimate] = mean_of,
    instance: str | None = None,
) -> Estimates:
    """Make a table of estimates from runs.

    Args:
        frame: The runs. With `paired` those of each row stand in the same order of instances.
        row: Column whose values name the rows.
        columns: Columns with the quantities. Cells without a number are left out.
        of: `mean_of` or `median_of`.
        instance: Column that names the instance of a run, one run an instance in each row; cells are then compared
            instance by instance. None compares them as independent samples.
    """
    cells = {}
    order = sorted(frame[instance].unique()) if instance is not None and len(frame) else []
    for name, group in frame.groupby(row, sort=False) if len(frame) else ():
        runs = group if instance is None else group.set_index(instance).reindex(order)
        for column in columns:
            if runs[column].notna().any():
                cells[str(name), column] = of(runs[column].to_numpy(dtype=float))
    return Estimates(cells, paired=instance is not None)


def joined(*tables: Estimates) -> Estimates:
    """Put tables together; they are paired where all of them are."""
    cells = {key: cell for t in tables for key, cell in t.cells.items()}
    counts = {key: count for t in tables for key, count in t.counts.items()}
    return Estimates(cells, all(t.paired for t in tables), counts)


def remembered(source: Callable[[], T]) -> Callable[[], T]:
    """Return a source that reads the records once, and again where their roots are others; what it gives is shared."""
    found: dict[tuple[Path, ...], T] = {}

    def read() -> T:
        roots = tuple(paths.records_roots())
        if roots not in found:
            found[roots] = source()
        return found[roots]

    return read


def printed(table: pd.DataFrame) -> Estimates:
    """Make a table of estimates from numbers that a paper prints without error.

    Args:
        table: Rows by name, a column per quantity. Cells that are NaN are left out.
    """
    cells = {
        (str(row), str(column)): Estimate(float(value))
        for column in table.columns
        for row, value in table[column].items()
        if np.isfinite(value)
    }
    return Estimates(cells)
