"""Hyperparameters: what is tuned, in which coordinates, and how it is shared over weights and time.

A hyperparameter has a name, an initial natural value, a transform, a granularity (how it is shared over the weights) or
a shape, a number of time windows and bounds. All tuned coordinates of a run form one row of `raw`, which is `[R, P]`
for R runs. A row is ordered by hyperparameter, then group or entry, then window.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune.recursion import groups
from gradtune.recursion.constants import Constants
from gradtune.recursion.groups import Granularity, Groups, Tensors, Value
from gradtune.recursion.groups import neighbours as neighbours
from gradtune.recursion.transforms import TRANSFORMS, Transform

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Hyper:
    """Declaration of one hyperparameter.

    Attributes:
        name: unique among the hyperparameters of a run.
        value: initial natural value: a number; a list of numbers or a mapping, with a number for each group; a tensor
            `[R]` (one a run); or any tensor that broadcasts to `[R, groups, windows]`. With a `shape` a number, or a
            tensor of that shape or `[R, *shape]`.
        transform: "identity", "log10", "log" or "sigmoid".
        granularity: "global", "tensor" (one a parameter tensor), "weight", a group number for each parameter tensor,
            such as `(0, 0, 1, 1)`, or patterns (as in the shell) for the names of the parameter tensors by name of the
            group, such as `{"backbone": "features.*", "head": ["classifier.*", "fc*"], "rest": "*"}`. The first group
            with a pattern that matches takes a tensor. The pattern "1d" stands for all tensors with at most one
            dimension: biases, and the scales of norms.
        windows: number of values over time; the one in force at step t of T is number `floor(windows t / T)` (FDS,
            Section 4.1).
        bounds: lowest and highest value in natural units, enforced after every outer step.
        tuned: whether the outer rule moves the hyperparameter; otherwise it stays at `value`. A collection of names or
            numbers of groups tunes these alone: the others keep their values to the bit, have no bounds and no
            coordinates, and cost nothing.
        difference: half-width, in natural units, of the central difference taken in place of dg/dlam; 0 for automatic
            differentiation. It is for a hyperparameter in which the training loss is a step function, such as the keep
            probability of dropout.
        shape: shape of a hyperparameter of the loss or the model that is no number, such as `(10,)` for a weight a
            class. Each entry is tuned; the loss sees them row by row as `[R, entries]`.

    Raises:
        GradtuneError: `difference` is negative, or goes with a `shape` or another `granularity` than "global"; or
            `shape` has no entries, or goes with such a granularity.
    """

    name: str
    value: Value
    transform: str = "identity"
    granularity: Granularity = "global"
    windows: int = 1
    bounds: tuple[float, float] = (-math.inf, math.inf)
    tuned: bool | Collection[str | int] = True
    difference: float = 0.0
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "granularity", groups.frozen(self.granularity))
        object.__setattr__(self, "shape", tuple(self.shape) if isinstance(self.shape, Collection) else (self.shape,))
        if isinstance(self.tuned, Collection):
            object.__setattr__(self, "tuned", (self.tuned,) if isinstance(self.tuned, str) else tuple(self.tuned))
        groups.check_kinds(self.name, self.transform, self.windows, self.bounds, self.difference, self.shape)
        if self.difference and self.granularity != "global":
            raise GradtuneError(
                f"{self.name} is differentiated by differences and has granularity {self.granularity!r}; expected "
                "'global': a value per layer is a hyperparameter of its own, with its own name"
            )
        if self.shape and (self.difference or self.granularity != "global" or min(self.shape) < 1):
            raise GradtuneError(
                f"{self.name} has the shape {self.shape}, granularity {self.granularity!r} and difference = "
                f"{self.difference}; expected a shape with at least one entry, granularity 'global' and difference = 0"
            )

    def __getstate__(self) -> dict[str, Any]:
        """A pickle is read where the declaration was not made: its tensors lie on the CPU."""
        value = self.value.detach().cpu() if isinstance(self.value, Tensor) else self.value
        return {**self.__dict__, "value": value}


@dataclass(frozen=True)
class Block:
    """Where a hyperparameter's coordinates lie.

    `groups` counts groups of weights or entries, `columns` the coordinates, and `index [D]` maps a weight to its group
    (None: one group, or entries). Where some groups are fixed, `free` has the numbers of the tuned ones, and `place`
    says where each weight finds its value in the tuned ones followed by the values of all groups.
    """

    hyper: Hyper
    transform: Transform
    groups: int
    index: Tensor | None
    labels: tuple[str, ...]
    offset: int
    columns: int
    free: Tensor | None = None
    place: Tensor | None = None

    @classmethod
    def of(cls, h: Hyper, offset: int, tensors: Tensors) -> Block:
        """Return the block of a hyperparameter whose coordinates begin at column `offset`."""
        all_of = Groups(h.name, math.prod(h.shape)) if h.shape else groups.divide(h.name, h.granularity, tensors)
        free = all_of.free(h.tuned)
        columns = h.windows * (all_of.count * bool(h.tuned) if free is None else len(free))
        place = None if free is None else all_of.places(free)
        return cls(h, TRANSFORMS[h.transform], all_of.count, all_of.index, all_of.names, offset, columns, free, place)

    def start(self, like: Tensor) -> Tensor:
        """Return the initial natural values `[R, groups, windows]`, checked; `like` as in `Hypers.init`."""
        h = self.hyper
        value = groups.start(h.value, Groups(h.name, self.groups, names=self.labels), h.windows, h.shape, like)
        groups.check(h.name, value, h.bounds, self.transform, bool(h.tuned), self.free)
        return value


class Hypers:
    """The hyperparameters of R runs: what is tuned, and where its coordinates lie in a row.

    Everything here is float32 at least: a learning rate in bfloat16 would have two digits.

    Args:
        hypers: the declarations, each name once.
        sizes: entries of each parameter tensor, into which the D weights are split.
        horizon: T, the number of training steps; needed when a hyperparameter has several windows.
        names: names of the parameter tensors; needed for groups by pattern.
        shapes: shapes of the parameter tensors; needed for the pattern "1d".

    Attributes:
        horizon: T, as given.
        blocks: where the coordinates of each hyperparameter lie, by name.
        columns: P, the number of tuned coordinates of a run.
        tuned: names of the hyperparameters that are tuned, in whole or in part, in the order of their coordinates.
        smooth: names of the tuned hyperparameters that are declared without a `difference`.
        windowed: whether a hyperparameter has several windows.
        constants: constant tensors that its steps use, kept on each device.

    Raises:
        GradtuneError: a name is given twice, windows have no horizon, a transform or granularity is unknown, groups do
            not fit the parameter tensors, or there is no group that is said to be tuned.
    """

    def __init__(
        self,
        hypers: Sequence[Hyper],
        sizes: Sequence[int],
        horizon: int | None = None,
        names: Sequence[str] | None = None,
        shapes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        given = [h.name for h in hypers]
        if len(set(given)) < len(given):
            raise GradtuneError(f"hyperparameters are named twice in {given}; give each name once")
        tensors = Tensors(sizes, names, shapes).checked()
        self.horizon = horizon
        self.blocks: dict[str, Block] = {}
        offset = 0
        for h in hypers:
            if h.windows > 1 and horizon is None:
                raise GradtuneError(
                    f"{h.name} has {h.windows} windows; say how many steps they share: Hypers(..., horizon=T)"
                )
            if h.transform not in TRANSFORMS:
                raise unknown("transform", h.transform, list(TRANSFORMS))
            self.blocks[h.name] = Block.of(h, offset, tensors)
            offset += self.blocks[h.name].columns
        self.columns = offset
        self.tuned = tuple(n for n, b in self.blocks.items() if b.hyper.tuned)
        self.smooth = tuple(n for n in self.tuned if not self.blocks[n].hyper.difference)
        self.windowed = any(b.hyper.windows > 1 for b in self.blocks.values())
        self.constants = Constants(self.blocks, self.tuned)

    def init(self, like: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the raw coordinates and the fixed values at the start, after a check of every value.

        Args:
            like: weights `[R, D]`; the number of runs, the dtype (float32 for a half type) and the device are taken
                from it.

        Returns:
            Raw coordinates `[R, P]` of the tuned hyperparameters, and natural values `[R, groups, windows]` of those
            that are fixed, in whole or in part, by name.

        Raises:
            GradtuneError: a value is NaN, has a shape that does not fit, or lies outside its bounds or its transform's
                range.
        """
        like = like.float() if like.dtype in _HALF else like
        raw, fixed = like.new_empty(len(like), self.columns), {}
        for name, b in self.blocks.items():
            value = b.start(like)
            if b.columns:
                free = value if b.free is None else value[:, b.free]
                raw[:, b.offset : b.offset + b.columns] = b.transform.inverse(free).flatten(1)
            if b.free is not None or not b.hyper.tuned:
                fixed[name] = value.clone()
        return raw, fixed

    def clamp(self, raw: Tensor) -> Tensor:
        """Raw coordinates moved into their bounds; NaN stays NaN."""
        ends = self.constants.ends(raw)
        return raw if ends is None else torch.minimum(torch.maximum(raw, ends[0]), ends[1])

    def at(self, raw: Tensor, fixed: Mapping[str, Tensor], t: int = 0) -> Values:
        """Natural values in force at step `t`, with what is needed to differentiate them."""
        return Values(self, raw.detach(), fixed, t)

    def window(self, name: str, t: int) -> int:
        """Number of the window of `name` that holds step `t`: `floor(windows t / T)`, at most `windows - 1`."""
        n = self.blocks[name].hyper.windows
        return 0 if n == 1 else min(n - 1, n * t // (self.horizon or 1))

    def natural(self, raw: Tensor) -> dict[str, Tensor]:
        """Natural values `[R, tuned groups x windows]` of every tuned hyperparameter, by name.

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
        fixed: natural values `[R, groups, windows]` of those that are fixed, in whole or in part, by name.
        t: number of the step.

    Attributes:
        lam: natural values by name, `[R, 1]` (global), `[R, D]`, or `[R, entries]` of a hyperparameter with a shape.
            They have a graph only where `raw` requires one; `Hypers.at` detaches it.
    """

    def __init__(self, hypers: Hypers, raw: Tensor, fixed: Mapping[str, Tensor], t: int) -> None:
        self.hypers, self.raw, self.fixed, self.t = hypers, raw, fixed, t
        self._all_tangents: dict[str, Tensor] | None = None

    def _coordinates(self, name: str) -> Tensor:
        """Raw coordinates of the window in force, `[R, tuned groups]`."""
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
            if b.place is not None:
                value = torch.cat((value, self.fixed[name][:, :, self.hypers.window(name, self.t)]), 1)
                value = value[:, self.hypers.constants.placed(name, "place", value.device)]
            elif b.index is not None:
                value = value[:, self.hypers.constants.placed(name, "index", value.device)]
            out[name] = value
        return out

    def active(self) -> Tensor | None:
        """Columns whose window has begun (the others have zero sensitivity); None when all have."""
        if not self.hypers.windowed:
            return None
        windows = tuple(self.hypers.window(name, self.t) for name in self.hypers.tuned)
        return self.hypers.constants.begun(windows, self.raw.device)

    def tangents(self, active: Tensor | None = None) -> dict[str, Tensor]:
        """Chain factors `d lam / d raw` for the given columns.

        This is where the chain factor enters in forward mode.

        Args:
            active: numbers of the A columns; None for all.

        Returns:
            A tensor `[R, A, 1, D or entries]` for each tuned hyperparameter, by name.
        """
        if self._all_tangents is None:
            self._all_tangents = {n: self._tangent(n) for n in self.hypers.tuned}
        return self._all_tangents if active is None else {n: x[:, active] for n, x in self._all_tangents.items()}

    def _tangent(self, name: str) -> Tensor:
        b = self.hypers.blocks[name]
        chosen = self.hypers.constants.chosen(name, self.hypers.window(name, self.t), self.raw)
        return self._over_weights(name, b.transform.slope(self._coordinates(name))[:, None, :] * chosen)

    def pull(self, cot: Mapping[str, Tensor]) -> Tensor:
        """Pull cotangents of `lam` back to the raw coordinates.

        This is where the chain factor enters in reverse mode.

        Args:
            cot: cotangents `[R, 1, D or entries]` by name; that of a tuned hyperparameter which is missing counts as 0.

        Returns:
            The cotangent `[R, P]` of the raw coordinates.
        """
        parts = [self._pulled(n, cot[n]) if n in cot else self._no_columns(n) for n in self.hypers.tuned]
        return torch.cat(parts, dim=1) if parts else self.raw

    def _no_columns(self, name: str) -> Tensor:
        return self.raw.new_zeros(len(self.raw), self.hypers.blocks[name].columns)

    def slope(self, name: str) -> Tensor:
        """Slope `d lam / d raw`, shaped as `lam`, of one hyperparameter in the window in force; 0 where it is fixed."""
        b = self.hypers.blocks[name]
        return self._over_weights(name, b.transform.slope(self._coordinates(name)))

    def _over_weights(self, name: str, x: Tensor) -> Tensor:
        """Values `[..., tuned groups]` as those of the weights, `[..., 1, D or entries]`; 0 where fixed."""
        b = self.hypers.blocks[name]
        if b.place is not None:
            wide = torch.cat((x, x.new_zeros(*x.shape[:-1], b.groups)), -1)
            return wide[..., self.hypers.constants.placed(name, "place", x.device)]
        return x if b.index is None else x[..., self.hypers.constants.placed(name, "index", x.device)]

    def grouped(self, name: str, c: Tensor) -> Tensor:
        """Shares `c [R, D]` of the weights, summed over each tuned group of a hyperparameter: `[R, tuned groups]`.

        The shares of a hyperparameter with a shape are those of its entries.
        """
        b = self.hypers.blocks[name]
        c = c if c.dtype == self.raw.dtype else c.to(self.raw.dtype)
        if b.hyper.shape and c.shape[1] != b.groups:
            raise GradtuneError(
                f"{name} has {b.groups} entries, of which no weight has a share of its own; use a method that "
                "differentiates by each entry, such as Forward()"
            )
        if b.index is None and not b.hyper.shape:
            return c.sum(1, keepdim=True) if c.shape[1] > 1 else c
        if b.index is not None and b.groups < c.shape[1]:
            c = c.new_zeros(len(c), b.groups).index_add(1, self.hypers.constants.placed(name, "index", c.device), c)
        return c if b.free is None else c[:, self.hypers.constants.placed(name, "free", c.device)]

    def _pulled(self, name: str, c: Tensor) -> Tensor:
        """The columns of one hyperparameter `[R, tuned groups x windows]`: zero but for the window in force."""
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
