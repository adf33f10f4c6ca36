"""A small residual net in the form of ResNet-18, for machines on which the latter is too slow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from gradtune_book.tasks.resnet18 import resnet18


def unit(inputs: int, outputs: int, stride: int) -> BasicBlock:
    """Return two convolutions with batch norm, and a way around them (He et al. 2016).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Stride of the first convolution, and of the way around where it has one.
    """
    made = BasicBlock(inputs, outputs, stride)
    around = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)  # each unit draws as much
    if stride != 1 or inputs != outputs:
        made.downsample = nn.Sequential(*around)
    return made


class Residual(nn.Module):
    """ResNet-18's stem, four stages and linear layer, with one unit a stage and few channels.

    Args:
        channels: Channels of an image.
        width: Channels of the first stage; each later one has twice as many and half the pixels.
    """

    def __init__(self, channels: int = 3, width: int = 4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            unit(width * max(1, 2**k // 2), width * 2**k, 2 if k else 1) for k in range(4)
        )
        self.fc = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N, 10]` for images `[N, channels, size, size]`."""
        x = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def net(width: int, channels: int, seed: int) -> nn.Module:
    """Return a net: ResNet-18 for width 64 and 3 channels, else a small one; torch's own random state is left alone.

    Args:
        width: Channels of the first stage.
        channels: Channels of an image.
        seed: Draws the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet18() if (width, channels) == (64, 3) else Residual(channels, width)


def six_blocks(module: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of the stem, of the four stages and of the linear layer (MetaOptimize, Section 7.1)."""
    stem = [p for n, p in module.named_parameters() if n.startswith(("conv1", "bn1"))]
    rest = (module.get_submodule(f"layer{k}") for k in range(1, 5))
    return [stem, *(list(stage.parameters()) for stage in rest), list(module.get_submodule("fc").parameters())]
