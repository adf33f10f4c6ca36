"""Networks of the tasks: ordinary single-run `torch.nn.Module` objects with second derivatives on CPU and GPU.

Every layer can be differentiated twice. A net with dropout takes its keep probability as an argument of `forward`, so
that it can be a hyperparameter of each run; `modules.batched` hands it over and makes the masks a function of
(seed, step).
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
    """Build a fully connected net with torch's default initialisation.

    Args:
        sizes: layer widths, inputs first.
        activation: makes the layer that stands between two linear ones.
    """
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
    """Build LeNet-5, which gives logits `[N, classes]` for images `[N, channels, size, size]`.

    It has two 5 x 5 convolutions without padding, each pooled by 2, and three fully connected layers. FDS (Section 5.1
    and 5.2) uses "a LeNet" on MNIST (28 x 28 x 1: 44,426 weights) and SVHN (32 x 32 x 3: 62,006) without giving its
    sizes; the sizes here, with ReLU and maximum pooling, are the ones of the authors' program. LeCun et al. (1998) had
    tanh, mean pooling and padded digits: `activation=nn.Tanh, pool=nn.AvgPool2d, size=32`.

    Args:
        size: side of the images in pixels, at least 16.
        channels: of the images.
        classes: how many logits an image has.
        widths: channels of the two convolutions, then outputs of the first two fully connected layers.
        activation: makes the layer after every convolution and between the fully connected layers.
        pool: makes a pooling layer by a factor.

    Raises:
        GradtuneError: the images are too small for both convolutions.
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
    """Build a small convolutional net with batch norm, from `[N, channels, size, size]` to logits `[N, classes]`.

    For each of `widths` it has a 3 x 3 convolution (padding 1, no bias), batch norm, activation and pooling by 2; one
    linear layer follows. Batch norm needs `modules.batched` for its buffers and `modules.batch_statistics` for
    evaluation.

    Args:
        size: side of the images in pixels, at least `2 ** len(widths)`.
        channels: of the images.
        classes: how many logits an image has.
        widths: channels of the convolutions.
        activation: makes the layer after batch norm.
        pool: makes a pooling layer by a factor.

    Raises:
        GradtuneError: the images are too small for as many poolings.
    """
    side = size // 2 ** len(widths)
    if side < 1:
        raise GradtuneError(f"size is {size}; expected at least {2 ** len(widths)} for {len(widths)} poolings by 2")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([channels, *widths]):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), activation(), pool(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, classes))


def xavier(net: nn.Sequential) -> nn.Sequential:
    """Draw the weights of a net's convolutions and linear layers Xavier-normal and set their biases to 0.

    FDS's program does so for all of its nets. Only `nn.Conv2d` and `nn.Linear` are changed.

    Args:
        net: the net, changed in place.

    Returns:
        The net itself.
    """
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    return net


class Dropout(nn.Module):
    """Dropout whose keep probability is an argument of `forward`.

    The output is `x * mask / keep` with `mask = (u < keep)`, u from U[0, 1) for each entry. u is `torch.rand_like(x)`.
    Inside `modules.batched(...)(..., seeds=seeds, t=t)` it depends on (seed of the run, t) alone, so the masks for two
    keep probabilities are coupled: the one for keep contains the one for any smaller keep (Clip paper, Section 3.5.2,
    eq. 10), and differences of losses in keep have little variance.

    No derivative flows to keep. The one that automatic differentiation would give, of the factor 1 / keep at a fixed
    mask, is not the derivative of the expected loss; take finite differences with the same (seed, t).

    It differs from `nn.Dropout(p)`, `p = 1 - keep`, in that keep is no attribute fixed at construction.
    """

    def forward(self, x: Tensor, keep: float | Tensor | None) -> Tensor:
        """Return `x` with entries kept with probability `keep` and divided by it.

        Args:
            x: a tensor of any shape.
            keep: a number or a tensor that broadcasts to x, in (0, 1]. None gives x back, and so does evaluation mode.

        Raises:
            GradtuneError: keep is outside (0, 1], in evaluation mode too; a tensor on an accelerator is not checked.
        """
        if keep is None:
            return x
        KEEP.check(keep)
        if not self.training:
            return x
        keep = torch.as_tensor(keep, dtype=x.dtype, device=x.device).detach()
        return x * ((torch.rand_like(x) < keep).to(x.dtype) / keep)


def lstm_cell(projected: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    """Take one step of an LSTM from the state (h, c) and the input's share of the gates.

    Gates are in torch's order i, f, g, o::

        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')

    Args:
        projected: `W_ih x + b_ih + b_hh`, `[B, 4 H]`.
        h: the output before the step, `[B, H]`.
        c: the cells before the step, `[B, H]`.
        weight_hh: the recurrent weights, `[4 H, H]`.

    Returns:
        The next (h, c), each `[B, H]`.
    """
    i, f, g, o = (projected + linear(h, weight_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


class LSTM(nn.Module):
    """LSTM in plain tensor operations, with dropout on the non-recurrent connections only.

    Dropout is that of Zaremba et al. (2014, eq. 7 to 9). It acts on the input of every layer, a fresh mask at each time
    step, never from one step to the next; dropout of the output is left to the next layer.

    Parameters have the names, shapes, order and initialisation U(-1/sqrt(H), 1/sqrt(H)) of
    `nn.LSTM(inputs, hidden, layers)`, so a `state_dict` fits either way, and so do the numbers. It differs in that it
    can be differentiated twice on a GPU (cuDNN's LSTM cannot) and works under `vmap`; it is slower: one small product a
    step and layer.

    Args:
        inputs: entries of an input.
        hidden: H, the entries of an output and of the cells of a layer.
        layers: how many layers there are.

    Raises:
        GradtuneError: one of the three is below 1.
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
        """Run through a sequence.

        Args:
            x: inputs `[T, B, inputs]`.
            state: (h, c) before the first step, each `[layers, B, H]`; None for zero.
            keep: keep probability of dropout as in `Dropout.forward`; None for no dropout.

        Returns:
            The output `[T, B, H]` of the last layer, and the state (h, c) after the last step, each `[layers, B, H]`.
        """
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
    """Embedding, LSTM and linear layer: logits for the next token, from the zero state.

    Dropout is as in Zaremba et al. (2014): on the embedding, between the LSTM's layers and on its output. Their medium
    net is `LanguageModel(10_000, 650, 2)`, the one of the Clip paper (Section 4.3); OnePass (Section 4.2) uses the same
    without dropout.

    Args:
        vocabulary: how many tokens there are.
        hidden: entries of the embedding and of the output of each LSTM layer.
        layers: how many LSTM layers there are.
    """

    def __init__(self, vocabulary: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(vocabulary, hidden), LSTM(hidden, hidden, layers)
        self.dropout, self.decoder = Dropout(), nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor, keep: float | Tensor | None = None) -> Tensor:
        """Compute the logits of the next token.

        Args:
            tokens: whole numbers `[T, B]`.
            keep: keep probability of dropout as in `Dropout.forward`; None for no dropout.

        Returns:
            Logits `[T, B, vocabulary]` of the token after each of `tokens`.
        """
        output, _ = self.lstm(self.embedding(tokens), keep=keep)
        return self.decoder(self.dropout(output, keep))
