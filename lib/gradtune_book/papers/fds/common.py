"""What the studies of the FDS paper share: images on the device, and schedules."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from gradtune.errors import unknown
from gradtune.nets.plain import lenet, xavier
from gradtune_book.tasks import images

PAPER = "svhn"
"""Name of the set of Figures 2 and 3 that is hard. Where its files are absent a notebook uses `EMBEDDED`."""
EMBEDDED = "svhn_like"


@lru_cache(maxsize=2)
def pictures(
    data: str,
    device: torch.device,
    rows: int | None = None,
    test_rows: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> images.Images:
    """Return a set with no validation images of its own, as a task draws them.

    The last two sets are kept for the next runs.

    Args:
        data: name of the set, as `images.load` takes it.
        device: device of the images.
        rows: number of training images; None: all.
        test_rows: number of test images; None: all.
        dtype: type of the images.
    """
    return images.load(data, dtype, device, 0, rows, test_rows)


def lenet_for(pictures: images.Images) -> nn.Sequential:
    """Return FDS's LeNet for these images, drawn Xavier-normal."""
    _, channels, size, _ = pictures.x_train.shape
    return xavier(lenet(size, channels))


def schedule(kind: str, lr: float, steps: int) -> Tensor:
    """Return the learning rates `[T]` of a schedule, float64.

    Args:
        kind: "cosine" falls from `lr` at step 0 towards 0 at step T, "constant" stays.
        lr: learning rate of step 0.
        steps: T.

    Raises:
        GradtuneError: `kind` is neither.
    """
    if kind == "constant":
        return torch.full((steps,), lr, dtype=torch.float64)
    if kind != "cosine":
        raise unknown("schedule", kind, ["cosine", "constant"])
    return lr * (1 + torch.cos(torch.pi * torch.arange(steps, dtype=torch.float64) / steps)) / 2
