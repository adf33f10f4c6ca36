"""Cross entropy of R LSTM language models on one shared piece of text, on flat weights.

The numbers are those of `plain.LanguageModel` under `modules.batched`, with a state that is handed on from one piece of
text to the next. What happens from word to word, thousands of small operations in a Hessian product, is written out:
the recurrence of a layer, its gradient, and the R-operator (Pearlmutter 1994) of both. So recurrent weights have one
product for all words instead of one a word, and automatic differentiation sees a layer as one operation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradtune.nets.layout import Layout
from gradtune.nets.plain import LanguageModel

State = tuple[Tensor, Tensor]


class _Passed(NamedTuple):
    """What the forward pass of a layer leaves, time first.

    Attributes:
        gates: i, f, g, o in one tensor `[T, R, B, 4 H]`.
        slopes: the derivatives of the gates, `[T, R, B, 4 H]`.
        cells: `[T + 1, R, B, H]`, with the state before the first word.
        squashed: tanh of the cells, `[T, R, B, H]`.
        outputs: `[T + 1, R, B, H]`, with the state before the first word.
    """

    gates: Tensor
    slopes: Tensor
    cells: Tensor
    squashed: Tensor
    outputs: Tensor


class _Turned(NamedTuple):
    """What the backward pass of a layer leaves, time first: derivatives of `<up, outputs>`.

    Attributes:
        inputs: with respect to the inputs of the gates, `[T, R, B, 4 H]`.
        gates: with respect to the gates, `[T, R, B, 4 H]`.
        cells: with respect to the cells, `[T, R, B, H]`.
        outputs: with respect to the outputs, `[T, R, B, H]`.
    """

    inputs: Tensor
    gates: Tensor
    cells: Tensor
    outputs: Tensor


def _forward(projected: Tensor, weight: Tensor, h: Tensor, c: Tensor) -> _Passed:
    """Run the recurrence of a layer.

    Args:
        projected: what the words give to the gates, `[T, R, B, 4 H]`.
        weight: the recurrent weights, `[R, 4 H, H]`.
        h: the outputs before the first word, `[R, B, H]`.
        c: the cells before the first word, `[R, B, H]`.
    """
    size, recurrent = h.shape[-1], weight.mT
    gates, slopes = torch.empty_like(projected), torch.empty_like(projected)
    squashed = projected.new_empty(len(projected), *h.shape)
    cells, outputs = projected.new_empty(2, len(projected) + 1, *h.shape)
    cells[0], outputs[0] = c, h
    words = zip(*(x.unbind() for x in (projected, gates, squashed)), *_gates(gates), *map(_pairs, (cells, outputs)))
    for a, gate, bounded, i, f, g, o, (cell, next_cell), (output, next_output) in words:
        a = torch.baddbmm(a, output, recurrent)
        torch.sigmoid(a, out=gate)
        torch.tanh(a[..., 2 * size : 3 * size], out=g)
        torch.mul(f, cell, out=next_cell).addcmul_(i, g)
        torch.tanh(next_cell, out=bounded)
        torch.mul(o, bounded, out=next_output)
    torch.addcmul(gates, gates, gates, value=-1, out=slopes)
    tanh = gates[..., 2 * size : 3 * size]
    torch.addcmul(tanh.new_ones(()), tanh, tanh, value=-1, out=slopes[..., 2 * size : 3 * size])
    return _Passed(gates, slopes, cells, squashed, outputs)


def _backward(p: _Passed, weight: Tensor, up: Tensor) -> _Turned:
    """Compute the derivatives of `<up, outputs>`.

    Args:
        p: what `_forward` left.
        weight: the recurrent weights, `[R, 4 H, H]`.
        up: cotangents of the outputs, `[T, R, B, H]`.
    """
    d_inputs, d_gates = torch.empty_like(p.gates), torch.empty_like(p.gates)
    d_cells, d_outputs = torch.empty_like(up), torch.empty_like(up)
    i, f, g, o = _gates(p.gates)
    through = (torch.stack(o) * (1 - p.squashed * p.squashed)).unbind()
    d_i, d_f, d_g, d_o = _gates(d_gates)
    per_word = [x.unbind() for x in (up, d_inputs, d_gates, d_cells, d_outputs, p.cells, p.squashed, p.slopes)]
    ups, inputs, gates, cells, outputs, before, squashed, slopes = per_word
    for t in reversed(range(len(up))):
        if t == len(up) - 1:
            outputs[t].copy_(ups[t])
            torch.mul(outputs[t], through[t], out=cells[t])
        else:
            torch.baddbmm(ups[t], inputs[t + 1], weight, out=outputs[t])
            torch.mul(cells[t + 1], f[t + 1], out=cells[t]).addcmul_(outputs[t], through[t])
        torch.mul(cells[t], g[t], out=d_i[t])
        torch.mul(cells[t], before[t], out=d_f[t])
        torch.mul(cells[t], i[t], out=d_g[t])
        torch.mul(outputs[t], squashed[t], out=d_o[t])
        torch.mul(gates[t], slopes[t], out=inputs[t])
    return _Turned(d_inputs, d_gates, d_cells, d_outputs)


def _along(p: _Passed, weight: Tensor, u: Tensor, v: Tensor) -> _Passed:
    """Compute the derivatives of all that `_forward` computes along (projected, weight) = (u, v).

    Args:
        p: what `_forward` left.
        weight: the recurrent weights, `[R, 4 H, H]`.
        u: the direction of `projected`, `[T, R, B, 4 H]`.
        v: the direction of the recurrent weights, `[R, 4 H, H]`.

    Returns:
        Each derivative in the field of what it is the derivative of; "slopes" holds those of the slopes.
    """
    size, recurrent = p.cells.shape[-1], weight.mT
    gates, slopes = torch.empty_like(p.gates), torch.empty_like(p.gates)
    cells, outputs, squashed = (torch.zeros_like(x) for x in (p.cells, p.outputs, p.squashed))
    bent, extra = 1 - p.squashed * p.squashed, _per_word(p.outputs[:-1], v.mT).add_(u)
    words = zip(
        *(x.unbind() for x in (extra, p.slopes, gates, p.cells[:-1], bent, p.squashed, squashed)),
        *(*_gates(p.gates), *_gates(gates)),
        *map(_pairs, (cells, outputs)),
    )
    for a, slope, gate, before, bend, bounded, flat, i, f, g, o, i_dot, f_dot, g_dot, o_dot, cell, output in words:
        torch.mul(torch.baddbmm(a, output[0], recurrent), slope, out=gate)
        torch.mul(f_dot, before, out=cell[1])
        cell[1].addcmul_(f, cell[0]).addcmul_(i_dot, g).addcmul_(i, g_dot)
        torch.mul(cell[1], bend, out=flat)
        torch.mul(o_dot, bounded, out=output[1]).addcmul_(o, flat)
    torch.addcmul(gates, p.gates, gates, value=-2, out=slopes)
    slopes[..., 2 * size : 3 * size] -= gates[..., 2 * size : 3 * size]
    return _Passed(gates, slopes, cells, squashed, outputs)


def _turned_along(p: _Passed, dot: _Passed, d: _Turned, weight: Tensor, v: Tensor) -> Tensor:
    """Compute the derivative of the "inputs" of `_backward` along a direction.

    Args:
        p: what `_forward` left.
        dot: what `_along` gave for the direction.
        d: what `_backward` left.
        weight: the recurrent weights, `[R, 4 H, H]`.
        v: the direction of the recurrent weights, `[R, 4 H, H]`.

    Returns:
        The derivative, `[T, R, B, 4 H]`.
    """
    i, f, g, o = p.gates.chunk(4, dim=-1)
    i_dot, f_dot, g_dot, o_dot = dot.gates.chunk(4, dim=-1)
    bent, inputs = 1 - p.squashed * p.squashed, torch.empty_like(d.inputs)
    # what does not come from later words: of the derivatives of the cells, and of the inputs of the gates
    own = (d.outputs * torch.addcmul(o_dot * bent, o * p.squashed, dot.squashed, value=-2)).unbind()
    gates = [d.cells * g_dot, d.cells * dot.cells[:-1], d.cells * i_dot, d.outputs * dot.squashed]
    fixed = torch.addcmul(torch.cat(gates, dim=-1) * p.slopes, d.gates, dot.slopes).unbind()
    of_cells = (torch.cat([g, p.cells[:-1], i], dim=-1) * p.slopes[..., : -g.shape[-1]]).unbind()
    of_outputs = (p.squashed * p.slopes[..., -g.shape[-1] :]).unbind()
    through, later, d_cells = (o * bent).unbind(), _per_word(d.inputs[1:], v).unbind(), d.cells.unbind()
    forgotten, f_dots, words = f.unbind(), f_dot.unbind(), inputs.unbind()
    parts = [x.unbind() for x in inputs.split([3 * g.shape[-1], g.shape[-1]], dim=-1)]
    out_dot, cell_dot = torch.zeros_like(d_cells[0]), own[-1]
    for t in reversed(range(len(own))):
        if t < len(own) - 1:
            out_dot = torch.baddbmm(later[t], words[t + 1], weight)
            cell_dot = torch.addcmul(own[t], cell_dot, forgotten[t + 1]).addcmul_(d_cells[t + 1], f_dots[t + 1])
            cell_dot.addcmul_(out_dot, through[t])
        torch.mul(cell_dot.repeat(1, 1, 3), of_cells[t], out=parts[0][t])
        torch.mul(out_dot, of_outputs[t], out=parts[1][t])
        words[t].add_(fixed[t])
    return inputs


def _gates(x: Tensor) -> list[tuple[Tensor, ...]]:
    """Return views of `x [T, R, B, 4 H]`: for each gate, one a word."""
    return [part.unbind() for part in x.chunk(4, dim=-1)]


def _pairs(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return views of `x [T + 1, R, B, H]`: before and after each word."""
    views = x.unbind()
    return list(itertools.pairwise(views))


