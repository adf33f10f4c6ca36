"""How far each shortcut is from the exact hypergradient of a long training: the bias of truncation, measured directly.

A small net is trained for T steps by SGD with momentum at fixed hyperparameters. The exact hypergradient goes through
all T steps (`Reverse(T, "tree")`, in memory that does not grow with T). Beside it stands what each method would give
after the same steps from the same weights on the same batches:

* Diff-through-Opt(h): exact through the last h steps, h from 1 to T;
* OnePass(i): the Neumann series of the last step with i terms, i from 1 to T;
* ClipR(R): the sensitivity of all steps, projected on a ball of radius R after each;
* UnrollK: the sensitivity since the last of the resets every K steps.

All is in float64, in log10 of the learning rate and of the weight decay and in sigmoid of the momentum. The exact runs
also compare finite steps with the derivative: where these disagree, no shortcut is to be judged by it. Gradient descent
on a net of ReLUs jumps where a unit switches, so each net is trained with smooth units as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gradtune.errors import unknown
from gradtune.estimators import Estimator
from gradtune.estimators.forward import Forward
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.recursion.outer import SGD
from gradtune.training.loop import Method
from gradtune.tuning.batches import Batch
from gradtune.tuning.once import hypergradient
from gradtune.tuning.streams import Resident
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import small

TASKS = {"images": "digits", "tables": "energy", "convolutions": "digits"}
"""The problems of `tasks.small` and their data sets: a net with two hidden layers, one with one, and convolutions."""

COORDINATES = ("lr", "momentum", "weight_decay")
"""What is differentiated by."""

UNITS = ("relu", "smooth")

EXACT = "exact"
_STEPS = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Config:
    """One hypergradient after one training."""

    method: str  # one of `METHODS`
    seed: int  # draws the initial weights and the order of the batches
    task: str  # one of `TASKS`
    dataset: str  # as `small.load` takes it
    steps: int  # T, training steps
    amount: float  # h, i, R or K; T for the exact hypergradient
    units: str = "relu"  # relu, or smooth: tanh in its place, and means for maxima in pooling
    lr: float = 0.02  # learning rate
    momentum: float = 0.9
    weight_decay: float = 1e-3
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    data: str  # "embedded" takes a stand-in for UCI Energy, "real" the set itself
    tasks: tuple[str, ...]  # names of the problems
    units: tuple[str, ...]  # relu, smooth
    seeds: int  # trainings of each kind
    steps: int  # T
    lengths: tuple[int, ...]  # h, i and K below T
    radii: tuple[float, ...]  # R


SIZES = {
    "smoke": Sizes("embedded", ("images", "tables"), UNITS, 1, 30, (1, 3, 10), (1.0,)),
    "laptop": Sizes("real", tuple(TASKS), UNITS, 3, 1000, (1, 3, 10, 30, 100, 300), (0.1, 1.0, 10.0, 100.0)),
    "paper": Sizes("real", tuple(TASKS), UNITS, 3, 4000, (1, 3, 10, 30, 100, 300, 1000), (0.1, 1.0, 10.0, 100.0)),
}

METHODS = (EXACT, "Diff-through-Opt", "OnePass", "ClipR", "UnrollK")
"""Methods as records name them, in the order of tables."""


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Configurations of all methods, the exact hypergradients first; a K divides T, so that the last reset is K ago."""
    lengths = [*(n for n in sizes.lengths if n < sizes.steps), sizes.steps]
    amounts: dict[str, Sequence[float]] = {
        EXACT: [sizes.steps],
        "Diff-through-Opt": lengths,
        "OnePass": lengths,
        "ClipR": sizes.radii,
        "UnrollK": [n for n in lengths if sizes.steps % n == 0],
    }
    return [
        Config(method, s, task, _dataset(task, sizes.data), sizes.steps, float(amount), units)
        for method in METHODS
        for task in sizes.tasks
        for units in sizes.units
        for s in range(seed, seed + sizes.seeds)
        for amount in amounts[method]
    ]


def _dataset(task: str, data: str) -> str:
    return small.resolve(task, "embedded") if data == "embedded" else TASKS[task]


def estimator(c: Config) -> Estimator:
    """Return the estimator of a configuration.

    Raises:
        GradtuneError: The method is unknown.
    """
    if c.method == EXACT:
        return Reverse(c.steps, "tree")
    if c.method == "Diff-through-Opt":
        return Reverse(int(c.amount), "tree")
    if c.method == "OnePass":
        return Neumann(int(c.amount))
    if c.method == "ClipR":
        return Forward(radius=c.amount)
    if c.method == "UnrollK":
        return Forward(reset_every=int(c.amount))
    raise unknown("method", c.method, METHODS)


def net(task: small.Small, units: str, seed: int) -> nn.Module:
    """Return the net of a problem with ReLUs, or with smooth units in their place.

    Raises:
        GradtuneError: The units are unknown.
    """
    if units not in UNITS:
        raise unknown("units", units, UNITS)
    module = task.net(seed)
    if units == "smooth":
        assert isinstance(module, nn.Sequential)
        _smoothed(module)
    return module


