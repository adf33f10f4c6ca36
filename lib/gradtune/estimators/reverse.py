"""Reverse mode: the validation gradient pulled back through the last steps (Diff-through-Opt, per-step hypergradients).

It is exact for the steps it covers: state and buffers before the first of them count as constants (OnePass, Section 4;
Domke 2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.recursion.step import State, Step, Values, cotangent


@dataclass(frozen=True)
class Reverse:
    """Reverse mode: dL_V/draw through the last `horizon` steps since the last outer update.

    It gives the same numbers as `Forward()` started at the first of these steps, at a cost that does not grow with the
    number of hyperparameters.

    Attributes:
        horizon: number of steps, >= 1.
        store: "state" keeps (w, buffers) a step and takes each gradient again on the way back: memory (1 + buffers) D a
            step, cost one gradient and one Hessian product a step at the update. "graph" keeps each step's graph: no
            second gradient, memory of `horizon` graphs; for short horizons.

    Raises:
        GradtuneError: `horizon` is below 1, or `store` is neither "state" nor "graph".
    """

    horizon: int
    store: str = "state"

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise GradtuneError(f"horizon is {self.horizon}; expected a number of steps >= 1")
        if self.store not in ("state", "graph"):
            raise GradtuneError(f"store is {self.store!r}; expected 'state' or 'graph'")

    @property
    def keep(self) -> int:
        return self.horizon

    def init(self, state: State, values: Values) -> tuple[()]:
        return ()

    def curvature(self, ahead: int) -> bool:
        return self.store == "graph" and ahead < self.horizon

    def observe(self, memory: tuple[()], step: Step) -> tuple[()]:
        return memory

    def hypergradient(self, memory: tuple[()], recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        cot = cotangent(gv, recent[-1].next)
        total = torch.zeros_like(values.raw)
        steps = list(recent)[-self.horizon :]
        for k, step in enumerate(reversed(steps)):
            to_state = k < len(steps) - 1
            cot, share = step.with_curvature(to_state).pull(cot, to_state=to_state)
            total = total + share
        return total
