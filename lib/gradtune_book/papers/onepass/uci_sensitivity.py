"""The OnePass paper's sensitivity studies on UCI Energy (Section 4.3, Appendices B.2 and B.8.1).

They vary the update interval T, the look-back i and the size of the validation set, and measure the error of
approximate hypergradients.

* Figures 4 (right) and 6: 400 hyperparameter updates, hence 400 T training steps, for each T and i.
* Figure 7: method "Hypergradients", the approximate and the exact hypergradient at the first update.
* Table 14: the field `train_share`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from torch import Tensor

from gradtune.errors import unknown
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method
from gradtune_book.papers.onepass import uci_tables
from gradtune_book.papers.onepass.uci_training import ALL, SETTINGS, declared, draw, regression, train
from gradtune_book.papers.onepass.uci_training import Config as Training
from gradtune_book.papers.series import short
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.uci import Table, load

UPDATES = 400
RANDOM, TUNED, HDLR, EXACT = "Random", "WD+LR+M", "WD+HDLR+M", "Diff-through-Opt"
HYPERGRADIENTS = "Hypergradients"
SHARES = (0.8, 0.675, 0.5625, 0.45)
"""Training rows of Table 14 as a share of all rows; a tenth tests, the others validate. The first is the usual one."""


@dataclass(frozen=True)
class Config(Training):
    """One run: a `uci_training.Config` with a proportion of training rows.

    `every` is T and `look_back` is i. A training has 400 T steps at the scales laptop and paper.
    """

    train_share: float = 0.8  # training rows as a share of all rows
    look_backs: tuple[int, ...] = ()  # of "Hypergradients": all values of i at once

    def table(self, device: torch.device) -> Table:
        """The rows of the data set's first split, divided as `train_share` says."""
        return load(self.dataset, 0, getattr(torch, self.dtype), device, self.train_share)


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    dataset: str  # a name from `gradtune data`
    intervals: tuple[int, ...]  # T
    look_backs: tuple[int, ...]  # i
    runs: int  # initialisations for each T and i
    updates: int  # hyperparameter updates of a run
    errors: int  # initialisations for the error of hypergradients
    shares: tuple[float, ...]  # of Table 14, but for the usual one
    share_runs: int  # initialisations for each share


