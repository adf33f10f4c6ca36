"""A step of `MetaOptimize` as one pass over the memory, for `gradtune.optim`: `fused.cpp`, compiled when first used.

The operations of `gradtune.optim.foreach` read and write the weights and their states several times a step, which is
what takes the time on a CPU. Here every number is read once and written once, and the inner product is summed on the
way. Both forms agree to rounding.

The kernels run through the memory, so they take dense tensors whose states lie in the same order. What they do not take
is left to the operations of torch: other devices and types than float32 and float64, DTensors, subclasses of tensors,
slices of larger tensors, and a machine without a C++ compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gradtune.errors import GradtuneError
from gradtune.nets import compiled
from gradtune.optim import shards
from gradtune.optim.foreach import BASES, Base, Bucket

SOURCE = Path(__file__).with_suffix(".cpp")
TYPES = {torch.float32: "float32", torch.float64: "float64"}
"""The types that have kernels."""


@cache
def kernel(base: str, dtype: torch.dtype) -> Callable[..., float] | None:
    """Return the kernel of a base optimiser for a type; None where there is none.

    The first call compiles the file, which takes one or two seconds, if no earlier program has done it.
    """
    if dtype not in TYPES:
        return None
    library = compiled.load(SOURCE, "-fopenmp") or compiled.load(SOURCE)  # several threads, or one
    if library is None:
        return None
    function = library[f"{base}_{TYPES[dtype]}"]
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, number, pointer, number, number]
    function.restype = ctypes.c_double
    return function


def advance(bucket: Bucket, lr: float, keep: float, base: str, package: bool) -> float | None:
    """Step a bucket's weights, buffers, counters and traces.

    Args:
        bucket: the bucket.
        lr: its learning rate.
        keep: what multiplies the old trace.
        base: name of the base optimiser.
        package: whether the traces are those of normalised gradients.

    Returns:
        The inner product of gradients and old traces; None where the kernels do not take the bucket, and nothing has
        changed then.
    """
    dtype = bucket.params[0].dtype
    if bucket.place is not None or (found := _memory(bucket, BASES[base], dtype)) is None:
        return None
    if (function := kernel(base, dtype)) is None:
        return None
    pointers, sizes = found
    increment_version(bucket.params)  # as operations of torch do, by which autograd notices a change
    numbers = (ctypes.c_double * 7)(lr, keep, *_numbers(bucket.group, BASES[base].defaults))
    places, counts = (ctypes.c_void_p * len(pointers))(*pointers), (ctypes.c_int64 * len(sizes))(*sizes)
    return function(places, counts, len(sizes), numbers, package, torch.get_num_threads())


def _numbers(group: Mapping[str, Any], own: Iterable[str]) -> tuple[float, ...]:
    """Return the base's own hyperparameters out of a group, which may have more, as the kernels want them."""
    decays = group["betas"] if "betas" in own else [group[name] for name in ("momentum", "alpha") if name in own]
    first, second = (*decays, 0.0, 0.0)[:2]
    sign = -1.0 if group["maximize"] else 1.0
    return group["weight_decay"], sign, first, second, group["eps"] if "eps" in own else 0.0


def _memory(bucket: Bucket, base: Base, dtype: torch.dtype) -> tuple[list[int], list[int]] | None:
    """Return where a bucket's tensors lie, and their numbers of entries; None where the kernels do not take them."""
    params = bucket.params
    columns = [params, bucket.grads, *(bucket.states[name] for name in ("trace", *base.buffers))]
    shaped, counters = [x for column in columns for x in column], bucket.states["step"] if base.counted else []
    if not (_plain(shaped, dtype) and _plain(counters, torch.float32)):
        return None
    sizes = list(map(Tensor.numel, params))
    if list(map(Tensor.numel, shaped)) != sizes * len(columns) or not {1}.issuperset(map(Tensor.numel, counters)):
        return None
    if not all(map(Tensor.is_contiguous, shaped)) and not all(_aligned(row) for row in zip(*columns)):
        return None
    pointers = [*map(Tensor.data_ptr, shaped), *map(Tensor.data_ptr, counters)]
    return (pointers, sizes) if all(pointers) else None  # a tensor without memory has entries that lie nowhere


def _plain(tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Tell whether all numbers are in the memory of the CPU as the tensors show them."""
    types = shards.PLAIN.issuperset(map(type, tensors)) and {dtype}.issuperset([x.dtype for x in tensors])
    return types and False not in [x.is_cpu for x in tensors] and not any(map(Tensor.is_neg, tensors))


def _aligned(row: Sequence[Tensor]) -> bool:
    """Tell whether tensors lie densely in the same order."""
    return _dense(row[0]) and all(x.stride() == row[0].stride() for x in row)


def _dense(x: Tensor) -> bool:
    """Tell whether a tensor's entries fill a piece of the memory, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def check(number: int, params: Sequence[Tensor], base: str) -> None:
    """Check that the kernels take the parameters of a group that asks for them.

    "adamw" has a fused kernel of torch on other devices.

    Args:
        number: number of the group, for the message of the error.
        params: its parameters.
        base: name of the base optimiser.

    Raises:
        GradtuneError: there are no kernels for some parameter.
    """
    for k, p in enumerate(params):
        if p.device.type != "cpu" and base == "adamw":
            continue
        asked = f"fused = True in parameter group {number}, and "
        dtype = p.dtype.to_real() if p.is_complex() else p.dtype
        if p.device.type != "cpu" or dtype not in TYPES or type(p) not in shards.PLAIN:
            kind = "tensor" if type(p) in shards.PLAIN else type(p).__name__
            raise GradtuneError(
                f"{asked}parameter {k} is a {kind} of {str(p.dtype).removeprefix('torch.')} on {p.device.type}; "
                "leave it out, or give plain tensors of float32 or float64 on the CPU"
            )
        if kernel(base, dtype) is None:
            raise GradtuneError(f"{asked}there is no C++ compiler that makes the kernel; leave it out, or install one")
