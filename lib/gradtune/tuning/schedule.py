"""A schedule of torch beside a tuned learning rate: a factor that `torch.optim.lr_scheduler` moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError


class Factor(torch.optim.Optimizer):
    """What a tuned learning rate is multiplied by, as an optimiser whose `lr` starts at 1.

    Any scheduler of `torch.optim.lr_scheduler` takes it in place of an optimiser. The learning rate of a step is the
    tuned one times the factor, and hypergradients know of it. For example, a cosine over 1000 steps::

        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(tuner.factor, T_max=1000)
        tuner.step(batch)
        schedule.step()
    """

    def __init__(self) -> None:
        super().__init__([nn.Parameter(torch.zeros(()))], {"lr": 1.0})

    @property
    def value(self) -> float:
        """The factor in force.

        Raises:
            GradtuneError: a scheduler has made it negative or not finite.
        """
        value = float(self.param_groups[0]["lr"])
        if not 0.0 <= value < float("inf"):
            raise GradtuneError(f"the schedule multiplies the learning rate by {value}; expected a factor >= 0")
        return value

    @value.setter
    def value(self, value: float) -> None:
        self.param_groups[0]["lr"] = value

    def step(self, closure: Any = None) -> Tensor | None:  # type: ignore[override]
        """Count a step for the scheduler; nothing moves."""
        return None
