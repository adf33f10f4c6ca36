"""Batches by number: `at(k)` is batch k of training, or the batch of outer update k.

* `Resident`: tensors that lie on the device as a whole. Batch k is a function of (seed, k).
* `Loaded`: a DataLoader, or anything that can be iterated over again. Epochs follow one another.

A loader's random numbers (order, augmentation) come from a state of their own that starts from the seed. Neither what
else draws random numbers nor when a batch is asked for changes them, and after a restart the loader is brought to where
it was. The generators of numpy and of Python itself are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gradtune.errors import GradtuneError
from gradtune.nets.draws import number

Batch = tuple[Any, Any]
Source = "tuple[Tensor, Tensor] | Iterable[Any]"


def fits(batch: Any, like: Tensor, what: str) -> Batch:
    """Return `batch` as a pair (x, y) after checking that it fits the weights.

    Args:
        batch: what a loop hands over. Parts that are no tensors are not checked.
        like: the weights, whose device and floating-point type count.
        what: what the batch is, as it reads in an error.

    Returns:
        The pair.

    Raises:
        GradtuneError: the batch is no pair, a tensor of it lies on another device than the weights, or a floating-point
            tensor has another type.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise GradtuneError(f"{what} is a {type(batch).__name__}; expected a pair (x, y) of tensors")
    for name, part in zip("xy", batch, strict=True):
        if not isinstance(part, Tensor):
            continue
        if part.device != like.device:
            raise GradtuneError(
                f"{name} of {what} lies on {part.device} and the model on {like.device}; move one: "
                f".to({str(like.device)!r})"
            )
        if part.is_floating_point() and part.dtype != like.dtype:
            raise GradtuneError(
                f"{name} of {what} is {part.dtype} and the model {like.dtype}; convert one: .to({like.dtype})"
            )
    return batch[0], batch[1]


