"""Convolution, batch norm and ReLU with a lean derivative of their gradient, for the Hessian products of a step.

`lean()` is a context in which `torch.conv1d` to `conv3d`, `relu`, and `torch.nn.functional.batch_norm` in training mode
keep their values and gradients, which come from torch's own kernels, and differentiate the gradient by the formulas
below. torch's formulas cost more:

* That for a convolution takes the weights' share as a convolution with the images as kernels, for which CPUs have no
  fast kernel.
* That for batch norm makes about 30 passes over the activations.
* That for ReLU adds a tensor of zeros, the second derivative.

`step.Step` asks for `lean` (`wanted`) where it builds a graph over a gradient, and `modules.batched` grants it to a
module with such layers. Inside `torch.func` transforms (several runs under `vmap`), under autocast, and for forms not
covered here torch's own formulas stay in charge; both are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.functional import batch_norm, relu
from torch.overrides import TorchFunctionMode

from gradtune.errors import GradtuneError

_aten = torch.ops.aten
_wanted: ContextVar[str] = ContextVar("wanted", default="")  # or "reverse" or "forward"
_counter: ContextVar[Count | None] = ContextVar("counter", default=None)


@contextmanager
def wanted(forward: bool = False) -> Iterator[None]:
    """Context: the gradient of the losses computed inside is going to be differentiated.

    Args:
        forward: whether by tangents, for which torch's own formulas stay in charge, and not by a graph over it.
    """
    token = _wanted.set("forward" if forward else "reverse")
    try:
        yield
    finally:
        _wanted.reset(token)


class Count:
    """A counter of products of a Hessian, or of a mixed derivative, with a vector.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def counting() -> Iterator[Count]:
    """Context: count the Hessian products of training steps."""
    token = _counter.set(count := Count())
    try:
        yield count
    finally:
        _counter.reset(token)


def counted() -> None:
    """Count a Hessian product, where `counting` is in force."""
    count = _counter.get()
    if count is not None:
        count.count += 1


def is_counting() -> bool:
    """Return whether the context `counting` is in force."""
    return _counter.get() is not None


def is_wanted() -> bool:
    """Return whether the context `wanted` is in force."""
    return bool(_wanted.get())


def layers_in(module: nn.Module) -> bool:
    """Return whether `module` has layers that `lean` makes cheaper.

    ReLU alone is none: torch's tensor of zeros costs less there than a function written in Python.
    """
    return any(isinstance(m, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)) for m in module.modules())


def granted(has_layers: bool) -> AbstractContextManager[object]:
    """Return `lean()` where it is wanted and there are layers for it, else a context without effect.

    `lean()` costs every call inside it a little, so it is left out where it brings nothing.

    Args:
        has_layers: what `layers_in` says of the module.
    """
    return lean() if has_layers and _wanted.get() == "reverse" else nullcontext()


class lean(TorchFunctionMode):
    """Context in which convolutions, batch norms and ReLUs have the lean second derivative.

    Raises:
        GradtuneError: the gradient of batch norm is to be differentiated twice; here it can be differentiated once.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        replacement, kwargs = _REPLACEMENTS.get(func), kwargs or {}
        if replacement is None or any(_elsewhere(a) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)):
            return func(*args, **kwargs)
        return replacement(func, *args, **kwargs)


def _elsewhere(x: Tensor) -> bool:
    """Return whether torch's own formulas stay in charge of an operation on `x`."""
    return is_functorch_wrapped_tensor(x) or torch.is_autocast_enabled(x.device.type) or x.is_complex()


