"""Steps of base optimisers on lists of tensors, for `gradtune.optim`.

They are the rules of `gradtune.recursion.rules`, where every weight tensor keeps its own memory and a whole list goes
through each operation at once.

A step returns the change of the weights, `w_{t+1} - w_t`, without having made it: MetaOptimize adds it to the weights
and to its trace. The difference of the weights before and after would lose the change's digits where the learning rate
is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtune.optim.shards import Place

Rate = float | Tensor
"""A learning rate: a number on the CPU; elsewhere a tensor of no dimensions, so that nothing waits for the device."""


# Weights that go through a step together on the CPU. The tensors in between are then small enough for the allocator to
# keep their memory from one piece to the next, which saves a quarter of the time at 10 million weights.
PIECE = 1 << 20


@dataclass
class Bucket:
    """Parameters of one group, block, device and dtype, with their gradients and states in the same order.

    Attributes:
        group: the parameter group, with its hyperparameters.
        block: number of the learning rate that the parameters share.
        params: the parameters.
        grads: their gradients.
        states: their states by name: buffers and trace in the shape of the parameters, and counters without dimensions.
        place: where DTensors are laid; `params` and the rest are then this process's parts.
    """

    group: Mapping[str, Any]
    block: int
    params: list[Tensor]
    grads: list[Tensor]
    states: dict[str, list[Tensor]]
    place: Place | None = None

    def real(self) -> Bucket:
        """Return complex tensors as pairs of real numbers, in the same memory."""
        pairs = {n: [torch.view_as_real(x) if x.is_complex() else x for x in each] for n, each in self.states.items()}
        grads = [x.resolve_conj().resolve_neg() for x in self.grads]
        params, grads = ([torch.view_as_real(x) for x in each] for each in (self.params, grads))
        return Bucket(self.group, self.block, params, grads, pairs, self.place)

    def pieces(self, size: int) -> Iterator[Bucket]:
        """Yield the bucket in flat pieces of about `size` weights; large tensors are cut.

        A bucket of at most `size` weights comes whole and in its shapes. So does one away from the CPU, and one whose
        weights do not lie densely in the memory.
        """
        dense = all(p.stride() == g.stride() for p, g in zip(self.params, self.grads))
        small = sum(p.numel() for p in self.params) <= size
        if small or not dense or self.params[0].device.type != "cpu":
            yield self
            return
        rows, weights = [], 0
        for row in self._rows(size):
            rows.append(row)
            weights += len(row[0])
            if weights >= size:
                yield self._of(rows)
                rows, weights = [], 0
        if rows:
            yield self._of(rows)

    def _rows(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield flat views of each parameter or of its parts: weights, gradient, states. Every part has the counter."""
        for row in zip(self.params, self.grads, *self.states.values()):
            parts = -(-row[0].numel() // size)
            flat = [_flat(x) if x.shape == row[0].shape else x for x in row]
            if parts == 1:
                yield tuple(flat)
            else:
                yield from zip(*(x.split(size) if x.dim() else (x,) * parts for x in flat))

    def _of(self, rows: list[tuple[Tensor, ...]]) -> Bucket:
        params, grads, *states = map(list, zip(*rows))
        return Bucket(self.group, self.block, params, grads, dict(zip(self.states, states)), self.place)


def _flat(x: Tensor) -> Tensor:
    """Return a dense tensor's entries in the order of the memory, `[entries]`."""
    return x if x.dim() == 1 else x.as_strided((x.numel(),), (1,))


@dataclass(frozen=True)
class Base:
    """A base optimiser.

    Attributes:
        step: returns the change of the weights; it updates the buffers, and counts nothing.
        plain: returns the normalised gradient, the step's direction without momentum and weight decay; to be called
            after `step`.
        buffers: names of the states that have the weights' shape.
        defaults: hyperparameters of a parameter group beside the learning rate, with their default values.
        counted: whether it needs the number of steps, this one included, in the state "step".
    """

    step: Callable[[Bucket, Rate], list[Tensor]]
    plain: Callable[[Bucket], list[Tensor]]
    buffers: tuple[str, ...]
    defaults: Mapping[str, Any]
    counted: bool = False


def _typed(rate: Rate, tensors: list[Tensor]) -> Rate:
    """Return a rate in the tensors' type, where no digit that counts is lost.

    With a scalar of another type than theirs, torch's operations on lists take a kernel a tensor on a GPU. Half
    precision keeps the digits of the rate instead.
    """
    kind = tensors[0].dtype
    return rate.to(kind) if isinstance(rate, Tensor) and kind in (torch.float32, torch.float64) else rate


def _scaled(tensors: list[Tensor], factor: Rate) -> list[Tensor]:
    """Return `factor tensors`."""
    return list(torch._foreach_mul(tensors, _typed(factor, tensors)))


def add_scaled(to: list[Tensor], what: list[Tensor], factor: Rate) -> None:
    """Set `to <- to + factor what`, in place."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(to, _scaled(what, factor))
    else:
        torch._foreach_add_(to, what, alpha=factor)


def scale_and_add(to: list[Tensor], factor: Rate, what: list[Tensor]) -> None:
    """Set `to <- factor to + what`, in place.

    On the CPU it is one pass over the memory, as passes are what takes the time there.
    """
    if isinstance(factor, Tensor):
        torch._foreach_mul_(to, _typed(factor, to))
        torch._foreach_add_(to, what)
    else:
        for each, other in zip(to, what):
            torch.add(other, each, alpha=factor, out=each)


def inner(left: list[Tensor], right: list[Tensor]) -> Rate:
    """Return the inner product of two lists of dense tensors with the same strides.

    It is a number on the CPU, else a tensor.
    """
    if left[0].dtype in (torch.float16, torch.bfloat16):  # a sum over many weights needs more digits
        return inner([x.float() for x in left], [x.float() for x in right])
    if left[0].device.type == "cpu":
        return sum(torch.dot(_flat(a), _flat(b)).item() for a, b in zip(left, right))
    sides = ([_flat(each) for each in side] for side in (left, right))
    return torch.dot(*(torch.cat(side) if len(side) > 1 else side[0] for side in sides))


def _decayed(change: list[Tensor], bucket: Bucket, lr: Rate) -> list[Tensor]:
    """Add decoupled weight decay to the change, in place, and return it."""
    if bucket.group["weight_decay"]:
        add_scaled(change, bucket.params, -lr * bucket.group["weight_decay"])
    return change


def _gradient(bucket: Bucket) -> list[Tensor]:
    return bucket.grads


def _sgd(bucket: Bucket, lr: Rate) -> list[Tensor]:
    return _decayed(_scaled(bucket.grads, -lr), bucket, lr)


def _sgdm(bucket: Bucket, lr: Rate) -> list[Tensor]:
    v = bucket.states["momentum_buffer"]
    scale_and_add(v, bucket.group["momentum"], bucket.grads)
    if bucket.group["weight_decay"]:
        add_scaled(v, bucket.params, bucket.group["weight_decay"])
    return _scaled(v, -lr)


def _over_root(grads: list[Tensor], root: list[Tensor], eps: float) -> list[Tensor]:
    torch._foreach_add_(root, eps)
    return list(torch._foreach_div(grads, root))


def _rmsprop_plain(bucket: Bucket) -> list[Tensor]:
    return _over_root(bucket.grads, list(torch._foreach_sqrt(bucket.states["square_avg"])), bucket.group["eps"])


def _rmsprop(bucket: Bucket, lr: Rate) -> list[Tensor]:
    v, decay = bucket.states["square_avg"], bucket.group["alpha"]
    torch._foreach_mul_(v, decay)
    torch._foreach_addcmul_(v, bucket.grads, bucket.grads, value=1 - decay)
    change = _rmsprop_plain(bucket)
    torch._foreach_mul_(change, _typed(-lr, change))
    return _decayed(change, bucket, lr)


def _adamw(bucket: Bucket, lr: Rate) -> list[Tensor]:
    """Run the fused kernel, whose "weights" are the change so far: the weight decay."""
    group = bucket.group
    decay = group["weight_decay"]
    v = bucket.states["exp_avg_sq"]
    change = _scaled(bucket.params, -lr * decay) if decay else [torch.zeros_like(x) for x in v]
    torch._fused_adamw_(
        change,
        bucket.grads,
        bucket.states["exp_avg"],
        v,
        [],
        bucket.states["step"],
        lr=lr.float() if isinstance(lr, Tensor) else lr,  # what the kernel reads
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
    return change


def _adamw_plain(bucket: Bucket) -> list[Tensor]:
    root = list(torch._foreach_sqrt(bucket.states["exp_avg_sq"]))
    b2 = bucket.group["betas"][1]
    steps = [k.double() for k in bucket.states["step"]]  # float32 would lose the digits of 1 - b2^k
    torch._foreach_div_(root, [(1 - b2**k).sqrt() for k in steps])
    return _over_root(bucket.grads, root, bucket.group["eps"])


def _lion(bucket: Bucket, lr: Rate) -> list[Tensor]:
    m, (b1, b2) = bucket.states["exp_avg"], bucket.group["betas"]
    change = list(torch._foreach_lerp(bucket.grads, m, b1))
    torch._foreach_sign_(change)
    torch._foreach_mul_(change, _typed(-lr, change))
    torch._foreach_lerp_(m, bucket.grads, 1 - b2)
    return _decayed(change, bucket, lr)


def _lion_plain(bucket: Bucket) -> list[Tensor]:
    return list(torch._foreach_sign(bucket.grads))


BASES = {
    "sgd": Base(_sgd, _gradient, (), {"weight_decay": 0.0}),
    "sgdm": Base(_sgdm, _gradient, ("momentum_buffer",), {"weight_decay": 0.0, "momentum": 0.9}),
    "rmsprop": Base(_rmsprop, _rmsprop_plain, ("square_avg",), {"weight_decay": 0.0, "alpha": 0.99, "eps": 1e-8}),
    "adamw": Base(
        _adamw,
        _adamw_plain,
        ("exp_avg", "exp_avg_sq"),
        {"weight_decay": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8},
        counted=True,
    ),
    "lion": Base(_lion, _lion_plain, ("exp_avg",), {"weight_decay": 0.0, "betas": (0.9, 0.99)}),
}
"""The base optimisers by name, with the defaults of their namesakes in `torch.optim` (Lion: of its paper)."""


def advance(bucket: Bucket, lr: Rate, keep: Rate, base: Base, package: bool) -> Rate:
    """Step a bucket's weights, buffers, counters and traces.

    Args:
        bucket: the bucket.
        lr: its learning rate.
        keep: what multiplies the old trace.
        base: the base optimiser.
        package: whether the traces are those of normalised gradients.

    Returns:
        The inner product of gradients and old traces.
    """
    if base.counted:
        torch._foreach_add_(bucket.states["step"], 1)
    size = PIECE // 4 if package else PIECE  # the former has more tensors in between
    return sum(_move(piece, lr, keep, base, package) for piece in bucket.pieces(size))


def _move(piece: Bucket, lr: Rate, keep: Rate, base: Base, package: bool) -> Rate:
    trace = piece.states["trace"]
    if piece.group["maximize"]:
        piece.grads = list(torch._foreach_neg(piece.grads))
    product = inner(trace, piece.grads)
    change = base.step(piece, lr)
    if package:
        torch._foreach_mul_(trace, _typed(keep, trace))
        add_scaled(trace, base.plain(piece), -lr)
    else:
        scale_and_add(trace, keep, change)
    torch._foreach_add_(piece.params, change)
    return product