def _smoothed(module: nn.Sequential) -> None:
    for k, part in enumerate(module):
        if isinstance(part, nn.ReLU):
            module[k] = nn.Tanh()
        elif isinstance(part, nn.MaxPool2d):
            module[k] = nn.AvgPool2d(part.kernel_size, part.stride)
        elif isinstance(part, nn.Sequential):
            _smoothed(part)


class Batches(Sequence[Batch]):
    """The batches of a training by number, drawn anew at each call.

    Args:
        train: The rows to draw from.
        batch: Rows of a batch; None for all.
        seed: Seed of the order.
        steps: Number of batches.
    """

    def __init__(self, train: tuple[Tensor, Tensor], batch: int | None, seed: int, steps: int) -> None:
        self._rows, self._steps = Resident(*train, batch, seed, "training data"), steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, k: Any) -> Batch:
        if not 0 <= k < self._steps:
            raise IndexError(k)
        return self._rows.at(k)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute hypergradients one after another.

    Metrics: `d_lr`, `d_momentum` and `d_weight_decay`, the hypergradient; `val`, the validation loss; `gradients` and
    `products`, what it cost. Of exact ones also the series `ratios`, finite steps of 0.1 to 0.0001 over the derivative.

    Raises:
        GradtuneError: A method, a problem or its data set is unknown, or the data set is absent.
    """
    return [_run(c, device) for c in batch]


def _run(c: Config, device: torch.device) -> Result:
    task = small.load(c.task, c.dataset).to(device)
    train, val = (_double(part) for part in (task.train, task.val))
    spent = Stopwatch(device)
    with spent:
        found = hypergradient(
            net(task, c.units, c.seed).double().to(device),
            task.loss,
            Batches(train, task.batch, c.seed, c.steps),
            val,
            hypers={name: getattr(c, name) for name in COORDINATES},
            method=Method(estimator(c), SGD(0.0), every=c.steps),
            seed=c.seed,
            replay=False,
            check_steps=_STEPS if c.method == EXACT else (),
        )
    metrics: dict[str, float | int | None] = {f"d_{name}": found.values[name] for name in COORDINATES}
    metrics |= {"val": found.val_loss, "gradients": found.cost.gradients, "products": found.cost.hessian_products}
    series: dict[str, list[float | None]] = {"ratios": [a.ratio for a in found.agreement]} if found.agreement else {}
    return Result(metrics, series, dataset=c.dataset, dataset_sha256=task.sha256, **spent.share(1))


def _double(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = (each.double() if each.is_floating_point() else each for each in part)
    return x, y


_COSTS = {EXACT: 16.0, "Diff-through-Opt": 1.0, "OnePass": 1.0, "ClipR": 10.0, "UnrollK": 9.0}


def _cost(c: Config) -> float:
    looks_back = 6.0 * c.amount if c.method in ("Diff-through-Opt", "OnePass") else 0.0
    return _COSTS[c.method] * c.steps + looks_back


STUDY = Study("long_horizons", Config, SIZES, configs, run, chunk=1, cost=_cost)


# -- tables ------------------------------------------------------------------------------------------------------------


def bias(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how far each shortcut is from the exact hypergradient of the same training.

    Runs without an exact one are left out.

    Args:
        frame: The runs, from `store.load` or `papers.run_now`.

    Returns:
        A row for each run of a shortcut: method, task, units, seed, steps, amount; `error`, the length of the
        difference over that of the exact hypergradient; `cosine` between the two; `length`, the shortcut's length over
        the exact one's; and `signs`, the number of coordinates whose sign is right.
    """
    keys, names = ["task", "units", "dataset", "seed", "steps", "lr", "version"], [f"d_{n}" for n in COORDINATES]
    exact = frame[frame["method"] == EXACT][[*keys, *names]]
    both = frame[frame["method"] != EXACT].merge(exact, on=keys, suffixes=("", "_exact"))
    g, true = both[names].to_numpy(float), both[[f"{n}_exact" for n in names]].to_numpy(float)
    lengths = np.linalg.norm(g, axis=1), np.linalg.norm(true, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = (g * true).sum(1) / (lengths[0] * lengths[1])
        error, length = np.linalg.norm(g - true, axis=1) / lengths[1], lengths[0] / lengths[1]
    out = both[["method", "task", "units", "seed", "steps", "amount"]]
    return out.assign(error=error, cosine=cosine, length=length, signs=(np.sign(g) == np.sign(true)).sum(1))


def by_amount(runs: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """Return medians over seeds of a column of `bias`: methods and amounts in rows, problems and units in columns."""
    table = runs.groupby(["method", "amount", "task", "units"])[column].median().unstack([-2, -1])
    order = [m for m in METHODS if m in table.index.get_level_values(0)]
    return table.reindex(order, level=0).sort_index(axis=1).rename(columns=small.TITLES, level=0)


def smoothness(frame: pd.DataFrame) -> pd.DataFrame:
    """Return finite steps over the derivative, of each exact hypergradient: step lengths in columns."""
    exact = frame[frame["method"] == EXACT]
    index = pd.MultiIndex.from_frame(exact[["task", "units", "seed"]])
    return pd.DataFrame(exact["ratios"].tolist(), index=index, columns=_STEPS)
