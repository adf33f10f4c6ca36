"""Hyperparameters: what is tuned, in which coordinates, and how it is shared over weights and time.

A hyperparameter has a name, an initial natural value, a transform, a granularity (how it is shared over the weights), a
number of time windows and bounds. All tuned coordinates of a run form one row of `raw`, which is `[R, P]` for R runs. A
row is ordered by hyperparameter, then group, then window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune.recursion.transforms import TRANSFORMS, Transform

Granularity = str | tuple[int, ...]


@dataclass(frozen=True)
class Hyper:
    """Declaration of one hyperparameter.

    Attributes:
        name: unique among the hyperparameters of a run.
        value: initial natural value: a number, a tensor `[R]` (one a run) or any tensor that broadcasts to
            `[R, groups, windows]`.
        transform: "identity", "log10", "log" or "sigmoid".
        granularity: "global", "tensor" (one a parameter tensor), "weight", or a group number for each parameter tensor,
            such as `(0, 0, 1, 1)`.
        windows: number of values over time; the one in force at step t of T is number `floor(windows t / T)` (FDS,
            Section 4.1).
        bounds: lowest and highest value in natural units, enforced after every outer step.
        tuned: whether the outer rule moves the hyperparameter; otherwise it stays at `value`.
        difference: half-width, in natural units, of the central difference taken in place of dg/dlam; 0 for automatic
            differentiation. It is for a hyperparameter in which the training loss is a step function, such as the keep
            probability of dropout.

    Raises:
        GradtuneError: `difference` is negative, or it is positive and `granularity` is not "global".
    """

    name: str
    value: float | Tensor
    transform: str = "identity"
    granularity: Granularity = "global"
    windows: int = 1
    bounds: tuple[float, float] = (-math.inf, math.inf)
    tuned: bool = True
    difference: float = 0.0

    def __post_init__(self) -> None:
        if not self.difference >= 0:
            raise GradtuneError(f"{self.name} has difference = {self.difference}; expected a half-width >= 0")
        if self.difference and self.granularity != "global":
            raise GradtuneError(
                f"{self.name} is differentiated by differences and has granularity {self.granularity!r}; expected "
                "'global': a value per layer is a hyperparameter of its own, with its own name"
            )


@dataclass(frozen=True)
class _Block:
    """Where a hyperparameter's coordinates lie; `index [D]` maps a weight to its group (None: one group)."""

    hyper: Hyper
    transform: Transform
    index: Tensor | None
    groups: int
    offset: int

    @property
    def columns(self) -> int:
        return self.groups * self.hyper.windows


