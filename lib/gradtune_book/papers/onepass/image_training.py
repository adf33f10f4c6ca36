"""Trainings of the OnePass paper's 50-unit net on images (Section 4.2), which the studies `image_*` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradtune.training.loop import Run
from gradtune_book.papers.onepass.uci_training import Start
from gradtune_book.papers.series import finite, short
from gradtune_book.records.environment import Seconds, Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.tasks import fashion
from gradtune_book.tasks.classification import Classification, Modules

OUTLYING = 1e3
"""Cross-entropies of this or more count as diverged (Section 4.2)."""

_READINGS = 20


@dataclass(frozen=True)
class Config:
    """One training of a 50-unit net on images, or several from the start."""

    method: str  # a name of `uci_training.SETTINGS`, or what a study adds
    seed: int  # draws the initial weights and hyperparameters
    dataset: str = "fashion"  # fashion, mnist or digits
    steps: int = 1000  # training steps
    batch: int = 50  # images a step
    hidden: int = 50  # hidden units
    every: int = 10  # training steps between two hyperparameter updates
    look_back: int = 5  # steps looked back on
    trainings: int = 1  # from the start; 50 of the restarted method
    dtype: str = "float32"  # of images and weights
    version: int = 2

    @property
    def between(self) -> int:
        """Training steps between two readings, whole update intervals: some 20 readings a training."""
        return self.every * max(1, self.steps // self.every // _READINGS)


def problem(
    c: Config,
    device: torch.device,
    merged: bool,
    batch_norm: bool = False,
    val_batch: int | None = None,
    standardised: bool = True,
    shares: tuple[float, float] | None = None,
) -> Classification:
    """Return the classification problem of a configuration.

    Args:
        c: The configuration.
        device: Device of the images.
        merged: Whether the validation images are training images.
        batch_norm: Whether the hidden units are normalised before the ReLU, by the statistics of the images at hand.
        val_batch: Validation images that an update sees; None: as many as a step.
        standardised: Whether pixels are standardised; otherwise they are from 0 to 1.
        shares: Shares of all images that train and validate, as `fashion.load` takes them.

    Raises:
        GradtuneError: The data set is unknown or absent.
    """
    images = fashion.load(c.dataset, getattr(torch, c.dtype), device, standardised, shares)
    task = fashion.problem(images.merged() if merged else images, c.hidden, c.batch, val_batch=val_batch)
    if not batch_norm:
        return task
    inputs = task.images.x_train.shape[1]

    def net() -> nn.Module:
        norm = nn.BatchNorm1d(c.hidden, track_running_stats=False)
        return nn.Sequential(nn.Linear(inputs, c.hidden), norm, nn.ReLU(), nn.Linear(c.hidden, 10))

    return Classification(task.images, Modules(net, task.images.x_train), task.train, task.val, task.rows)


class Reading:
    """Test losses while runs train; reading them counts as no training time.

    Args:
        task: The problem.
        device: Where it is computed.

    Attributes:
        spent: Seconds of training.
        values: Cross-entropies and shares of errors `[R]` of each reading.
    """

    def __init__(self, task: Classification, device: torch.device) -> None:
        self.task, self.device, self.spent = task, device, Stopwatch(device)
        self.values: list[tuple[Tensor, Tensor]] = []

    def read(self, run: Run) -> None:
        """Read runs outside `spent`."""
        self.values.append(self.task.evaluate(run.state.w, "test"))

    def watch(self, run: Run) -> None:
        """Read runs while `spent` counts."""
        with self.spent.paused():
            self.read(run)

    def state(self) -> dict[str, Any]:
        """Return what was read and spent, for a run that goes on later."""
        return {"values": self.values, "spent": self.spent.state()}

    def go_on(self, earlier: dict[str, Any]) -> None:
        """Go on from what `state` gave in an earlier sitting."""
        self.values = [(ce.to(self.device), error.to(self.device)) for ce, error in earlier["values"]]
        self.spent.go_on(earlier["spent"])

    def curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Return cross-entropies and errors `[R, K]`, NaN where the cross-entropy is not finite or outlying."""
        ce, error = (finite(torch.stack([pair[k] for pair in self.values], dim=1)) for k in (0, 1))
        return without_outliers(ce, ce), without_outliers(error, ce)


def without_outliers(values: np.ndarray, ce: np.ndarray) -> np.ndarray:
    """Return values, NaN where the cross-entropy beside them is not finite or outlying."""
    return np.where(ce < OUTLYING, values, np.nan)


def results(
    task: Classification,
    w: Tensor,
    start: Start,
    curves: tuple[np.ndarray, np.ndarray],
    seconds: Seconds,
) -> list[Result]:
    """Return R runs as they are recorded.

    Metrics: initial values (`uci_training.Start.metrics`), final `test_ce` (cross-entropy), `test_error` (share of
    errors) and `val_ce`, `best_ce` and `best_error` (lowest at any reading), and `diverged` (1 where the final test
    cross-entropy is not finite or reaches `OUTLYING`). Series: `ce_curve` and `error_curve`.

    Args:
        task: The problem.
        w: Final weights `[R, D]`.
        start: What the runs started from.
        curves: Cross-entropies and errors `[R, K]`, as `Reading.curves` gives them.
        seconds: Seconds of training of a run.
    """
    ce, error = curves
    val, out = finite(task.evaluate(w, "val")[0]), []
    for k in range(len(w)):
        metrics, series = summed_up(ce[k], error[k])
        metrics |= start.metrics(k) | {"val_ce": val[k]}
        out.append(Result(metrics, series, dataset=task.images.name, dataset_sha256=task.images.sha256, **seconds))
    return out


def summed_up(ce: np.ndarray, error: np.ndarray) -> tuple[dict[str, Any], dict[str, list[float | None]]]:
    """Return metrics and series of one run from its test losses.

    Args:
        ce: Cross-entropies at its readings, NaN where they count as diverged.
        error: Shares of errors there.
    """
    metrics: dict[str, Any] = {"diverged": int(np.isnan(ce[-1]))}
    for name, values in (("ce", ce), ("error", error)):
        metrics |= {f"test_{name}": values[-1], f"best_{name}": lowest(values)}
    return metrics, {"ce_curve": short(ce), "error_curve": short(error)}


def lowest(values: Sequence[float] | np.ndarray) -> float:
    """Return the lowest value, NaN where there is none."""
    x = np.asarray(values, dtype=float)
    return float("nan") if np.isnan(x).all() else float(np.nanmin(x))
