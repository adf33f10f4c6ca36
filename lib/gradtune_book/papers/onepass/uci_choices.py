"""What the OnePass paper leaves open, measured: WD+LR+M and Baydin on UCI Energy with one choice changed at a time.

Every run has a partner, the run of the same method and seed with the choices of this book. Both have the same initial
hyperparameters, and the same initial weights unless these are what is changed. The page "What the papers leave out"
describes the choices.

The splits alone are also run on UCI Power and Kin8nm, whose published averages are those of one split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gradtune import methods
from gradtune.errors import unknown
from gradtune.estimators.trace import Trace
from gradtune.training.method import Method
from gradtune_book.notebooks import stats
from gradtune_book.papers.onepass import uci_tables
from gradtune_book.papers.onepass.uci_training import DECAY, LR, MOMENTUM, Setting, setting, train
from gradtune_book.papers.onepass.uci_training import Config as Training
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.uci import Table, TableRegression, load

METHOD, BAYDIN, USUAL, SPLIT = "WD+LR+M", "Baydin", "as in this book", "another split"
TARGET, CHAIN = "a target that is not scaled", "with the chain factor"


def glorot(task: TableRegression, seeds: Sequence[int]) -> Tensor:
    """Initial weights `[R, D]`, uniform by Glorot's rule, with biases of 0; a row for each seed."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        w = {n: torch.zeros(s) for n, s in zip(task.layout.names, task.layout.shapes, strict=True)}
        for x in w.values():
            if x.dim() == 2:
                nn.init.xavier_uniform_(x, generator=generator)
        rows.append(task.layout.flatten(w))
    return torch.stack(rows).to(task.table.x_train)


def chained(look_back: int, every: int) -> Method:
    """`methods.baydin` with the chain factor of log10: steps along the derivative in the coordinate itself.

    Args:
        look_back: Of no effect, as this method looks back on no step.
        every: Of no effect, as it updates at every step.
    """
    usual = methods.baydin()
    assert isinstance(usual.estimator, Trace)
    return replace(usual, estimator=replace(usual.estimator, chain=True))


_CHANGES: dict[str, dict[str, Any]] = {
    USUAL: {},
    "one more term": {"make": lambda i, every: methods.onepass(i + 1, every)},
    "derivatives at the new weights": {"make": partial(methods.onepass, fresh=True)},
    "no limits on the learning rate": {"bounds": (0.0, float("inf"))},
    "Glorot's initial weights": {"init": glorot},
    "scaled by the training rows": {},
    TARGET: {},
    CHAIN: {"make": chained},
    SPLIT: {},
}
CHOICES = tuple(_CHANGES)
OF = {METHOD: tuple(c for c in CHOICES if c not in (CHAIN, SPLIT)), BAYDIN: (USUAL, CHAIN)}
"""The choices that are run of each method, but for the splits."""

_ENDS = {LR: "log10_lr_end", DECAY: "log10_decay_end", MOMENTUM: "momentum_end"}  # metrics of what is tuned


@dataclass(frozen=True)
class Config(Training):
    """One run: a `uci_training.Config` with one choice changed."""

    choice: str = USUAL  # one of `CHOICES`
    split: int = 0  # one of the data set's 20
    version: int = 4

    def setting(self) -> Setting:
        """The setting of the method with the choice's change.

        Raises:
            GradtuneError: The method or the choice is unknown.
        """
        if self.choice not in _CHANGES:
            raise unknown("choice", self.choice, CHOICES)
        return replace(setting(self.method), **_CHANGES[self.choice])

    def table(self, device: torch.device) -> Table:
        """The rows of its split, scaled by training and validation rows unless the choice changes that."""
        rows = "train" if self.choice == "scaled by the training rows" else "train_val"
        whole = self.choice != TARGET
        return load(self.dataset, self.split, getattr(torch, self.dtype), device, scaled_by=rows, scale_target=whole)


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    dataset: str  # a name from `gradtune data`
    runs: int  # initialisations for each choice
    splits: int  # data splits, the first of them this book's
    split_runs: int  # initialisations for each of the others
    steps: int  # training steps a run
    other_sets: tuple[str, ...] = ()  # sets of which the splits alone are run, the first of them too


