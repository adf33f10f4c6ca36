"""What a tuner shows of its hyperparameters: values that can be set, and hypergradients by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError, unknown
from gradtune.nets.layout import Layout
from gradtune.nets.surroundings import Noted
from gradtune.recursion.hypers import Hypers
from gradtune.training.loop import Method, Run
from gradtune.tuning import history, rates
from gradtune.tuning.supervised import Supervised


class Natural(dict[str, float]):
    """Natural values of hyperparameters by name; setting one sets it in the training.

    Args:
        values: the values.
        set_one: called with a name and a value that is assigned.
    """

    def __init__(self, values: dict[str, float], set_one: Callable[[str, float], None]) -> None:
        super().__init__(values)
        self._set = set_one

    def __setitem__(self, name: str, value: float) -> None:
        self._set(name, value)
        super().__setitem__(name, float(value))

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise GradtuneError('the hyperparameters of a tuner cannot be removed; set one by hyperparameters["lr"] = 0.1')

    __delitem__ = pop = popitem = clear = setdefault = _refuse

    def __ior__(self, values: Any) -> Natural:  # type: ignore[override, misc]
        self.update(values)
        return self

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several values."""
        for name, value in dict(*args, **kwargs).items():
            self[name] = value


def columns(hypers: Hypers, names: tuple[str, ...]) -> list[str]:
    """Return a name for each raw coordinate, as `history.read_out` names them where it does not summarise."""
    found: list[str] = []
    for name in hypers.tuned:
        block = hypers.blocks[name]
        of_weights = block.hyper.granularity == "weight"
        found += [f"{name}[{k}]" for k in range(block.columns)] if of_weights else history.labels(block, names)
    return found


def slopes(hypers: Hypers, raw: Tensor) -> Tensor:
    """Return the slope `[P]` of the natural value by each raw coordinate `[1, P]`."""
    blocks = [hypers.blocks[n] for n in hypers.tuned]
    parts = [b.transform.slope(raw[0, b.offset : b.offset + b.columns]) for b in blocks]
    return torch.cat(parts) if parts else raw[0]


def assigned(hypers: Hypers, names: tuple[str, ...], raw: Tensor, name: str, value: float) -> Tensor:
    """Return the raw coordinates `[1, P]` with one hyperparameter, or one group of it, at another natural value.

    Args:
        hypers: the hyperparameters.
        names: names of the parameter tensors.
        raw: raw coordinates.
        name: name of a hyperparameter, which sets all its groups, or of a column such as `lr[0]`.
        value: natural value.

    Raises:
        GradtuneError: there is no such column, or the value is outside the bounds.
    """
    known = columns(hypers, names)
    places = [k for k, column in enumerate(known) if column == name or column.startswith(f"{name}[")]
    if not places:
        if name in hypers.blocks:
            raise GradtuneError(
                f"{name} is fixed in this training; name it in hypers to set it, with method='fixed' say"
            )
        raise unknown("tuned hyperparameter", name, {*hypers.tuned, *known[:20]})
    if not isinstance(value, (int, float, Tensor, np.number)):
        raise GradtuneError(f"{name} was set to {value!r}; expected a number")
    block = hypers.blocks[next(n for n in hypers.tuned if name == n or name.startswith(f"{n}["))]
    low = max(block.hyper.bounds[0], block.transform.low)
    high = min(block.hyper.bounds[1], block.transform.high)
    coordinate = block.transform.inverse(torch.as_tensor(float(value), dtype=raw.dtype, device=raw.device))
    if not (low <= float(value) <= high and bool(coordinate.isfinite())):
        raise GradtuneError(f"{name} = {value:g} is outside [{low:g}, {high:g}]; choose a value inside")
    raw = raw.clone()
    raw[:, places] = coordinate
    return raw


