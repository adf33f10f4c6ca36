"""Networks used by the tasks: ordinary single-run `torch.nn.Module`s, every layer differentiable twice on CPU and GPU.

A net with dropout takes its keep probability as an argument of `forward`, so that it can be a hyperparameter of each
run; `modules.batched` hands it over and makes the masks a function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gradtune.errors import GradtuneError
from gradtune.nets.ranges import Range

KEEP = Range("keep", 0.0, 1.0, low_open=True)

Layer = Callable[[], nn.Module]


def mlp(sizes: Sequence[int], activation: Layer = nn.ReLU) -> nn.Sequential:
    """Fully connected net with layer widths `sizes` (inputs first), `activation` between layers, torch's default
    initialisation."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def lenet(
    size: int = 28,
    channels: int = 1,
    classes: int = 10,
    widths: tuple[int, int, int, int] = (6, 16, 120, 84),
    activation: Layer = nn.ReLU,
    pool: Callable[[int], nn.Module] = nn.MaxPool2d,
) -> nn.Sequential:
    """LeNet-5 for images `[N, channels, size, size]`: two 5 x 5 convolutions without padding, each pooled by 2, and
    three fully connected layers; logits `[N, classes]`.

    FDS (Section 5.1 and 5.2) uses "a LeNet" on MNIST (28 x 28 x 1: 44,426 weights) and SVHN (32 x 32 x 3: 62,006)
    without giving its sizes; these, with ReLU and maximum pooling, are the ones of the authors' program. LeCun et al.
    (1998) had tanh, mean pooling and padded digits: `activation=nn.Tanh, pool=nn.AvgPool2d, size=32`.
    Raises GradtuneError for images too small for both convolutions.
    """
    side = ((size - 4) // 2 - 4) // 2
    if side < 1:
        raise GradtuneError(f"size is {size}; expected images of at least 16 x 16, such as 28 (MNIST) or 32 (SVHN)")
    first, second, third, fourth = widths
    return nn.Sequential(
        *(nn.Conv2d(channels, first, 5), activation(), pool(2)),
        *(nn.Conv2d(first, second, 5), activation(), pool(2)),
        nn.Flatten(),
        *mlp([second * side * side, third, fourth, classes], activation),
    )


def conv_bn(
    size: int = 32,
    channels: int = 3,
    classes: int = 10,
    widths: Sequence[int] = (16, 32),
    activation: Layer = nn.ReLU,
    pool: Callable[[int], nn.Module] = nn.MaxPool2d,
) -> nn.Sequential:
    """Small convolutional net with batch norm: a 3 x 3 convolution (padding 1, no bias), batch norm, activation and
    pooling by 2 for each of `widths`, then one linear layer; `[N, channels, size, size]` to logits `[N, classes]`.

    Batch norm needs `modules.batched` for its buffers and `modules.batch_statistics` for evaluation.
    Raises GradtuneError for images smaller than 2 to the number of `widths`.
    """
    side = size // 2 ** len(widths)
    if side < 1:
        raise GradtuneError(f"size is {size}; expected at least {2 ** len(widths)} for {len(widths)} poolings by 2")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([channels, *widths]):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), activation(), pool(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, classes))


def xavier(net: nn.Sequential) -> nn.Sequential:
    """The net itself, with the weights of its convolutions and linear layers drawn Xavier-normal and their biases 0
    (FDS's program, for all of its nets)."""
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    return net


class Dropout(nn.Module):
    """Dropout whose keep probability is an argument: x mask / keep with mask = (u < keep), u ~ U[0, 1) an entry.

    `forward(x, keep)`: keep is a number or a tensor that broadcasts to x, in (0, 1]; None, or evaluation mode, gives x
    back. u is `torch.rand_like(x)`; inside `modules.batched(...)(..., seeds=seeds, t=t)` it depends on (seed of the
    run, t) alone, so the masks for two keep probabilities are coupled: the one for keep contains the one for any
    smaller keep (Clip paper, Section 3.5.2, eq. 10), and differences of losses in keep have little variance.
    Raises GradtuneError for keep outside (0, 1].

    No derivative flows to keep. The one that automatic differentiation would give, of the factor 1 / keep at a fixed
    mask, is not the derivative of the expected loss; take finite differences with the same (seed, t).
    It differs from `nn.Dropout(p)`, p = 1 - keep, in that keep is no attribute fixed at construction.
    """

    def forward(self, x: Tensor, keep: float | Tensor | None) -> Tensor:
        """`x` with entries kept with probability `keep` and divided by it; `x` itself for None or in eval mode."""
        if keep is None:
            return x
        KEEP.check(keep)
        if not self.training:
            return x
        keep = torch.as_tensor(keep, dtype=x.dtype, device=x.device).detach()
        return x * ((torch.rand_like(x) < keep).to(x.dtype) / keep)


