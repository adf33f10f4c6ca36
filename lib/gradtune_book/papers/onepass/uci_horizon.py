"""Short-horizon bias on the UCI sets (OnePass, Appendices B.7.1 and B.7.3).

Trainings have 200 steps, and 4000 on Energy. "Long-Diff-through-Opt" has exact hypergradients through the whole
training and trains again from the start after each update, 30 times in all. It has this name at both lengths (the paper
calls it Full at 4000 steps). The other methods are those of `uci_training`.

* Figure 16 and Table 10: 200 steps, 60 initialisations.
* Figure 18 and Table 13: 4000 steps, 36 initialisations. The other methods' runs of this length are those of
  `uci_onepass`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from gradtune import methods
from gradtune.errors import unknown
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Run
from gradtune_book.data import datasets as data
from gradtune_book.notebooks import stats
from gradtune_book.papers.onepass import uci_figures, uci_tables
from gradtune_book.papers.onepass.uci_training import ALL, SETTINGS, declared, draw, points, regression, train
from gradtune_book.papers.onepass.uci_training import Config as Training
from gradtune_book.papers.restarts import restarted
from gradtune_book.papers.series import finite, short
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study

LONG = "Long-Diff-through-Opt"
METHODS = ("Random", "WD+LR+M", "Diff-through-Opt", LONG)


@dataclass(frozen=True)
class Config(Training):
    """One run: a `uci_training.Config` that says how often it trains from the start.

    `every` and `look_back` of the restarted method are its steps.
    """

    trainings: int = 1  # from the start; 30 of the restarted method


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    datasets: tuple[str, ...]  # of the short problem
    runs: int  # its initialisations
    steps: int  # its training steps
    trainings: int  # of the restarted method
    full_runs: int  # initialisations of the restarted method on the first set at full length
    full_steps: int  # training steps at full length


SIZES = {
    "smoke": Sizes(("diabetes", "friedman"), 4, 40, 3, 2, 60),
    "laptop": Sizes(("energy",), 12, 200, 30, 0, 4000),
    "paper": Sizes(("energy", "kin8nm", "power"), 60, 200, 30, 36, 4000),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Configurations of the short problem, set by set, then of the full-length one on the first set."""
    out = []
    for name in sizes.datasets:
        for method in METHODS[:-1]:
            out += [Config(method, seed + k, name, sizes.steps) for k in range(sizes.runs)]
        out += [_long(seed + k, name, sizes.steps, sizes.trainings) for k in range(sizes.runs)]
    full = range(seed, seed + sizes.full_runs)
    return out + [_long(s, sizes.datasets[0], sizes.full_steps, sizes.trainings) for s in full]


