"""How studies bring tensors and long series into their records, and how tables read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from gradtune_book.records import store


def finite(x: Tensor) -> np.ndarray:
    """Return a tensor as float64 on the CPU, NaN where it is not finite."""
    values = x.double().cpu().numpy()
    return np.where(np.isfinite(values), values, np.nan)


def short(values: np.ndarray, digits: int = 4) -> list[float | None]:
    """Return values with few significant digits, for a series.

    A curve needs no more, and a run stays near 1 kB.

    Args:
        values: the values.
        digits: number of significant digits.
    """
    return [float(f"{v:.{digits}g}") for v in values]


def pieces(name: str, values: Sequence[float], digits: int = 5) -> dict[str, list[float | None]]:
    """Cut a long series into several that a record does not thin.

    Args:
        name: name of the series.
        values: its values.
        digits: number of significant digits to keep.

    Returns:
        Series of at most 50 values with the names `<name>_0`, `<name>_1` and so on.
    """
    short = [float(f"{v:.{digits}g}") for v in values]
    return {f"{name}_{k}": list(short[i : i + store.POINTS]) for k, i in enumerate(range(0, len(short), store.POINTS))}


def whole(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Join the series that `pieces` cut.

    Args:
        frame: runs.
        name: name of the series.

    Returns:
        The series `[runs, T]`, a row per run of the frame.
    """
    columns = sorted((c for c in frame if c.startswith(f"{name}_")), key=lambda c: int(c.rpartition("_")[2]))
    used = [c for c in columns if frame[c].map(np.ndim).eq(1).all()]
    return np.array([np.concatenate([row[c] for c in used]) for _, row in frame.iterrows()], dtype=float)