def lstm_cell(projected: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: the next (h, c), each `[B, H]`, from h and c and the input's share of the gates.

    projected `[B, 4 H]`: W_ih x + b_ih + b_hh; weight_hh `[4 H, H]`. Gates in torch's order i, f, g, o:
    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').
    """
    i, f, g, o = (projected + linear(h, weight_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


class LSTM(nn.Module):
    """LSTM of `layers` layers in plain tensor operations, with dropout on the non-recurrent connections only (Zaremba
    et al. 2014, eq. 7 to 9).

    `forward(x [T, B, inputs], state=None, keep=None)` gives the output `[T, B, H]` of the last layer and the state
    (h, c), each `[layers, B, H]`; state None: zero. Dropout acts on the input of every layer, a fresh mask at each
    time step, never from one step to the next; dropout of the output is the next layer's business. keep None: none.

    Parameters have the names, shapes, order and initialisation U(-1/sqrt(H), 1/sqrt(H)) of `nn.LSTM(inputs, hidden,
    layers)`, so a `state_dict` fits either way, and so do the numbers. It differs in that it can be differentiated
    twice on a GPU (cuDNN's LSTM cannot) and works under `vmap`; it is slower: one small product a step and layer.
    """

    def __init__(self, inputs: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        if min(inputs, hidden, layers) < 1:
            raise GradtuneError(f"inputs, hidden, layers = {inputs}, {hidden}, {layers}; expected each to be >= 1")
        self.hidden, self.layers, self.dropout = hidden, layers, Dropout()
        for k in range(layers):
            width = inputs if k == 0 else hidden
            self.register_parameter(f"weight_ih_l{k}", nn.Parameter(torch.empty(4 * hidden, width)))
            self.register_parameter(f"weight_hh_l{k}", nn.Parameter(torch.empty(4 * hidden, hidden)))
            self.register_parameter(f"bias_ih_l{k}", nn.Parameter(torch.empty(4 * hidden)))
            self.register_parameter(f"bias_hh_l{k}", nn.Parameter(torch.empty(4 * hidden)))
        for p in self.parameters():
            nn.init.uniform_(p, -(hidden**-0.5), hidden**-0.5)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, keep: float | Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Output `[time, batch, hidden]` and the final state of `x [time, batch, inputs]`; `state` (h, c), each
        `[layers, batch, hidden]`, is 0 when None."""
        zero = x.new_zeros(self.layers, x.shape[1], self.hidden)
        ends = []
        for k, (h, c) in enumerate(zip(*(state or (zero, zero)), strict=True)):
            x, end = self._layer(k, self.dropout(x, keep), h, c)
            ends.append(end)
        h, c = (torch.stack(parts) for parts in zip(*ends, strict=True))
        return x, (h, c)

    def _layer(self, k: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        bias = getattr(self, f"bias_ih_l{k}") + getattr(self, f"bias_hh_l{k}")
        weight_hh, outputs = getattr(self, f"weight_hh_l{k}"), []
        for projected in linear(x, getattr(self, f"weight_ih_l{k}"), bias).unbind(0):
            h, c = lstm_cell(projected, h, c, weight_hh)
            outputs.append(h)
        return torch.stack(outputs), (h, c)


class LanguageModel(nn.Module):
    """Embedding, LSTM, linear layer: `forward(tokens [T, B], keep=None)` gives logits `[T, B, vocabulary]` for the
    next token, from the zero state.

    Dropout as in Zaremba et al. (2014): on the embedding, between the LSTM's layers and on its output. Their medium
    net is `LanguageModel(10_000, 650, 2)`, the one of the Clip paper (Section 4.3); OnePass (Section 4.2) uses the
    same without dropout. The embedding has `hidden` entries.
    """

    def __init__(self, vocabulary: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(vocabulary, hidden), LSTM(hidden, hidden, layers)
        self.dropout, self.decoder = Dropout(), nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor, keep: float | Tensor | None = None) -> Tensor:
        """Logits `[time, batch, vocabulary]` of the next token for `tokens [time, batch]`."""
        output, _ = self.lstm(self.embedding(tokens), keep=keep)
        return self.decoder(self.dropout(output, keep))