class Readable:
    """What can be read of a tuner between two steps, and the hyperparameters that can be set."""

    model: nn.Module
    method: Method
    hypers: Hypers
    _run: Run
    _layout: Layout
    _problem: Supervised

    @property
    def raw(self) -> Tensor:
        """Raw coordinates `[P]` of the tuned hyperparameters."""
        return self._run.raw[0]

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Natural values of the tuned hyperparameters; names of groups and windows as in `history.read_out`.

        Setting one, as in `tuner.hyperparameters["lr"] = 0.1`, sets it in the training; the outer rule's state goes on.
        """
        values = history.read_out(self.hypers, self._layout.names, self._run.raw)
        return Natural({n: float(v[0]) for n, v in values.items()}, self._set)

    @hyperparameters.setter
    def hyperparameters(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._set(name, value)

    def _set(self, name: str, value: float) -> None:
        raw = assigned(self.hypers, self._layout.names, self._run.raw, name, value)
        self._run = self._run._replace(raw=raw)

    @property
    def lr(self) -> float:
        """The learning rate in force, tuned or not; where there are several, their geometric mean.

        Setting it multiplies all of them by one factor, within their bounds; the outer rule's state goes on.
        """
        return rates.level(self.hypers, self._run)

    @lr.setter
    def lr(self, value: float) -> None:
        self._run = rates.at(self.hypers, self._run, value)

    def scale_lr(self, factor: float) -> None:
        """Multiply all learning rates, tuned or not, by a factor, within their bounds; the outer rule's state goes on.

        Args:
            factor: the factor, > 0.
        """
        self._run = rates.scaled(self.hypers, self._run, factor)

    def surroundings(self) -> dict[str, Any]:
        """Return what the model keeps beside weights and buffers: attributes, lists, states of generators."""
        return self._problem.single.around.saved(self._problem.single.around.note())

    def surround(self, saved: Mapping[str, Any]) -> None:
        """Put in place what `surroundings` returned."""
        self._problem.single.around.put(self._problem.single.around.loaded(dict(saved)))

    def note(self) -> Noted:
        """Return what the model and the loss keep beside weights and buffers, to be brought back by `bring_back`."""
        return self._problem.single.around.note()

    def bring_back(self, noted: Noted) -> None:
        """Bring model and loss back to what `note` returned, but for weights and buffers."""
        self._problem.single.around.bring_back(noted)

    @property
    def hypergradient(self) -> dict[str, float]:
        """The last hypergradient, dL/draw for each raw coordinate by name; NaN before the first outer update.

        It is the derivative that the outer rule was given, by the coordinate in which the hyperparameter is tuned
        (log10 of a learning rate, say). That by the natural value is this one divided by the slope of the natural value
        by the coordinate (`slopes`). Reading it waits for the device.
        """
        values = self.raw_hypergradient.tolist() if self.method.outer is not None else []
        return dict(zip(columns(self.hypers, self._layout.names), values, strict=True))

    @property
    def raw_hypergradient(self) -> Tensor:
        """The last hypergradient `[P]`, on the model's device."""
        last: Tensor = self._run.outer.hypergradient[0]
        return last

    @property
    def gradients(self) -> int:
        """Gradients of training and validation losses computed so far."""
        return self._problem.calls

    @property
    def sensitivity(self) -> dict[str, dict[str, Tensor]]:
        """The sensitivity dw/draw that the method carries along: by coordinate, then by parameter, in its shape.

        Raises:
            GradtuneError: the method carries none, as those that look back do.
        """
        rows = getattr(self._run.memory, "w", None)
        if not isinstance(rows, Tensor):
            raise GradtuneError(
                f"{self.method} carries no sensitivity dw/draw along; methods in forward mode do, such as 'oho'"
            )
        names = columns(self.hypers, self._layout.names)
        return {n: self._layout.split(row) for n, row in zip(names, rows[0], strict=True)}

    @property
    def skipped(self) -> int:
        """Outer updates that were left out because a hypergradient was not finite. Reading it waits for the device."""
        return 0 if self.method.outer is None else int(self._run.outer.skipped)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trained parameter tensors."""
        return self._layout.names
