"""The OnePass paper's UCI study (Section 4.1, Appendices B.3 to B.5): ten methods on eight sets.

Nine one-pass methods and Bayesian optimisation start from random initial hyperparameters. A run trains the 50-unit net
for 4000 full-batch steps. For "Random-3-batched" it trains three nets and keeps the one of lowest validation loss; for
"Bayes" it is a search of 30 trainings. Settings, initial values and what is common to the studies on these sets are in
`uci_training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from gradtune.errors import unknown
from gradtune.search import MULTIPLIER
from gradtune_book.data import datasets as data
from gradtune_book.notebooks import stats
from gradtune_book.papers.onepass import uci_bayes, uci_tables
from gradtune_book.papers.onepass.one_pass import seeds_of_thirds
from gradtune_book.papers.onepass.uci_training import SETTINGS, Trained, points, train
from gradtune_book.papers.onepass.uci_training import Config as Training
from gradtune_book.papers.series import short
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study

THREE, BAYES = "Random-3-batched", "Bayes"
ONE_PASS = ("Random", "Random-xLR", THREE, *(m for m in SETTINGS if not m.startswith("Random")))
METHODS = (*ONE_PASS, BAYES)
TABLE_SETS = ("energy", "kin8nm", "power")
OTHER_SETS = ("boston", "concrete", "wine", "yacht", "naval")

_CURVE, _PATH = 41, 21  # points of a series: losses, hyperparameters


@dataclass(frozen=True)
class Config(Training):
    """One run of one method on one set: a `uci_training.Config` with a number of trainings."""

    trials: int = 1  # trainings of a run: 3 of a 3-batched one, 30 of Bayesian optimisation


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    datasets: tuple[str, ...]  # names from `gradtune data`
    runs: int  # initialisations for each one-pass method
    steps: int  # training steps of a run
    searches: int  # repetitions of Bayesian optimisation
    trials: int = 30  # trainings of one search


SIZES = {
    "smoke": Sizes(("diabetes", "friedman"), 6, 60, 2, 5),
    "laptop": Sizes(("energy", "yacht"), 20, 4000, 2),
    "paper": Sizes(TABLE_SETS, 200, 4000, 32),
}
_OTHERS = Sizes(OTHER_SETS, 200, 4000, 0)
ROUNDING = 20
"""Runs of each method on Energy that are repeated in float64, and in float64 by another order of summation."""


def configs(sizes: Sizes, seed: int = 0, dtype: str = "float32") -> list[Config]:
    """Configurations set by set, the one-pass methods and then Bayesian optimisation.

    Args:
        sizes: What the scale sets.
        seed: Seed of the first run of each method.
        dtype: Type of rows and weights. In float64 short runs agree across processors to all digits that a table shows.
    """
    out = []
    for name in sizes.datasets:
        for method in ONE_PASS:
            trials = 3 if method == THREE else 1
            first = Config(method, seed, name, sizes.steps, dtype=dtype, trials=trials)
            out += [replace(first, seed=seed + k) for k in range(sizes.runs)]
        first = Config(BAYES, seed, name, sizes.steps, dtype=dtype, trials=sizes.trials)
        out += [replace(first, seed=seed + k) for k in range(sizes.searches)]
    return out


def arranged(scale: str, every: list[Config]) -> list[Config]:
    """Add, at paper scale, the other sets and the runs of `rounding`, and put first the runs that most results need.

    Args:
        scale: Name of the scale. Other scales than "paper" keep their configurations as they are.
        every: Configurations of the scale.
    """
    if scale != "paper":
        return every
    late = [c for c in every if c.method == BAYES and c.dataset != "energy"]
    small = [c for c in configs(_OTHERS) if c.dataset != "naval"]
    naval = [c for c in configs(_OTHERS) if c.dataset == "naval"]
    return [c for c in every if c not in set(late)] + rounding(every) + small + late + naval


def rounding(every: Sequence[Config]) -> list[Config]:
    """Configurations on Energy once more, in float64 and with both forms of the loss.

    They are those of the methods of `SETTINGS` with a seed below `ROUNDING`.
    """
    first = [c for c in every if c.dataset == "energy" and c.method in SETTINGS and c.seed < ROUNDING]
    return [replace(c, dtype="float64", form=form) for form in ("stacked", "module") for c in first]


def main_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The recorded runs that the tables are made of, which are all but the repetitions in float64."""
    return frame[(frame["dtype"] == "float32") & (frame["form"] == "stacked")] if len(frame) else frame


