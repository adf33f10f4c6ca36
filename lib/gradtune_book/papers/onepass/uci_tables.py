"""What the chapters on the OnePass paper's UCI experiments read off the runs.

These are tables beside the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from gradtune_book.notebooks import stats
from gradtune_book.paths import published_root

TITLES = {
    "Random": "Random",
    "Random-xLR": "Random (× LR)",
    "Random-3-batched": "Random (3-batched)",
    "Lorraine": "Lorraine",
    "Baydin": "Baydin",
    "WD+LR": "OnePass WD+LR",
    "WD+LR+M": "OnePass WD+LR+M",
    "WD+HDLR+M": "OnePass WD+HDLR+M",
    "Diff-through-Opt": "Diff-through-Opt",
    "Bayes": "Bayesian optimisation",
    "Long-Diff-through-Opt": "Long Diff-through-Opt",
    "Medium-Diff-through-Opt": "Medium Diff-through-Opt",
}
"""How a table calls a method, in the order of the paper's tables."""

PUBLISHED = {
    "Random (xLR)": "Random-xLR",
    "Random (3-batched)": "Random-3-batched",
    "Ours WD+LR": "WD+LR",
    "Ours WD+LR+M": "WD+LR+M",
    "Ours WD+HDLR+M": "WD+HDLR+M",
    "Bayesian Optimisation": "Bayes",
    "Long Diff-through-Opt": "Long-Diff-through-Opt",
    "Full Diff-through-Opt": "Long-Diff-through-Opt",
    "Medium Diff-through-Opt": "Medium-Diff-through-Opt",
}
"""Names in the files of published numbers where they differ from ours."""

SETS = {"UCI Energy": "energy", "Kin8nm": "kin8nm", "UCI Power": "power"}
UNITS = {"kin8nm": 1e3, "naval": 1e6}
"""Factors that tables print losses with."""

NAMES = {
    "energy": "UCI Energy",
    "kin8nm": "Kin8nm",
    "power": "UCI Power",
    "boston": "UCI Boston",
    "concrete": "UCI Concrete",
    "wine": "UCI Wine",
    "yacht": "UCI Yacht",
    "naval": "UCI Naval",
    "diabetes": "diabetes (embedded)",
    "friedman": "Friedman (generated)",
    "fashion": "Fashion-MNIST",
    "mnist": "MNIST",
    "digits": "digits (embedded)",
}
"""How tables and figures call a set, in order."""

NOT_RANKED = ("Bayes",)
"""Methods that take no part in the emboldening (Table 6)."""


def of_losses(dataset: str) -> str:
    """A set's name above losses, with the factor that they are printed with."""
    factor = UNITS.get(dataset)
    return NAMES.get(dataset, dataset) + (f" (× {factor:.0f})" if factor else "")


def summary(frame: pd.DataFrame, by: Sequence[str] = ("dataset", "method"), loss: str = "test_mse") -> pd.DataFrame:
    """Averages of final test losses, a row for each group of runs.

    The columns are `runs` and `nan` (numbers of runs), `mean` and `median` of the final test loss, `mean_error` and
    `median_error` (bootstrap standard errors of 1000 sets), and `best`, the lowest loss at any time of any run.
    Averages ignore NaN, as the paper's do. Losses are in the units of `UNITS`.

    Args:
        frame: The runs.
        by: Columns that tell the groups apart.
        loss: Column of the final test loss, `test_<name>`; the lowest loss of a run is in the column `best_<name>`.
    """
    rows = {}
    for key, g in frame.groupby(list(by), sort=False) if len(frame) else ():
        unit = UNITS.get(str(g["dataset"].iloc[0]), 1.0)
        x = g[loss].to_numpy(dtype=float) * unit
        row: dict[str, float] = {"runs": len(x), "nan": int(np.isnan(x).sum())}
        for name, statistic in (("mean", np.nanmean), ("median", np.nanmedian)):
            row[name] = float(statistic(x)) if row["nan"] < len(x) else np.nan
            row[f"{name}_error"] = stats.bootstrap_error(x, statistic)
        at_any_time = g[loss.replace("test", "best")].to_numpy(dtype=float) * unit
        row["best"] = float(np.nanmin(at_any_time)) if not np.isnan(at_any_time).all() else np.nan
        rows[key] = row
    columns = ["runs", "nan", "mean", "mean_error", "median", "median_error", "best"]
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(list(rows), names=list(by)), columns)


