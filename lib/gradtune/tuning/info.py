"""What a training step has done."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from gradtune.tuning.reading import Readable


@dataclass(frozen=True)
class Info:
    """What a step has done, for callbacks and print-outs.

    `train_loss` and `val_loss` are the losses as numbers; reading them waits for the device.

    Attributes:
        step: steps taken so far; in `gradtune.tune`, over all its trainings.
        updated: whether the hyperparameters moved.
        train: loss of the step's batch before the step, a scalar tensor on the model's device.
        val: loss of the validation batch after the step, a scalar tensor on the model's device; None where none was
            used.
        tuner: the tuner that took the step.
    """

    step: int
    updated: bool
    train: Tensor
    val: Tensor | None
    tuner: Readable = field(repr=False)

    @property
    def train_loss(self) -> float:
        """Loss of the step's batch, before the step."""
        return float(self.train)

    @property
    def val_loss(self) -> float:
        """Validation loss after the step, NaN where none was computed."""
        return float("nan") if self.val is None else float(self.val)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Natural values after the step, see `Tuner.hyperparameters`."""
        return self.tuner.hyperparameters

    @property
    def model(self) -> nn.Module:
        """The model, with the weights after the step."""
        return self.tuner.model
