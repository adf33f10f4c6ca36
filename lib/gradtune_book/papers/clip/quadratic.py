"""Table 1 of the Clip paper: five online methods on the quadratic toy, the learning rate cut to a tenth half way.

Phase 1 has `phase_steps` training steps at rate `lr1`. Phase 2, at rate `lr2`, is read in two ways: "steps" is as many
training steps, "updates" as many hyperparameter updates, which for UnrollK are K times as many training steps. One
training serves both readings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from gradtune import methods
from gradtune.errors import unknown
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method, Run
from gradtune_book.notebooks import plots
from gradtune_book.notebooks.stats import mean_error, plus_minus
from gradtune_book.paths import published_root
from gradtune_book.records.store import NOTHING, Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.quadratic import Quadratic, sample

METHODS = {
    "Unroll1": methods.unroll_k(1),
    "Unroll5": methods.unroll_k(5),
    "Unroll10": methods.unroll_k(10),
    "Clip2": methods.clip_r(2.0),
    "Clip5": methods.clip_r(5.0),
}


@dataclass(frozen=True)
class Config:
    """One training on one instance of the toy."""

    method: str  # a key of METHODS
    seed: int  # draws the instance: H, theta_hat, theta_bar; the same for all methods
    phase_steps: int = 20_000  # steps of each phase
    lr1: float = 1e-3  # learning rate of phase 1
    lr2: float = 1e-4  # learning rate of phase 2
    dim: int = 20  # weights
    spread: float = 0.55  # standard deviation of theta_hat - theta_bar
    scale: float = 100.0  # H ~ U(0, scale)
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    repeats: int  # instances
    phase_steps: int  # training steps of each phase


SIZES = {"smoke": Sizes(10, 500), "laptop": Sizes(50, 20_000), "paper": Sizes(500, 20_000)}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: each method on the same instances.

    Args:
        sizes: what the scale sets.
        seed: seed of the first instance. The others follow on.
    """
    return [Config(m, seed + r, sizes.phase_steps) for m in METHODS for r in range(sizes.repeats)]


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute one method on a batch of instances.

    The metrics, after phase 1 (`_1`) and after phase 2 in both readings (`_2_steps`, `_2_updates`), are:

    * `excess_1`, `excess_2_steps` and `excess_2_updates`: excess validation loss in per cent of the best;
    * `distance_1`, `distance_2_steps` and `distance_2_updates`: distance `|lam - lam*|` of the penalty to its optimum.

    Two more belong to the instance: `optimal_penalty` is `lam*`, and `sensitivity_norm` the length of the sensitivity
    there. The series `penalty` is the penalty over both phases, phase 2 read as steps.

    Args:
        batch: configurations that differ in `seed` only.
        device: where to compute.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: the method is unknown.
    """
    c = batch[0]
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    drawn = sample([b.seed for b in batch], c.dim, c.spread, c.scale)
    toy = Quadratic(drawn.h.to(device), drawn.theta_hat.to(device), drawn.theta_bar.to(device))
    return _Phases(toy, METHODS[c.method], c).results()


class _Phases:
    """The training of a batch, with what is read off it."""

    def __init__(self, toy: Quadratic, method: Method, c: Config) -> None:
        hypers = Hypers([Hyper("lr", c.lr1, tuned=False), Hyper("penalty", 0.0)], [c.dim])
        self.toy, self.c, self.every = toy, c, method.every
        self.loop = Loop(toy, sgd(momentum=False, weight_decay=False), hypers, method, trace=True)
        self.penalties: list[Tensor] = []

    def results(self) -> list[Result]:
        c, started = self.c, time.perf_counter()
        run = self.loop.start(torch.zeros_like(self.toy.h))
        stride = max(self.every, c.phase_steps // 20)
        run = self.loop.advance(run, c.phase_steps, self._watch, stride)
        columns = self._distances(run, "1")
        run = run._replace(fixed={"lr": torch.full_like(run.fixed["lr"], c.lr2)})
        run = self.loop.advance(run, c.phase_steps, self._watch, stride)
        columns |= self._distances(run, "2_steps")
        run = self.loop.advance(run, (self.every - 1) * c.phase_steps)
        columns |= self._distances(run, "2_updates")
        best = self.toy.optimal_penalty()
        columns |= {"optimal_penalty": best, "sensitivity_norm": self.toy.sensitivity(best).norm(dim=1)}
        curves, wall = torch.stack(self.penalties, dim=1), (time.perf_counter() - started) / len(best)
        return [
            Result({n: float(v[k]) for n, v in columns.items()}, {"penalty": curves[k].tolist()}, wall, "quadratic toy")
            for k in range(len(best))
        ]

    def _watch(self, run: Run) -> None:
        self.penalties.append(run.raw[:, 0])

    def _distances(self, run: Run, when: str) -> dict[str, Tensor]:
        """Return the excess validation loss in per cent of the best, and `|lam - lam*|`, `[R]` each."""
        best = self.toy.best_val_loss()
        excess = 100 * (self.toy.val_loss(run.state.w) / best - 1)
        return {f"excess_{when}": excess, f"distance_{when}": (run.raw[:, 0] - self.toy.optimal_penalty()).abs()}


def _cost(config: Config) -> float:
    return METHODS[config.method].every + 1.0  # the second reading of phase 2 has `every` times the steps


STUDY = Study("clip_quadratic", Config, SIZES, configs, run, chunk=250, cost=_cost)


# --- what the notebook reads off the runs -----------------------------------------------------------------------------

COLUMNS = {
    "excess_1": ("validation_loss_increase", 1),
    "distance_1": ("lambda_distance", 1),
    "excess_2_steps": ("validation_loss_increase", 2),
    "distance_2_steps": ("lambda_distance", 2),
    "excess_2_updates": ("validation_loss_increase", 2),
    "distance_2_updates": ("lambda_distance", 2),
}


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return means and standard errors over the instances as text.

    There is a row per method, and a column for each distance of `COLUMNS`.
    """
    digits = {c: 2 if c.startswith("excess") else 3 for c in COLUMNS}
    groups = frame.groupby("method", sort=False)
    return pd.DataFrame(
        {c: {m: plus_minus(*mean_error(g[c])[:2], digits[c]) for m, g in groups} for c in COLUMNS}
    ).rename_axis("method")