def _long(seed: int, name: str, steps: int, trainings: int) -> Config:
    return Config(LONG, seed, name, steps, every=steps, look_back=steps, trainings=trainings)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that agree in all but their seeds.

    Metrics: initial values (`uci_training.Start.metrics`), final `test_mse` and `val_mse` in the target's unit squared,
    `best_mse` (the lowest test MSE at any multiple of 10 steps, or at the end of any of several trainings) and
    `diverged` (1 where the final test loss is not finite).

    Series: `test_curve`, at 21 steps of one training or at the end of each of several; and `<name>_path`, the values in
    force there of each tuned hyperparameter.

    Raises:
        GradtuneError: The method is unknown.
    """
    c, seeds = batch[0], [b.seed for b in batch]
    if c.method == LONG:
        return _restarted(c, seeds, device)
    if c.method not in SETTINGS:
        raise unknown("method", c.method, [*SETTINGS, LONG])
    t = train(c, seeds, device, 10)
    at, out = points(t, 21), []
    for k in range(len(seeds)):
        series = {"test_curve": short(t.test[k][at])} | {f"{n}_path": short(v[k][at]) for n, v in t.tuned.items()}
        metrics = t.start.metrics(k) | _losses(t.test[k], t.val[k])
        out.append(Result(metrics, series, t.wall_s, t.dataset, t.sha256, t.cpu_s))
    return out


def _losses(test: np.ndarray, val: float) -> dict[str, float | int | None]:
    best = float("nan") if np.isnan(test).all() else float(np.nanmin(test))
    return {"test_mse": test[-1], "val_mse": val, "best_mse": best, "diverged": int(np.isnan(test[-1]))}


def _restarted(c: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    task, start = regression(c, device, merged=False), draw(seeds)
    w = task.init(seeds)
    hypers = Hypers(declared(SETTINGS["Diff-through-Opt"], start, w), task.layout.sizes)
    loop = Loop(task, sgd(), hypers, methods.diff_through_opt(c.look_back, c.every))
    tests: list[Tensor] = []
    paths: list[dict[str, Tensor]] = []

    def read(run: Run) -> None:
        tests.append(task.test_mse(run.state.w))
        paths.append({n: v[:, 0] for n, v in hypers.natural(run.raw).items()})

    with Stopwatch(device) as spent:
        end = restarted(loop, w, *hypers.init(w), c.steps, c.trainings, read)
    with torch.no_grad():
        val = finite(task.val_loss(end.state.w, {}) * task.table.y_std**2)
    test, out = finite(torch.stack(tests, dim=1)), []
    for k in range(len(seeds)):
        series = {"test_curve": short(test[k])}
        series |= {f"{n}_path": short(np.array([float(p[n][k]) for p in paths])) for n in ALL}
        metrics = start.metrics(k) | _losses(test[k], val[k])
        of = task.table
        out.append(Result(metrics, series, dataset=of.name, dataset_sha256=of.sha256, **spent.share(len(seeds))))
    return out


def _cost(c: Config) -> float:
    return c.steps * c.trainings * (data.info(c.dataset).rows + 2000) * (2.5 if c.method == LONG else 1.0) / 4e6


def _chunk(c: Config) -> int:
    """Number of runs side by side; fewer where a batch takes minutes, which a stop would lose."""
    return 18 if c.steps * c.trainings > 50_000 else 30


STUDY = Study("uci_horizon", Config, SIZES, configs, run, chunk=_chunk, cost=_cost)


# --- what the notebook reads off the runs -----------------------------------------------------------------------------


def short_runs(frame: pd.DataFrame, steps: int = SIZES["paper"].steps) -> pd.DataFrame:
    """The runs of the truncated problem, which has `steps` training steps."""
    return frame[frame["steps"] == steps] if len(frame) else frame


def full_runs(frame: pd.DataFrame, usual: pd.DataFrame, steps: int = SIZES["paper"].full_steps) -> pd.DataFrame:
    """The runs of Table 13: those of the full horizon, together with the runs of `uci_onepass` on Energy.

    Args:
        frame: Runs of this study.
        usual: Runs of `uci_onepass`. Those of Bayesian optimisation are left out.
        steps: Training steps of the full-horizon runs.
    """
    mine = frame[(frame["steps"] == steps) & (frame["method"] == LONG)] if len(frame) else frame
    others = usual[(usual["dataset"] == "energy") & (usual["method"] != "Bayes")] if len(usual) else usual
    parts = [each for each in (others, mine) if len(each)]
    return pd.concat(parts) if parts else pd.DataFrame()


def last_trainings(frame: pd.DataFrame) -> pd.DataFrame:
    """What the last training of the restarted method adds, a row for each set and length.

    The columns are the number of runs, the median test losses at the end of the last training and of the one before it
    (in the units of `uci_tables.UNITS`), and the median change of a run in per cent with its bootstrap standard error.
    Runs that are not finite at both ends are left out.
    """
    rows = {}
    long = frame[frame["method"] == LONG] if len(frame) else frame
    for (name, steps), group in long.groupby(["dataset", "steps"], sort=False) if len(long) else ():
        ends = np.array([curve[-2:] for curve in group["test_curve"]], dtype=float)
        before, last = ends[np.isfinite(ends).all(1)].T * uci_tables.UNITS.get(name, 1.0)
        change = 100 * (last / before - 1)
        rows[uci_tables.of_losses(name), f"{steps:g}"] = {
            "runs": len(last),
            "last but one": f"{np.median(before):.3g}",
            "last": f"{np.median(last):.3g}",
            "change, %": f"{np.median(change):+.2g}{stats.PLUS_MINUS}{stats.bootstrap_error(change, np.median):.1g}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["data", "steps"] if rows else None)


def draw_pair(axes: Sequence[Axes], frame: pd.DataFrame, dataset: str) -> None:
    """Draw Figures 16 and 18: the distribution of final losses (left), the evolution of the median (right).

    The restarted method is drawn at all steps it has taken, over its trainings.
    """
    uci_figures.draw_cdf(axes[0], frame, dataset)
    uci_figures.draw_evolution(axes[1], frame, dataset)
    axes[1].set(xscale="log", xlabel="training step, restarts included")
