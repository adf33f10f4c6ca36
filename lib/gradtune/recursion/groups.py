"""Groups of weights that share a value: which tensors belong to which group, and which value each group starts with.

A group is a number; groups by pattern, and those of single tensors, have names as well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, at_least, short, unknown
from gradtune.recursion.transforms import Transform

Patterns = Mapping[str, str | Sequence[str]]
Granularity = str | tuple[int, ...] | Patterns
Value = float | Tensor | Sequence[float] | Mapping[str, float] | Mapping[int, float]

ONE_DIMENSIONAL = "1d"
"""The pattern of all tensors with at most one dimension: biases, and the scales of norms."""

_FEW = 5


class Tensors(NamedTuple):
    """The parameter tensors into which the D weights are split.

    Attributes:
        sizes: numbers of entries.
        names: names, where they are known.
        shapes: shapes, where they are known.
    """

    sizes: Sequence[int]
    names: Sequence[str] | None = None
    shapes: Sequence[Sequence[int]] | None = None

    def checked(self) -> Tensors:
        """Return these tensors.

        Raises:
            GradtuneError: there is not a name and a shape for each size.
        """
        for what, given in (("names", self.names), ("shapes", self.shapes)):
            if given is not None and len(given) != len(self.sizes):
                raise GradtuneError(
                    f"{len(given)} {what} are given for {len(self.sizes)} parameter tensors; give one a tensor"
                )
        return self


@dataclass(frozen=True)
class Groups:
    """The groups of a hyperparameter.

    Attributes:
        owner: name of the hyperparameter.
        count: number of groups.
        index: group of every weight, `[D]`; None where the values do not belong to single weights.
        names: names of the groups, none where they have only numbers.
    """

    owner: str
    count: int
    index: Tensor | None = None
    names: tuple[str, ...] = ()

    def number(self, key: object) -> int:
        """Return the number of a group from its name or its number.

        Raises:
            GradtuneError: there is no such group.
        """
        if key in self.names:
            return self.names.index(str(key))
        if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < self.count:
            return key
        if self.names:
            raise unknown(f"group of {self.owner}", key, self.names)
        raise GradtuneError(
            f"{self.owner} has no group {key!r}; its groups have the numbers 0 to {self.count - 1}, and no names"
        )

    def free(self, tuned: bool | Collection[str | int]) -> Tensor | None:
        """Return the numbers of the groups that are tuned while others are fixed; None for all groups or none.

        Raises:
            GradtuneError: there is no such group.
        """
        if not isinstance(tuned, Collection):
            return None
        numbers = sorted({self.number(key) for key in tuned})
        return None if len(numbers) in (0, self.count) else torch.tensor(numbers)

    def places(self, free: Tensor) -> Tensor:
        """Return where the value of each weight or entry lies in those of `free` followed by those of all groups."""
        place = len(free) + torch.arange(self.count)
        place[free] = torch.arange(len(free))
        return place if self.index is None else place[self.index]


def check_kinds(
    name: object, transform: object, windows: object, bounds: object, difference: object, shape: object
) -> None:
    """Check the parts of a declaration that are names, numbers or a pair of numbers.

    Args:
        name: name of the hyperparameter.
        transform: name of its transform.
        windows: number of its values over time.
        bounds: lowest and highest value.
        difference: half-width of a central difference.
        shape: its shape.

    Raises:
        GradtuneError: one of them is not what it should be.
    """
    if not isinstance(name, str) or not isinstance(transform, str):
        wrong, value = ("transform", transform) if isinstance(name, str) else ("name", name)
        raise GradtuneError(f"the {wrong} of a hyperparameter is {short(value)}; expected text")
    at_least(1, **{f"windows of {name}": windows})  # type: ignore[arg-type]
    if not _is_number(difference) or not difference >= 0:  # type: ignore[operator]
        raise GradtuneError(f"{name} has difference = {short(difference)}; expected a half-width >= 0")
    if not isinstance(shape, tuple) or not all(isinstance(n, Integral) for n in shape):
        raise GradtuneError(f"{name} has the shape {short(shape)}; expected whole numbers")
    two = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(_is_number, bounds))
    if not two or not bounds[0] <= bounds[1]:  # type: ignore[index]
        raise GradtuneError(f"{name} has the bounds {short(bounds)}; expected a lowest and a highest number")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_one_number(value: object) -> bool:
    """Return whether something is a number that a float can hold, or a tensor of one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    try:
        float(value)  # type: ignore[arg-type]
    except (OverflowError, ValueError, TypeError):
        return False
    return _is_number(value)


