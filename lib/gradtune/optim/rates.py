"""The state of the learning rates of a `gradtune.optim.MetaOptimize`, and where it lies.

It is the meta-parameters beta and the memory of the meta rule, a number each for every block, that is for what shares a
learning rate. It lies with the names of the settings under "meta" in the parameter groups, the same in each of them:
the tools of torch expect that `state` has only parameters as keys, and they keep it in the type of the parameters.

A change makes new tensors. A `state_dict()` that was taken before keeps its values.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, OneCycleLR
from torch.optim.swa_utils import SWALR

from gradtune.optim.foreach import Rate
from gradtune.optim.settings import Settings, named

Groups = Sequence[dict[str, Any]]
"""Parameter groups."""

SETTING = (LambdaLR, CyclicLR, OneCycleLR, CosineAnnealingWarmRestarts, SWALR)
"""Schedulers that set a learning rate whatever it is; the others of torch multiply it."""


def blocks(groups: Groups, shared: str) -> list[tuple[int, int]]:
    """Return the first block of each parameter group, and the one after its last.

    Args:
        groups: the parameter groups.
        shared: what shares a learning rate: "scalar", "blockwise" or "tensor".
    """
    if shared == "tensor":
        sizes = [len(group["params"]) for group in groups]
        return [(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    step = int(shared == "blockwise")
    return [(step * i, step * i + 1) for i in range(len(groups))]


def deal(groups: Groups, meta: dict[str, Any]) -> None:
    """Give the state to every parameter group."""
    for group in groups:
        group["meta"] = meta


def grow(groups: Groups, settings: Settings, old: dict[str, Any] | None) -> None:
    """Give every new block, at the end of the blocks, a state: its group's learning rate and an empty memory.

    Beta is 0 where the learning rate is 0.

    Args:
        groups: the parameter groups.
        settings: settings of the optimiser.
        old: state of the blocks that are there; None: all blocks are new.
    """
    nothing = torch.zeros(0, dtype=torch.float64, device="cpu")
    meta: dict[str, Any] = {"raw": nothing, **settings.names()} if old is None else old
    raw: Tensor = meta["raw"]
    at = blocks(groups, settings.groups)
    lrs = [float(group["lr"]) for group, (a, b) in zip(groups, at) for _ in range(a, b)]
    new = raw.new_tensor([math.log(lr) if lr > 0 else 0.0 for lr in lrs[len(raw) : at[-1][1]]])
    memory = {n: x.expand_as(new) for n, x in named(settings.meta.init(new)).items()}
    deal(groups, {**meta, **{n: torch.cat([meta.get(n, raw[:0]), x]) for n, x in {"raw": new, **memory}.items()}})


def moved(meta: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the state on a device; MPS has no float64."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return {n: x.to(device, dtype) if isinstance(x, Tensor) else x for n, x in meta.items()}


def apart(raw: Tensor, at: Sequence[tuple[int, int]]) -> Tensor:
    """Return exp(beta - mean beta of the parameter group) of every block, `[blocks]`."""
    return torch.cat([raw[a:b] - raw[a:b].mean() for a, b in at]).exp()


def rises(moves: Tensor, groups: Groups, shared: str) -> Sequence[Rate]:
    """Return the factor by which each group's learning rate rises.

    Args:
        moves: by how much each beta rises, `[blocks]`.
        groups: the parameter groups.
        shared: what shares a learning rate.
    """
    if shared == "tensor":
        moves = torch.stack([moves[a:b].sum() / max(b - a, 1) for a, b in blocks(groups, shared)])
    factors = moves.exp()
    each: Sequence[Rate] = factors.tolist() if factors.device.type == "cpu" else list(factors)
    return each if len(each) == len(groups) else list(each) * len(groups)


def summed(products: Sequence[tuple[int, Rate]], raw: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the products by block, `[P]`, and which blocks have one (None: all).

    Args:
        products: numbers of blocks with a product each.
        raw: beta, `[P]`.
    """
    sums: list[Any] = [None] * len(raw)
    for block, each in products:
        sums[block] = each if sums[block] is None else sums[block] + each
    active = None
    if any(x is None for x in sums):
        active = torch.from_numpy(np.array([x is not None for x in sums])).to(raw.device)
        sums = [0.0 if x is None else x for x in sums]
    if raw.device.type == "cpu":
        return torch.from_numpy(np.array([float(x) for x in sums])), active
    return torch.stack([torch.as_tensor(x, dtype=raw.dtype, device=raw.device) for x in sums]), active


def own(lr: Any) -> Any:
    """Return a learning rate that nobody else changes: of a tensor, a copy without dimensions, in float64."""
    if not isinstance(lr, Tensor):
        return lr
    dtype = torch.float32 if lr.device.type == "mps" else torch.float64
    return lr.detach().reshape(()).to(dtype, copy=True)


def undoing(optimizer: Optimizer) -> set[str]:
    """Return the kinds of the schedulers, if any, that set the optimiser's learning rates whatever they are.

    Torch keeps no list of an optimiser's schedulers. All objects of the program are asked whether they hold it, which
    takes some hundredths of a second.
    """
    found: set[str] = set()
    for each in _holders(optimizer):
        if issubclass(type(each), SETTING):
            found.add(type(each).__name__)
        elif each is not optimizer and issubclass(type(each), Optimizer):  # a wrapper, such as accelerate's
            found |= undoing(each)
    return found


def _holders(optimizer: Optimizer) -> Iterator[Any]:
    """Yield what holds an optimiser, or has it as its attribute `optimizer`."""
    for each in gc.get_referrers(optimizer):
        if isinstance(each, dict) and each.get("optimizer") is optimizer:
            yield from gc.get_referrers(each)
        else:
            yield each