class Resident:
    """Rows of x and y on the device.

    With a batch size, each epoch goes through a new random order of the rows and leaves out what does not fill a batch.
    Without, every batch is the whole set.

    Args:
        x: inputs `[n, ...]`.
        y: targets `[n, ...]`.
        batch_size: rows in a batch, or None for all.
        seed: seed of the orders.
        what: what the data are, as it reads in an error.
        order: the order of the rows in an epoch, a function of the epoch's number, in place of one drawn from (seed,
            epoch).

    Raises:
        GradtuneError: x and y differ in length or are empty, or the batch size is not between 1 and their length.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int | None,
        seed: int,
        what: str,
        order: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.x, self.y, self.seed, self.order = x, y, seed, order or self._drawn
        if len(x) != len(y) or not len(x):
            raise GradtuneError(f"{what} has {len(x)} inputs and {len(y)} targets; expected as many, and at least one")
        if batch_size is not None and not 1 <= batch_size <= len(x):
            raise GradtuneError(
                f"{what}: a batch of {batch_size} cannot be drawn from {len(x)} rows; expected 1 to {len(x)}, or None "
                "for all"
            )
        self.size = batch_size
        self._order: tuple[int, Tensor] | None = None

    def at(self, k: int) -> Batch:
        if self.size is None:
            return self.x, self.y
        epoch, place = divmod(k, len(self.x) // self.size)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.order(epoch).to(self.x.device)
        rows = self._order[1][place * self.size : (place + 1) * self.size]
        return self.x[rows], self.y[rows]

    def _drawn(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.x), generator=torch.Generator().manual_seed(number(self.seed, epoch)))

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass

    def __str__(self) -> str:
        return f"{list(self.x.shape)} in batches of {self.size or len(self.x)}"


class Loaded:
    """Batches of a loader, moved to a device, one epoch after another.

    Batches are asked for in rising order; the last one can be asked for again. Asking raises GradtuneError when the
    loader yields no batch, or is an iterator that has ended.

    Args:
        loader: DataLoader, or another iterable of batches.
        device: where the tensors of a batch are moved.
        seed: seed of the loader's random numbers.
        what: what the data are, as it reads in an error.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device, seed: int, what: str) -> None:
        self.loader, self.device, self.what = loader, device, what
        self._rng = torch.Generator().manual_seed(number(seed)).get_state()
        self._batches: Iterator[Any] | None = None
        self._k, self._batch = -1, None
        self._epoch: dict[str, Any] = {}  # random states at the start of the epoch
        self._taken = 0  # batches of the epoch that have been taken

    def at(self, k: int) -> Batch:
        while self._k < k:
            self._batch = self._next()
            self._k += 1
        return self._batch  # type: ignore[return-value]

    def _next(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng)
            batch = next(self._batches, None) if self._batches is not None else None
            if batch is None:
                self._begin()
                batch = next(self._batches, None)  # type: ignore[arg-type]
            self._rng = torch.get_rng_state()
        if batch is None:
            raise self._empty()
        self._taken += 1
        return tree_map(lambda v: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v, batch)

    def _begin(self) -> None:
        self._epoch = {"rng": torch.get_rng_state(), "generators": [g.get_state() for g in self._generators()]}
        self._batches, self._taken = iter(self.loader), 0

    def _generators(self) -> list[torch.Generator]:
        """Return the loader's own generators, which torch's global random state does not cover."""
        places = [self.loader, getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None)]
        places.append(getattr(places[2], "sampler", None))
        found = [getattr(place, "generator", None) for place in places]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def _empty(self) -> GradtuneError:
        if self._k >= 0 and self._batches is self.loader:
            return GradtuneError(
                f"{self.what} ended after {self._k + 1} batches and is an iterator, which cannot start again; give a "
                "DataLoader, a list of batches, or tensors (x, y)"
            )
        return GradtuneError(f"{self.what} yields no batch; give a loader with at least one")

    def state(self) -> dict[str, Any]:
        return {"k": self._k, "taken": self._taken, "epoch": self._epoch}

    def load(self, state: dict[str, Any]) -> None:
        """Go to where `state()` was taken: start that epoch again and skip the batches that it had given."""
        if state["k"] < 0:
            return
        self._rng = state["epoch"]["rng"].cpu()
        for generator, saved in zip(self._generators(), state["epoch"]["generators"], strict=True):
            generator.set_state(saved.cpu())
        self._batches = None
        for _ in range(state["taken"]):
            self._batch = self._next()
        self._k = state["k"]

    def __str__(self) -> str:
        return type(self.loader).__name__


def stream(source: Any, like: Tensor, batch_size: int | None, seed: int, what: str) -> Resident | Loaded:
    """Return the batches of tensors or of a loader.

    Args:
        source: tensors `(x, y)`, or a DataLoader or another iterable of batches.
        like: the weights: tensors have to lie on their device and have their floating-point type, a loader's batches
            are moved to the device.
        batch_size: rows in a batch of tensors, or None for all; None for a loader.
        seed: seed of the order of the rows, or of the loader's random numbers.
        what: what the data are, as it reads in an error.

    Returns:
        `Resident` for tensors, `Loaded` otherwise.

    Raises:
        GradtuneError: the source is a Dataset or cannot be iterated over, a loader is given with a batch size, or
            `Resident` or `fits` raises it.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(part, Tensor) for part in source):
        return Resident(*fits(source, like, what), batch_size, seed, what)
    if isinstance(source, torch.utils.data.Dataset):
        raise GradtuneError(
            f"{what} is a Dataset, which yields single rows; wrap it: DataLoader(dataset, batch_size=...)"
        )
    if not isinstance(source, Iterable):
        raise GradtuneError(f"{what} is a {type(source).__name__}; expected tensors (x, y) or a DataLoader")
    if batch_size is not None:
        raise GradtuneError(
            f"{what} is a {type(source).__name__}, which has a batch size of its own; leave it out here"
        )
    return Loaded(source, like.device, seed, what)