def frozen(granularity: Granularity) -> Granularity:
    """Return a copy of a granularity that later changes of the given one do not reach; patterns become tuples."""
    if not isinstance(granularity, Mapping):
        return granularity
    return {name: (p,) if isinstance(p, str) else tuple(p) for name, p in granularity.items()}


def divide(owner: str, granularity: Granularity, tensors: Tensors) -> Groups:
    """Return the groups of a hyperparameter of the weights.

    Args:
        owner: name of the hyperparameter.
        granularity: as in `hypers.Hyper`.
        tensors: the parameter tensors.

    Raises:
        GradtuneError: the granularity is unknown, group numbers do not fit the tensors, a tensor has no group or a
            group no tensor, or names or shapes are needed and not known.
    """
    sizes, names = tensors.sizes, tuple(tensors.names or ())
    if granularity == "global":
        return Groups(owner, 1)
    if granularity == "weight":
        return Groups(owner, sum(sizes), torch.arange(sum(sizes)))
    if granularity == "tensor":
        return Groups(owner, len(sizes), _repeated(range(len(sizes)), sizes), names)
    if isinstance(granularity, Mapping):
        return Groups(owner, len(granularity), _repeated(_matched(owner, granularity, tensors), sizes), (*granularity,))
    if not isinstance(granularity, tuple):
        raise unknown("granularity", granularity, ["global", "tensor", "weight"])
    if len(granularity) != len(sizes) or set(granularity) != set(range(len(set(granularity)))):
        raise GradtuneError(
            f"{owner} has the groups {granularity} for {len(sizes)} parameter tensors; "
            "expected one number a tensor, counted from 0 without gaps"
        )
    return Groups(owner, len(set(granularity)), _repeated(granularity, sizes))


def _repeated(numbers: Sequence[int], sizes: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.tensor(list(numbers)), torch.tensor(list(sizes)))


def _matched(owner: str, patterns: Patterns, tensors: Tensors) -> list[int]:
    """Number of the first group with a pattern that matches, for each tensor."""
    if tensors.names is None:
        raise GradtuneError(
            f"{owner} has groups by pattern, and the names of the parameter tensors are not known; "
            "give Hypers(..., names=layout.names), or a group number for each tensor"
        )
    if tensors.shapes is None and ONE_DIMENSIONAL in (p for each in patterns.values() for p in each):
        raise GradtuneError(
            f"{owner} has the pattern {ONE_DIMENSIONAL!r} of tensors with at most one dimension, and their shapes are "
            "not known; give Hypers(..., shapes=layout.shapes)"
        )
    dimensions = [2] * len(tensors.names) if tensors.shapes is None else [len(s) for s in tensors.shapes]
    found = [_first(patterns, name, d) for name, d in zip(tensors.names, dimensions, strict=True)]
    left = [name for name, g in zip(tensors.names, found, strict=True) if g is None]
    if left:
        raise GradtuneError(
            f"no group of {owner} matches the parameter tensors {_few(left)}; add a pattern for them, such as '*' in "
            "the last place"
        )
    for number, (group, each) in enumerate(patterns.items()):
        if number not in found:
            raise GradtuneError(
                f"the group {group!r} of {owner} has none of the trained parameter tensors {_few(tensors.names)}: its "
                f"pattern {_few(each)} matches none, or groups before it have them; correct it, or put it first"
            )
    return [g for g in found if g is not None]


