"""Figure 3 of the OnePass paper: a map of the final test loss with trajectories of OnePass WD+LR drawn over it.

The axes of the map are learning rate and weight decay. "Random" trains with fixed hyperparameters on training and
validation rows. "WD+LR" moves both while it trains on the training rows. Momentum is fixed.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from torch import Tensor

from gradtune import methods
from gradtune.errors import unknown
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Run
from gradtune_book.notebooks import plots
from gradtune_book.notebooks.stats import bootstrap_error, plus_minus
from gradtune_book.papers.onepass.uci_tables import NAMES
from gradtune_book.records.store import NOTHING, Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.uci import TableRegression, load

RANDOM, TUNED = "Random", "WD+LR"


@dataclass(frozen=True)
class Config:
    """One training of the 50-unit net from random weights and hyperparameters."""

    method: str  # "Random" or "WD+LR"
    seed: int  # draws the initial weights, learning rate and weight decay
    dataset: str = "energy"  # a name from `gradtune data`
    steps: int = 4000  # full-batch training steps
    hidden: int = 50  # hidden units
    momentum: float = 0.6224593312018546  # sigmoid(0.5), fixed
    lr_low: float = -6.0  # log10 of the range of initial learning rates
    lr_high: float = 1.0
    decay_low: float = -7.0  # log10 of the range of initial weight decays
    decay_high: float = 2.0
    look_back: int = 5  # terms of the Neumann series
    every: int = 10  # training steps between two hyperparameter updates
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    datasets: tuple[str, ...]  # names from `gradtune data`
    random: int  # runs behind the heat map
    tuned: int  # trajectories
    steps: int  # training steps a run


SIZES = {
    "smoke": Sizes(("diabetes",), 40, 6, 200),
    "laptop": Sizes(("energy",), 100, 10, 4000),
    "paper": Sizes(("energy", "yacht"), 500, 20, 4000),
}
_LARGEST_LR = 1.0  # OnePass keeps learning rates in [1e-10, 1]; its trajectories start there too
_WORTH_TRACING = 1000  # steps; the numbers are the same to the last bit, recording a block takes seconds
_TUNED_SEEDS = 100_000  # trajectories start from other draws than the heat map's runs


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Configurations of the heat map's runs, then of the trajectories, set by set."""
    out = []
    for name in sizes.datasets:
        out += [Config(RANDOM, seed + k, name, sizes.steps) for k in range(sizes.random)]
        out += [
            Config(TUNED, seed + _TUNED_SEEDS + k, name, sizes.steps, lr_high=math.log10(_LARGEST_LR))
            for k in range(sizes.tuned)
        ]
    return out


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of trainings that agree in all but their seeds.

    Metrics: `log10_lr` and `log10_decay` at the start, `log10_lr_end` and `log10_decay_end`, and `test_mse`, the final
    test MSE in the target's unit squared (NaN where training diverged).

    Series, of WD+LR alone: `path_lr` and `path_decay`, the same log10 values at up to 50 steps.

    Raises:
        GradtuneError: The method is unknown.
    """
    c = batch[0]
    if c.method not in (RANDOM, TUNED):
        raise unknown("method", c.method, (RANDOM, TUNED))
    tuned = c.method == TUNED
    table = load(c.dataset, device=device)
    task = TableRegression(table if tuned else table.merged(), c.hidden)
    lr, decay = _draw(batch)
    hypers = Hypers(
        [
            Hyper("lr", 10**lr, "log10", bounds=(1e-10, _LARGEST_LR if tuned else math.inf), tuned=tuned),
            Hyper("weight_decay", 10**decay, "log10", tuned=tuned),
            Hyper("momentum", c.momentum, tuned=False),
        ],
        task.layout.sizes,
    )
    method = methods.onepass(c.look_back, c.every) if tuned else methods.fixed()
    loop = Loop(task, sgd(), hypers, method, trace=c.steps >= _WORTH_TRACING)
    started, path = time.perf_counter(), [torch.stack([lr, decay], dim=1).to(device)]

    def watch(now: Run) -> None:
        path.append(now.raw if tuned else path[0])

    state = loop.advance(loop.start(task.init([b.seed for b in batch])), c.steps, watch, _stride(c)).state
    wall = (time.perf_counter() - started) / len(batch)
    loss, ways = task.test_mse(state.w), torch.stack(path).cpu()
    return [_result(ways[:, k], float(loss[k]), wall, table.name, table.sha256, tuned) for k in range(len(batch))]


def _draw(batch: Sequence[Config]) -> tuple[Tensor, Tensor]:
    """log10 of the initial learning rates and weight decays, uniform; each from its run's own seed."""
    rows = [torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(b.seed)) for b in batch]
    u, c = torch.stack(rows), batch[0]
    return c.lr_low + (c.lr_high - c.lr_low) * u[:, 0], c.decay_low + (c.decay_high - c.decay_low) * u[:, 1]


