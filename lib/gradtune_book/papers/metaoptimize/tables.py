"""What is read off the runs of MetaOptimize's studies: rows by name, best fixed step sizes, summaries with errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from gradtune.optim.settings import DEFAULT, meta_step
from gradtune_book.notebooks.stats import mean_error, plus_minus
from gradtune_book.papers.metaoptimize import cifar, continual, framework, overhead, sensitivity
from gradtune_book.papers.metaoptimize.others import OF_PACKAGES
from gradtune_book.papers.metaoptimize.training import BLOCKS, FIXED, SCALAR
from gradtune_book.paths import published_root

BEST = "best fixed"
"""Row of the fixed step size whose mean over seeds is best."""


def best_of(fixed: pd.DataFrame, column: str, lowest: bool) -> float:
    """Return the fixed step size whose mean of a column is best; a step size with a run that ended in NaN is none.

    Args:
        fixed: runs with fixed step sizes, in the column `lr`.
        column: what is compared.
        lowest: whether lower is better.
    """
    means = fixed.groupby("lr")[column].agg(lambda x: x.mean(skipna=False))
    return float(means.idxmin() if lowest else means.idxmax())


def summary(frame: pd.DataFrame, row: str, columns: Sequence[str], digits: int = 3) -> pd.DataFrame:
    """Return means and standard errors over seeds as text, and numbers of runs, a row for each value of `row`.

    Of step sizes (`final_lr`) it is the geometric mean, without an error.
    """
    groups = frame.groupby(row, sort=False)
    cells = {c: {name: _cell(g[c], c, digits) for name, g in groups} for c in columns}
    out = pd.DataFrame(cells).rename_axis(None).rename(columns=READ)
    out["runs"] = groups.size()
    return out


def by_mean(frame: pd.DataFrame, row: str, column: str) -> pd.DataFrame:
    """Return runs in the order of the means of a column, those of the row with the lowest mean first."""
    return frame.iloc[frame.groupby(row)[column].transform("mean").argsort(kind="stable")]


def _cell(values: pd.Series, column: str, digits: int) -> str:
    if column == "final_lr":
        return f"{np.exp(np.log(values.astype(float)).mean()):.2g}"
    return plus_minus(*mean_error(values)[:2], digits)


READ = {
    "loss": "mean loss",
    "late_loss": "late loss",
    "test_loss": "test loss",
    "cumulative": "cumulative accuracy",
    "test_accuracy": "test accuracy",
    "late_accuracy": "training accuracy",
    "final_lr": "step size at the end",
}
"""Columns as tables call them."""


# --- framework --------------------------------------------------------------------------------------------------------


def trained(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Return the runs of one problem at gamma = 1, with the row "base, method"."""
    if frame.empty:
        return frame
    kept = frame[(frame["method"] != framework.VIEWS) & (frame["problem"] == problem) & (frame["gamma"] == 1)]
    return kept.assign(row=kept["base"] + ", " + kept["method"])