def _first(patterns: Patterns, name: str, dimensions: int) -> int | None:
    def matches(pattern: str) -> bool:
        return dimensions <= 1 if pattern == ONE_DIMENSIONAL else fnmatchcase(name, pattern)

    return next((k for k, each in enumerate(patterns.values()) if any(map(matches, each))), None)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def start(value: Value, groups: Groups, windows: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return the initial natural values of a hyperparameter, `[R, groups, windows]`.

    Args:
        value: as in `hypers.Hyper`.
        groups: its groups, or its entries where it has a shape.
        windows: number of time windows.
        shape: shape of a hyperparameter that is no number, else ().
        like: tensor `[R, ...]` with the number of runs, the type and the device.

    Raises:
        GradtuneError: the shape of `value` does not fit, or its names of groups are not those of the groups.
    """
    runs = len(like)
    if isinstance(value, Mapping):
        value = _in_order(value, groups)
    try:
        x = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise GradtuneError(f"{groups.owner} has the value {short(value)}; expected a number, or numbers") from None
    given, fits = tuple(x.shape), True
    if shape:
        expected = f"a number, {list(shape)} or {[runs, *shape]} (one a run)"
        fits = given in ((), shape, (runs, *shape))
        x = x.reshape(-1, groups.count, 1) if fits and given else x
    else:
        by_group = f" [{groups.count}] (one a group)," * (groups.count > 1)
        expected = f"a number,{by_group} [{runs}] (one a run) or [{runs}, {groups.count}, {windows}]"
        x = _placed(x, groups.count, windows, runs, isinstance(value, Tensor))
    try:
        if fits:
            return x.expand(runs, groups.count, windows)
    except RuntimeError:
        pass
    raise GradtuneError(f"{groups.owner} has a value of shape {given}; expected {expected}")


def _placed(x: Tensor, groups: int, windows: int, runs: int, tensor: bool) -> Tensor:
    """A vector of values where it belongs in `[R, groups, windows]`.

    Of a tensor the runs come first, as they always did, and of a list the groups.
    """
    if x.dim() != 1:
        return x
    if len(x) == runs and (tensor or len(x) != groups):
        return x[:, None, None]
    return x[:, None] if len(x) == groups and not (tensor and len(x) == windows) else x


def _in_order(value: Mapping[str, float] | Mapping[int, float], groups: Groups) -> list[float]:
    by_number = {groups.number(key): x for key, x in value.items()}
    missing = [k for k in range(groups.count) if k not in by_number]
    if missing:
        names = [groups.names[k] if groups.names else str(k) for k in missing]
        raise GradtuneError(f"{groups.owner} has no value for the groups {_few(names)}; give one for each group")
    return [by_number[k] for k in range(groups.count)]


def check(
    name: str,
    value: Tensor,
    bounds: tuple[float, float],
    transform: Transform,
    tuned: bool,
    free: Tensor | None = None,
) -> None:
    """Check the initial natural values of a hyperparameter.

    Args:
        name: its name.
        value: its values `[R, groups, windows]`.
        bounds: lowest and highest natural value.
        transform: its transform.
        tuned: whether it is tuned. Then no value may be an end of the transform's range.
        free: numbers of the groups that are tuned while the others are fixed. Those have no bounds.

    Raises:
        GradtuneError: a value is NaN, outside its bounds or outside the transform's range.
    """
    if value.isnan().any():
        raise GradtuneError(f"{name} has the initial value nan; expected a number")
    if free is not None:
        mine = torch.isin(torch.arange(value.shape[1]), free)
        check(name, value[:, ~mine], (-math.inf, math.inf), transform, False)
        value = value[:, mine]
    low, high = max(bounds[0], transform.low), min(bounds[1], transform.high)
    open_low, open_high = low == transform.low, high == transform.high
    bad = (
        (value < low) | (value > high) | ((value == low) & (open_low & tuned)) | ((value == high) & (open_high & tuned))
    )
    if bad.any():
        raise GradtuneError(
            f"{name} = {float(value[bad][0]):g} is outside "
            f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}; "
            f"choose a value inside, or other bounds or another transform than {transform.name}"
        )


def raw_bounds(bounds: tuple[float, float], transform: Transform) -> tuple[float, float]:
    """Return the lowest and the highest raw coordinate, as precise as float64."""
    natural = torch.tensor(bounds, dtype=torch.float64).clamp(transform.low, transform.high)
    low, high = transform.inverse(natural).tolist()  # as numbers: a recorded block must not ask tensors for values
    return low, high


def neighbours(layers: Sequence[str], groups: int) -> tuple[int, ...]:
    """Granularity of groups of neighbouring layers, as equal in size as they can be (OHO, Section 6.2).

    Args:
        layers: names of the parameter tensors (`Layout.names`); tensors of one module, such as "2.weight" and "2.bias",
            are one layer.
        groups: number of groups, from 1 to the number of layers.

    Returns:
        A group number for each parameter tensor.

    Raises:
        GradtuneError: `groups` is below 1 or above the number of layers.
    """
    owners = list(dict.fromkeys(n.rpartition(".")[0] for n in layers))
    if not 1 <= groups <= len(owners):
        raise GradtuneError(f"{groups} groups were asked of {len(owners)} layers; expected 1 to {len(owners)}")
    return tuple(owners.index(n.rpartition(".")[0]) * groups // len(owners) for n in layers)
