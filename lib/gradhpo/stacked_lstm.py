"""Cross entropy of R LSTM language models on one shared piece of text, in plain tensor operations on flat weights.

The same numbers as `nets.LanguageModel` under `modules.batched`, without `vmap`, which doubles the price of the many
small operations of an LSTM; and with a state that is handed on from one piece of text to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradhpo.modules import Layout
from gradhpo.nets import LanguageModel

State = tuple[Tensor, Tensor]


class StackedLanguageModel:
    """R nets embedding - `layers` LSTM layers - linear, weights laid out as `nets.LanguageModel(vocabulary, hidden,
    layers)`'s. Differentiable any number of times on every device.

    It differs from the module under `modules.batched` by rounding alone where the state is zero and the masks are those
    of the same random numbers. Memory of a gradient's graph: about 12 [R, T, B, H] a layer and 3 [R, T, B, vocabulary].
    """

    def __init__(self, vocabulary: int, hidden: int, layers: int) -> None:
        self.module = LanguageModel(vocabulary, hidden, layers)
        self.layout = Layout.of(self.module)
        self.hidden, self.layers = hidden, layers

    def zero_state(self, w: Tensor, batch: int) -> State:
        """(h, c) of R runs before the first word, each `[layers, R, batch, hidden]`."""
        zero = w.new_zeros(self.layers, len(w), batch, self.hidden)
        return zero, zero

    def logits(
        self, w: Tensor, tokens: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Logits `[R, T, B, vocabulary]` of the word after each of `tokens [T, B]`, and the state after the last.

        masks: of dropout, divided by the keep probability, `[R, T, B, hidden]` each: one for the input of every layer,
        and one for the output of the last. None: no dropout.
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
        recurrent, outputs = p[f"lstm.weight_hh_l{k}"].mT, []
        for gates in projected.unbind(1):
            i, f, g, o = torch.baddbmm(gates, h, recurrent).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, c)

    def __call__(
        self, w: Tensor, tokens: Tensor, targets: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Mean cross entropies `[R]` (nats) of the words `targets [T, B]` that follow `tokens [T, B]`, and the state
        after the last."""
        logits, state = self.logits(w, tokens, state, masks)
        return cross_entropy(logits, targets), state


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropies `[R]` of `logits [R, T, B, vocabulary]` for `targets [T, B]`, in nats."""
    log_p = logits.log_softmax(-1)
    rows = targets.expand(len(logits), *targets.shape)[..., None]
    return -log_p.gather(-1, rows).flatten(1).mean(1)