SIZES = {
    "smoke": Sizes("diabetes", (2, 10), (1, 5), 4, 20, 6, (0.45,), 4),
    "laptop": Sizes("energy", (1, 5, 10), (1, 5), 20, UPDATES, 50, (0.675,), 10),
    "paper": Sizes("energy", (1, 2, 5, 10, 20, 50), (1, 2, 5, 10, 20), 100, UPDATES, 50, SHARES[1:], 200),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Configurations of `errors`, of `shares`, and of the grid of T and i from short trainings to long ones.

    Random has no look-back (i = 0). Exact differentiation goes no further back than the last update (i <= T).
    """
    seeds = range(seed, seed + sizes.runs)
    grid = []
    for every in sizes.intervals:
        base = Config(RANDOM, 0, sizes.dataset, sizes.updates * every, every=every, look_back=0)
        grid += [replace(base, seed=s) for s in seeds]
        for i in sizes.look_backs:
            grid += [replace(base, method=TUNED, look_back=i, seed=s) for s in seeds]
            grid += [replace(base, method=EXACT, look_back=i, seed=s) for s in seeds if i <= every]
    return errors(sizes, seed) + shares(sizes, seed) + grid


def errors(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Configurations of hypergradients at the first update, for each precision and T."""
    return [
        Config(HYPERGRADIENTS, seed + k, sizes.dataset, every, every=every, dtype=dtype, look_backs=sizes.look_backs)
        for dtype in ("float64", "float32")
        for every in sizes.intervals
        for k in range(sizes.errors)
    ]


def shares(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Configurations of Table 14: other proportions of training and validation rows, at T = 10 and i = 5."""
    return [
        Config(method, seed + k, sizes.dataset, 10 * sizes.updates, train_share=share)
        for share in sizes.shares
        for method in (TUNED, HDLR)
        for k in range(sizes.share_runs)
    ]


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that agree in all but their seeds.

    Metrics of a training: initial values (`uci_training.Start.metrics`), final `test_mse` and `val_mse` in the target's
    unit squared, `best_mse` (the lowest test MSE at some 20 readings) and `diverged` (1 where the final test loss is
    not finite). What the method "Hypergradients" records is described at `hypergradients`.

    Raises:
        GradtuneError: The method is unknown.
    """
    c, seeds = batch[0], [b.seed for b in batch]
    if c.method == HYPERGRADIENTS:
        return hypergradients(c, seeds, device)
    if c.method not in SETTINGS:
        raise unknown("method", c.method, [*SETTINGS, HYPERGRADIENTS])
    trained = train(c, seeds, device, c.every * max(1, c.steps // c.every // 20))
    out = []
    for k in range(len(seeds)):
        test = trained.test[k]
        metrics = trained.start.metrics(k) | {"test_mse": test[-1], "val_mse": trained.val[k]}
        metrics |= {"best_mse": float(np.nanmin(test)), "diverged": int(np.isnan(test[-1]))}
        out.append(Result(metrics, {}, trained.wall_s, trained.dataset, trained.sha256, trained.cpu_s))
    return out


@dataclass(frozen=True)
class Read:
    """An outer rule that moves nothing and keeps the last hypergradient `[R, P]` as its state."""

    def init(self, raw: Tensor) -> Tensor:
        return torch.zeros_like(raw)

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: Tensor, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return raw, hypergradient


def hypergradients(c: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Compute approximate (Neumann) and exact hypergradients after the first T steps (Appendix B.2.2).

    They are in the coordinates that are optimised: log10 learning rate, log10 weight decay and logit momentum. The
    learning rate has no limits. Exact differentiation goes back to the start at most (`min(i, T)` steps).

    Series: `approximate_<name>` and `exact_<name>`, a value for each i of `look_backs`.

    Metrics: initial values, and `error_<name>`, which is `|approximate - exact| / |exact|` at the last of them.

    Args:
        c: Configuration of the runs, but for their seeds.
        seeds: Seed of each run.
        device: Where to compute.
    """
    start, found = draw(seeds), {}
    task = regression(c, device, merged=False)
    w = task.init(seeds)
    hypers = [replace(h, bounds=(0.0, float("inf"))) for h in declared(SETTINGS[TUNED], start, w)]
    for kind, estimator in (("approximate", Neumann), ("exact", Reverse)):
        for i in c.look_backs:
            loop = Loop(task, sgd(), Hypers(hypers, task.layout.sizes), Method(estimator(i), Read(), every=c.every))
            found[kind, i] = loop.advance(loop.start(w), c.every).outer.double().cpu().numpy()
    results = []
    for k in range(len(seeds)):
        series = {
            f"{kind}_{name}": short(np.array([found[kind, i][k, p] for i in c.look_backs]), 10)
            for kind in ("approximate", "exact")
            for p, name in enumerate(ALL)
        }
        last = c.look_backs[-1]
        metrics = start.metrics(k)
        for p, name in enumerate(ALL):
            exact = found["exact", last][k, p]
            metrics[f"error_{name}"] = float(abs(found["approximate", last][k, p] - exact) / abs(exact))
        results.append(Result(metrics, series, 0.0, task.table.name, task.table.sha256))
    return results


def _cost(c: Config) -> float:
    """Cost of a step and, spread over its interval, of an update's Hessian products, times the steps."""
    products = 0.0 if c.method == RANDOM else 1 + 0.5 * c.look_back
    return c.steps * (1 + products / c.every) / 4000 if c.method != HYPERGRADIENTS else 0.01


STUDY = Study("uci_sensitivity", Config, SIZES, configs, run, chunk=50, cost=_cost)


# --- what the notebook reads off the runs -----------------------------------------------------------------------------

HYPERS = {"lr": "log10 learning rate", "weight_decay": "log10 weight decay", "momentum": "logit momentum"}
_EPS = 1e-8  # of Adam


def grid_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs of Figure 6, which are trainings at the usual proportion of rows."""
    return frame[(frame["method"] != HYPERGRADIENTS) & (frame["train_share"] == SHARES[0])] if len(frame) else frame


def medians(frame: pd.DataFrame) -> pd.DataFrame:
    """Median final test MSE (of the runs that stayed finite) of each method and look-back i, a column for each T."""
    here = grid_runs(frame)
    if here.empty:
        return pd.DataFrame()
    table = here.groupby(["method", "look_back", "every"])["test_mse"].median().unstack("every")
    order = [m for m in (RANDOM, TUNED, EXACT) if m in table.index]
    return table.reindex(order, level="method").rename_axis(["method", "i"]).rename_axis("T", axis=1)


def complete(frame: pd.DataFrame, sizes: Sizes) -> bool:
    """Whether every run of the grid of T and i at these sizes is there."""
    cells = grid_runs(frame).groupby(["method", "look_back", "every"]).size().to_dict() if len(frame) else {}
    wanted = [(TUNED, i, every) for every in sizes.intervals for i in sizes.look_backs]
    wanted += [(EXACT, i, every) for _, i, every in wanted if i <= every]
    wanted += [(RANDOM, 0, every) for every in sizes.intervals]
    return all(cells.get(cell, 0) >= sizes.runs for cell in wanted)


def gradient_errors(frame: pd.DataFrame, dtype: str = "float64") -> pd.DataFrame:
    """Errors of approximate hypergradients, a row for each run, T, i and hyperparameter.

    The column `honest` is `|approximate - exact| / |exact|`. The column `published` is the same of the first update
    that Adam makes of each hypergradient g, `g / (|g| + 1e-8)`, which knows little but the sign of g. Where both
    hypergradients are 0, as the momentum's at T = 1, the error is 0.
    """
    rows = []
    here = frame[(frame["method"] == HYPERGRADIENTS) & (frame["dtype"] == dtype)] if len(frame) else frame
    for _, run in here.iterrows():
        for name in ALL:
            a, e = (np.array(run[f"{kind}_{name}"], dtype=float) for kind in ("approximate", "exact"))
            step_a, step_e = a / (np.abs(a) + _EPS), e / (np.abs(e) + _EPS)
            honest, published = _relative(a, e), _relative(step_a, step_e)
            rows += [
                {"T": run["every"], "i": i, "hyperparameter": name, "honest": h, "published": p}
                for i, h, p in zip(run["look_backs"], honest, published, strict=True)
            ]
    return pd.DataFrame(rows, columns=["T", "i", "hyperparameter", "honest", "published"])


def _relative(a: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The relative error `|a - exact| / |exact|`; 0 where both are 0."""
    return np.divide(np.abs(a - exact), np.abs(exact), out=np.zeros_like(exact), where=(a != exact) | (exact != 0))


def error_grid(errors: pd.DataFrame, name: str, measure: str, statistic: str = "mean") -> pd.DataFrame:
    """One panel of Figure 7: an error in per cent for each i (rows) and T (columns).

    Args:
        errors: Table of `gradient_errors`.
        name: Hyperparameter.
        measure: Column of the error, "honest" or "published".
        statistic: How errors of different runs are put together, as pandas calls it.
    """
    here = errors[errors["hyperparameter"] == name]
    return 100 * here.groupby(["i", "T"])[measure].agg(statistic).unstack("T")


def sign_shares(errors: pd.DataFrame) -> pd.Series:
    """Share of the published measure's values in which only the sign of a hypergradient is left, by hyperparameter.

    These are the values for i > 1 that lie within one percentage point of 0 or of 200 %.

    Args:
        errors: Table of `gradient_errors`.
    """
    long = errors[errors["i"] > 1]
    sign_only = (long["published"] < 0.01) | ((long["published"] - 2).abs() < 0.01)
    return sign_only.groupby(long["hyperparameter"], sort=False).mean()


def share_table(frame: pd.DataFrame, usual: pd.DataFrame) -> pd.DataFrame:
    """`uci_tables.summary` of Table 14's runs, with the proportion in place of the data set in the index.

    Args:
        frame: Runs of this study.
        usual: Runs of `uci_onepass`; those on Energy stand for the usual proportion.
    """
    other = frame[frame["train_share"] != SHARES[0]] if len(frame) else frame
    parts = []
    if len(usual):
        chosen = usual[(usual["dataset"] == "energy") & usual["method"].isin([TUNED, HDLR])]
        parts.append(chosen.assign(dataset=proportion(SHARES[0])))
    if len(other):
        parts.append(other.assign(dataset=other["train_share"].map(proportion)))
    return uci_tables.summary(pd.concat(parts) if parts else pd.DataFrame())


def proportion(share: float) -> str:
    """Shares of training, validation and test rows, written as in the paper."""
    return f"{100 * share:g}%/{100 * (0.9 - share):g}%/10%"


def draw_medians(axes: Sequence[Axes], table: pd.DataFrame, unit: float = 1000.0) -> None:
    """Draw Figure 6: a panel for each method, i upwards and T to the right, one colour scale for all.

    Args:
        axes: The panels.
        table: Table of `medians`.
        unit: Factor that the printed losses are multiplied by.
    """
    low, high = (float(np.log10(f(table.to_numpy(dtype=float)))) for f in (np.nanmin, np.nanmax))
    for ax, (method, part) in zip(axes, table.groupby(level="method", sort=False)):
        here = part.droplevel("method").sort_index(ascending=False)
        text = here.map(lambda v: "" if np.isnan(v) else _digits(unit * v, 3))
        options = {"cbar": False, "annot_kws": {"size": 8}, "vmin": low, "vmax": high, "cmap": "viridis_r"}
        sns.heatmap(np.log10(here), annot=text, fmt="", ax=ax, **options)
        ax.grid(visible=False)  # else seen where a cell is empty
        ax.set(title=f"{uci_tables.TITLES[str(method)]} (× {unit:g})", xlabel="update interval T", ylabel="look-back i")


def draw_errors(axes: Sequence[Axes], errors: pd.DataFrame, measure: str) -> None:
    """Draw Figure 7: the mean error in per cent, a panel for each hyperparameter.

    Args:
        axes: The panels.
        errors: Table of `gradient_errors`.
        measure: Column of the error, "honest" or "published".
    """
    for ax, (name, title) in zip(axes, HYPERS.items()):
        here = error_grid(errors, name, measure).sort_index(ascending=False)
        logged = np.log10(here.clip(lower=0.1))
        text = here.map(lambda v: _digits(v, 2))
        sns.heatmap(
            logged, annot=text, fmt="", ax=ax, cbar=False, annot_kws={"size": 8}, vmin=-1, vmax=3, cmap="viridis_r"
        )
        ax.set(title=f"{title}, {measure}", xlabel="update interval T", ylabel="look-back i")


def _digits(value: float, count: int) -> str:
    """A number with so many significant digits and no exponent."""
    return np.format_float_positional(value, count, unique=False, fractional=False, trim="-")
