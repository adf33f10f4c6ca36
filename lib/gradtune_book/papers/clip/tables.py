"""Tables of the chapters on Tables 2 and 3 of the Clip paper, and verdicts on the text's claims.

They are read off the runs of `clip_mnist` and `clip_ptb` and stand beside the published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields

import numpy as np
import pandas as pd

from gradtune_book.notebooks.stats import mean_error, mean_plus_minus, plus_minus
from gradtune_book.papers.clip.mnist import Config
from gradtune_book.papers.clip.training import FIXED
from gradtune_book.paths import published_root

UNROLLED, CLIPPED = ("Unroll1", "Unroll5", "Unroll10"), ("Clip5", "Clip10", "Clip20")
SCALED = "Clip5 LR scale"
"""The row of Table 3 that is the mean of Clip5 with its outer rate and with a tenth of it."""

HEADS = {"best_val": "with early stopping", "val": "without early stopping", "stability": "stability (%)"}


def published(table: int) -> pd.DataFrame:
    """Return Table 2 or 3 as printed: a row per method, with the columns `best_val`, `val` and `stability`."""
    rows = pd.read_csv(published_root() / f"clip_table{table}.csv")
    order = list(dict.fromkeys(rows["method"]))
    return rows.pivot(index="method", columns="metric", values="value").loc[order, list(HEADS)]


def by_seed(frame: pd.DataFrame, value: Callable[[pd.Series], pd.Series]) -> pd.DataFrame:
    """Return best and last validation losses for each row of a table and seed.

    Runs from several initial values are averaged. A run that diverged makes `val` and `stability` NaN.

    Args:
        frame: runs with a column `row`, the row of the table that each belongs to.
        value: turns cross entropies into the table's unit.

    Returns:
        The columns are `row`, `seed`, `best_val` and `val` in the table's unit, their gap `stability` in per cent, and
        `runs`, the number of runs.
    """
    if frame.empty:
        return pd.DataFrame(columns=["row", "seed", *HEADS, "runs"])
    kept = frame.assign(best_val=value(frame["best_val"]), val=value(frame["val"]))
    groups = kept.groupby(["row", "seed"], sort=False)
    out = groups[["best_val", "val"]].agg(lambda x: x.mean(skipna=False)).assign(runs=groups.size())
    return out.assign(stability=100 * (out["val"] / out["best_val"] - 1)).reset_index()


def summary(seeds: pd.DataFrame) -> pd.DataFrame:
    """Return means over the seeds with their standard errors.

    Args:
        seeds: result of `by_seed`.

    Returns:
        A row per row of the table. The columns are the numbers `runs` and `seeds`, and `<name>` and `<name>_error` for
        each of `best_val`, `val` and `stability`.
    """
    rows: dict[str, dict[str, float]] = {}
    for row, g in seeds.groupby("row", sort=False):
        rows[row] = {"runs": int(g["runs"].sum()), "seeds": len(g)}
        for name in HEADS:
            rows[row][name], rows[row][f"{name}_error"] = mean_error(g[name])[:2]
    columns = ["runs", "seeds", *(c for name in HEADS for c in (name, f"{name}_error"))]
    return pd.DataFrame(rows, index=columns).T


def shown(table: pd.DataFrame, against: pd.DataFrame | None = None, digits: int = 1) -> pd.DataFrame:
    """Return a summary as text, mean ± standard error over seeds, with the paper's numbers beside it.

    Args:
        table: result of `summary`.
        against: result of `published`; None leaves out the paper's numbers.
        digits: number of decimals of our numbers. The paper's have one.
    """
    out = pd.DataFrame(index=table.index.rename("method"))
    for name, head in HEADS.items():
        out[head] = [plus_minus(m, e, digits) for m, e in zip(table[name], table[f"{name}_error"])]
        if against is not None:
            out[f"{head}, paper"] = [f"{x:.1f}" if np.isfinite(x) else "" for x in against.reindex(out.index)[name]]
    return out.assign(runs=table["runs"].astype(int))


# --- Table 2 ----------------------------------------------------------------------------------------------------------


def mnist_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `by_seed` of `clip_mnist`, cross entropies times 1000.

    Of the fixed runs of a seed the one with the lowest `best_val` stands. It is a grid search over the same budget.
    """
    chosen = with_the_grids_best(frame)
    return by_seed(chosen.assign(row=chosen["method"]) if len(chosen) else chosen, _thousand)


