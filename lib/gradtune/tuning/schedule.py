"""A schedule of torch beside a tuned learning rate: a factor that `torch.optim.lr_scheduler` moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


Schedule = Callable[[Factor], torch.optim.lr_scheduler.LRScheduler]


def linear(steps: int, end: float = 0.01) -> Schedule:
    """Return a schedule that lets the factor fall in a straight line from 1 to `end` over some steps."""
    return partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=end, total_iters=steps)


def constant(factor: Factor) -> torch.optim.lr_scheduler.LRScheduler:
    """Schedule that leaves the factor at 1."""
    return torch.optim.lr_scheduler.ConstantLR(factor, 1.0)


def made(schedule: Schedule, factor: Factor) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the scheduler that `schedule` makes of a factor.

    Raises:
        GradtuneError: it cannot be made, or needs a loss to go on.
    """
    try:
        if "step" in vars(factor):
            del factor.step  # a scheduler before has put its count of steps there
        factor.param_groups[0].pop("initial_lr", None)
        scheduler = schedule(factor)
    except (ValueError, TypeError, KeyError) as error:
        raise GradtuneError(
            f"the schedule cannot be made of a factor of the learning rate ({error}); leave out what it does to the "
            "momentum (cycle_momentum=False), and give a function of the factor"
        ) from error
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise GradtuneError(
            "ReduceLROnPlateau needs a loss at each step; use it on tuner.factor in a loop of your own, or give "
            "another schedule"
        )
    return scheduler


def state(scheduler: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """Return the part of a scheduler's state that a checkpoint can hold, schedulers inside it included."""
    kept: dict[str, Any] = _kept(scheduler.state_dict())
    return kept


def load(scheduler: torch.optim.lr_scheduler.LRScheduler, saved: dict[str, Any]) -> None:
    """Take over what `state` gave."""
    scheduler.load_state_dict(_merged(scheduler.state_dict(), saved))


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: kept for k, v in value.items() if (kept := _kept(v)) is not _NOTHING}
    if isinstance(value, (list, tuple)):
        return [kept if (kept := _kept(v)) is not _NOTHING else None for v in value]
    return value if isinstance(value, (int, float, bool, str, type(None), Tensor)) else _NOTHING


def _merged(own: Any, saved: Any) -> Any:
    """Return the scheduler's own state with what was saved in place; what cannot be saved, functions, stays its own."""
    if isinstance(own, dict) and isinstance(saved, dict):
        return {k: _merged(v, saved[k]) if k in saved else v for k, v in own.items()} | {
            k: v for k, v in saved.items() if k not in own
        }
    if isinstance(own, (list, tuple)) and isinstance(saved, list) and len(own) == len(saved):
        return type(own)(_merged(o, s) for o, s in zip(own, saved, strict=True))
    return own if saved is None and callable(own) else saved


_NOTHING = object()
