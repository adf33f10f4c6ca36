"""What the studies of the FDS paper share: images on the device, schedules, and long series cut into pieces that a
record keeps whole."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gradhpo import records, studies
from gradhpo.errors import unknown
from gradhpo.nets import lenet, xavier
from gradhpo.tasks import images

PAPER = "svhn"
"""The set of Figures 2 and 3 that is hard; where its files are absent a notebook uses `EMBEDDED`."""
EMBEDDED = "svhn_like"


@lru_cache(maxsize=2)
def pictures(data: str, device: torch.device, rows: int | None = None, test_rows: int | None = None) -> images.Images:
    """A set with no validation images of its own (a task draws them), kept for the next run."""
    return images.load(data, device=device, validation=0, rows=rows, test_rows=test_rows)


def lenet_for(pictures: images.Images) -> nn.Sequential:
    """FDS's LeNet for these images, Xavier-normal."""
    _, channels, size, _ = pictures.x_train.shape
    return xavier(lenet(size, channels))


def schedule(kind: str, lr: float, steps: int) -> Tensor:
    """Learning rates `[T]`, float64: "cosine" falls from lr at step 0 towards 0 at step T, "constant" stays. Raises
    GradhpoError for another kind."""
    if kind == "constant":
        return torch.full((steps,), lr, dtype=torch.float64)
    if kind != "cosine":
        raise unknown("schedule", kind, ["cosine", "constant"])
    return lr * (1 + torch.cos(torch.pi * torch.arange(steps, dtype=torch.float64) / steps)) / 2


def pieces(name: str, values: Sequence[float], digits: int = 5) -> dict[str, list[float | None]]:
    """A long series as several that a record does not thin: name_0, name_1, ... of at most 50 values."""
    short = [float(f"{v:.{digits}g}") for v in values]
    return {
        f"{name}_{k}": list(short[i : i + records.POINTS]) for k, i in enumerate(range(0, len(short), records.POINTS))
    }


def whole(frame: pd.DataFrame, name: str) -> np.ndarray:
    """The series that `pieces` cut, `[runs, T]`, a row a run of the frame."""
    columns = sorted((c for c in frame if c.startswith(f"{name}_")), key=lambda c: int(c.rpartition("_")[2]))
    used = [c for c in columns if frame[c].map(np.ndim).eq(1).all()]
    return np.array([np.concatenate([row[c] for c in used]) for _, row in frame.iterrows()], dtype=float)


def coverage(name: str, scale: str, *fields: str) -> pd.DataFrame:
    """How many runs of a study are recorded of how many it has at a scale, a row a method (and value of further fields
    of the configuration), in the study's order."""
    study = studies.get(name)
    columns = ["method", *fields]
    wanted = pd.DataFrame([{c: getattr(each, c) for c in columns} for each in study.runs(scale)])
    found = records.load(study, scale)
    have = found.groupby(columns).size() if len(found) else pd.Series(dtype=int)
    table = wanted.groupby(columns, sort=False).size().to_frame("of")
    table.insert(0, "recorded", [int(have.get(key, 0)) for key in table.index])
    return table


def recorded(name: str, scale: str) -> pd.DataFrame:
    """The recorded runs of a study at a scale: empty, but with the columns of a configuration, where there are none."""
    study = studies.get(name)
    found = records.load(study, scale)
    return found if len(found) else pd.DataFrame(columns=[*vars(study.runs(scale)[0]), "device", "commit", "date"])