def headed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the same table with heads in two lines, for display: when, and which distance."""
    when = {"1": "phase 1", "2_steps": "phase 2 as steps", "2_updates": "phase 2 as updates"}
    parts = [c.split("_", 1) for c in frame.columns]
    heads = [(when[w], "loss +%" if kind == "excess" else "|λ - λ*|") for kind, w in parts]
    return frame.set_axis(pd.MultiIndex.from_tuples(heads), axis=1)


def published() -> pd.DataFrame:
    """Return Table 1 as printed, with its phase-2 columns under both readings."""
    rows = pd.read_csv(published_root() / "clip_table1.csv").set_index(["method", "metric", "phase"])["value"]
    return pd.DataFrame({c: {m: rows[(m, *where)] for m in METHODS} for c, where in COLUMNS.items()}).rename_axis(
        "method"
    )


def tables_of(frame: pd.DataFrame, repeats: int = 50) -> pd.DataFrame:
    """Return the means of consecutive groups of instances: as many independent tables.

    Args:
        frame: runs of all methods.
        repeats: number of instances of a group.

    Returns:
        A row per table and method, with the columns `table`, `method` and those of `COLUMNS`.
    """
    if frame.empty:
        return pd.DataFrame(columns=["table", "method", *COLUMNS])
    number = frame.groupby("method").cumcount() // repeats
    return frame.assign(table=number).groupby(["table", "method"], sort=False)[list(COLUMNS)].mean().reset_index()


def spread(tables: pd.DataFrame) -> pd.DataFrame:
    """Return the standard deviation over tables of each entry, a row a method.

    Args:
        tables: result of `tables_of`.
    """
    return tables.groupby("method", sort=False)[list(COLUMNS)].std()


def offset(frame: pd.DataFrame, tables: pd.DataFrame) -> pd.DataFrame:
    """Return our mean less the paper's entry, in standard deviations of a table; those are not below what it prints.

    Args:
        frame: runs of all methods.
        tables: their tables, from `tables_of`.
    """
    if frame.empty:
        return pd.DataFrame(columns=list(COLUMNS)).rename_axis("method")
    least = pd.Series({c: 0.005 if c.startswith("excess") else 0.0005 for c in COLUMNS})
    mean = frame.groupby("method", sort=False)[list(COLUMNS)].mean()
    return (mean - published()) / spread(tables).clip(lower=least, axis=1)


def sensitivity(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, deviation and quantiles of the sensitivity's length, and the share in the text's range, in a row.

    Args:
        frame: runs of all methods; each instance counts once.
    """
    if frame.empty:
        return pd.DataFrame(index=pd.Index([], name=NOTHING))
    norms = frame.loc[frame["method"] == "Clip5", "sensitivity_norm"]
    found = norms.describe(percentiles=[0.05, 0.5, 0.95]).rename({"count": "instances"})
    found["share in [3, 5]"] = norms.between(3, 5).mean()
    return found.to_frame("|y*|").T


