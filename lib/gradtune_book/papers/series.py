"""How studies bring tensors into their records."""

from __future__ import annotations

import numpy as np
from torch import Tensor


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