SIZES = {
    "smoke": Sizes("diabetes", 2, 2, 2, 20),
    "laptop": Sizes("energy", 20, 5, 10, 4000),
    "paper": Sizes("energy", 100, 20, 10, 4000, ("power", "kin8nm")),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Configurations choice by choice of each method, then split by split, then the splits of the other sets."""
    first = Config(METHOD, seed, sizes.dataset, sizes.steps)
    each = [replace(first, method=m, choice=c) for m, choices in OF.items() for c in choices]
    out = [replace(c, seed=seed + k) for c in each for k in range(sizes.runs)]
    other = replace(first, choice=SPLIT)
    few, splits = range(seed, seed + sizes.split_runs), range(1, sizes.splits)
    out += [replace(other, split=s, seed=k) for s in splits for k in few]
    for name in sizes.other_sets:
        out += [replace(first, dataset=name, seed=k) for k in few]
        out += [replace(other, dataset=name, split=s, seed=k) for s in splits for k in few]
    return out


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that agree in all but their seeds.

    Metrics: initial values (`uci_training.Start.metrics`), final `test_mse` and `val_mse` in the target's unit squared,
    `best_mse` (the lowest test MSE at some 20 readings), `diverged` (1 where the final test loss is not finite), and
    of what the method tunes, the final values `log10_lr_end`, `log10_decay_end` and `momentum_end`.

    Raises:
        GradtuneError: The method or the choice is unknown.
    """
    c = batch[0]
    trained = train(c, [b.seed for b in batch], device, c.every * max(1, c.steps // c.every // 20))
    out = []
    for k, test in enumerate(trained.test):
        metrics = trained.start.metrics(k) | {"test_mse": test[-1], "val_mse": trained.val[k]}
        metrics |= {"best_mse": float(np.nanmin(test)), "diverged": int(np.isnan(test[-1]))}
        for name in c.setting().tuned:
            end = float(trained.tuned[name][k, -1])
            metrics[_ENDS[name]] = end if name == MOMENTUM else float(np.log10(end))
        out.append(Result(metrics, {}, trained.wall_s, trained.dataset, trained.sha256, trained.cpu_s))
    return out


STUDY = Study("uci_choices", Config, SIZES, configs, run, chunk=50)


# --- what the notebook reads off the runs -----------------------------------------------------------------------------


def on(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The runs on one set."""
    return frame[frame["dataset"] == dataset] if len(frame) else frame


def effects(frame: pd.DataFrame) -> pd.DataFrame:
    """What each choice does to the final test MSE, a row for each method and choice.

    The columns are the number of runs, how many are NaN, the median final test MSE, and two numbers on the pairs with
    the usual choice: the median of `changed / usual - 1` in per cent with its bootstrap standard error, and the share
    of pairs in which the change is better. For the splits the pairs compare other rows, so that they say how much the
    rows matter.
    """
    if frame.empty:
        return pd.DataFrame()
    rows = {}
    for method, runs in frame.groupby("method", sort=False):
        usual = runs[runs["choice"] == USUAL].set_index("seed")["test_mse"]
        for choice, g in runs.groupby("choice", sort=False):
            ratio = g["test_mse"].to_numpy(dtype=float) / usual.reindex(g["seed"]).to_numpy(dtype=float)
            gap = 100 * (ratio[np.isfinite(ratio)] - 1)
            row: dict[str, object] = {"runs": len(g), "NaN": int(g["test_mse"].isna().sum())}
            row["median"] = f"{g['test_mse'].median():.3g}"
            if choice != USUAL and len(gap):
                row["change, %"] = f"{np.median(gap):+.1f}{stats.PLUS_MINUS}{stats.bootstrap_error(gap, np.median):.1f}"
                row["better in, %"] = f"{100 * (gap < 0).mean():.0f}"
            rows[method, choice] = row
    order = [(m, c) for m in OF for c in CHOICES if (m, c) in rows]
    return pd.DataFrame(rows).T.reindex(order).rename_axis(["method", "choice"]).fillna("")


def splits(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each split of the rows, sorted by the median final test MSE of its runs.

    The columns are that median, the median final validation MSE, and the median of log10 of the weight decay at the
    end.
    """
    if frame.empty or SPLIT not in set(frame["choice"]):
        return pd.DataFrame()
    return few(frame).groupby("split")[["test_mse", "val_mse", "log10_decay_end"]].median().sort_values("test_mse")


def few(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs on all splits; of this book's split those that have the seeds of the others."""
    other = frame[frame["choice"] == SPLIT]
    here = frame[(frame["method"] == METHOD) & (frame["choice"] == USUAL) & frame["seed"].isin(other["seed"])]
    return pd.concat([here, other])


def split_spread(frame: pd.DataFrame) -> str:
    """Say how far the mean final test MSE moves from split to split, beside the bootstrap error of such a mean."""
    if frame.empty or SPLIT not in set(frame["choice"]):
        return "no run is recorded yet"
    each = few(frame).groupby("split")["test_mse"]
    means, errors = each.mean(), each.apply(lambda x: stats.bootstrap_error(x.to_numpy(dtype=float)))
    return (
        f"{len(means)} splits, {int(each.size().min())} runs each: means from {means.min():.3g} to {means.max():.3g}, "
        f"standard deviation {means.std():.2g}; bootstrap error of one split's mean {errors.median():.2g}"
    )


def split_table(frame: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """How far mean final test MSEs move from split to split, and where the paper's lies among them; a row for each set.

    Each split counts by the mean of its runs, in the units of `uci_tables.UNITS`. Splits that are not recorded are left
    out; the column `splits` counts those that are.

    Args:
        frame: Runs of this study. Of the first split those count that have the seeds of the others.
        published: Table 1 as printed, from `uci_tables.published`.
    """
    rows = {}
    for name in [n for n in uci_tables.NAMES if len(frame) and n in set(frame["dataset"])]:
        means = few(on(frame, name)).groupby("split")["test_mse"].mean() * uci_tables.UNITS.get(name, 1.0)
        theirs = float(published.loc[(name, METHOD), "mean"])
        rows[uci_tables.of_losses(name)] = {
            "splits": len(means),
            "this book's": means.get(0, np.nan),
            "lowest": means.min(),
            "median": means.median(),
            "highest": means.max(),
            "the paper's": theirs,
            "splits below the paper's": int((means < theirs).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("data")