def _stride(c: Config) -> int:
    """Number of steps between two points of a series: whole update intervals, at most 50 points with the start."""
    return c.every * math.ceil(c.steps / c.every / 49)


def _result(way: Tensor, loss: float, wall: float, name: str, sha256: str, tuned: bool) -> Result:
    ends = {"log10_lr": way[0, 0], "log10_decay": way[0, 1], "log10_lr_end": way[-1, 0], "log10_decay_end": way[-1, 1]}
    metrics: dict[str, float | int | None] = {n: float(v) for n, v in ends.items()}
    series = {"path_lr": way[:, 0].tolist(), "path_decay": way[:, 1].tolist()} if tuned else {}
    return Result(metrics | {"test_mse": loss}, series, wall, name, sha256)


STUDY = Study("onepass_uci_trajectories", Config, SIZES, configs, run, chunk=10)


# --- what the notebook reads off the runs -----------------------------------------------------------------------------

# Before the regression, test losses are cut off here and NaN is set to it. Energy: the paper's 150. Others: 1.5 times
# the variance of the target, as 150 is for Energy.
WORST = {"energy": 150.0, "yacht": 345.0, "diabetes": 8900.0}

Map = Callable[[np.ndarray], np.ndarray]
"""Points `[N, 2]` of (log10 lr, log10 decay) -> log10 of the final test MSE."""


def surface(frame: pd.DataFrame) -> Map:
    """Predictive mean of a Gaussian process fitted to log10 of the Random runs' final test MSE (OnePass, Appendix B.1).

    The kernel is RBF plus white noise, with scikit-learn's defaults. The process has mean zero, so the unit of the loss
    matters. It is the target's own on Energy, as in the paper. Elsewhere it is the cut-off `WORST`, because a process
    that must reach far from zero flattens out.
    """
    points = frame[frame["method"] == RANDOM]
    if points.empty:
        return lambda xy: np.full(len(xy), np.nan)
    name = points["dataset"].iloc[0]
    worst = WORST[name]
    unit = 1.0 if name == "energy" else worst
    loss = points["test_mse"].fillna(worst).clip(upper=worst) / unit
    model = GaussianProcessRegressor(RBF() + WhiteKernel())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a kernel parameter at its bound is no fault here
        model.fit(points[["log10_lr", "log10_decay"]].to_numpy(), np.log10(loss.to_numpy()))
    return lambda xy: model.predict(xy) + np.log10(unit)


def grid(height: Map, points: int = 61) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate a map over the range of the Random runs' values.

    Returns:
        log10 of learning rates `[points]`, log10 of weight decays `[points]`, and the predicted log10 loss
        `[points, points]`, a row for each weight decay.
    """
    c = Config(RANDOM, 0)
    lr, decay = np.linspace(c.lr_low, c.lr_high, points), np.linspace(c.decay_low, c.decay_high, points)
    xy = np.stack(np.meshgrid(lr, decay), axis=-1).reshape(-1, 2)
    return lr, decay, height(xy).reshape(points, points)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs, NaNs, and median, mean and best final test MSE of both methods.

    Medians and means ignore NaN; their errors are by the bootstrap.
    """
    rows = {}
    for name, g in frame.groupby("method", sort=False):
        x = g["test_mse"].to_numpy(dtype=float)
        median, mean = (plus_minus(float(f(x)), bootstrap_error(x, f), 2) for f in (np.nanmedian, np.nanmean))
        rows[name] = {
            "runs": len(x),
            "NaN": int(np.isnan(x).sum()),
            "median": median,
            "mean": mean,
            "best": round(float(np.nanmin(x)), 3),
        }
    return pd.DataFrame(rows).T.rename_axis("method")


