"""The space that a black-box search draws from: named dimensions, uniform in the raw coordinate of a transform."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from gradtune.errors import GradtuneError, unknown
from gradtune.recursion.transforms import TRANSFORMS, Transform

Configuration = dict[str, float]
"""One value per dimension, natural units."""


@dataclass(frozen=True)
class Dimension:
    """A range of natural values, drawn uniformly in the raw coordinate of a transform.

    OnePass (Table 5) draws learning rates as `Dimension(1e-6, 0.1, "log10")`. It draws momenta, though optimised in
    sigmoid coordinates, as `Dimension(0, 1)`.

    Attributes:
        low: lowest natural value.
        high: highest natural value.
        transform: name of the transform, a key of `transforms.TRANSFORMS`.

    Raises:
        GradtuneError: the transform is unknown, or the range is empty or has raw ends that are not finite.
    """

    low: float
    high: float
    transform: str = "identity"

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise unknown("transform", self.transform, list(TRANSFORMS))
        if not self.low < self.high or not all(map(math.isfinite, self.raw_range)):
            t = self._transform
            raise GradtuneError(
                f"the range from {self.low} to {self.high} cannot be searched; expected low < high, both finite "
                f"and strictly inside ({t.low}, {t.high}), the values that {t.name} expresses"
            )

    @property
    def _transform(self) -> Transform:
        return TRANSFORMS[self.transform]

    @property
    def raw_range(self) -> tuple[float, float]:
        """Raw coordinates of `low` and `high`."""
        low, high = self._transform.inverse(torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
        return low, high

    def natural(self, raw: float) -> float:
        """Return the natural value of a raw coordinate, inside the range whatever the rounding."""
        return self.clip(float(self._transform.forward(torch.tensor(raw, dtype=torch.float64))))

    def clip(self, value: float) -> float:
        """Return the nearest natural value inside the range."""
        return min(max(value, self.low), self.high)

    def grid(self, points: int) -> list[float]:
        """Return `points` raw coordinates, evenly spaced, ends included."""
        return np.linspace(*self.raw_range, points).tolist()


class Space(Mapping[str, Dimension]):
    """Named dimensions, in order.

    For example: `Space({"lr": Dimension(1e-6, 0.1, "log10"), "momentum": Dimension(0, 1)})`.

    Args:
        dimensions: the dimensions by name.

    Raises:
        GradtuneError: there is no dimension.
    """

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        if not dimensions:
            raise GradtuneError("the search space has no dimension; give at least one, such as lr=Dimension(1e-6, 0.1)")
        self._dimensions = dict(dimensions)

    def __getitem__(self, name: str) -> Dimension:
        return self._dimensions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dimensions)

    def __len__(self) -> int:
        return len(self._dimensions)

    def natural(self, raw: Mapping[str, float]) -> Configuration:
        """Return the natural values of one raw coordinate per dimension."""
        return {n: d.natural(raw[n]) for n, d in self.items()}

    def draw(self, rng: np.random.Generator) -> Configuration:
        """Return one configuration, uniform in raw coordinates."""
        return self.natural({n: rng.uniform(*d.raw_range) for n, d in self.items()})

    def corners(self) -> list[Configuration]:
        """Return the configurations of all lowest and of all highest values."""
        return [{n: d.low for n, d in self.items()}, {n: d.high for n, d in self.items()}]