def with_the_grids_best(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs without those of a fixed hyperparameter that are not the best of their seed."""
    if frame.empty:
        return frame
    fixed = frame[frame["method"] == FIXED]
    best = fixed.loc[fixed.groupby("seed")["best_val"].idxmin()]
    return pd.concat([best, frame[frame["method"] != FIXED]])


def _with_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what `with_the_grids_best` leaves, with the column `gap`.

    It is the step from validation to test loss where validation is best.
    """
    chosen = with_the_grids_best(frame)
    return chosen.assign(gap=chosen["best_test"] - chosen["best_val"]) if len(chosen) else chosen


def _thousand(loss: pd.Series) -> pd.Series:
    return 1000 * loss


def generalisation(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how far choosing by validation images has fitted them, on MNIST.

    The values are those where validation is best: validation and test cross entropy (times 1000), their gap, and the
    test error in per cent. They are means over the runs of a method, and over the grid's best runs.
    """
    chosen = _with_gaps(frame)
    if chosen.empty:
        return pd.DataFrame(columns=list(GENERALISATION_HEADS))
    means = chosen.groupby("method", sort=False)[["best_val", "best_test", "gap", "best_test_error"]].mean()
    return means * [1000, 1000, 1000, 100]


def by_start(frame: pd.DataFrame) -> pd.DataFrame:
    """Return validation cross entropies (times 1000) of the online methods by initial weight decay, as text.

    They are mean ± standard error over the runs from all initial values but the largest, and over those from the
    largest.
    """
    runs = online(frame)
    columns = {
        f"{head}, {start}": (1000 * part[c]).groupby(part["method"], sort=False).agg(mean_plus_minus)
        for c, head in list(HEADS.items())[:2]
        for start, part in runs.groupby(_start(runs))
    }
    return pd.DataFrame(columns)


def _start(frame: pd.DataFrame) -> pd.Series:
    """Say of every run whether its initial weight decay is the largest or one of the others."""
    *others, largest = sorted(frame["decay"].unique())
    rest = f"from {others[0]:.2g} to {others[-1]:.2g}" if len(others) else ""
    words = {True: f"from {largest:.2g}", False: rest}
    return (frame["decay"] == largest).map(words).astype(pd.CategoricalDtype([words[False], words[True]]))


def moved(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how far the weight decays of the online methods went, in powers of ten.

    The values are medians over the runs from small (up to 1e-4) and from large initial values.
    """
    online = frame[frame["method"] != FIXED]
    steps = np.log10(online["decay_end"] / online["decay"])
    start = np.where(online["decay"] < 3e-4, "from 1e-6 to 1e-4", "from 1e-3 to 1e-1")
    return steps.groupby([online["method"], start], sort=False).median().unstack().rename_axis(columns="powers of ten")


def choices(frame: pd.DataFrame, variations: Mapping[str, Mapping[str, object]]) -> pd.DataFrame:
    """Return the mean validation cross entropy at the end (times 1000) for each variation and method.

    Runs from the largest initial value stand apart. A setting that a variation does not name has the default of
    `mnist.Config`.

    Args:
        frame: runs of `clip_mnist`.
        variations: changes of the configuration by the name of the variation, the first without any
            (`mnist.VARIATIONS`).

    Returns:
        A row per variation, and a column per method and group of initial values. Methods that are not varied are left
        out.
    """
    fields = {n for changes in variations.values() for n in changes}
    chosen = {f.name: f.default for f in dataclass_fields(Config) if f.name in fields}
    started, rows = frame.assign(start=_start(frame)), {}
    for name, changes in variations.items():
        wanted = {**chosen, **changes}
        runs = started[np.logical_and.reduce([frame[n] == v for n, v in wanted.items()])]
        means = runs.groupby(["method", "start"], observed=True)["val"].mean()
        rows[name] = {f"{method}, {start}": 1000 * val for (method, start), val in means.items()}
    varied = dict.fromkeys(column for row in list(rows.values())[1:] for column in row)
    return pd.DataFrame(rows).T.reindex(columns=list(varied))


# --- Table 3 ----------------------------------------------------------------------------------------------------------


def ptb_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of `clip_ptb` with their rows of Table 3.

    The runs of Clip5 with the usual outer rate stand in two rows, once beside those with a tenth of it.
    """
    if frame.empty:
        return frame
    fixed = frame["method"] == FIXED
    label = np.where(fixed, "Fixed " + frame["keep"].map("{:.2f}".format), frame["method"])
    plain = frame.assign(row=label)[frame["outer_scale"] == 1]
    return pd.concat([plain, frame[frame["method"] == "Clip5"].assign(row=SCALED)])


def ptb_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `by_seed` of `clip_ptb` in perplexities; the row of both outer rates only where both are there."""
    out = by_seed(ptb_rows(frame), np.exp)
    return out[(out["row"] != SCALED) | (out["runs"] > 1)]


def ptb_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how far choosing by validation text has fitted it, on Penn Treebank.

    Args:
        frame: runs of `clip_ptb`. Those with the usual outer rate count.

    Returns:
        A row per method with means over the seeds, in nats a word. The columns are `best_val` and `best_test`, the
        cross entropies where validation is best; `gap`, their difference; `larger`, by how much it exceeds that of the
        grid's best run of the same seed; and `larger_error`, the standard error of this.
    """
    chosen = seed_gaps(frame)
    groups = chosen.groupby("method", sort=False)
    means = groups[["best_val", "best_test", "gap", "larger"]].mean()
    return means.assign(larger_error=groups["larger"].agg(lambda x: mean_error(x)[1]))


def seed_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that `ptb_gaps` averages, with the columns `gap` and `larger`."""
    chosen = _with_gaps(frame[frame["outer_scale"] == 1] if len(frame) else frame)
    if chosen.empty:
        return pd.DataFrame(columns=["method", "seed", "best_val", "best_test", "gap", "larger"])
    grid = chosen[chosen["method"] == FIXED].set_index("seed")["gap"]
    return chosen.assign(larger=chosen["gap"] - chosen["seed"].map(grid))


def shown_gaps(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the result of `ptb_gaps` as text."""
    read = {"validation": gaps["best_val"], "test": gaps["best_test"], "test - validation": gaps["gap"]}
    table = pd.DataFrame({n: v.map("{:.3f}".format) for n, v in read.items()})
    pairs = zip(gaps["larger"], gaps["larger_error"], strict=True)
    return table.assign(**{"larger than the grid's best by": [plus_minus(m, e) for m, e in pairs]})


def parting(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexities of the runs with fixed keep probabilities.

    They are those of cross entropies averaged over the seeds. The columns are `best_val`, at the best reading, and
    `val` and `train`, on validation and training text at the end.
    """
    fixed = frame[frame["method"] == FIXED].assign(keep=lambda f: f["keep"].map("{:.2f}".format))
    return np.exp(fixed.groupby("keep")[["best_val", "val", "train"]].mean())


def drift(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the keep probabilities of the online methods where validation is best and at the end.

    The column `drift` is their difference. The values are means over the seeds, with the usual outer rate.
    """
    plain = frame[(frame["method"] != FIXED) & (frame["outer_scale"] == 1)]
    means = plain.groupby("method", sort=False)[["keep_best", "keep_end"]].mean()
    return means.assign(drift=means["keep_end"] - means["keep_best"])


def marks(text_losses: dict[str, float]) -> pd.DataFrame:
    """Return cross entropies in nats a word as perplexity and bits a word.

    They are the marks that a working language model lies between.
    """
    losses = pd.Series(text_losses)
    return pd.DataFrame({"perplexity": np.exp(losses), "bits a word": losses / np.log(2)})


# --- common to both chapters ----------------------------------------------------------------------------------------

GENERALISATION_HEADS = {
    "best_val": "validation",
    "best_test": "test",
    "gap": "test - validation",
    "best_test_error": "test error (%)",
}


def online(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of the methods that tune while they train."""
    return frame[frame["method"] != FIXED] if len(frame) else frame
