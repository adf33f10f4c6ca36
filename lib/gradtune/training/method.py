"""A method of tuning: an estimator of the hypergradient, an outer rule, and how often it moves the hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradtune.errors import GradtuneError, at_least, unknown
from gradtune.estimators import Estimator
from gradtune.estimators.reverse import Reverse
from gradtune.recursion.outer import Outer
from gradtune.recursion.products import Mode, Products


@dataclass(frozen=True)
class Method:
    """A hypergradient method: an estimator, an outer rule and a cadence.

    Attributes:
        estimator: computes the hypergradient. None keeps the hyperparameters as they are.
        outer: moves the hyperparameters; None exactly where `estimator` is None.
        every: training steps between two outer updates.
        warm_up: training steps before outer updates begin; the estimator observes them already.
        outer_loss: "validation", the validation loss at the weights after a step; or "training", the loss of a step's
            own batch at the weights before it, for methods without a validation set (HD, MetaOptimize). The gradient of
            the latter is there already and costs nothing.
        immediate: with the training loss, update the hyperparameters before the step whose gradient was used is taken
            (HD, IDBD) instead of after it (MetaOptimize, Algorithm 1).

    Raises:
        GradtuneError: `outer_loss` is unknown; it is "training" and the estimator looks back on stored steps;
            `immediate` is set with the validation loss; `every` or `warm_up` is out of range; or one of `estimator` and
            `outer` is given without the other.
    """

    estimator: Estimator | None = None
    outer: Outer | None = None
    every: int = 1
    warm_up: int = 0
    outer_loss: str = "validation"
    immediate: bool = False

    def __post_init__(self) -> None:
        if self.outer_loss not in ("validation", "training"):
            raise unknown("outer loss", self.outer_loss, ["validation", "training"])
        if self.outer_loss == "training" and self.keep:
            raise GradtuneError(
                f"{type(self.estimator).__name__} differentiates through stored steps and needs "
                "outer_loss='validation'; for the training loss use an estimator that carries its sensitivity along"
            )
        if self.immediate and self.outer_loss != "training":
            raise GradtuneError("immediate=True needs outer_loss='training': validation follows the step")
        at_least(1, every=self.every)
        at_least(0, warm_up=self.warm_up)
        if (self.estimator is None) != (self.outer is None):
            raise GradtuneError("a method needs an estimator and an outer rule, or neither (fixed hyperparameters)")

    @property
    def second_order(self) -> bool:
        """Whether gradients are differentiated, at a step or when it is computed again."""
        return self.estimator is not None and getattr(self.estimator, "second_order", True)

    @property
    def keep(self) -> int:
        """Number of steps since the last outer update that the estimator wants to see."""
        return self.estimator.keep if self.estimator else 0

    @property
    def foreign(self) -> str:
        """Name of a part that is none of the library's, and may depend on the number of the step; empty if none is."""
        parts: list[Any] = [self.estimator]
        outer: Any = self.outer
        while outer is not None:
            parts.append(outer)
            outer = getattr(outer, "outer", None)
        names = (type(x).__name__ for x in parts if x is not None and not type(x).__module__.startswith("gradtune."))
        return next(names, "")

    @property
    def mode(self) -> Mode:
        """In which mode the estimator wants Hessian products; see `recursion.products`."""
        mode: Mode = getattr(self.estimator, "mode", "reverse")
        return mode

    def products(self) -> Products:
        """Return the mode of a training's Hessian products."""
        kept = isinstance(self.estimator, Reverse) and self.estimator.store == "graph"
        return Products(self.mode, min(self.keep, self.every) if kept else 1)

    @property
    def replayed(self) -> bool:
        """Whether the estimator takes the steps that it looks back on again, from a tree of checkpoints."""
        return isinstance(self.estimator, Reverse) and self.estimator.replayed
