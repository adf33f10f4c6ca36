"""Batches by number: `at(k)` is batch k of training, or the batch of outer update k.

* `Resident`: tensors that lie on the device as a whole. Batch k is a function of (seed, k).
* `Loaded`: a DataLoader, or anything that can be iterated over again. Epochs follow one another.

What a batch may be says `gradtune.tuning.batches`; what is taken for which of the two, `stream`.

A loader's random numbers (order, augmentation) come from a state of their own that starts from the seed. Neither what
else draws random numbers nor when a batch is asked for changes them, and after a restart the loader is brought to where
it was. The generators of numpy and of Python itself are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from gradtune.errors import GradtuneError, at_least
from gradtune.nets.draws import number, sent
from gradtune.tuning.batches import Batch, common_rows, fits, mapped, moved, named, part_of

__all__ = ["Batch", "Loaded", "Resident", "fits", "steps_of", "stream"]


class Resident:
    """Rows of tensors on the device.

    With a batch size, each epoch goes through a new random order of the rows and leaves out what does not fill a batch.
    Without, every batch is the whole set. Batches can be asked for in any order.

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
        self._take((x, y), batch_size, seed, what, order)

    @classmethod
    def of(
        cls,
        data: Batch,
        batch_size: int | None,
        seed: int,
        what: str,
        order: Callable[[int], Tensor] | None = None,
    ) -> Resident:
        """Return the batches of tensors in any structure, all with as many rows.

        Args:
            data: the tensors `[n, ...]`, as `batches.fits` returns them.
            batch_size: as for the class.
            seed: as for the class.
            what: as for the class.
            order: as for the class.

        Raises:
            GradtuneError: as for the class; or a part is no tensor or has no rows.
        """
        made = cls.__new__(cls)
        made._take(data, batch_size, seed, what, order)
        return made

    def _take(
        self, data: Batch, batch_size: int | None, seed: int, what: str, order: Callable[[int], Tensor] | None
    ) -> None:
        self.data, self.size, self.seed, self.order = data, batch_size, seed, order or self._drawn
        self._pair = type(data) is tuple and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
        self._rows, self._device = common_rows(data, what)
        self._order: tuple[int, Tensor] | None = None
        whole = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
        if batch_size is not None and not (whole and 1 <= batch_size <= self._rows):
            raise GradtuneError(
                f"{what}: a batch of {batch_size} cannot be drawn from {self._rows} rows; expected 1 to {self._rows}, "
                "or None for all"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return 1 if self.size is None else self._rows // self.size

    def at(self, k: int) -> Batch:
        if self.size is None:
            return self.data
        epoch, place = divmod(k, self._rows // self.size)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, sent(self.order(epoch), self._device)
        return self._picked(self._order[1][place * self.size : (place + 1) * self.size])

    def _picked(self, rows: Tensor | slice) -> Batch:
        if self._pair:
            x, y = self.data
            return x[rows], y[rows]
        return mapped(lambda part: part[rows], self.data)

    def once(self) -> Iterator[Batch]:
        """Yield all rows once and in order, in batches of which the last may be smaller; `at` does not notice."""
        if self.size is None:
            yield self.data
            return
        for begin in range(0, self._rows, self.size):
            yield self._picked(slice(begin, begin + self.size))

    def again(self) -> Resident:
        """Return a stream of the same batches from the beginning."""
        return self

    def _drawn(self, epoch: int) -> Tensor:
        return torch.randperm(self._rows, generator=torch.Generator().manual_seed(number(self.seed, epoch)))

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass

    def __str__(self) -> str:
        shapes = list(self.data[0].shape) if self._pair else mapped(lambda part: list(part.shape), self.data)
        return f"{'tensor ' * isinstance(self.data, Tensor)}{shapes} in batches of {self.size or self._rows}"


class Loaded:
    """Batches of a loader, moved to a device, one epoch after another.

    Batches are asked for in rising order; the last one can be asked for again. Asking raises GradtuneError when an
    earlier one is asked for, or when the loader yields no batch or is an iterator that has ended.

    Args:
        loader: DataLoader, or another iterable of batches.
        device: where the tensors of a batch are moved.
        seed: seed of the loader's random numbers.
        what: what the data are, as it reads in an error.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device, seed: int, what: str) -> None:
        self.loader, self.device, self.seed, self.what = loader, device, seed, what
        self._rng = torch.Generator().manual_seed(number(seed)).get_state()
        self._batches: Iterator[Any] | None = None
        self._k, self._batch = -1, None
        self._epoch: dict[str, Any] = {}  # random states at the start of the epoch
        self._taken = 0  # batches of the epoch that have been taken
        self._start = [g.get_state() for g in self._generators()]
        self._own: list[Tensor] | None = None  # states of the loader's generators, where they are not left to it

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches of an epoch, or None where the loader does not say.

        Raises:
            GradtuneError: there are none.
        """
        try:
            length = len(self.loader)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None
        if not length:
            raise self._empty()
        return length

    def at(self, k: int) -> Batch:
        if k < self._k or k < 0:
            raise GradtuneError(
                f"batch {k} of {self.what} is asked for after batch {self._k}, and a loader only goes forward; ask in "
                "rising order, or give tensors"
            )
        while self._k < k:
            self._batch = self._next()
            self._k += 1
        return self._batch

    def _next(self) -> Any:
        batch = None if self._batches is None else self._drawn()
        return self._first() if batch is None else batch

    def _first(self) -> Any:
        """Begin an epoch and return its first batch."""
        batch = self._drawn(begin=True)
        if batch is None:
            raise self._empty()
        return batch

    def _drawn(self, begin: bool = False) -> Any:
        """Return the epoch's next batch, or None at its end."""
        with torch.random.fork_rng(devices=[]), self._with_own_generators():
            torch.set_rng_state(self._rng)
            if begin:
                self._begin()
            batch = next(self._batches, None)  # type: ignore[arg-type]
            self._rng = torch.get_rng_state()
        self._taken += batch is not None
        return None if batch is None else moved(batch, self.device)

    def _begin(self) -> None:
        self._epoch = {"rng": torch.get_rng_state(), "generators": [g.get_state() for g in self._generators()]}
        self._batches, self._taken = iter(self.loader), 0

    def _generators(self) -> list[torch.Generator]:
        """Return the loader's own generators, which torch's global random state does not cover."""
        places = [self.loader, getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None)]
        places.append(getattr(places[2], "sampler", None))
        found = [getattr(place, "generator", None) for place in places]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    @contextmanager
    def _with_own_generators(self) -> Iterator[None]:
        """Put the loader's generators where this stream left them, and back where they were afterwards."""
        if self._own is None:
            yield
            return
        generators = self._generators()
        before = [g.get_state() for g in generators]
        _put(generators, self._own)
        try:
            yield
        finally:
            self._own = [g.get_state() for g in generators]
            _put(generators, before)

    def _empty(self) -> GradtuneError:
        if self._k >= 0 and self._batches is self.loader:
            return GradtuneError(
                f"{self.what} ended after {self._k + 1} batches and is an iterator, which cannot start again; give a "
                "DataLoader, a list of batches, or tensors (x, y)"
            )
        return GradtuneError(f"{self.what} yields no batch; give a loader with at least one")

    def again(self) -> Loaded:
        """Return a stream of the same batches from the beginning, beside this one.

        The loader's own generators start from where they were when this stream was made, and are as they were after
        each batch, so that any number of such streams can share a loader. A loader with `persistent_workers` serves one
        at a time.
        """
        made = Loaded(self.loader, self.device, self.seed, self.what)
        made._start = self._start
        made._own = list(self._start)
        return made

    def once(self) -> Iterator[Batch]:
        """Yield the batches of the loader's first epoch; `at` does not notice."""
        fresh = self.again()
        batch = fresh._first()
        while batch is not None:
            yield batch
            batch = fresh._drawn()

    def state(self) -> dict[str, Any]:
        return {"k": self._k, "taken": self._taken, "epoch": self._epoch}

    def load(self, state: dict[str, Any]) -> None:
        """Go to where `state()` was taken: start that epoch again and skip the batches that it had given."""
        if state["k"] < 0:
            return
        self._rng = state["epoch"]["rng"].cpu()
        saved = [each.cpu() for each in state["epoch"]["generators"]]
        if self._own is None:
            _put(self._generators(), saved)
        else:
            self._own = saved
        self._batches = None
        for _ in range(state["taken"]):
            self._batch = self._next()
        self._k = state["k"]

    def __str__(self) -> str:
        return type(self.loader).__name__


def _put(generators: list[torch.Generator], states: list[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def stream(
    source: Any, like: Tensor, batch_size: int | None, seed: int, what: str, floats: torch.dtype | None = None
) -> Resident | Loaded:
    """Return the batches of data.

    Data by rows, of which batches are drawn, are

    * a tensor or a numpy array;
    * a tuple or a mapping of them, at any depth, such as `(x, y)`, `((a, b), y)` or `{"input_ids": a, "labels": b}`;
    * a list of tensors and arrays, which counts as the tuple of them;
    * a `TensorDataset`, which counts as the tuple of its tensors.

    Batches one by one are

    * a list of anything else, such as `[(x1, y1), (x2, y2)]` or a list of dicts;
    * a DataLoader, or anything else that can be iterated over.

    A tuple is never a sequence of batches, and a list with tensors beside tuples or dicts is refused, as it could be
    either.

    Args:
        source: the data. Tensors have to lie on the weights' device and have their floating-point type; arrays are
            converted (`batches.fits`). A loader's batches are moved to the device.
        like: the weights.
        batch_size: rows in a batch of data by rows, or None for all; None for batches one by one.
        seed: seed of the order of the rows, or of the loader's random numbers.
        what: what the data are, as it reads in an error.
        floats: floating-point type of data by rows where it is not that of the weights.

    Returns:
        `Resident` for data by rows, `Loaded` otherwise.

    Raises:
        GradtuneError: the source is a Dataset or cannot be iterated over, mixes rows and batches, or has parts that are
            neither tensors nor arrays; batches one by one are given with a batch size; or `Resident` or `batches.fits`
            raises it.
    """
    if type(source) is TensorDataset:  # a subclass may do something to its rows
        source = source.tensors
    if _by_rows(source, what):
        return Resident.of(fits(source, like, what, floats), batch_size, seed, what)
    kind = type(source).__name__
    if isinstance(source, Dataset):
        raise GradtuneError(
            f"{what} is a Dataset, which yields single rows; wrap it: DataLoader(dataset, batch_size=...)"
        )
    if hasattr(source, "__array__"):
        raise GradtuneError(f"{what} is a {kind}; expected tensors or arrays: turn it into one by numpy.asarray(...)")
    if not isinstance(source, Iterable) or isinstance(source, (str, bytes)):
        raise GradtuneError(f"{what} is a {kind}; expected tensors (x, y) or a DataLoader")
    if batch_size is not None:
        whose = f"list of {len(source)} batches, each of which" if isinstance(source, list) else f"{kind}, which"
        raise GradtuneError(f"{what} is a {whose} has a batch size of its own; leave it out here")
    return Loaded(source, like.device, seed, what)


def _by_rows(source: Any, what: str) -> bool:
    """Return whether batches are drawn from the rows of `source`, see `stream`."""
    if isinstance(source, list):
        tensors = [isinstance(part, (Tensor, np.ndarray)) for part in source]
        if any(tensors) and not all(tensors):
            other = type(source[tensors.index(False)]).__name__
            raise GradtuneError(
                f"{what} is a list of tensors and of a {other}, which could be rows or batches; give rows as a tuple, "
                "such as ((a, b), y), and batches as a list of tuples or dicts"
            )
        return any(tensors)
    if isinstance(source, (tuple, Mapping)):
        for name, part in named(source):
            if not isinstance(part, (Tensor, np.ndarray)):
                raise GradtuneError(
                    f"{part_of(name, what)} is a {type(part).__name__}; expected tensors or numpy arrays with "
                    "as many rows (batches are given one by one as a list of tuples or dicts, or as a DataLoader)"
                )
        return True
    return isinstance(source, (Tensor, np.ndarray))


def steps_of(steps: int | None, epochs: int | None, feed: Resident | Loaded, accumulate: int = 1) -> int:
    """Return the number of training steps, given by itself or in epochs.

    Args:
        steps: training steps.
        epochs: passes through the data, in place of `steps`.
        feed: the data.
        accumulate: batches of a step.

    Raises:
        GradtuneError: neither or both are given, one is less than 1, or a loader has no length to count epochs by.
    """
    if (steps is None) == (epochs is None):
        raise GradtuneError(f"steps = {steps} and epochs = {epochs}; give one of the two")
    if epochs is None:
        assert steps is not None
        at_least(1, steps=steps)
        return steps
    at_least(1, epochs=epochs)
    length = feed.steps_per_epoch
    if length is None:
        raise GradtuneError("the training data have no length, so epochs cannot be counted; give steps=...")
    return max(1, epochs * length // accumulate)
