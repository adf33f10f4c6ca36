"""The state of a training, its sensitivity and its cotangent: what the recursion carries along."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.recursion.rules import Rule

_HALF = (torch.float16, torch.bfloat16)


class State(NamedTuple):
    """Training state of R runs; also used for cotangents of a state.

    Attributes:
        w: weights `[R, D]`.
        buf: a tensor `[R, D]` for each buffer and `[R, 1]` for each counter, by name.
    """

    w: Tensor
    buf: dict[str, Tensor]

    def like(self, x: State) -> State:
        """Return this state in the number types of `x`."""
        return State(self.w.to(x.w.dtype), {n: b.to(x.buf[n].dtype) for n, b in self.buf.items()})


def wide(x: Tensor) -> Tensor:
    """Return half-precision numbers in float32, others as they are: no sensitivity has less than float32."""
    return x.float() if x.dtype in _HALF else x


class Tangent(NamedTuple):
    """Sensitivity `d state / d raw`, a row for each tuned coordinate.

    Attributes:
        w: sensitivity of the weights, `[R, P, D]`.
        buf: a tensor `[R, P, D]` for each buffer and `[R, P, 1]` for each counter, by name.
    """

    w: Tensor
    buf: dict[str, Tensor]

    @classmethod
    def zero(cls, state: State, columns: int) -> Tangent:
        def rows(x: Tensor) -> Tensor:
            return wide(x).new_zeros(len(x), columns, x.shape[1])

        return cls(rows(state.w), {n: rows(b) for n, b in state.buf.items()})


def initial_state(w: Tensor, rule: Rule) -> State:
    """State of R runs at weights `w [R, D]` with zero buffers.

    Args:
        w: weights `[R, D]`; they are copied.
        rule: the update rule, which names the buffers.

    Raises:
        GradtuneError: `w` does not have two dimensions.
    """
    if w.dim() != 2:
        raise GradtuneError(
            f"weights have shape {tuple(w.shape)}; expected [R, D]: one row for each run (use w[None] for a single run)"
        )
    full = wide(w)
    buf = {n: torch.zeros_like(full) for n in rule.buffers} | {n: full.new_zeros(len(w), 1) for n in rule.counters}
    return State(w.detach().clone(), buf)


def cotangent(gv: Tensor, state: State) -> State:
    """The validation gradient `gv [R, D]` as the cotangent of a whole state: the loss does not read the buffers."""
    return State(gv, {n: torch.zeros_like(wide(b)) for n, b in state.buf.items()})
