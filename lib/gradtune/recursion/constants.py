"""Constant tensors of hyperparameters, made once for each type and device: no step copies them to a GPU again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtune.recursion import groups


class Constants:
    """The constant tensors of some hyperparameters.

    A copy and a pickle begin with none.

    Args:
        blocks: `hypers.Block` by name.
        tuned: names of the blocks with tuned coordinates, in their order.
    """

    def __init__(self, blocks: Mapping[str, Any], tuned: Sequence[str]) -> None:
        self._blocks, self._tuned = blocks, tuned
        self._kept: dict[tuple[Any, ...], Any] = {}  # by what they are, with type and device

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def ends(self, raw: Tensor) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest raw coordinate `[P]`, in the type of `raw`; None where no coordinate has bounds."""
        key = ("ends", raw.dtype, raw.device)
        if key not in self._kept:
            blocks = [self._blocks[n] for n in self._tuned]
            each = [(groups.raw_bounds(b.hyper.bounds, b.transform), b.columns) for b in blocks]
            bounded = any(ends != (-math.inf, math.inf) for ends, _ in each)
            low, high = ([x for ends, n in each for x in n * [ends[k]]] for k in (0, 1))
            self._kept[key] = (raw.new_tensor(low), raw.new_tensor(high)) if bounded else None
        found: tuple[Tensor, Tensor] | None = self._kept[key]
        return found

    def chosen(self, name: str, window: int, like: Tensor) -> Tensor:
        """Matrix `[P, tuned groups]`: 1 where a column is the coordinate of a group in this window of `name`."""
        key = (name, window, like.dtype, like.device)
        if key not in self._kept:
            b = self._blocks[name]
            here = torch.arange(b.offset + window, b.offset + b.columns, b.hyper.windows)
            self._kept[key] = (self._columns()[:, None] == here[None, :]).to(like)
        found: Tensor = self._kept[key]
        return found

    def placed(self, name: str, part: str, device: torch.device) -> Tensor:
        """The `index`, `place` or `free` of a block, on a device."""
        own: Tensor = getattr(self._blocks[name], part)
        if own.device == device:
            return own
        key = (name, part, device)
        if key not in self._kept:
            self._kept[key] = own.to(device)
        found: Tensor = self._kept[key]
        return found

    def begun(self, windows: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Numbers of the columns whose window has begun, on a device; None when all have.

        Args:
            windows: number of the window in force of each tuned hyperparameter.
            device: where the numbers are wanted.
        """
        key = ("begun", windows, device)
        if key not in self._kept:
            columns = self._columns()
            begun = torch.ones(len(columns), dtype=torch.bool)
            for name, window in zip(self._tuned, windows, strict=True):
                b = self._blocks[name]
                mine = slice(b.offset, b.offset + b.columns)
                begun[mine] = (columns[mine] - b.offset) % b.hyper.windows <= window
            self._kept[key] = None if begun.all() else columns[begun].to(device)
        found: Tensor | None = self._kept[key]
        return found

    def _columns(self) -> Tensor:
        return torch.arange(sum(self._blocks[n].columns for n in self._tuned))
