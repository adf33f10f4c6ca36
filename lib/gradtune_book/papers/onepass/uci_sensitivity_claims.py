"""What the OnePass paper says of its sensitivity to T, i and the validation share, checked on the runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gradtune_book.papers.onepass import uci_tables
from gradtune_book.papers.onepass.uci_sensitivity import (
    EXACT,
    HDLR,
    RANDOM,
    SHARES,
    TUNED,
    Sizes,
    error_grid,
    grid_runs,
    medians,
    proportion,
)

_BEATS = "WD+LR+M beats Random for every T and i"


def complete(frame: pd.DataFrame, sizes: Sizes) -> bool:
    """Whether every run of the grid of T and i at these sizes is there."""
    cells = grid_runs(frame).groupby(["method", "look_back", "every"]).size().to_dict() if len(frame) else {}
    wanted = [(TUNED, i, every) for every in sizes.intervals for i in sizes.look_backs]
    wanted += [(EXACT, i, every) for _, i, every in wanted if i <= every]
    wanted += [(RANDOM, 0, every) for every in sizes.intervals]
    return all(cells.get(cell, 0) >= sizes.runs for cell in wanted)


def claims(frame: pd.DataFrame, sizes: Sizes) -> dict[str, bool | None]:
    """Verdicts on Section 4.3 and Appendix B.2 about the grid of T and i; None until the grid is `complete`."""
    if not complete(frame, sizes):
        return dict.fromkeys((_BEATS,))
    table = medians(frame)
    random, ours, exact = table.loc[RANDOM].iloc[0], table.loc[TUNED], table.loc[EXACT]
    ours, exact = ours.align(exact)
    by_t = [row.rank().corr(pd.Series(range(len(row)), index=row.index)) for _, row in ours.iterrows()]
    both = ours.where(exact.notna())
    return {
        _BEATS: bool((ours < random).all().all()),
        "larger T gives lower losses (rank correlation below -0.5 for every i)": bool(np.max(by_t) < -0.5),
        "exact hypergradients are better still (lower in most cells)": bool(
            (exact < both).to_numpy()[both.notna().to_numpy()].mean() > 0.5
        ),
        "their gap is smaller than that to Random in every cell": bool(
            ((both - exact).abs() < (random - both).abs()).to_numpy()[both.notna().to_numpy()].all()
        ),
        "more terms do not always help: for some T a larger i is worse": bool((ours.diff() > 0).any().any()),
    }


def error_claims(errors: pd.DataFrame) -> dict[str, bool | None]:
    """Verdicts on Appendix B.2.2 by the published measure, and on whether one term is exact; None without runs.

    Args:
        errors: Table of `gradient_errors`.
    """
    if errors.empty:
        return dict.fromkeys(("approximate weight-decay hypergradients are better at short look-backs",))
    decay = error_grid(errors, "weight_decay", "published").mean(axis=1)
    return {
        "approximate weight-decay hypergradients are better at short look-backs": bool(
            decay.rank().corr(pd.Series(range(len(decay)), index=decay.index)) > 0.5
        ),
        "one term (i = 1) is exact": bool(errors.loc[errors["i"] == 1, "honest"].max() < 1e-3),
    }


def sign_shares(errors: pd.DataFrame) -> pd.Series:
    """Share of the published measure's values in which only the sign of a hypergradient is left, by hyperparameter.

    These are the values for i > 1 that lie within one percentage point of 0 or of 200 %.

    Args:
        errors: Table of `gradient_errors`.
    """
    long = errors[errors["i"] > 1]
    sign_only = (long["published"] < 0.01) | ((long["published"] - 2).abs() < 0.01)
    return sign_only.groupby(long["hyperparameter"], sort=False).mean()


def share_claims(table: pd.DataFrame) -> dict[str, bool | None]:
    """Verdicts on the statements of Appendix B.8.1; None without runs.

    Args:
        table: Table of `share_table`.
    """
    first, second, last = (proportion(s) for s in (SHARES[0], SHARES[1], SHARES[-1]))
    have = set(table.index)

    def better(method: str, a: str, b: str) -> bool | None:
        both = {(a, method), (b, method)} <= have
        return bool(table.loc[(a, method), "mean"] < table.loc[(b, method), "mean"]) if both else None

    return {
        f"{uci_tables.TITLES[m]}: {second} has a lower mean than {first}": better(m, second, first)
        for m in (TUNED, HDLR)
    } | {
        f"{uci_tables.TITLES[m]}: {last} has a higher mean than {second}": better(m, second, last)
        for m in (TUNED, HDLR)
    }
