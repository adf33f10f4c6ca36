"""Batch norm in a validation loss: which statistics it has, and whether they count as functions of the weights.

In evaluation mode batch norm has running statistics, averages over the last training batches. They follow the weights,
and so the validation loss depends on the weights in two ways. Three forms of its derivative are offered:

* "running": running statistics as constants: the second way is left out.
* "batch": the statistics of the validation batch in their place (FDS). They are differentiated as in training; the loss
  is not quite the one that the model will have in use.
* "following": the values of the running statistics, and the derivative of the statistics of the last training batch at
  the present weights. This is exact where the weights move little during the memory of the averages (about
  1 / momentum steps). Cost: a forward and a backward pass of a training batch more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

from gradtune.errors import unknown

FORMS = ("running", "batch", "following")
Moments = tuple[Tensor, Tensor]


def check(form: str) -> None:
    """Check the name of a form.

    Raises:
        GradtuneError: it is none of `FORMS`.
    """
    if form not in FORMS:
        raise unknown("form of batch norm's statistics in validation", form, FORMS)


def layers(parts: list[nn.Module]) -> list[nn.Module]:
    """Return the layers among `parts` that have running statistics of batch norm."""
    found = [m for m in parts if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [m for m in found if isinstance(m.running_mean, Tensor)]


class Collecting(TorchFunctionMode):
    """Context of a forward pass in training mode that notes the statistics of every batch norm, with their graph.

    Args:
        names: for the identity of a running mean, its name.
        moments: takes mean and unbiased variance of each channel, by name; one pair for each call.
    """

    def __init__(self, names: Mapping[int, str], moments: dict[str, list[Moments]]) -> None:
        super().__init__()
        self._names, self.moments = names, moments

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = _given(func, args, kwargs)
        if given.get("training") and id(given.get("running_mean")) in self._names:
            x = given["input"]
            others = [d for d in range(x.dim()) if d != 1]
            var, mean = torch.var_mean(x, others)
            self.moments.setdefault(self._names[id(given["running_mean"])], []).append((mean, var))
        return func(*args, **(kwargs or {}))


class Following(TorchFunctionMode):
    """Context of a forward pass in evaluation mode in which running statistics have a derivative.

    Args:
        names: for the identity of a running mean, its name.
        moments: statistics with a graph, from `Collecting`. Only their derivative is used.
    """

    def __init__(self, names: Mapping[int, str], moments: Mapping[str, list[Moments]]) -> None:
        super().__init__()
        self._names, self._moments = names, moments

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = _given(func, args, kwargs)
        moments = self._moments.get(self._names.get(id(given.get("running_mean")), ""))
        if not moments or given.get("training"):
            return func(*args, **(kwargs or {}))
        return _normalised(given, moments)


def _given(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call of batch norm by name; nothing for another function."""
    return dict(zip(_ARGUMENTS, args, strict=False)) | (kwargs or {}) if func is batch_norm else {}


def _normalised(given: Mapping[str, Any], moments: list[Moments]) -> Tensor:
    """Return batch norm by running statistics that have the derivative of `moments`."""
    x: Tensor = given["input"]
    shape = [1, -1, *[1] * (x.dim() - 2)]

    def moved(running: Tensor, k: int) -> Tensor:
        slope = sum((m[k] - m[k].detach() for m in moments), torch.zeros_like(moments[0][k])) / len(moments)
        return (running + slope).reshape(shape)

    mean, var = moved(given["running_mean"], 0), moved(given["running_var"], 1)
    y = (x - mean) * torch.rsqrt(var + given.get("eps", 1e-5))
    weight, bias = given.get("weight"), given.get("bias")
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
