"""ResNet-18 for small images, as the papers train it on CIFAR."""

from __future__ import annotations

from torch import nn
from torchvision import models


def resnet18(classes: int = 10) -> nn.Module:
    """Return torchvision's ResNet-18 with the stem used on CIFAR (He et al. 2016).

    The stem is a 3 x 3 convolution of stride 1 and no pooling. The net has 11,173,962 weights for 10 classes.
    """
    net = models.resnet18(num_classes=classes)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net