def by_set(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the runs of each set by the set's name, none where there is no run."""
    return {NAMES[str(name)]: runs for name, runs in frame.groupby("dataset", sort=False)}


def summaries(sets: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the `summary` of each set, one below the other.

    Args:
        sets: Result of `by_set`.
    """
    if not sets:
        return pd.DataFrame(index=pd.Index([], name=NOTHING))
    return pd.concat({name: summary(frame) for name, frame in sets.items()}, names=["data"])


def movement(frame: pd.DataFrame, height: Map) -> pd.DataFrame:
    """A row for every trajectory that stayed finite.

    It has start and end, the final test MSE, the largest weight decay on the way (all hyperparameters as log10), and
    the map's log10 loss at start and end.
    """
    t = frame[(frame["method"] == TUNED) & frame["test_mse"].notna()]
    out = t[["log10_lr", "log10_decay", "log10_lr_end", "log10_decay_end", "test_mse"]].reset_index(drop=True)
    out["largest_decay"] = [max(path) for path in t["path_decay"]]
    for column, place in (("map_start", ["log10_lr", "log10_decay"]), ("map_end", ["log10_lr_end", "log10_decay_end"])):
        out[column] = height(out[place].to_numpy()) if len(out) else []
    return out


def in_the_valley(moved: pd.DataFrame) -> pd.Series:
    """Tell which trajectories end in the valley that the text describes (Figure 3, caption).

    It says "around" a learning rate of 0.1, which is taken as three quarters of a decade to either side, and weight
    decays below 0.01.

    Args:
        moved: Result of `movement`.
    """
    return moved["log10_lr_end"].between(-1.75, -0.25) & (moved["log10_decay_end"] < -2)


def doubled_back(moved: pd.DataFrame) -> pd.Series:
    """Tell which trajectories pass through a weight decay more than half a decade above both their ends.

    Args:
        moved: Result of `movement`.
    """
    return moved["largest_decay"] > moved[["log10_decay", "log10_decay_end"]].max(axis=1) + 0.5


def ends(frame: pd.DataFrame) -> dict[str, str | int]:
    """Say where the trajectories that stayed finite end: medians with their errors, and counts.

    Args:
        frame: Runs of one set.
    """
    moved = movement(frame, surface(frame))
    fixed = frame.loc[frame["method"] == RANDOM, "test_mse"].median()
    out: dict[str, str | int] = {"trajectories": len(moved)}
    if moved.empty:
        return out
    for column in ("log10_lr_end", "log10_decay_end"):
        out[column] = plus_minus(moved[column].median(), bootstrap_error(moved[column], np.nanmedian), 2)
    out["lower on the map"] = int((moved["map_end"] < moved["map_start"]).sum())
    out["in the valley"], out["doubled back"] = int(in_the_valley(moved).sum()), int(doubled_back(moved).sum())
    return out | {"worse than the median of fixed": int((moved["test_mse"] > fixed).sum())}


def sheet(sets: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw one panel a set; without any run, a panel that says so.

    Args:
        sets: Result of `by_set`.
    """
    fig, axes = plots.panels(max(1, len(sets)), width=4.8, height=4.2)
    for ax, (name, frame) in zip(axes, sets.items()):
        draw(ax, frame)
        ax.set_title(name)
    if not sets:
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, NOTHING, ha="center")
    return fig


def draw(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw Figure 3: the map, and every trajectory from its start (circle) to its end (star; none when it diverged)."""
    lr, decay, loss = grid(surface(frame))
    image = ax.pcolormesh(lr, decay, loss, cmap="viridis", shading="auto", rasterized=True)
    for _, way in frame[frame["method"] == TUNED].iterrows():
        ax.plot(*np.array([way["path_lr"], way["path_decay"]], dtype=float), color="white", linewidth=1.0)
        ax.plot(way["log10_lr"], way["log10_decay"], "wo", markeredgecolor="black", markersize=5)
        ax.plot(way["log10_lr_end"], way["log10_decay_end"], "w*", markeredgecolor="black", markersize=11)
    ax.set(
        xlabel=r"$\log_{10}$ learning rate", ylabel=r"$\log_{10}$ weight decay", xlim=lr[[0, -1]], ylim=decay[[0, -1]]
    )
    ax.figure.colorbar(image, ax=ax, label=r"$\log_{10}$ final test MSE")