def with_distances(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Add how far the path of the step size is from that of the full matrix: the mean difference of the logarithms."""
    runs = trained(frame, problem)
    if runs.empty:
        return runs
    full = runs[runs["method"] == "full"].set_index(["base", "seed"])["log_lr"]
    gaps = [
        float(np.abs(np.subtract(path, full[base, seed])).mean())
        for path, base, seed in zip(runs["log_lr"], runs["base"], runs["seed"], strict=True)
    ]
    return runs.assign(distance=gaps)


def discounted(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Return the runs of one problem at every discount: SGD with the L-approximation, AdamW without Hessians."""
    if frame.empty:
        return frame
    kept = frame[frame["problem"] == problem]
    pairs = (kept["base"] + kept["method"]).isin(["SGDL", "AdamW" + framework.FREE])
    return kept[pairs].assign(row=kept["base"] + ", " + kept["method"])


# --- continual --------------------------------------------------------------------------------------------------------


def passes(frame: pd.DataFrame, scaled: bool, start: float = continual.Config.lr) -> pd.DataFrame:
    """Return the passes of AdamW, and of MetaOptimize with the paper's meta step and discount, or with their share.

    The column `row` has the method, of AdamW with its step size; the best fixed one is there again as `BEST`.

    Args:
        frame: runs of the study.
        scaled: whether the meta step and the horizon are the same share of the stream as in the paper.
        start: step size that MetaOptimize starts from.
    """
    if frame.empty:
        return frame
    fixed = frame[frame["method"] == continual.FIXED]
    adapted = frame[frame["method"] != continual.FIXED]
    adapted = adapted[((adapted["meta_step"] == 1e-3) != scaled) & (adapted["lr"] == start)]
    fixed = fixed.assign(row=[f"{continual.FIXED}, {lr:g}" for lr in fixed["lr"]])
    best = fixed[fixed["lr"] == best_of(fixed, "cumulative", False)] if len(fixed) else fixed
    return pd.concat([adapted.assign(row=adapted["method"]), best.assign(row=BEST), fixed])


def rates(run: pd.Series, block: int) -> np.ndarray:
    """Return the step sizes of a block, `[tasks, READINGS]`: at the start of each task and within it."""
    pieces = [name for name in run.index if str(name).startswith(f"lr_{block}_")]
    found = [run[f"lr_{block}_{k}"] for k in range(len(pieces)) if isinstance(run[f"lr_{block}_{k}"], (list, tuple))]
    return np.concatenate(found).reshape(-1, continual.READINGS)


def movements(runs: pd.DataFrame) -> pd.DataFrame:
    """Add what the claims about Figure 4 ask for, for each block.

    `rise_0` and `rise_1` are how much the logarithm of the step size rises in the first tenth of a task, on average
    over all tasks but the first. `slope_0` and `slope_1` are its change from the mean of the second task to that of the
    last.
    """
    out = runs.copy()
    for block in (0, 1):
        logs = [np.log(rates(run, block)) for _, run in runs.iterrows()]
        tenth = continual.READINGS // 10
        out[f"rise_{block}"] = [float((x[1:, tenth] - x[1:, 0]).mean()) for x in logs]
        out[f"slope_{block}"] = [float(x[-1].mean() - x[1].mean()) for x in logs]
    return out


# --- language and cifar -----------------------------------------------------------------------------------------------


def named(frame: pd.DataFrame, column: str, lowest: bool) -> pd.DataFrame:
    """Name the runs of `language` or `cifar` by row: base, method, step size; the best fixed one a base is there twice.

    A method of a package is a row by its name.

    Args:
        frame: runs of a study with the columns `method`, `base` and `lr`.
        column: what decides which fixed step size is best.
        lowest: whether lower is better.
    """
    if frame.empty:
        return frame
    rows = []
    for method, base, meta, lr in zip(frame["method"], frame["base"], frame["meta"], frame["lr"], strict=True):
        adapted = f"{method} ({base}, {meta})" if method in (SCALAR, BLOCKS) else method
        rows.append(adapted if method in (SCALAR, BLOCKS, *OF_PACKAGES) else f"{base}, {method} {lr:g}")
    out = frame.assign(row=rows)
    parts = [out]
    for method in dict.fromkeys(frame["method"]):
        if method in (SCALAR, BLOCKS, *OF_PACKAGES):
            continue
        for base, runs in out[out["method"] == method].groupby("base", sort=False):
            best = runs[runs["lr"] == best_of(runs, column, lowest)]
            parts.append(best.assign(row=f"{BEST} {base}" if method == FIXED else f"best {method}"))
    return pd.concat(parts)


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of `cifar` for Figure 1: adapted ones from the start of their pair, fixed and scheduled ones."""
    if frame.empty:
        return frame
    started = [cifar.STARTS[base] == lr for base, lr in zip(frame["base"], frame["lr"], strict=True)]
    return frame[np.asarray(started) | ~frame["method"].isin((SCALAR, BLOCKS))]


def robust(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of `cifar` for Figure 2: (Lion, Lion) from all starts, and Lion with fixed step sizes."""
    return frame if frame.empty else frame[frame["base"] == "Lion"]


# --- sensitivity and overhead -----------------------------------------------------------------------------------------


def of_set(frame: pd.DataFrame, data: str) -> pd.DataFrame:
    """Return the runs of `sensitivity` on one set of images."""
    return frame if frame.empty else frame[frame["data"] == data]


def meta_steps(frame: pd.DataFrame, start: float, steps: int) -> pd.DataFrame:
    """Return the loss after so many steps by meta step from one start, with the best fixed step size as `BEST`."""
    if frame.empty:
        return frame
    column = f"val_{steps}"
    adapted = frame[(frame["method"] == sensitivity.ADAPTED) & (frame["gamma"] == 1) & (frame["form"] == "ours")]
    adapted = adapted[adapted["lr"] == start]
    fixed = frame[frame["method"] == sensitivity.FIXED]
    best = fixed[fixed["lr"] == best_of(fixed, column, True)]
    both = [adapted.assign(row=[f"{eta:g}" for eta in adapted["meta_step"]]), best.assign(row=BEST)]
    return pd.concat(both)[["row", "seed", column]].rename(columns={column: "loss"})


def serving(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean losses over that of the best fixed step size, by start and meta step, a column a number of steps."""
    if frame.empty:
        return frame
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for start in sorted(frame.loc[frame["method"] == sensitivity.ADAPTED, "lr"].unique()):
        for steps in sensitivity.read_at(int(frame["steps"].max())):
            means = meta_steps(frame, start, steps).groupby("row", sort=False)["loss"].mean()
            for row, value in means.drop(BEST).items():
                rows.setdefault((f"{start:g}", row), {})[f"{steps} steps"] = value / means[BEST]
    return pd.DataFrame(rows).T.rename_axis(["start", "meta step"])


def ruled(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how the rule of `gradtune.optim` serves: losses over that of the best fixed step size, as `serving`.

    A row is a start and a number of steps. Columns: the meta step that the rule asks for, and the losses with the one
    of the recorded meta steps that is nearest to it, with the default, with the paper's, and with the best of all.
    """
    if frame.empty:
        return frame
    ratios = serving(frame)
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for start in dict.fromkeys(ratios.index.get_level_values(0)):
        by_step = ratios.loc[start].set_axis([float(row) for row in ratios.loc[start].index])
        for column, losses in by_step.items():
            asked = meta_step(int(str(column).split()[0]))
            near = min(by_step.index, key=lambda eta, asked=asked: abs(np.log(eta / asked)))  # type: ignore[misc]
            chosen = {"by the rule": near, f"with {DEFAULT:g}": DEFAULT, "with 0.001": 1e-3, "best": losses.idxmin()}
            found = {name: losses.get(eta, np.nan) for name, eta in chosen.items()}
            rows[start, str(column)] = {"meta step": asked} | found
    return pd.DataFrame(rows).T.rename_axis(["start", "training"])


def forms(frame: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Return losses after so many steps of our form and the package's as text, by start; one meta step, gamma = 1.

    Both see the same weights at the start and the same batches, seed by seed; the last column is the mean difference.
    """
    if frame.empty:
        return frame
    kept = frame[(frame["meta_step"] == DEFAULT) & (frame["gamma"] == 1)]
    both = kept.pivot_table(index=["lr", "seed"], columns="form", values=f"val_{steps}")
    both = both.reindex(columns=["ours", "package"])
    both["package − ours"] = both["package"] - both["ours"]
    cells = {f"from {lr:g}": x.apply(lambda v: plus_minus(*mean_error(v)[:2], 4)) for lr, x in both.groupby("lr")}
    return pd.DataFrame(cells).T.assign(runs=kept["seed"].nunique()).rename_axis(columns=None)


def gammas(frame: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Return the loss after so many steps by discount; one meta step and start, our form."""
    if frame.empty:
        return frame
    kept = frame[(frame["meta_step"] == DEFAULT) & (frame["form"] == "ours") & (frame["lr"] == 1e-4)]
    return kept.assign(row=kept["gamma"].map("{:g}".format), loss=kept[f"val_{steps}"]).sort_values("gamma")


def costs(frame: pd.DataFrame, what: str, method: str = overhead.METHOD) -> pd.DataFrame:
    """Return one of the measures of `overhead`, a row a net and seed and a column an optimiser.

    Args:
        frame: runs of the study.
        what: "time", "seconds", "memory" or "space".
        method: which comparisons, one of `overhead.METHODS`.
    """
    frame = frame if frame.empty else frame[frame["method"] == method]
    if frame.empty:
        return frame
    frame = frame.dropna(axis=1, how="all")
    columns = {c: c.removeprefix(f"{what} ") for c in frame.columns if str(c).startswith(f"{what} ")}
    return frame[["net", "seed", *columns]].rename(columns=columns)


def cost_table(frame: pd.DataFrame, what: str, digits: int = 1, method: str = overhead.METHOD) -> pd.DataFrame:
    """Return means and standard errors of a measure over seeds as text, a row a net; arguments as of `costs`."""
    found = costs(frame, what, method)
    names = [c for c in found.columns if c not in ("net", "seed")]
    table = summary(found, "net", names, digits)
    return table.rename(index=overhead.NETS)


def published_overhead() -> pd.DataFrame:
    """Return Table 1 as printed: per cent over AdamW, a row an algorithm."""
    rows = pd.read_csv(published_root() / "metaoptimize_table1.csv")
    table = rows.pivot_table(index="method", columns=["problem", "metric"], values="value", sort=False)
    return table.set_axis([f"{problem}, {metric}" for problem, metric in table.columns], axis=1).rename_axis(None)
