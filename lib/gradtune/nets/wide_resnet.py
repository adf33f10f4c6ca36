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
    """Residual block: batch norm, ReLU, 3 x 3 convolution, twice, plus the input.

    Where the number of channels changes, a 1 x 1 convolution of the first activation is added in place of the input.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution, and of the 1 x 1 convolution; it must be 1 where `inputs` equals `outputs`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride=stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
        self.shortcut = None if inputs == outputs else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, inputs, s, s]` to `[N, outputs, s / stride, s / stride]`."""
        active = relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(relu(self.norm2(self.conv1(active))))


def wrn(depth: int = 16, width: int = 1, classes: int = 10, channels: int = 3) -> nn.Sequential:
    """Build WRN-depth-width, which gives logits `[N, classes]` for images `[N, channels, s, s]`, s divisible by 4.

    It has three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels. The weights of all
    convolutions and of the last layer are drawn Xavier-normal, the bias of the last layer is 0 (FDS, Section 5.3:
    WRN-16-1, here 175,066 weights on CIFAR-10). Batch norm has the batch's statistics in mode "train", inside the step;
    see `modules.batched` and `modules.batch_statistics`.

    Args:
        depth: `6 n + 4` with n >= 1.
        width: factor of the channels.
        classes: how many logits an image has.
        channels: of the images.

    Raises:
        GradtuneError: the depth is not `6 n + 4`, or another argument is below 1.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise GradtuneError(f"depth is {depth}; expected 6 n + 4 with n >= 1, such as 10, 16, 22 or 28")
    at_least(1, width=width, classes=classes, channels=channels)
    return residual((16 * width, 32 * width, 64 * width), blocks, classes, channels, 16)


def residual(
    widths: Sequence[int] = (8, 16, 32), blocks: int = 1, classes: int = 10, channels: int = 3, stem: int | None = None
) -> nn.Sequential:
    """Build a residual net of the form of `wrn` with other widths.

    It has a group of blocks for each width; the image is halved at the start of every group but the first. By default
    it is small enough for a CPU: 19,858 weights on RGB images.

    Args:
        widths: channels of the groups; two that follow one another must differ, as the first block of a group halves
            the image only with a change of its channels.
        blocks: how many blocks a group has.
        classes: how many logits an image has.
        channels: of the images.
        stem: channels of the first convolution; None for the first width.

    Raises:
        GradtuneError: `blocks`, `classes` or `channels` is below 1.
    """
    at_least(1, blocks=blocks, classes=classes, channels=channels)
    inputs = stem or widths[0]
    layers: list[nn.Module] = [_conv(channels, inputs)]
    for group, outputs in enumerate(widths):
        for k in range(blocks):
            layers.append(Block(inputs, outputs, 2 if group and k == 0 else 1))
            inputs = outputs
    tail = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return xavier(nn.Sequential(*layers, *tail))
