"""Batches of any structure: their parts and names, their rows, and whether they fit a model's weights.

A batch is one of

* a tuple or list of parts, of which the last is the target: `(x, y)`, `(a, b, y)`, `((a, b), y)`, `(x, (y, index))`;
* a mapping, such as a dict or the `BatchEncoding` of Hugging Face's tokenizers, which becomes a dict;
* anything else that a model takes, such as one tensor.

Parts are tensors and numpy arrays, at any depth of tuples, lists and mappings. Everything else in a batch (text, None,
a `PackedSequence`, an object) is handed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from gradtune.errors import GradtuneError

Batch = Any
"""A batch of any structure, see above."""


def mapped(change: Callable[[Any], Any], batch: Batch) -> Batch:
    """Return the batch with every part replaced by `change(part)`.

    torch's `tree_map` differs in that it knows dicts and none of the other mappings, and takes a `PackedSequence`
    apart, whose tensors do not all belong on one device.

    Args:
        change: function of a part.
        batch: the batch. Its tuples (named ones too) and lists stay what they are; its mappings become dicts.
    """
    if isinstance(batch, Mapping):
        return {key: mapped(change, value) for key, value in batch.items()}
    if not _is_sequence(batch):
        return change(batch)
    inner = [mapped(change, value) for value in batch]
    if isinstance(batch, list):
        return inner
    return type(batch)(*inner) if hasattr(batch, "_fields") else tuple(inner)


def named(batch: Batch) -> Iterator[tuple[str, Any]]:
    """Yield every part with its name.

    Names are `x` and `y` in a pair, `part 1`, `part 2`, ... in other tuples and lists, `batch['labels']` in a mapping,
    and empty for a batch of one part. What lies deeper has an index behind the name: `x[0]`, `part 2['mask']`.
    """
    if isinstance(batch, Mapping):
        heads = [(f"batch[{key!r}]", value) for key, value in batch.items()]
    elif _is_sequence(batch):
        names = "xy" if len(batch) == 2 else [f"part {k}" for k in range(1, len(batch) + 1)]
        heads = list(zip(names, batch, strict=True))
    else:
        heads = [("", batch)]
    for name, value in heads:
        yield from _below(name, value)


def _below(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        inner = [(f"{name}[{key!r}]", each) for key, each in value.items()]
    elif _is_sequence(value):
        inner = [(f"{name}[{k}]", each) for k, each in enumerate(value)]
    else:
        yield name, value
        return
    for deeper, each in inner:
        yield from _below(deeper, each)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence)


def part_of(name: str, what: str) -> str:
    """Return "`name` of `what`", or `what` alone for the one part of a batch, which has no name."""
    return f"{name} of {what}" if name else what


def fits(batch: Batch, like: Tensor, what: str, floats: torch.dtype | None = None) -> Batch:
    """Return a batch after checking that it fits the weights, with tensors in place of numpy arrays.

    Tensors have to lie on the weights' device. Floating-point ones must have the weights' type; those of whole numbers
    and truth values may have any. Arrays are copied to the device: floating-point ones in the weights' type, whole
    numbers as int64, truth values as such. Arrays of anything else (text, objects, complex numbers) stay arrays.

    Args:
        batch: what a loop hands over.
        like: the weights, of whatever floating-point type.
        what: what the batch is, as it reads in an error.
        floats: floating-point type of the batch where it is not that of the weights.

    Returns:
        The batch in the same structure. A list becomes a tuple (a list deeper inside does not), a mapping a dict.

    Raises:
        GradtuneError: the batch is empty, None or without rows, a tensor lies on another device than the weights, or a
            floating-point tensor has another type.
    """
    if batch is None or (isinstance(batch, (tuple, list, Mapping)) and not batch):
        kind = "None" if batch is None else f"an empty {type(batch).__name__}"
        raise GradtuneError(f"{what} is {kind}; expected tensors, such as a pair (x, y)")
    if not rows(batch):
        raise GradtuneError(f"{what} has no row; expected at least one")
    device, wanted = like.device, floats or like.dtype

    def fit(part: Any) -> Any:
        if isinstance(part, Tensor):
            if part.device != device or (part.is_floating_point() and part.dtype != wanted):
                raise _misfit(
                    part_of(next(name for name, each in named(batch) if each is part), what), part, device, wanted
                )
            return part
        return _tensor(part, device, wanted) if isinstance(part, np.ndarray) else part

    return mapped(fit, tuple(batch) if isinstance(batch, list) else batch)


def _misfit(name: str, part: Tensor, device: torch.device, wanted: torch.dtype) -> GradtuneError:
    if part.device != device:
        return GradtuneError(f"{name} lies on {part.device} and the model on {device}; move one: .to({str(device)!r})")
    return GradtuneError(f"{name} is {part.dtype} and the model {wanted}; convert one: .to({wanted})")


def _tensor(array: np.ndarray, device: torch.device, floats: torch.dtype) -> Any:
    """Return an array of numbers as a tensor of its own memory, whatever the array's byte order and strides."""
    kind = array.dtype.kind
    if kind not in "fiub":
        return array
    wide = kind == "f" and array.dtype.itemsize > 8  # long double, which torch does not have
    native = np.float64 if wide else array.dtype.newbyteorder("=") if kind in "fb" else np.int64
    tensor = torch.from_numpy(np.array(array, dtype=native, order="C"))
    return tensor.to(device, floats) if kind == "f" else tensor.to(device)


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device: its tensors, and all else that can be moved by `.to(device)`."""

    def move(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.to(device, non_blocking=True)
        return part.to(device) if callable(getattr(part, "to", None)) else part

    return mapped(move, batch)


def rows(batch: Batch) -> int:
    """Return the rows of a batch: the length of its first part that is a tensor or an array; 1 where there is none."""
    parts = (part for _, part in named(batch))
    return next((len(p) for p in parts if isinstance(p, (Tensor, np.ndarray)) and p.ndim), 1)


def common_rows(batch: Batch, what: str) -> tuple[int, torch.device]:
    """Return how many rows the tensors of a batch have, and the device of the first one.

    Args:
        batch: the batch.
        what: what the batch is, as it reads in an error.

    Raises:
        GradtuneError: a part is no tensor or has no rows, there is no row, or the parts differ in length.
    """
    parts = list(named(batch))
    for name, part in parts:
        if not isinstance(part, Tensor):
            kind = f"array of {part.dtype}" if isinstance(part, np.ndarray) else type(part).__name__
            raise GradtuneError(f"{part_of(name, what)} is a {kind}; expected a tensor, or an array of numbers")
        if not part.dim():
            raise GradtuneError(f"{part_of(name, what)} is one number without rows; expected a tensor [n, ...]")
    lengths = {name: len(part) for name, part in parts}
    first, n = next(iter(lengths.items()))
    if lengths.keys() == {"x", "y"} and not lengths["x"] == lengths["y"] > 0:
        raise GradtuneError(
            f"{what} has {lengths['x']} inputs and {lengths['y']} targets; expected as many, and at least one"
        )
    for name, length in lengths.items():
        if length != n:
            raise GradtuneError(
                f"{what} has {n} rows in {first} and {length} in {name}; expected as many in all parts (batches are "
                "given one by one as a list of tuples or dicts, or as a DataLoader)"
            )
    if not n:
        raise GradtuneError(f"{what} has no row; expected at least one")
    return n, parts[0][1].device
