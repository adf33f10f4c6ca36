"""Cross entropy of R fully connected ReLU nets on one shared minibatch, with its gradient and its Hessian products
written out on flat weights.

`modules.batched` differentiates any module; for a net of this size four fifths of a step on a CPU are then copies
between flat weights and the module's tensors, and automatic differentiation's own bookkeeping. Here each product is
written where it belongs in the flat vector. The Hessian product is the R-operator (Pearlmutter 1994): a second forward
and a second backward pass, along the direction, that share the activations of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gradtune.nets.modules import Layout
from gradtune.nets.plain import mlp


class _Passed(NamedTuple):
    """What a forward pass leaves: the inputs of every layer `[R, width, B]`, the probabilities `[R, classes, B]`, and
    the losses."""

    inputs: list[Tensor]
    probabilities: Tensor
    losses: Tensor


class StackedMLP:
    """`f(w [R, D], x [B, F], y [B]) -> [R]`: mean cross entropies of R nets with layer widths `sizes` and ReLU, weights
    laid out as `nets.mlp`'s.

    Twice differentiable with respect to w, not three times: Hessian products are without a graph. It differs from
    `modules.batched` on the same net and loss by rounding alone. Cost: 4 R B D multiplications a gradient, as many a
    Hessian product; memory: the activations, and one `[R, D]` for each derivative.
    """

    # Columns are rows of the batch: `weight @ inputs` takes half the time of `inputs @ weight.T` (MKL, batches of 100).

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.module = mlp(self.sizes)
        self.layout = Layout.of(self.module)

    def __call__(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return _Loss.apply(w, self, x, y)

    def fresh(self) -> nn.Module:
        """One net with newly drawn weights."""
        return mlp(self.sizes)

    @torch.no_grad()
    def measured(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross entropies and shares of errors, `[R]` each, without derivatives."""
        log_p = self.outputs(w, x)[-1].log_softmax(1)
        loss = -log_p.gather(1, y.expand(len(w), 1, -1)).mean((1, 2))
        return loss, (log_p.argmax(1) != y).to(w.dtype).mean(-1)

    def layers(self, w: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of `w` as (weight `[R, out, in]`, bias `[R, out, 1]`) of each layer."""
        parts = list(self.layout.split(w).values())
        return [(m, b[:, :, None]) for m, b in zip(parts[::2], parts[1::2])]

    def outputs(self, w: Tensor, x: Tensor) -> list[Tensor]:
        """The inputs of every layer and, last, the logits, each `[R, width, B]`."""
        passed = [x.mT.expand(len(w), x.shape[1], len(x))]
        for k, (m, b) in enumerate(self.layers(w)):
            z = torch.bmm(m, passed[-1]).add_(b)
            passed.append(z.relu_() if k < len(self.sizes) - 2 else z)
        return passed

    def forward(self, w: Tensor, x: Tensor, y: Tensor) -> _Passed:
        """Losses `[R]`, and what their derivatives need."""
        *inputs, logits = self.outputs(w, x)
        log_p = logits.log_softmax(1)
        return _Passed(inputs, log_p.exp(), -log_p.gather(1, y.expand(len(w), 1, -1)).mean((1, 2)))

    def gradient(self, w: Tensor, p: _Passed, y: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`c dL/dw [R, D]`, `c [R]`, and its parts with respect to what each layer gives, the first layer's first."""
        g, layers = torch.empty_like(w), self.layers(w)
        true = y.expand(len(w), 1, -1)
        delta = p.probabilities.scatter_add(1, true, p.probabilities.new_full((), -1.0).expand_as(true))
        delta *= (c / len(y))[:, None, None]
        deltas = [delta]
        for k, (gm, gb) in reversed(list(enumerate(self.layers(g)))):
            torch.bmm(delta, p.inputs[k].mT, out=gm)
            torch.sum(delta, 2, keepdim=True, out=gb)
            if k:
                delta = _passed_on(torch.bmm(layers[k][0].mT, delta), p.inputs[k])
                deltas.append(delta)
        return g, deltas[::-1]

    def product(self, w: Tensor, p: _Passed, deltas: list[Tensor], c: Tensor, v: Tensor) -> Tensor:
        """`c H v [R, D]` for directions `v [R, D]`, with what `forward` and `gradient` left."""
        layers, directions = self.layers(w), self.layers(v)
        dots: list[Tensor] = []  # derivatives along v of what each layer gives
        for k, (vm, vb) in enumerate(directions):
            dot = torch.bmm(vm, p.inputs[k]).add_(vb)
            if k:
                dot.baddbmm_(layers[k][0], dots[-1])
            dots.append(_passed_on(dot, p.inputs[k + 1]) if k < len(layers) - 1 else dot)
        weighted = p.probabilities * dots.pop()
        delta = weighted.addcmul_(p.probabilities, weighted.sum(1, keepdim=True), value=-1)
        delta *= (c / p.inputs[0].shape[2])[:, None, None]
        out = torch.empty_like(w)
        for k, (hm, hb) in reversed(list(enumerate(self.layers(out)))):
            torch.bmm(delta, p.inputs[k].mT, out=hm)
            torch.sum(delta, 2, keepdim=True, out=hb)
            if k:
                hm.baddbmm_(deltas[k], dots[k - 1].mT)
                back = torch.bmm(layers[k][0].mT, delta).baddbmm_(directions[k][0].mT, deltas[k])
                delta = _passed_on(back, p.inputs[k])
        return out


def _passed_on(d: Tensor, active: Tensor) -> Tensor:
    """`d` where a ReLU gave something, else 0."""
    return torch.ops.aten.threshold_backward(d, active, 0)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, net: StackedMLP, x: Tensor, y: Tensor) -> Tensor:
        passed = net.forward(w, x, y)
        ctx.save_for_backward(w)
        ctx.rest = net, passed, y
        return passed.losses

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor, None, None, None]:
        return _Gradient.apply(*ctx.saved_tensors, c, *ctx.rest), None, None, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, c: Tensor, net: StackedMLP, passed: _Passed, y: Tensor) -> Tensor:
        g, deltas = net.gradient(w, passed, y, c)
        ctx.save_for_backward(w, c)
        ctx.rest = net, passed, deltas, y
        return g

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        w, c = ctx.saved_tensors
        net, passed, deltas, y = ctx.rest
        hv = net.product(w, passed, deltas, c, v) if ctx.needs_input_grad[0] else None
        along = None
        if ctx.needs_input_grad[1]:
            along = (net.gradient(w, passed, y, torch.ones_like(c))[0] * v).sum(-1)
        return hv, along, None, None, None
