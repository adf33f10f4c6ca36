"""Neumann series: the best-response derivative from the last update alone (OnePass; Lorraine et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.recursion.products import Mode, check_mode
from gradtune.recursion.step import State, Step, Values, cotangent


@dataclass(frozen=True)
class Neumann:
    """Neumann series with all derivatives at the last step and the buffers constant (OnePass, eq. 6, i terms).

    The hypergradient is::

        sum_{j < i} gv' (dPhi/dw)^j dPhi/draw

    It is `Reverse(horizon=i)` with every step replaced by the last one and no path through the buffers. It is exact for
    i = 1, and at a fixed point of training without momentum; otherwise it is an approximation whose error grows with i
    as the weights move.

    Cost at an update: one gradient with its graph and i - 1 Hessian products (i when the loss has tuned
    hyperparameters); with `fresh` one more gradient. Memory: one graph.

    Attributes:
        look_back: i, the number of terms, >= 0; 0 gives the hypergradient 0.
        fresh: take the derivatives at the weights just reached, with the last step's batch, as the text's single `w_i`
            reads; the series is then exact at a fixed point alone.
        keep: 1, as it looks back on the last step.
        mode: in which mode Hessian products are taken, as in `reverse.Reverse`.

    Raises:
        GradtuneError: `look_back` is negative, or `mode` is unknown.
    """

    look_back: int = 5
    fresh: bool = False
    keep: int = 1
    mode: Mode = field(default="reverse", repr=False)

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if type(self.look_back) is not int or self.look_back < 0:
            raise GradtuneError(f"look_back is {self.look_back}; expected a number of terms >= 0")

    def init(self, state: State, values: Values) -> tuple[()]:
        return ()

    def curvature(self, ahead: int) -> bool:
        return ahead == 0 and self.look_back > 0 and not self.fresh

    def observe(self, memory: tuple[()], step: Step) -> tuple[()]:
        return memory

    def hypergradient(self, memory: tuple[()], recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        if self.look_back == 0:
            return torch.zeros_like(values.raw)
        step = recent[-1]
        if self.fresh:
            step = Step(
                step.problem, step.base_rule, step.values, step.next, step.t, curvature=True, products=step.products
            )
        step = step.with_curvature()
        constant = cotangent(gv, step.next).buf
        v, total = gv, torch.zeros_like(values.raw)
        for j in range(self.look_back):
            before, share = step.pull(State(v, constant), to_state=j < self.look_back - 1)
            v, total = before.w, total + share
        return total
