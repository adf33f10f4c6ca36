"""Whether a derivative tells of finite steps: central differences along a hypergradient, at several step lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hyper
from gradtune.training.loop import Method
from gradtune.tuning.batches import Batch
from gradtune.tuning.kept import Asked, tuner_for


class Agreement(NamedTuple):
    """A finite step along a hypergradient.

    Attributes:
        step: length eps of the step to each side, in the coordinates.
        difference: central difference of the validation loss along the hypergradient's direction.
        derivative: what the hypergradient says, its length.
    """

    step: float
    difference: float
    derivative: float

    @property
    def ratio(self) -> float:
        """The difference in units of the derivative: 1 where the two agree; NaN where the derivative is 0."""
        return self.difference / self.derivative if self.derivative else math.nan


def agreements(
    model: nn.Module,
    asked: Asked,
    declarations: list[Hyper],
    batches: Sequence[Batch],
    val_batch: Batch,
    raw: Tensor,
    hypergradient: Tensor,
    steps: Sequence[float],
) -> tuple[Agreement, ...]:
    """Return central differences along a hypergradient.

    Cost: two trainings and two validation losses a step length.

    Args:
        model: the model, at the weights where the training begins; it is brought back there.
        asked: what the hypergradient was asked for.
        declarations: the hyperparameters.
        batches: the batch of each training step.
        val_batch: validation batch.
        raw: raw coordinates `[P]`.
        hypergradient: the hypergradient `[P]`.
        steps: the step lengths.

    Raises:
        GradtuneError: a step length is not positive.
    """
    for eps in steps:
        if not 0 < eps < math.inf:
            raise GradtuneError(f"a step of check_steps is {eps!r}; expected a length > 0")
    length = float(hypergradient.norm())
    if not 0 < length < math.inf:
        return tuple(Agreement(float(eps), math.nan, length) for eps in steps)
    plain = asked._replace(hypers=declarations, fixed={}, method=Method(), name="", options={}, replay=False)
    direction = hypergradient / hypergradient.norm()

    def after(moved: Tensor) -> float:
        with tuner_for(model, plain, keep=False) as kept:
            tuner: Any = kept.tuner
            tuner._run = tuner._run._replace(raw=moved[None])
            for k in range(asked.steps):
                tuner.step(batches[k])
            return float(tuner.evaluate(val_batch))

    rises = [after(raw + eps * direction) - after(raw - eps * direction) for eps in steps]
    return tuple(Agreement(float(e), rise / (2 * e), length) for e, rise in zip(steps, rises, strict=True))
