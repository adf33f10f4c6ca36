"""Parameters of which several processes hold a part each, for `gradtune.optim`.

Every elementwise operation of a step is on a process's own part. Only the inner products of gradients and traces need
the other processes: they are summed, so that the learning rates are the same in all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradtune.errors import GradtuneError

PLAIN = frozenset({Tensor, nn.Parameter})
"""Types of tensors that are no DTensor; to look here is quicker than to ask `place`."""

Place = tuple[Any, tuple[Any, ...]]
"""The mesh of processes over which a DTensor is laid, and its placement in every dimension of the mesh."""


def place(x: Tensor) -> Place | None:
    """Return where a DTensor is laid; None for any other tensor."""
    module = sys.modules.get("torch.distributed.tensor")  # without it there can be no DTensor
    if module is None or not isinstance(x, module.DTensor):
        return None
    return x.device_mesh, x.placements


def local(x: Any, at: Place) -> Tensor:
    """Return this process's part of a DTensor, which is first laid as at `at`; another tensor as it is."""
    if place(x) is None:
        return x
    return (x if x.placements == at[1] else x.redistribute(*at)).to_local()


def over_meshes(products: list[Any], places: Sequence[Place | None], device: torch.device) -> list[Any]:
    """Sum products over the processes that hold the other parts of the same tensors.

    The products of one place make one message.

    Args:
        products: numbers on the CPU, else tensors without dimensions.
        places: where the tensors of each product are laid; None leaves a product as it is.
        device: where the products are.
    """
    out = list(products)
    for at in dict.fromkeys(each for each in places if each is not None):
        which = [i for i, each in enumerate(places) if each == at]
        values = _vector([products[i] for i in which], device)
        mesh, placements = at
        for dimension, placement in enumerate(placements):
            if placement.is_shard():
                dist.all_reduce(values, group=mesh.get_group(dimension))
        for i, value in zip(which, values.tolist() if device.type == "cpu" else values):
            out[i] = value
    return out


def over_processes(z: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum the products of every learning rate, `[P]`, over all processes of the default group.

    Args:
        z: the products of this process.
        active: which learning rates have one here (None: all).

    Returns:
        The sums, and which learning rates have a product in any process.
    """
    there = torch.ones_like(z) if active is None else active.to(z.dtype)
    both = torch.stack([z * there, there])  # 0 where there is none
    dist.all_reduce(both)
    return both[0], both[1] > 0


def check_processes() -> None:
    """Check that there are processes to sum over.

    Raises:
        GradtuneError: torch.distributed was not started.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise GradtuneError(
            "sharded=True, and there is no process group; call torch.distributed.init_process_group first, "
            "or leave sharded out"
        )


def _vector(values: list[Any], device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.tensor([float(x) for x in values], dtype=torch.float64, device="cpu")
    return torch.stack([x.to(device) for x in values])