def timed_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs on the sets of Tables 1 and 6."""
    return frame[frame["dataset"].isin(TABLE_SETS)] if len(frame) else frame


def rounding_table(frame: pd.DataFrame) -> pd.DataFrame:
    """How far 4000 steps carry rounding, a row for each method.

    The columns are relative differences of final test losses of the same run, between float32 and float64 and between
    two orders of summation in float64, as medians and maxima over the runs that stay finite; and means ± standard error
    of the runs that stay finite in both types.
    """
    if frame.empty or "float64" not in set(frame["dtype"]):
        return pd.DataFrame()
    here = frame[frame["dataset"] == "energy"].set_index(["dtype", "form", "method", "seed"])["test_mse"].sort_index()
    exact, single, summed = here["float64", "stacked"], here["float32", "stacked"], here["float64", "module"]
    table: dict[str, pd.Series] = {}
    for name, other in (("float32", single), ("float64", summed)):
        gap = (other / exact - 1).abs().groupby("method")
        table |= {f"{name}, median": gap.median(), f"{name}, largest": gap.max()}
    table = {name: values.map("{:.1e}".format) for name, values in table.items()}
    both = (single + exact).dropna().index
    for name, values in (("float32", single), ("float64", exact)):
        table[f"mean in {name}"] = values[both].groupby("method").agg(_mean)
    out = pd.DataFrame(table)
    return out.loc[[m for m in uci_tables.TITLES if m in both.unique("method")]].rename(index=uci_tables.TITLES)


def _mean(values: pd.Series) -> str:
    return uci_tables.shown(*stats.mean_error(values)[:2])


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs of one method on one set.

    Metrics: initial values (`log10_lr`, `log10_decay`, `momentum_start` and, of Random-xLR, `lr_multiplier`), final
    `test_mse` and `val_mse` in the target's unit squared, `best_mse` and `best_step` (the lowest test MSE at any
    multiple of 10 steps, and its step), and `diverged` (1 when the final weights give no finite test loss, which is NaN
    then).

    Series: `test_curve` and `incumbent_curve` (lowest so far) at 41 evenly spaced steps, and `<name>_path` of each
    moving hyperparameter at 21.

    For Bayesian optimisation the metrics are those of the training of lowest validation MSE, but for `best_mse`, the
    lowest test MSE of all trainings, and `diverged`, 1 when all trainings diverged. `best_step` is the number of steps
    trained up to the end of that training. The series are the values of every training: `trial_val`, `trial_test` and
    `trial_<name>` of each hyperparameter.

    Raises:
        GradtuneError: The method is unknown, or optuna is not installed and the method is "Bayes".
    """
    c, seeds = batch[0], [b.seed for b in batch]
    if c.method == BAYES:
        return _searches(c, seeds, device)
    if c.method == THREE:
        return _best_of_three(c, seeds, device)
    if c.method not in SETTINGS:
        raise unknown("method", c.method, METHODS)
    trained = train(c, seeds, device, _reading(c))
    return [_result(c, trained, k) for k in range(len(seeds))]


def _reading(c: Config) -> int:
    return max(1, min(10, c.steps))


def _best_of_three(c: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    plain = replace(c, method="Random")
    thirds = [train(plain, each, device, _reading(c)) for each in seeds_of_thirds(seeds, c.trials)]
    val = np.stack([t.val for t in thirds])
    kept = np.where(np.isnan(val), np.inf, val).argmin(0)
    cpu_s, wall_s = sum(t.cpu_s for t in thirds), sum(t.wall_s for t in thirds)
    results = [_result(c, thirds[kept[k]], k) for k in range(len(seeds))]
    return [replace(r, cpu_s=cpu_s, wall_s=wall_s) for r in results]


def _result(c: Config, t: Trained, k: int) -> Result:
    test, at, path = t.test[k], points(t, _CURVE), points(t, _PATH)
    best = int(np.nanargmin(test))
    metrics = t.start.metrics(k)
    if c.method == "Random-xLR":
        metrics[MULTIPLIER] = float(t.start.multiplier[k])
    metrics |= {
        "test_mse": test[-1],
        "val_mse": t.val[k],
        "best_mse": test[best],
        "best_step": int(t.steps[best]),
        "diverged": int(np.isnan(test[-1])),
    }
    series = {"test_curve": short(test[at]), "incumbent_curve": short(np.fmin.accumulate(test)[at])}
    series |= {f"{n}_path": short(v[k][path]) for n, v in t.tuned.items()}
    return Result(metrics, series, t.wall_s, t.dataset, t.sha256, t.cpu_s)


def _searches(c: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Compute a batch of searches, one for each seed."""
    found = uci_bayes.search(c, seeds, c.trials, device)
    out = []
    for r in found.repetitions:
        val, test = (np.where(np.isfinite(x), x, np.nan) for x in (r.val, r.test))
        lost = bool(np.isnan(val).all())
        best = 0 if lost else int(np.nanargmin(val))
        metrics: dict[str, float | int | None] = {
            "log10_lr": float(np.log10(r.configs[best]["lr"])),
            "log10_decay": float(np.log10(r.configs[best]["weight_decay"])),
            "momentum_start": r.configs[best]["momentum"],
            "test_mse": test[best],
            "val_mse": val[best],
            "best_mse": float(np.nanmin(test)) if not np.isnan(test).all() else np.nan,
            "best_step": int(c.steps * (best + 1)),
            "diverged": int(lost),
        }
        tried = {n: np.array([config[n] for config in r.configs]) for n in r.configs[0]}
        series = {"trial_val": short(val), "trial_test": short(test)} | {
            f"trial_{n}": short(v) for n, v in tried.items()
        }
        table = found.task.table
        out.append(Result(metrics, series, found.wall_s, table.name, table.sha256, found.cpu_s))
    return out


# Seconds of a training relative to Random, from the records; a step also has a fixed overhead, worth 2000 rows.
_WEIGHTS = {"Lorraine": 1.4, "WD+LR": 1.4, "WD+LR+M": 1.4, "WD+HDLR+M": 1.3, "Diff-through-Opt": 1.4}


def _cost(c: Config) -> float:
    precision = {"float32": 1.0, "float64": 2.0}[c.dtype] * (1.0 if c.form == "stacked" else 3.0)
    return _WEIGHTS.get(c.method, 1.0) * c.trials * c.steps * (data.info(c.dataset).rows + 2000) * precision / 4e6


def _chunk(c: Config) -> int:
    """Number of runs side by side; few searches on a large set, which take minutes that a stop would lose."""
    if c.method != BAYES:
        return 20
    return 16 if data.info(c.dataset).rows < 5000 else 8


STUDY = Study("uci_onepass", Config, SIZES, configs, run, chunk=_chunk, cost=_cost, arranged=arranged)
