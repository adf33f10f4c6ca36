"""Cross entropy of R fully connected ReLU nets on one shared minibatch, its derivatives written out on flat weights.

`modules.batched` differentiates any module; for a small net four fifths of a step on a CPU are then copies between flat
weights and the module's tensors, and automatic differentiation's own bookkeeping. Here each product is written where it
belongs in the flat vector. The Hessian product is the R-operator (Pearlmutter 1994): a second forward and a second
backward pass, along the direction, that share the activations of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gradtune.nets.layout import Layout
from gradtune.nets.plain import mlp


class _Passed(NamedTuple):
    """What a forward pass leaves.

    Attributes:
        inputs: the inputs of every layer, `[R, width, B]` each.
        probabilities: of the classes, `[R, classes, B]`.
        losses: `[R]`, in nats.
    """

    inputs: list[Tensor]
    probabilities: Tensor
    losses: Tensor


class StackedMLP:
    """Mean cross entropies of R ReLU nets, to be called as `f(w [R, D], x [B, F], y [B]) -> [R]`.

    The weights are laid out as those of `plain.mlp`. The losses are twice differentiable with respect to w, not three
    times: Hessian products are without a graph. They differ from those of `modules.batched` on the same net and loss by
    rounding alone.

    Cost: 2 to 3 R B D multiplications a gradient, its forward pass included, and 2 to 6 a Hessian product; about 2 each
    where the first layer has most of the weights. Memory: the activations, and one `[R, D]` for each derivative.

    Args:
        sizes: layer widths, inputs first.

    Attributes:
        module: one net, from which the layout is taken.
        layout: where its parameters lie in a row of `w`.
    """

    # Columns are rows of the batch: `weight @ inputs` takes half the time of `inputs @ weight.T` (MKL, batches of 100).

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.module = mlp(self.sizes)
        self.layout = Layout.of(self.module)

    def __call__(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return _Loss.apply(w, self, x, y)

    def fresh(self) -> nn.Module:
        """Return one net with newly drawn weights."""
        return mlp(self.sizes)

    @torch.no_grad()
    def measured(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean cross entropies (nats) and shares of errors without derivatives.

        Args:
            w: weights `[R, D]`.
            x: inputs `[B, F]`.
            y: class numbers `[B]`.

        Returns:
            The cross entropies and the shares of errors, `[R]` each.
        """
        log_p = self.outputs(w, x)[-1].log_softmax(1)
        loss = -log_p.gather(1, y.expand(len(w), 1, -1)).mean((1, 2))
        return loss, (log_p.argmax(1) != y).to(w.dtype).mean(-1)

    def layers(self, w: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return views of `w [R, D]` as (weight `[R, out, in]`, bias `[R, out, 1]`) of each layer."""
        parts = list(self.layout.split(w).values())
        return [(m, b[:, :, None]) for m, b in zip(parts[::2], parts[1::2])]

    def outputs(self, w: Tensor, x: Tensor) -> list[Tensor]:
        """Return the inputs of every layer and, last, the logits, each `[R, width, B]`, of `x [B, F]`."""
        passed = [x.mT.expand(len(w), x.shape[1], len(x))]
        for k, (m, b) in enumerate(self.layers(w)):
            z = torch.bmm(m, passed[-1]).add_(b)
            passed.append(z.relu_() if k < len(self.sizes) - 2 else z)
        return passed

    def forward(self, w: Tensor, x: Tensor, y: Tensor) -> _Passed:
        """Compute the losses `[R]`, and what their derivatives need.

        Args:
            w: weights `[R, D]`.
            x: inputs `[B, F]`.
            y: class numbers `[B]`.
        """
        *inputs, logits = self.outputs(w, x)
        log_p = logits.log_softmax(1)
        return _Passed(inputs, log_p.exp(), -log_p.gather(1, y.expand(len(w), 1, -1)).mean((1, 2)))

    def gradient(self, w: Tensor, p: _Passed, y: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the gradient of each run's loss times a factor of the run.

        Args:
            w: weights `[R, D]`.
            p: what `forward` left.
            y: class numbers `[B]`.
            c: the factors `[R]`.

        Returns:
            `c dL/dw [R, D]`, and its parts with respect to what each layer gives before the ReLU, `[R, width, B]` each,
            the first layer's first.
        """
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
        """Compute the product of each run's Hessian with a direction, times a factor of the run.

        Args:
            w: weights `[R, D]`.
            p: what `forward` left.
            deltas: the second result of `gradient`, with the same `c`.
            c: the factors `[R]`.
            v: directions `[R, D]`.

        Returns:
            `c H v [R, D]`.
        """
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
    """Return `d` where a ReLU gave something, else 0."""
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
