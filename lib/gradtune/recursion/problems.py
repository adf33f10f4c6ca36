"""What a task offers to the recursion: its losses and, where it has more to say, their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from gradtune.recursion.hypers import Values
from gradtune.recursion.rules import Rule
from gradtune.recursion.states import State, wide


class Problem(Protocol):
    """What a task offers: losses of R runs at once, shape `[R]`, never averaged over runs.

    `lam` holds the hyperparameters that the update rule does not read, as tensors that broadcast to `[R, D]`. A loss
    depends on chance only through `t` (batch, dropout mask): the same `t` gives the same loss, so that a step can be
    recomputed. `stationary` says that the losses do not depend on `t`.
    """

    @property
    def stationary(self) -> bool: ...

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor: ...

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor: ...


@runtime_checkable
class WithBatches(Protocol):
    """A problem whose losses depend on `t` through tensors alone.

    A traced loop can therefore hand these tensors over: `problem.on(problem.batch(t))` has at every step the losses
    that `problem` has at step `t`.
    """

    def batch(self, t: int) -> tuple[Tensor, ...]:
        """All that both losses of step `t` read beside weights and hyperparameters.

        A traced loop makes a new recording for every new shape.
        """
        ...

    def on(self, batch: tuple[Tensor, ...]) -> Problem:
        """The problem with losses on these tensors, whatever `t`."""
        ...


@runtime_checkable
class HandingOn(WithBatches, Protocol):
    """A problem with batches whose step leaves something for the next one, such as the state of a recurrent net.

    What a step leaves is part of the next step's `batch`, so that one step at a time can be recorded.
    """

    def handed_on(self, step: Problem) -> tuple[Tensor, ...]:
        """What a step has left on `step`, a problem that `on` gave, after its training loss was asked for."""
        ...

    def take_over(self, t: int, left: tuple[Tensor, ...]) -> None:
        """Go on at step `t` from what the step before has left."""
        ...


@runtime_checkable
class Replayable(Protocol):
    """A problem whose steps see more than weights, hyperparameters and `t`: what earlier steps have left in a module.

    With it, steps can be taken again in order from a checkpoint. A problem whose losses are functions of their
    arguments alone does without.
    """

    def mark(self, t: int, keep: bool) -> Any:
        """Return what step `t` sees beside its arguments, before or after it is taken; `keep` it for a later call."""
        ...

    def place(self, t: int, seen: Any) -> None:
        """Let the next gradient of step `t` see this."""
        ...

    def left(self) -> Any:
        """Return what the step after that one sees, after the gradient was taken."""
        ...

    def packed(self, seen: Any) -> dict[str, Any]:
        """Return what a file can hold of it; `unpacked` takes it back."""
        ...

    def unpacked(self, packed: dict[str, Any]) -> Any: ...

    def forget(self) -> None:
        """Forget all steps so far."""
        ...


class Gradient(NamedTuple):
    """The gradient of one step's training loss, and what is special about the step.

    Attributes:
        w: gradient `[R, D]` with respect to the weights.
        lam: gradients `[R, 1 or D]` with respect to hyperparameters of the loss, in the order in which they were asked
            for; None for one that the loss does not use.
        rule: the update rule of this step.
        lr_factor: what this step multiplies the learning rate by; it is part of `rule` already.
        leaves: tensors of the graph that hold the weights in pieces, in the order in which they lie in a row; None
            where the weights are one tensor. They are for R = 1.
        place: what brings the leaves to the weights of the step; None where they stay there.
    """

    w: Tensor
    lam: tuple[Tensor | None, ...]
    rule: Rule
    lr_factor: float | Tensor = 1.0
    leaves: tuple[Tensor, ...] | None = None
    place: Place | None = None


class Place(Protocol):
    """Where the leaves of a graph have the weights that they had when it was made."""

    def inside(self) -> AbstractContextManager[None]:
        """Return a context around every pass through the graph."""
        ...

    def valid(self) -> bool:
        """Return whether the graph can still be used: nobody has written to its leaves."""
        ...


class WithGradient(Protocol):
    """A problem that differentiates its losses itself.

    So does that of a user's module: it knows which weights a loss reaches, and which hooks act on their gradients.
    """

    def train_gradient(
        self, w: Tensor, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor], rule: Rule, graph: bool
    ) -> Gradient:
        """Differentiate the training loss of step `t`.

        Args:
            w: weights `[R, D]`, a leaf.
            lam: hyperparameters of the loss, leaves.
            t: number of the step.
            by: those of `lam` to differentiate by.
            rule: the update rule.
            graph: whether the gradients are to be differentiated again.
        """
        ...

    def val_gradient(self, w: Tensor, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor]) -> Sequence[Tensor]:
        """Differentiate the validation loss by the weights and by those of `lam` in `by`; zero where it does not."""
        ...


def validation_gradient(problem: Problem, rule: Rule, values: Values, state: State, t: int) -> tuple[Tensor, Tensor]:
    """Gradient of the validation loss L_V with respect to the weights, and its direct term.

    Cost: one gradient.

    Args:
        problem: the task with its losses.
        rule: the update rule; the validation loss gets the hyperparameters that it does not read.
        values: the hyperparameters in force.
        state: the state at whose weights the loss is taken.
        t: number of the step whose validation batch is taken.

    Returns:
        The gradient `dL_V/dw [R, D]`, and the direct term `[R, P]`, the part of `dL_V/draw` at fixed weights.
    """
    w = state.w.detach().requires_grad_()
    lam = {n: v.detach().requires_grad_() for n, v in values.lam.items() if n not in rule.hypers}
    tuned = [n for n in lam if n in values.hypers.tuned]
    by = tuple(lam[n] for n in tuned)
    own: WithGradient | None = getattr(problem, "val_gradient", None) and problem  # type: ignore[assignment]
    if own is not None:
        grads = own.val_gradient(w, lam, t, by)
    else:
        loss = problem.val_loss(w, lam, t)
        grads = torch.autograd.grad(loss, (w, *by), torch.ones_like(loss), materialize_grads=True)
    return wide(grads[0]), values.pull(dict(zip(tuned, grads[1:], strict=True)))
