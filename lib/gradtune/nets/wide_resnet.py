"""Wide residual networks (Zagoruyko & Komodakis 2016), pre-activation form, as FDS trains them on CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from gradtune.errors import GradtuneError, at_least
from gradtune.nets.plain import xavier


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Batch norm, ReLU, 3 x 3 convolution, twice, plus the input; where the width changes, plus a 1 x 1 convolution of
    the first activation instead."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride=stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
        self.shortcut = None if inputs == outputs else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, s, s]` to `[N, outputs, s / stride, s / stride]`."""
        active = relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(relu(self.norm2(self.conv1(active))))


def wrn(depth: int = 16, width: int = 1, classes: int = 10, channels: int = 3) -> nn.Sequential:
    """WRN-depth-width for images `[N, channels, s, s]`, s divisible by 4; logits `[N, classes]`.

    Three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels; all convolutions and the last
    layer initialised Xavier-normal, its bias 0 (FDS, Section 5.3: WRN-16-1, here 175,066 weights on CIFAR-10).
    Batch statistics in mode "train", inside the step; see `modules.batched` and `modules.batch_statistics`. Raises
    GradtuneError for a depth that is not 6 n + 4.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise GradtuneError(f"depth is {depth}; expected 6 n + 4 with n >= 1, such as 10, 16, 22 or 28")
    at_least(1, width=width, classes=classes, channels=channels)
    return residual((16 * width, 32 * width, 64 * width), blocks, classes, channels, 16)


def residual(
    widths: Sequence[int] = (8, 16, 32), blocks: int = 1, classes: int = 10, channels: int = 3, stem: int | None = None
) -> nn.Sequential:
    """A residual net of the form of `wrn` with any widths: a group of `blocks` blocks for each, the image halved at the
    start of every group but the first; `stem`: channels of the first convolution, None for the first width. Small
    enough for a CPU by default: 19,858 weights on RGB images."""
    at_least(1, blocks=blocks, classes=classes, channels=channels)
    inputs = stem or widths[0]
    layers: list[nn.Module] = [_conv(channels, inputs)]
    for group, outputs in enumerate(widths):
        for k in range(blocks):
            layers.append(Block(inputs, outputs, 2 if group and k == 0 else 1))
            inputs = outputs
    tail = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return xavier(nn.Sequential(*layers, *tail))
