"""What the studies of the FDS paper share: images on the device, schedules, and long series cut into pieces that a
record keeps whole (`fds_tables.whole` joins them)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from gradtune.errors import unknown
from gradtune.nets.plain import lenet, xavier
from torch import Tensor, nn

from gradtune_book.records import store
from gradtune_book.tasks import images

PAPER = "svhn"
"""The set of Figures 2 and 3 that is hard; where its files are absent a notebook uses `EMBEDDED`."""
EMBEDDED = "svhn_like"


@lru_cache(maxsize=2)
def pictures(
    data: str,
    device: torch.device,
    rows: int | None = None,
    test_rows: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> images.Images:
    """A set with no validation images of its own (a task draws them), kept for the next run."""
    return images.load(data, dtype, device, 0, rows, test_rows)


def lenet_for(pictures: images.Images) -> nn.Sequential:
    """FDS's LeNet for these images, Xavier-normal."""
    _, channels, size, _ = pictures.x_train.shape
    return xavier(lenet(size, channels))


def schedule(kind: str, lr: float, steps: int) -> Tensor:
    """Learning rates `[T]`, float64: "cosine" falls from lr at step 0 towards 0 at step T, "constant" stays. Raises
    GradtuneError for another kind."""
    if kind == "constant":
        return torch.full((steps,), lr, dtype=torch.float64)
    if kind != "cosine":
        raise unknown("schedule", kind, ["cosine", "constant"])
    return lr * (1 + torch.cos(torch.pi * torch.arange(steps, dtype=torch.float64) / steps)) / 2


def pieces(name: str, values: Sequence[float], digits: int = 5) -> dict[str, list[float | None]]:
    """A long series as several that a record does not thin: name_0, name_1, ... of at most 50 values."""
    short = [float(f"{v:.{digits}g}") for v in values]
    return {f"{name}_{k}": list(short[i : i + store.POINTS]) for k, i in enumerate(range(0, len(short), store.POINTS))}
