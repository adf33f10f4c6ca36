"""The scale of a loss in half precision, kept by torch's own `GradScaler`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler


class _Probe(torch.optim.Optimizer):
    """An optimiser without effect, whose gradient a `GradScaler` looks at."""

    def __init__(self, like: Tensor) -> None:
        super().__init__([torch.nn.Parameter(torch.zeros_like(like))], {})
        self.called = False

    @property
    def parameter(self) -> Tensor:
        parameter: Tensor = self.param_groups[0]["params"][0]
        return parameter

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.called = True


class Scaling:
    """A `torch.amp.GradScaler` for gradients that no `backward()` computes.

    Memory: one more gradient.

    Args:
        scaler: the scaler. Its scale follows the steps of the training as in torch's own loop.
        like: the weights `[1, D]`.
    """

    def __init__(self, scaler: GradScaler, like: Tensor) -> None:
        self.scaler, self._probe = scaler, _Probe(like)
        self._scale: Tensor = torch.ones((), device=like.device)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the scale of the loss, as the gradient to start from."""
        self._scale = self.scaler.scale(torch.ones((), device=loss.device))
        return self._scale.to(loss.dtype)

    @property
    def last(self) -> Tensor:
        """The scale of the last loss."""
        return self._scale

    def unscaled(self, x: Tensor) -> Tensor:
        """Return a scaled gradient, or one that the scaler has seen, in its own size."""
        return x / self._scale.to(x.dtype)

    def fits(self, g: Tensor) -> bool:
        """Return whether a scaled gradient `[1, D]` is finite, and let the scale follow.

        Cost: waits for the device.
        """
        self._probe.parameter.grad, self._probe.called = g.clone(), False
        self.scaler.unscale_(self._probe)
        self.scaler.step(self._probe)
        self.scaler.update()
        self._probe.parameter.grad = None
        return self._probe.called

    def state(self) -> dict[str, Any]:
        """Return the scaler's state."""
        state: dict[str, Any] = self.scaler.state_dict()
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Take over the state of another scaler."""
        self.scaler.load_state_dict(state)
