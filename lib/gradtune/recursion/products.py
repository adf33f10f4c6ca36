"""In which mode Hessian products are taken: reverse over reverse, or forward over reverse.

Reverse over reverse builds one graph over a step's gradient, which all products of the step share: fast on a CPU, and
it keeps every intermediate result of the forward and of the backward pass. Forward over reverse (Pearlmutter 1994;
Kemaev et al. 2025, MixFlow-MG) keeps no graph over a gradient: a product is the tangent of the gradient, from one
forward and one backward pass over dual numbers. Both are exact and differ by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune.nets.second_order import wanted
from gradtune.nets.tangible import tangible

if TYPE_CHECKING:
    from gradtune.recursion.problems import Problem

Mode = str | float


def check_mode(mode: Mode) -> None:
    """Check what an estimator is given as its mode.

    Raises:
        GradtuneError: it is neither "reverse" nor "forward" nor a number of megabytes > 0.
    """
    if isinstance(mode, str):
        if mode not in ("reverse", "forward"):
            raise unknown("mode of Hessian products", mode, ["reverse", "forward"])
    elif not 0 < mode < math.inf:
        raise GradtuneError(f"mode is {mode}; expected 'reverse', 'forward', or a limit in megabytes > 0")


class Products:
    """The mode of a training's Hessian products, chosen or found out at its first step.

    Args:
        mode: "reverse", "forward", or a limit in MB of 2^20 bytes: forward where graphs over gradients would keep more.
        graphs: how many graphs are kept at once.

    Attributes:
        forward: whether products are taken forward over reverse; None while that is not known.
    """

    def __init__(self, mode: Mode = "reverse", graphs: int = 1) -> None:
        self._limit = None if isinstance(mode, str) else mode * 2**20 / graphs
        self.forward: bool | None = None if self._limit is not None else mode == "forward"

    def decide(self, build: Callable[[], Any], leaves: Sequence[Tensor] = ()) -> None:
        """Find out the mode, where it is not known.

        Cost: a gradient with its graph, which is given up where it exceeds the limit.

        Args:
            build: takes a gradient with a graph over it; the graph has to live as long as what it returns.
            leaves: tensors whose memory is there anyway.
        """
        if self.forward is None and self._limit is not None:
            self.forward = kept_bytes(build, leaves, self._limit) > self._limit


REVERSE = Products()
"""Reverse over reverse."""


class _Over(Exception):
    """More bytes than asked for."""


def kept_bytes(build: Callable[[], Any], leaves: Sequence[Tensor] = (), limit: float = math.inf) -> int:
    """Return how many bytes a graph keeps, each piece of memory counted once.

    Args:
        build: builds the graph, which has to live as long as what it returns.
        leaves: tensors whose memory is not counted.
        limit: beyond it the graph is given up.
    """
    seen = {x.untyped_storage().data_ptr() for x in leaves}
    total = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal total
        memory = x.untyped_storage()
        if memory.data_ptr() not in seen:
            seen.add(memory.data_ptr())
            total += memory.nbytes()
            if total > limit:
                raise _Over
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        try:
            graph = build()
        except _Over:
            return total
    del graph
    return total


@runtime_checkable
class WithTangent(Protocol):
    """A problem that takes the tangent of its gradient itself, as `problems.WithGradient` does the gradient."""

    def train_tangent(
        self, w: Tensor, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor], w_dot: Tensor | None
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return the gradients of the training loss of step `t` with their tangents, as dual numbers.

        Args:
            w: weights `[R, D]`.
            lam: hyperparameters of the loss, dual numbers where they move.
            t: number of the step, which has been taken.
            by: those of `lam` to differentiate by.
            w_dot: tangent of the weights `[R, D]`; None for 0.

        Returns:
            The gradient by the weights `[R, D]`, and those by `by`.
        """
        ...


def along(
    problem: Problem,
    w: Tensor,
    lam: Mapping[str, Tensor],
    t: int,
    names: Sequence[str],
    w_dot: Tensor | None,
    lam_dot: Mapping[str, Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Return the tangents of a training loss's gradients along a direction, forward over reverse.

    Cost: about two and a half gradients. Memory: twice that of a plain gradient.

    Args:
        problem: the task with its losses.
        w: weights `[R, D]`, a leaf.
        lam: hyperparameters of the loss, leaves, by name.
        t: number of the step.
        names: those of `lam` to differentiate by.
        w_dot: direction of the weights `[R, D]`; None for 0.
        lam_dot: directions of some of `lam`, in their shapes.

    Returns:
        The tangent of the gradient by the weights `[R, D]`, and of those by `names`.

    Raises:
        GradtuneError: an operation has no derivative in forward mode.
    """
    try:
        with wanted(forward=True), tangible(), forward_ad.dual_level():
            moved = {n: forward_ad.make_dual(v, lam_dot[n]) if n in lam_dot else v for n, v in lam.items()}
            by = [moved[n] for n in names]
            if isinstance(problem, WithTangent):
                found: Sequence[Tensor | None]
                g, found = problem.train_tangent(w, moved, t, by, w_dot)
            else:
                at = w if w_dot is None else forward_ad.make_dual(w, w_dot)
                loss = problem.train_loss(at, moved, t)
                one = torch.ones(loss.shape, dtype=loss.dtype, device=loss.device)
                g, *found = torch.autograd.grad(loss, (at, *by), one, allow_unused=True)
            return _tangent(g, w), [_tangent(x, lam[n]) for n, x in zip(names, found, strict=True)]
    except (NotImplementedError, RuntimeError) as error:
        if "forward" not in str(error).lower() and "jvp" not in str(error):
            raise
        line = str(error).strip().split("\n")[0][:200].rstrip(".")
        raise GradtuneError(
            f"an operation of the training loss has no derivative in forward mode ({line}); use mode='reverse'"
        ) from error


def _tangent(x: Tensor | None, like: Tensor) -> Tensor:
    found = None if x is None else forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(like) if found is None else found.detach()