# --- figures ----------------------------------------------------------------------------------------------------------


def draw_creep(axes: Sequence[Axes], creep: pd.DataFrame, fixed_point: float) -> None:
    """Draw Figure 1 of the paper's appendix: the weight (left) and its derivative (right) over the training steps.

    Args:
        axes: axes of the weight and of its derivative.
        creep: columns `theta` and `y`, indexed by training step.
        fixed_point: fixed point `y*` of the derivative.
    """
    line = plots.method_style("Forward") | {"marker": ""}
    axes[0].plot(creep.index, creep["theta"], **line)
    axes[0].set(xlabel="training step", ylabel=r"$\theta_t$", title="the weight stands still", ylim=(0, None))
    axes[1].plot(creep.index, creep["y"], **line, label=r"$y_t$")
    axes[1].axhline(fixed_point, color="black", linestyle=":", label=r"$y^*$")
    axes[1].set(xlabel="training step", ylabel=r"$y_t = d\theta_t/d\lambda$", title="its derivative does not")
    axes[1].legend()


def draw_paths(ax: Axes, frame: pd.DataFrame, phase_steps: int) -> None:
    """Draw the mean distance of the penalty to each instance's optimum, a curve per method; phase 2 is read as steps.

    Args:
        ax: axes to draw on.
        frame: runs of all methods.
        phase_steps: number of training steps of each phase.
    """
    for method, runs in frame.groupby("method", sort=False):
        distance = pd.DataFrame(runs["penalty"].tolist()).sub(runs["optimal_penalty"].to_numpy(), axis=0).abs()
        mean = distance.mean()
        step = (mean.index + 1) * 2 * phase_steps / len(mean)
        ax.plot(step, mean, **plots.method_style(str(method)), markevery=4, label=method)
    ax.axvline(phase_steps, color="black", linewidth=0.8)
    ax.set(xlabel="training step", ylabel=r"mean of $|\lambda_t - \lambda^*|$", ylim=(0, None))
    ax.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.14), frameon=False)


def draw_tables(axes: Sequence[Axes], tables: pd.DataFrame) -> None:
    """Draw the excess validation loss: a dot for each of our tables, a cross for the paper's Table 1.

    Args:
        axes: three axes: phase 1, and phase 2 in both readings.
        tables: result of `tables_of`.
    """
    titles = {"excess_1": "phase 1", "excess_2_steps": "phase 2, as steps", "excess_2_updates": "phase 2, as updates"}
    for ax, (column, title) in zip(axes, titles.items()):
        for k, method in enumerate(METHODS):
            dots = tables.loc[tables["method"] == method, column]
            ax.plot([k] * len(dots), dots, **plots.method_style(method) | {"linestyle": "", "alpha": 0.5})
            ax.plot(k, published().loc[method, column], "kx", markersize=9, markeredgewidth=2)
        ax.set_xticks(range(len(METHODS)), list(METHODS), rotation=45)
        ax.set_title(title)
    axes[0].set_ylabel("excess validation loss (%)")