# --- convolution ------------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """The arguments of a convolution that are no tensors, in the order of `aten.convolution`."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def convolve(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        zero = [0] * len(self.stride)
        return _aten.convolution(x, w, b, self.stride, self.padding, self.dilation, False, zero, self.groups)

    def backward(self, g: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> tuple[Tensor | None, ...]:
        """Return the cotangents of x, w and the bias, None where the mask is False."""
        zero, bias = [0] * len(self.stride), [len(w)]
        rest = (bias, self.stride, self.padding, self.dilation, False, zero, self.groups)
        if mask[1] and _few_channels(x):
            to_x = _aten.convolution_backward(g, x, w, *rest, [mask[0], False, mask[2]]) if mask[0] else (None,) * 3
            last = torch.channels_last
            g, x = g.contiguous(memory_format=last), x.contiguous(memory_format=last)
            to_w = _aten.convolution_backward(g, x, w, *rest, [False, True, mask[2] and not mask[0]])
            return to_x[0], to_w[1], to_x[2] if mask[0] else to_w[2]
        return _aten.convolution_backward(g, x, w, *rest, mask)


def _few_channels(x: Tensor) -> bool:
    """Return whether x is the input of an inner layer with fewer channels than a vector register holds.

    CPUs take the gradient of such a layer's weights faster with the channels last, the copies included (LeNet's second
    layer: 1.7 in place of 2.6 ms). Images come with 1 or 3 channels, and for them it does not pay.
    """
    return x.dim() == 4 and 3 < x.shape[1] < 16 and x.device.type == "cpu"


def _convolution(
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    sizes = weight.dim() - 2
    if isinstance(padding, str) or input.dim() != weight.dim():
        return func(input, weight, bias, stride, padding, dilation, groups)
    lists = ([v] * sizes if isinstance(v, int) else (list(v) * sizes)[:sizes] for v in (stride, padding, dilation))
    return _Convolution.apply(input, weight, bias, _Shape._make((*lists, groups)))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, shape: _Shape) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.shape = shape
        return shape.convolve(x, w, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *_ConvolutionBackward.apply(g, *ctx.saved_tensors, ctx.shape, list(ctx.needs_input_grad[:3])), None


class _ConvolutionBackward(torch.autograd.Function):
    """The gradient of a convolution, (g, x, w) -> (dx, dw, db).

    With z the cotangents of these three, `<zx, dx> + <zw, dw>` is the same bilinear form as
    `<g, conv(zx, w) + conv(x, zw)>`, so that each share is a convolution or a gradient of one.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, shape: _Shape, mask: list[bool]) -> Any:
        ctx.save_for_backward(g, x, w)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return shape.backward(g, x, w, mask)

    @staticmethod
    def backward(ctx: Any, zx: Tensor | None, zw: Tensor | None, zb: Tensor | None) -> Any:
        (g, x, w), shape, need = ctx.saved_tensors, ctx.shape, ctx.needs_input_grad
        of_g = shape.convolve(x, zw, zb) if zw is not None and need[0] else None
        if zx is not None and need[0]:
            through_x = shape.convolve(zx, w, zb if of_g is None else None)
            of_g = through_x if of_g is None else of_g + through_x
        elif of_g is None and zb is not None and need[0]:
            of_g = zb.reshape(-1, *[1] * (g.dim() - 2)).expand_as(g)
        of_x = shape.backward(g, x, zw, [True, False, False])[0] if zw is not None and need[1] else None
        of_w = shape.backward(g, zx, w, [False, True, False])[1] if zx is not None and need[2] else None
        return of_g, of_x, of_w, None, None


# --- batch norm -------------------------------------------------------------------------------------------------------


def _batch_norm(
    func: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or weight is None or bias is None or not _one_type_and_several_rows(input, weight):
        return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


def _one_type_and_several_rows(x: Tensor, w: Tensor) -> bool:
    """Return whether x is in the number type of the weights and has more than one value a channel."""
    return x.dtype == w.dtype and x.dim() > 1 and x.numel() > x.shape[1]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, mean, inverse = torch.native_batch_norm(x, w, b, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, w, mean, inverse)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *_BatchNormBackward.apply(g, *ctx.saved_tensors, ctx.eps), None, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    """The gradient of batch norm, (g, x, w) -> (dx, dw, db).

    With, per channel of m entries, `h = (x - mean) r` and `r = 1 / sqrt(var + eps)`::

        db = sum g
        dw = sum g h
        dx = w r (g - db / m - h dw / m)

    For the cotangents z of the three, `s = <zx, dx> + zw dw + zb db` is differentiated by g, by w, and by x through h
    and r. Both outputs of the activations' size are again the gradient of a batch norm plus, per channel, a multiple of
    h (and for g a constant).
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, mean: Tensor, inverse: Tensor, eps: float) -> Any:
        dx, dw, db = _norm_backward(g, x, w, mean, inverse, eps)
        ctx.save_for_backward(g, x, w, mean, inverse, dw)
        ctx.eps = eps
        return dx, dw, db

    @staticmethod
    def backward(ctx: Any, zx: Tensor, zw: Tensor, zb: Tensor) -> Any:
        if torch.is_grad_enabled():  # mean and r would count as constants
            raise GradtuneError(
                "the gradient of batch norm is differentiated here once, and a third derivative was asked for "
                "(create_graph=True on a Hessian product); compute the loss outside of second_order.lean()"
            )
        g, x, w, mean, r, dw = ctx.saved_tensors
        m = x.numel() // x.shape[1]

        def wide(c: Tensor) -> Tensor:
            return c.reshape(-1, *[1] * (x.dim() - 2))

        back, to_h, _ = _norm_backward(zx, x, w, mean, r, ctx.eps)  # to_h = sum zx h
        along = _sums(zx * g)
        of_g = back.add_(x * wide(zw * r)).add_(wide(zb - zw * r * mean))
        # s = w r e + ..., with e = sum zx g - db sum zx / m - dw to_h / m
        e = along - (_sums(g) * _sums(zx) + dw * to_h) / m
        ds_dh = g * wide(zw - w * r * to_h / m) - zx * wide(w * r * dw / m)
        of_x = _norm_backward(ds_dh, x, torch.ones_like(w), mean, r, ctx.eps)[0]
        by_r = w * e * r * r / m
        of_x = of_x.sub_(x * wide(by_r * r)).add_(wide(by_r * r * mean))
        return of_g, of_x, r * e, None, None, None


def _sums(x: Tensor) -> Tensor:
    return x.sum([d for d in range(x.dim()) if d != 1])


def _norm_backward(
    g: Tensor, x: Tensor, w: Tensor, mean: Tensor, inverse: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _aten.native_batch_norm_backward(g, x, w, None, None, mean, inverse, True, eps, [True, True, True])


# --- ReLU -------------------------------------------------------------------------------------------------------------


def _relu(func: Callable[..., Tensor], input: Tensor, inplace: bool = False) -> Tensor:
    return func(input, inplace) if inplace else _Relu.apply(input)


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _Masked.apply(g, *ctx.saved_tensors)


class _Masked(torch.autograd.Function):
    """The gradient of ReLU, (g, y) -> g where y > 0, else 0: linear in g, and without derivative in y."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return _aten.threshold_backward(g, y, 0)

    @staticmethod
    def backward(ctx: Any, z: Tensor) -> Any:
        return _Masked.apply(z, *ctx.saved_tensors), None


_REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    batch_norm: _batch_norm,
    relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
}