def published(file: str) -> pd.DataFrame:
    """Read a table of the paper from a file in `data/published`.

    Returns:
        A frame with index (dataset, method) in our names, the columns `mean`, `median` and `best` and the errors as in
        `summary`, and `bold_<statistic>`, True for the cells that are printed bold.
    """
    rows = pd.read_csv(published_root() / file, dtype={"value": str, "error": str})
    rows["method"] = rows["method"].replace(PUBLISHED)
    rows["dataset"] = rows["dataset"].replace(SETS)
    wide = rows.pivot(index=["dataset", "method"], columns="metric", values=["value", "error", "bold"])
    out = wide["value"].astype(float)
    out = out.join(wide["error"].drop(columns="best", errors="ignore").astype(float).add_suffix("_error"))
    return out.join(wide["bold"].eq("yes").add_prefix("bold_"))


def beside(ours: pd.DataFrame, theirs: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """One set's table as text, ours and the paper's side by side.

    Bold (Markdown's asterisks) are our values in the error bar of the best (`emboldened`), and the paper's where the
    paper prints them bold. Methods without runs are left out; a set without any gives a table that says so.

    Args:
        ours: `summary` of the runs.
        theirs: The `published` table; if it lacks the set, our columns stand alone.
        dataset: The set.
    """
    if dataset not in ours.index.get_level_values("dataset"):
        return pd.DataFrame({"runs": [0]}, index=pd.Index(["no run is recorded yet"], name="method"))
    here = ours.loc[[dataset]].droplevel("dataset")
    here = here.loc[[m for m in TITLES if m in here.index]]
    them = theirs.loc[[dataset]].droplevel("dataset") if dataset in theirs.index else None
    out = pd.DataFrame(index=[TITLES[m] for m in here.index])
    for name in ("mean", "median", "best"):
        out[name] = _column(here, name, emboldened(here, name))
        if them is not None:
            bold = pd.Series(them[f"bold_{name}"]).reindex(here.index, fill_value=False)
            out[f"{name}, paper"] = _column(them.reindex(here.index), name, bold.to_numpy(dtype=bool))
    out["runs"], out["NaN"] = here["runs"].to_numpy(), here["nan"].to_numpy()
    return out.rename_axis("method")


def conventions(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """What two conventions do to one set's table, a row for each method.

    It has the best final loss beside the best at any time, and the median that leaves diverged runs out beside the one
    that counts them as infinite.
    """
    rows = {}
    for method, g in frame[frame["dataset"] == dataset].groupby("method") if len(frame) else ():
        final, unit = g["test_mse"], UNITS.get(dataset, 1.0)
        rows[method] = {
            "best final": final.min() * unit,
            "best at any time": g["best_mse"].min() * unit,
            "median, NaN left out": final.median() * unit,
            "median, NaN as infinite": final.fillna(np.inf).median() * unit,
            "NaN": int(final.isna().sum()),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").reindex([m for m in TITLES if m in rows])
    return table.rename(index=TITLES)


def chosen_of_three(frame: pd.DataFrame) -> pd.DataFrame:
    """Whether the lowest validation loss finds the lowest test loss among three runs of Random, a row for each set.

    The validation rows are training rows for random settings. The runs are taken in threes, as the paper uses them, in
    the order of their seeds. The columns are the number of whole triples, the share of them whose chosen run is also
    the best by final test MSE, and by how many per cent the chosen run is above the best, median and largest. Diverged
    runs are never chosen; triples that have diverged altogether are left out.
    """
    rows = {}
    for dataset, g in frame[frame["method"] == "Random"].groupby("dataset", sort=False) if len(frame) else ():
        g = g.sort_values("seed").head(len(g) // 3 * 3)
        test, val = (g[loss].fillna(np.inf).to_numpy(dtype=float).reshape(-1, 3) for loss in ("test_mse", "val_mse"))
        test, val = (x[np.isfinite(test).any(1)] for x in (test, val))
        if len(test):
            chosen = np.take_along_axis(test, val.argmin(1, keepdims=True), 1)[:, 0]
            above = 100 * (chosen / test.min(1) - 1)
            row = {"triples": len(test), "chosen is best": float((above == 0).mean())}
            rows[dataset] = row | {"above, median (%)": float(np.median(above)), "above, largest (%)": above.max()}
    out = pd.DataFrame.from_dict(rows, orient="index")
    return out.rename(index=NAMES).rename_axis("data")


def listed(ours: pd.DataFrame, datasets: Sequence[str]) -> pd.DataFrame:
    """The tables of several sets, ours alone, one below the other."""
    found = [beside(ours, ours.iloc[:0], name).reset_index().assign(data=of_losses(name)) for name in datasets]
    return pd.concat(found).set_index("data").rename_axis("data") if found else beside(ours, ours, "")


def emboldened(table: pd.DataFrame, name: str) -> np.ndarray:
    """Whether each method lies in the error bar of the best; False for those of `NOT_RANKED`, which do not compete.

    Args:
        table: Rows of one set, by method.
        name: Statistic. An error that the table lacks counts as 0.
    """
    ranked = ~table.index.isin(NOT_RANKED)
    errors = table[f"{name}_error"] if f"{name}_error" in table else pd.Series(0.0, index=table.index)
    bold = np.zeros(len(table), dtype=bool)
    bold[ranked] = stats.peers(table[name][ranked], errors[ranked])
    return bold


def _column(table: pd.DataFrame, name: str, bold: np.ndarray) -> list[str]:
    errors = table[f"{name}_error"] if f"{name}_error" in table else [np.nan] * len(table)
    cells = [shown(v, e) for v, e in zip(table[name], errors)]
    return [f"**{c}**" if b else c for c, b in zip(cells, bold)]


def shown(value: float, error: float = np.nan) -> str:
    """A value as text with the digits that its error leaves it, that is, one digit of the error.

    Without an error the value has three digits. NaN is a dash.
    """
    if np.isnan(value):
        return "–"
    if np.isnan(error) or error == 0:
        return f"{float(f'{value:.3g}'):g}"
    digits = max(0, -int(np.floor(np.log10(error))))
    return stats.plus_minus(value, error, digits)


# --- ours and theirs --------------------------------------------------------------------------------------------------


def pair(table: pd.DataFrame, method: str, name: str) -> tuple[float, float]:
    """A method's statistic and its standard error."""
    return float(table.loc[method, name]), float(table.loc[method, f"{name}_error"])


def rank_correlation(ours: pd.Series, theirs: pd.Series) -> float:
    """Spearman's rank correlation over the methods that both have."""
    both = ours.index.intersection(theirs.index)
    return float(ours[both].rank().corr(theirs[both].rank()))


def ranks(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Say how near our averages are to the published ones, a row for each set.

    The columns `within 2 s.e.` and `of` count the means and medians, and those of them that lie within two standard
    errors of the difference. The others are rank correlations, NaN below three common methods; methods of `NOT_RANKED`
    are left out of these.

    Args:
        ours: `summary` of the runs.
        theirs: The `published` table of the same sets.
    """
    rows = {}
    for dataset in SETS.values():
        if {dataset} <= set(ours.index.get_level_values("dataset")):
            a, b = ours.loc[dataset], theirs.loc[dataset]
            both = a.index.intersection(b.index)
            gaps = [stats.apart(pair(a, m, n), pair(b, m, n)) for m in both for n in ("mean", "median")]
            common = [m for m in both if m not in NOT_RANKED]
            rows[dataset] = {"within 2 s.e.": sum(g <= 2 for g in gaps), "of": len(gaps), "methods": len(common)} | {
                n: round(rank_correlation(a.loc[common, n], b.loc[common, n]), 2) if len(common) > 2 else np.nan
                for n in ("mean", "median", "best")
            }
    return pd.DataFrame(rows).T.rename_axis("rank correlation")


def core_minutes(frame: pd.DataFrame, runs: int = 200) -> pd.DataFrame:
    """Core-minutes that `runs` runs of each method take, and the same relative to Random.

    They follow from the mean of the seconds that the records hold. All trainings of a run count. There is a row for
    each method; each set has a column of both.
    """
    if frame.empty:
        return frame
    minutes = frame.groupby(["dataset", "method"], sort=False)["cpu_s"].mean().unstack("dataset") * runs / 60
    minutes = minutes.reindex([m for m in TITLES if m in minutes.index])
    if "Random" in minutes.index:
        for name in list(minutes.columns):
            minutes[f"{name} / Random"] = minutes[name] / minutes.loc["Random", name]
    return minutes.rename(index=TITLES)
