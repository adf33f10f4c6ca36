"""Hypergradient estimators: forward and reverse mode, the Neumann series, and traces.

* `forward`: sensitivities carried along.
* `neumann`: the last step repeated.
* `reverse`: stored graphs or states, or a tree of states from which steps are taken again.
* `tree`: which states that tree keeps, and what it costs.
* `trace`: one vector without Hessian products.

Each is a frozen dataclass with the same five members, so that a training loop need not know which one it runs.

May import `recursion` and what is below it. Outer rules and loops do not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from gradtune.recursion.step import State, Step, Values


class Estimator(Protocol):
    """What a training loop asks of an estimator.

    One that never differentiates a gradient may say so by `second_order = False`; models are then checked less. One
    whose Hessian products may be taken in either mode says by `mode` in which (`recursion.products`).
    The memory is all that an estimator keeps between steps: a tensor, or tensors nested in tuples and dictionaries.
    """

    @property
    def keep(self) -> int:
        """How many of the steps since the last outer update `hypergradient` wants to see."""
        ...

    def init(self, state: State, values: Values) -> Any:
        """Memory at the start."""
        ...

    def curvature(self, ahead: int) -> bool:
        """Whether a step needs a graph over its gradient when `ahead` steps follow it before the next outer update."""
        ...

    def observe(self, memory: Any, step: Step) -> Any:
        """Memory after a training step."""
        ...

    def hypergradient(self, memory: Any, recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        """Hypergradient `gv' Z`, `[R, P]` in raw coordinates, without the direct term.

        Args:
            memory: the estimator's memory.
            recent: the last steps since the last outer update, `keep` at most.
            gv: gradient `[R, D]` of the outer loss.
            values: the hyperparameters in force.
        """
        ...
