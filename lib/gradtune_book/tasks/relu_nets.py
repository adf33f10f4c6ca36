"""Mean squared errors of many nets with one hidden ReLU layer on shared rows, their gradients and Hessian products.

A ReLU net is linear while the signs of its units stay. With M `[R, H, N]`, 1 where a unit is active, and the rows x
with a last entry of 1, the output is o = <second, M (first x)> + bias, and for weights c of the rows all derivatives of
<c, o> follow from the sums G = sum c x M and S = sum c::

    by first: second G      by second: <first, G>      by bias: S

The loss has c = 2 (o - y) / N. A product with its Hessian is the same pair of sums with other c, for M is constant but
for kinks. `relu_sums` and `relu_sums_backward` are these two, as operations that a trace keeps whole. Everything around
them is plain tensor arithmetic on weights.

They go through the rows in blocks whose activations fit in a processor's cache: the activations are read four times a
gradient, and from memory that would take most of its time. On a CPU with a C++ compiler (`gradtune.nets.compiled`) they
are those of `relu_nets.cpp`, two to six times as fast as torch's products of such narrow matrices and equal to
rounding. A whole training step is up to four times as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, library

from gradtune.nets import compiled

_SOURCE = Path(__file__).with_suffix(".cpp")
_CACHED = 2**20  # bytes of activations at a time on a CPU; of 2^18 to 2^21 about the fastest, with 1 MB of L2 a core


def _blocks(first: Tensor, x: Tensor) -> Iterator[slice]:
    """Columns of x to take at once."""
    rows = x.shape[1]
    most = max(64, _CACHED // (first.shape[:2].numel() * first.element_size())) if x.device.type == "cpu" else rows
    count = -(-rows // most)
    edges = [rows * k // count for k in range(count + 1)]
    return (slice(a, b) for a, b in pairwise(edges))


def _active(first: Tensor, x: Tensor) -> Tensor:
    """Activations `[R, H, N]`."""
    return torch.mm(first.flatten(0, 1), x).relu_().view(*first.shape[:2], -1)


def _empty(first: Tensor) -> tuple[Tensor, Tensor]:
    """Room for G and S."""
    return first.new_empty(first.shape), first.new_empty(len(first), 1)


def _compiled(name: str, rows: int, arguments: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> bool:
    """Let `relu_nets.cpp` compute `out` if it can: on a CPU, in float32 or float64, where there is a compiler."""
    first = arguments[0]
    kind = {torch.float32: "float32", torch.float64: "float64"}.get(first.dtype)
    if first.device.type != "cpu" or kind is None or (loaded := compiled.load(_SOURCE)) is None:
        return False
    tensors = (*(a.contiguous() for a in arguments), *out)
    compiled.call(loaded[f"{name}_{kind}"], tensors, (*first.shape, rows))
    return True


@library.custom_op("gradtune::relu_loss", mutates_args=())
def relu_loss(first: Tensor, second: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared errors `[R]` of R nets, differentiable twice in their weights, by reverse mode.

    Cost, in multiplications: R N H (F + 1) for the losses, 2 R N H (F + 1) for their gradient, 3 R N H (F + 1) for a
    Hessian product. Memory: a block of activations; on a GPU all activations are one block.

    Args:
        first: Weights and biases of the hidden layer, `[R, H, F + 1]`.
        second: Weights of the output, `[R, H]`.
        bias: Bias of the output, `[R, 1]`.
        x: Rows as columns, `[F + 1, N]`, the last entries 1.
        y: Targets `[N]`.
    """
    total = torch.zeros_like(bias[:, 0])
    if _compiled("loss", len(y), (first, second, bias, x, y), (total,)):
        return total
    for at in _blocks(first, x):
        error = torch.bmm(second[:, None], _active(first, x[:, at]))[:, 0] + bias - y[at]
        total += error.square_().sum(1)
    return total / len(y)


@library.custom_op("gradtune::relu_sums", mutates_args=())
def relu_sums(first: Tensor, second: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return G `[R, H, F + 1]` and S `[R, 1]` of the losses' gradients; the arguments are those of `relu_loss`."""
    if _compiled("sums", len(y), (first, second, bias, x, y), out := _empty(first)):
        return out
    g, s = torch.zeros_like(first).mT.contiguous(), torch.zeros_like(bias)
    for at in _blocks(first, x):
        active = _active(first, x[:, at])
        c = (torch.bmm(second[:, None], active) + bias[:, :, None] - y[at]).mul_(2 / len(y))
        s += c.sum(2)
        g.baddbmm_(c * x[:, at], active.sign_().mT)
    return g.mT.contiguous(), s


@library.custom_op("gradtune::relu_sums_backward", mutates_args=())
def relu_sums_backward(first: Tensor, z: Tensor, z_s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sums G and S of the gradient of <z, G> + <z_s, S>, whose weights are c = 2 (<z x, M> + z_s) / N."""
    if _compiled("sums_backward", x.shape[1], (first, z, z_s, x), out := _empty(first)):
        return out
    g, s = torch.zeros_like(first).mT.contiguous(), torch.zeros_like(z_s)
    for at in _blocks(first, x):
        mask, part = _active(first, x[:, at]).sign_(), x[:, at]
        c = torch.bmm(z.mT, mask).mul_(part).sum(1, keepdim=True).add_(z_s[:, :, None]).mul_(2 / x.shape[1])
        s += c.sum(2)
        g.baddbmm_(c * part, mask.mT)
    return g.mT.contiguous(), s


def _gradient(first: Tensor, second: Tensor, g: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return second[:, :, None] * g, (first * g).sum(-1), s


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _loss_backward(ctx, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    first, second, bias, x, y = ctx.saved_tensors
    g, s = relu_sums(first, second, bias, x, y)
    scale = scale[:, None]
    return *_gradient(first, second, g * scale[:, :, None], s * scale), None, None


def _sums_backward(ctx, z: Tensor, z_s: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    first, second, _, x, _ = ctx.saved_tensors
    return *_gradient(first, second, *relu_sums_backward(first, z, z_s, x)), None, None


relu_loss.register_autograd(_loss_backward, setup_context=_save)
relu_sums.register_autograd(_sums_backward, setup_context=_save)