def _per_word(x: Tensor, weight: Tensor) -> Tensor:
    """Compute `x[t] @ weight` for all words at once: `[T, R, B, n]` and `[R, n, m]` give `[T, R, B, m]`."""
    steps, _, batch, _ = x.shape
    return torch.bmm(_by_run(x), weight).unflatten(1, (steps, batch)).transpose(0, 1).contiguous()


def _by_run(x: Tensor) -> Tensor:
    """Return `[T, R, B, n]` as `[R, T B, n]`."""
    return x.transpose(0, 1).flatten(1, 2)


class _Layer(torch.autograd.Function):
    """Outputs `[T, R, B, H]` of a layer and, without derivatives, the last cells `[R, B, H]`."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        passed = _forward(projected, weight, h, c)
        ctx.save_for_backward(projected, weight)
        ctx.passed = passed
        last = passed.cells[-1].clone()
        ctx.mark_non_differentiable(last)
        return passed.outputs[1:].clone(), last

    @staticmethod
    def backward(ctx: Any, up: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_LayerGradient.apply(up, *ctx.saved_tensors, ctx.passed), None, None


class _LayerGradient(torch.autograd.Function):
    """Derivatives of `<up, outputs>` with respect to what the words give to the gates and the recurrent weights."""

    @staticmethod
    def forward(ctx: Any, up: Tensor, projected: Tensor, weight: Tensor, passed: _Passed) -> tuple[Tensor, Tensor]:
        turned = _backward(passed, weight, up)
        ctx.save_for_backward(weight)
        ctx.rest = passed, turned
        return turned.inputs.clone(), torch.bmm(_by_run(turned.inputs).mT, _by_run(passed.outputs[:-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (weight,) = ctx.saved_tensors
        passed, turned = ctx.rest
        dot = _along(passed, weight, u, v)
        inputs = _turned_along(passed, dot, turned, weight, v)
        weights = torch.bmm(_by_run(inputs).mT, _by_run(passed.outputs[:-1]))
        weights.baddbmm_(_by_run(turned.inputs).mT, _by_run(dot.outputs[:-1]))
        return dot.outputs[1:], inputs, weights, None


class StackedLanguageModel:
    """R nets of an embedding, LSTM layers and a linear layer, with their mean cross entropies.

    The weights are laid out as those of `plain.LanguageModel(vocabulary, hidden, layers)`. Results are twice
    differentiable with respect to the weights on every device; a state that is handed in is a constant. They differ
    from those of the module under `modules.batched` by rounding alone where the state is zero and the masks are those
    of the same random numbers.

    Memory of a gradient's graph: about 20 `[R, T, B, H]` a layer and 3 `[R, T, B, vocabulary]`.

    Args:
        vocabulary: how many tokens there are.
        hidden: H, the entries of the embedding and of the output of each LSTM layer.
        layers: how many LSTM layers there are.

    Attributes:
        module: one net, from which the layout is taken.
        layout: where its parameters lie in a row of `w`.
    """

    def __init__(self, vocabulary: int, hidden: int, layers: int) -> None:
        self.module = LanguageModel(vocabulary, hidden, layers)
        self.layout = Layout.of(self.module)
        self.hidden, self.layers = hidden, layers

    def zero_state(self, w: Tensor, batch: int) -> State:
        """Return the zero state (h, c) of R runs, each `[layers, R, batch, hidden]`.

        Args:
            w: weights `[R, D]`, for their number of runs, device and type.
            batch: how many texts stand side by side.
        """
        zero = w.new_zeros(self.layers, len(w), batch, self.hidden)
        return zero, zero

    def logits(
        self, w: Tensor, tokens: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Compute the logits of the next word.

        Args:
            w: weights `[R, D]`.
            tokens: words `[T, B]`, shared by all runs.
            state: (h, c) before the first word, each `[layers, R, B, hidden]`.
            masks: of dropout, divided by the keep probability, `[R, T, B, hidden]` each: one for the input of every
                layer, and one for the output of the last. None for no dropout.

        Returns:
            Logits `[R, T, B, vocabulary]` of the word after each of `tokens`, and the state after the last.
        """
        p = self.layout.split(w)
        x = p["embedding.weight"].index_select(1, tokens.flatten()).unflatten(1, tokens.shape)
        ends = []
        for k, (h, c) in enumerate(zip(*state, strict=True)):
            x, end = self._layer(p, k, x if masks is None else x * masks[k], h, c)
            ends.append(end)
        x = x if masks is None else x * masks[-1]
        flat = torch.baddbmm(p["decoder.bias"][:, None], x.flatten(1, 2), p["decoder.weight"].mT)
        h, c = (torch.stack(parts) for parts in zip(*ends))
        return flat.unflatten(1, tokens.shape), (h, c)

    @staticmethod
    def _layer(p: dict[str, Tensor], k: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, State]:
        bias = (p[f"lstm.bias_ih_l{k}"] + p[f"lstm.bias_hh_l{k}"])[:, None]
        projected = torch.baddbmm(bias, x.flatten(1, 2), p[f"lstm.weight_ih_l{k}"].mT).unflatten(1, x.shape[1:3])
        outputs, last = _Layer.apply(projected.transpose(0, 1).contiguous(), p[f"lstm.weight_hh_l{k}"], h, c)
        return outputs.transpose(0, 1), (outputs[-1], last)

    def __call__(
        self, w: Tensor, tokens: Tensor, targets: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Compute the mean cross entropies of the words that follow.

        Args:
            w: weights `[R, D]`.
            tokens: words `[T, B]`, shared by all runs.
            targets: the words `[T, B]` that follow them.
            state: (h, c) before the first word, each `[layers, R, B, hidden]`.
            masks: of dropout, as in `logits`.

        Returns:
            The cross entropies `[R]` in nats, and the state after the last of `tokens`.
        """
        logits, state = self.logits(w, tokens, state, masks)
        return cross_entropy(logits, targets), state


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropies `[R]`, in nats, of `logits [R, T, B, vocabulary]` for `targets [T, B]`."""
    log_p = logits.log_softmax(-1)
    rows = targets.expand(len(logits), *targets.shape)[..., None]
    return -log_p.gather(-1, rows).flatten(1).mean(1)