class Hypers:
    """The hyperparameters of R runs: what is tuned, and where its coordinates lie in a row.

    Args:
        hypers: the declarations, each name once.
        sizes: entries of each parameter tensor, into which the D weights are split.
        horizon: T, the number of training steps; needed when a hyperparameter has several windows.

    Attributes:
        horizon: T, as given.
        blocks: where the coordinates of each hyperparameter lie, by name.
        columns: P, the number of tuned coordinates of a run.
        tuned: names of the tuned hyperparameters, in the order of their coordinates.
        smooth: names of the tuned hyperparameters that are declared without a `difference`.
        windowed: whether a hyperparameter has several windows.

    Raises:
        GradtuneError: a name is given twice, windows have no horizon, a transform or granularity is unknown, or group
            numbers do not fit `sizes`.
    """

    def __init__(self, hypers: Sequence[Hyper], sizes: Sequence[int], horizon: int | None = None) -> None:
        names = [h.name for h in hypers]
        if len(set(names)) < len(names):
            raise GradtuneError(f"hyperparameters are named twice in {names}; give each name once")
        self.horizon = horizon
        self.blocks: dict[str, _Block] = {}
        offset = 0
        for h in hypers:
            if h.windows > 1 and horizon is None:
                raise GradtuneError(
                    f"{h.name} has {h.windows} windows; say how many steps they share: Hypers(..., horizon=T)"
                )
            if h.transform not in TRANSFORMS:
                raise unknown("transform", h.transform, list(TRANSFORMS))
            index, groups = _groups(h, sizes)
            self.blocks[h.name] = _Block(h, TRANSFORMS[h.transform], index, groups, offset)
            offset += self.blocks[h.name].columns if h.tuned else 0
        self.columns = offset
        self.tuned = tuple(n for n, b in self.blocks.items() if b.hyper.tuned)
        self.smooth = tuple(n for n in self.tuned if not self.blocks[n].hyper.difference)
        self.windowed = any(b.hyper.windows > 1 for b in self.blocks.values())
        self._chosen: dict[tuple[str, int], Tensor] = {}

    def init(self, like: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the raw coordinates and the fixed values at the start, after a check of every value.

        Args:
            like: weights `[R, D]`; the number of runs, the dtype and the device are taken from it.

        Returns:
            Raw coordinates `[R, P]` of the tuned hyperparameters, and natural values `[R, groups, windows]` of the
            fixed ones by name.

        Raises:
            GradtuneError: a value has a shape that does not fit, or lies outside its bounds or its transform's range.
        """
        raw, fixed = like.new_empty(len(like), self.columns), {}
        for name, b in self.blocks.items():
            value = self._initial(b, like)
            if b.hyper.tuned:
                raw[:, b.offset : b.offset + b.columns] = b.transform.inverse(value).flatten(1)
            else:
                fixed[name] = value.clone()
        return raw, fixed

    def _initial(self, b: _Block, like: Tensor) -> Tensor:
        h = b.hyper
        value = torch.as_tensor(h.value, dtype=like.dtype, device=like.device)
        value = value[:, None, None] if value.dim() == 1 and len(value) == len(like) else value
        try:
            value = value.expand(len(like), b.groups, h.windows)
        except RuntimeError:
            raise GradtuneError(
                f"{h.name} has a value of shape {tuple(value.shape)}; "
                f"expected a number, [{len(like)}] (one a run) or [{len(like)}, {b.groups}, {h.windows}]"
            ) from None
        low, high = max(h.bounds[0], b.transform.low), min(h.bounds[1], b.transform.high)
        open_low, open_high = low == b.transform.low, high == b.transform.high
        bad = (
            (value < low)
            | (value > high)
            | ((value == low) & (open_low & h.tuned))
            | ((value == high) & (open_high & h.tuned))
        )
        if bad.any():
            raise GradtuneError(
                f"{h.name} = {float(value[bad][0]):g} is outside "
                f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}; "
                f"choose a value inside, or other bounds or another transform than {b.transform.name}"
            )
        return value

    @cached_property
    def _bounds(self) -> tuple[list[float], list[float]]:
        low: list[float] = []
        high: list[float] = []
        for name in self.tuned:
            b = self.blocks[name]
            ends = torch.tensor(b.hyper.bounds, dtype=torch.float64).clamp(b.transform.low, b.transform.high)
            raw_low, raw_high = b.transform.inverse(ends).tolist()
            low += [raw_low] * b.columns
            high += [raw_high] * b.columns
        return low, high

    def clamp(self, raw: Tensor) -> Tensor:
        """Raw coordinates moved into their bounds; NaN stays NaN."""
        low, high = self._bounds
        if all(x == -math.inf for x in low) and all(x == math.inf for x in high):
            return raw
        return torch.minimum(torch.maximum(raw, raw.new_tensor(low)), raw.new_tensor(high))

    def at(self, raw: Tensor, fixed: Mapping[str, Tensor], t: int = 0) -> Values:
        """Natural values in force at step `t`, with what is needed to differentiate them."""
        return Values(self, raw.detach(), fixed, t)

    def chosen(self, name: str, window: int, like: Tensor) -> Tensor:
        """Matrix `[P, groups]`: 1 where a column is the coordinate of a group in this window of `name`."""
        if (name, window) not in self._chosen:
            b = self.blocks[name]
            here = b.offset + window + b.hyper.windows * torch.arange(b.groups)
            self._chosen[name, window] = (torch.arange(self.columns)[:, None] == here[None, :]).to(like)
        return self._chosen[name, window]

    def window(self, name: str, t: int) -> int:
        """Number of the window of `name` that holds step `t`: `floor(windows t / T)`, at most `windows - 1`."""
        n = self.blocks[name].hyper.windows
        return 0 if n == 1 else min(n - 1, n * t // (self.horizon or 1))

    def natural(self, raw: Tensor) -> dict[str, Tensor]:
        """Natural values `[R, groups x windows]` of every tuned hyperparameter, by name.

        They are a read-out for histories and figures.
        """
        blocks = {n: self.blocks[n] for n in self.tuned}
        return {n: b.transform.forward(raw[:, b.offset : b.offset + b.columns]) for n, b in blocks.items()}


class Values:
    """Hyperparameters in force at one step, with their derivatives with respect to the raw coordinates.

    The arguments are attributes of the same names.

    Args:
        hypers: the hyperparameters.
        raw: raw coordinates `[R, P]` of the tuned ones.
        fixed: natural values `[R, groups, windows]` of the others, by name.
        t: number of the step.

    Attributes:
        lam: natural values by name, `[R, 1]` (global) or `[R, D]`. They have a graph only where `raw` requires one;
            `Hypers.at` detaches it.
    """

    def __init__(self, hypers: Hypers, raw: Tensor, fixed: Mapping[str, Tensor], t: int) -> None:
        self.hypers, self.raw, self.fixed, self.t = hypers, raw, fixed, t
        self._all_tangents: dict[str, Tensor] | None = None

    def _coordinates(self, name: str) -> Tensor:
        """Raw coordinates of the window in force, `[R, groups]`."""
        b = self.hypers.blocks[name]
        start = b.offset + self.hypers.window(name, self.t)
        return self.raw[:, start : b.offset + b.columns : b.hyper.windows]

    @cached_property
    def lam(self) -> dict[str, Tensor]:
        out = {}
        for name, b in self.hypers.blocks.items():
            if b.hyper.tuned:
                value = b.transform.forward(self._coordinates(name))
            else:
                value = self.fixed[name][:, :, self.hypers.window(name, self.t)]
            out[name] = value if b.index is None else value[:, b.index]
        return out

    def active(self) -> Tensor | None:
        """Columns whose window has begun (the others have zero sensitivity); None when all have."""
        if not self.hypers.windowed:
            return None
        columns = torch.arange(self.hypers.columns)
        begun = torch.ones(len(columns), dtype=torch.bool)
        for name in self.hypers.tuned:
            b = self.hypers.blocks[name]
            mine = slice(b.offset, b.offset + b.columns)
            begun[mine] = (columns[mine] - b.offset) % b.hyper.windows <= self.hypers.window(name, self.t)
        return None if begun.all() else columns[begun].to(self.raw.device)

    def tangents(self, active: Tensor | None = None) -> dict[str, Tensor]:
        """Chain factors `d lam / d raw` for the given columns.

        This is where the chain factor enters in forward mode.

        Args:
            active: numbers of the A columns; None for all.

        Returns:
            A tensor `[R, A, 1 or D]` for each tuned hyperparameter, by name.
        """
        if self._all_tangents is None:
            self._all_tangents = {n: self._tangent(n) for n in self.hypers.tuned}
        return self._all_tangents if active is None else {n: x[:, active] for n, x in self._all_tangents.items()}

    def _tangent(self, name: str) -> Tensor:
        b = self.hypers.blocks[name]
        chosen = self.hypers.chosen(name, self.hypers.window(name, self.t), self.raw)
        factor = b.transform.slope(self._coordinates(name))[:, None, :] * chosen
        return factor if b.index is None else factor[:, :, b.index]

    def pull(self, cot: Mapping[str, Tensor]) -> Tensor:
        """Pull cotangents of `lam` back to the raw coordinates.

        This is where the chain factor enters in reverse mode.

        Args:
            cot: cotangents `[R, 1 or D]` by name; that of a tuned hyperparameter which is missing counts as 0.

        Returns:
            The cotangent `[R, P]` of the raw coordinates.
        """
        parts = [self._pulled(n, cot[n]) if n in cot else self._no_columns(n) for n in self.hypers.tuned]
        return torch.cat(parts, dim=1) if parts else self.raw

    def _no_columns(self, name: str) -> Tensor:
        return self.raw.new_zeros(len(self.raw), self.hypers.blocks[name].columns)

    def slope(self, name: str) -> Tensor:
        """Slope `d lam / d raw`, `[R, 1 or D]`, of one hyperparameter in the window in force."""
        b = self.hypers.blocks[name]
        factor = b.transform.slope(self._coordinates(name))
        return factor if b.index is None else factor[:, b.index]

    def grouped(self, name: str, c: Tensor) -> Tensor:
        """Shares `c [R, D]` of the weights, summed over each group of a hyperparameter: `[R, groups]`."""
        b = self.hypers.blocks[name]
        if b.index is None:
            return c.sum(1, keepdim=True) if c.shape[1] > 1 else c
        return c.new_zeros(len(c), b.groups).index_add(1, b.index.to(c.device), c) if b.groups < c.shape[1] else c

    def _pulled(self, name: str, c: Tensor) -> Tensor:
        """The columns of one hyperparameter `[R, groups x windows]`: zero but for the window in force."""
        b = self.hypers.blocks[name]
        c = self.grouped(name, c) * b.transform.slope(self._coordinates(name))
        if b.hyper.windows == 1:
            return c
        here = torch.arange(b.hyper.windows, device=c.device) == self.hypers.window(name, self.t)
        return (c[:, :, None] * here.to(c)).flatten(1)

    def neighbours(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Value less and plus the half-width, for each hyperparameter that is declared with a `difference`.

        Both ends, `[R, 1]`, stay inside the transform's range.
        """
        out = {}
        for name in self.hypers.tuned:
            b = self.hypers.blocks[name]
            if d := b.hyper.difference:
                low, high = b.transform.low, b.transform.high
                out[name] = ((self.lam[name] - d).clamp(min=low), (self.lam[name] + d).clamp(max=high))
        return out


def _groups(h: Hyper, sizes: Sequence[int]) -> tuple[Tensor | None, int]:
    """Group of every weight `[D]` (None: one group) and number of groups, for a granularity."""
    if h.granularity == "global":
        return None, 1
    if h.granularity == "weight":
        return torch.arange(sum(sizes)), sum(sizes)
    if h.granularity == "tensor":
        labels: tuple[int, ...] = tuple(range(len(sizes)))
    elif isinstance(h.granularity, tuple):
        labels = h.granularity
    else:
        raise unknown("granularity", h.granularity, ["global", "tensor", "weight"])
    if len(labels) != len(sizes) or set(labels) != set(range(len(set(labels)))):
        raise GradtuneError(
            f"{h.name} has the groups {labels} for {len(sizes)} parameter tensors; "
            "expected one number a tensor, counted from 0 without gaps"
        )
    return torch.repeat_interleave(torch.tensor(labels), torch.tensor(list(sizes))), len(set(labels))


def neighbours(layers: Sequence[str], groups: int) -> tuple[int, ...]:
    """Granularity of groups of neighbouring layers, as equal in size as they can be (OHO, Section 6.2).

    Args:
        layers: names of the parameter tensors (`Layout.names`); tensors of one module, such as "2.weight" and "2.bias",
            are one layer.
        groups: number of groups, from 1 to the number of layers.

    Returns:
        A group number for each parameter tensor.

    Raises:
        GradtuneError: `groups` is below 1 or above the number of layers.
    """
    owners = list(dict.fromkeys(n.rpartition(".")[0] for n in layers))
    if not 1 <= groups <= len(owners):
        raise GradtuneError(f"{groups} groups were asked of {len(owners)} layers; expected 1 to {len(owners)}")
    return tuple(owners.index(n.rpartition(".")[0]) * groups // len(owners) for n in layers)
