"""Optimisers of other packages that MetaOptimize is compared with, each with the defaults of its package.

They are optional: `packages.PACKAGES` names what has to be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradtune.errors import unknown
from gradtune_book.papers.packages import imported

_CLASSES = {"Prodigy": "Prodigy", "D-Adaptation": "DAdaptAdam", "DoG": "DoG", "ScheduleFree": "AdamWScheduleFree"}

OF_PACKAGES = (*_CLASSES, "mechanic", "gdtuo")
"""Methods that need a package of others. mechanic is around AdamW, and gdtuo is Adam adapted by SGD."""


class Steps(Protocol):
    """What a training needs of an optimiser; those of torch have it."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Change the weights."""


class Tower:
    """gdtuo's Adam whose step size and averages follow SGD, on a module, in the form of an optimiser.

    Its loss has to be differentiated by `backward`. Weights that a module has in two places are one tensor again after
    each step.

    Args:
        module: The module, whose weights become results of the steps.
    """

    def __init__(self, module: nn.Module) -> None:
        gdtuo = import_module(f"{imported('gdtuo').__name__}.gdtuo")
        self._places = _tied(module)
        self._adam = gdtuo.Adam(optimizer=gdtuo.SGD(1e-5))
        self._wrapper = gdtuo.ModuleWrapper(module, optimizer=self._adam)
        self._wrapper.initialize()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self._wrapper.parameters.values()), "lr": float(self._adam.parameters["alpha"])}]

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """Adam's two averages by the name of a weight."""
        return dict(self._adam.cache)

    def zero_grad(self) -> None:
        self._wrapper.begin()
        self._wrapper.zero_grad()

    def step(self) -> None:
        self._wrapper.step()
        for places in self._places:
            first = places[0][0]._parameters[places[0][1]]
            for module, name in places[1:]:
                module._parameters[name] = first


def _tied(module: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Return the places of each weight that a module has more than once."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            places.setdefault(id(p), []).append((part, name))
    return [each for each in places.values() if len(each) > 1]


def of_a_package(method: str, module: nn.Module) -> Steps:
    """Return the optimiser of a method for all weights of a module.

    Args:
        method: One of `OF_PACKAGES`.
        module: The module.

    Raises:
        GradtuneError: The method is unknown, or its package is not installed.
    """
    made: dict[str, Callable[[], Any]] = {
        "mechanic": lambda: imported("mechanic").mechanize(torch.optim.AdamW)(module.parameters()),
        "gdtuo": lambda: Tower(module),
    }
    made |= {
        name: lambda n=name, c=kind: getattr(imported(n), c)(module.parameters())  # type: ignore[misc]
        for name, kind in _CLASSES.items()
    }
    if method not in made:
        raise unknown("method of a package", method, OF_PACKAGES)
    optimizer: Any = made[method]()
    if method == "ScheduleFree":
        optimizer.train()
    return optimizer


def backward(loss: Tensor, optimizer: Steps) -> None:
    """Compute the gradients of a loss as an optimiser wants them."""
    loss.backward(create_graph=isinstance(optimizer, Tower))


@contextmanager
def at_rest(optimizer: Steps) -> Iterator[None]:
    """Evaluate at the weights that an optimiser stands for, inside `with`: for ScheduleFree an average of them."""
    switch = optimizer if hasattr(optimizer, "eval") and hasattr(optimizer, "train") else None
    if switch is not None:
        switch.eval()
    try:
        yield
    finally:
        if switch is not None:
            switch.train()


def kept(optimizer: Steps) -> int:
    """Return how many numbers an optimiser keeps from one step to the next, weights and gradients apart."""
    of_states = [x for of_one in getattr(optimizer, "state", {}).values() for x in _tensors(of_one)]
    lists = [v for g in optimizer.param_groups for k, v in g.items() if k != "params" and isinstance(v, list)]
    of_groups = [x for each in lists for x in each if isinstance(x, Tensor)]
    return sum(x.numel() for x in (*of_states, *of_groups))


def _tensors(state: dict[Any, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a state, those of states within it too."""
    for each in state.values():
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, dict):
            yield from _tensors(each)
