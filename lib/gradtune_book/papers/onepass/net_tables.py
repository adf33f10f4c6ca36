"""What the chapter on an LSTM and a residual net reads off the runs of `onepass_language` and `onepass_resnet`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradtune_book.papers.onepass import uci_figures, uci_tables
from gradtune_book.papers.onepass.one_pass import TIMES

TEXT, IMAGES = "Penn Treebank", "CIFAR-10"
"""The sets as the paper's tables call them."""

PERPLEXITY, CE, ERROR = "test_perplexity", "test_ce", "test_error"


def trainings(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return the trainings of one study, without its times, under the name of their set.

    Args:
        frame: Runs of `onepass_language` or of `onepass_resnet`.
        dataset: `TEXT`, which adds the perplexities of cross-entropies in nats, or `IMAGES`. A perplexity too large for
            a number is NaN, as where a run diverged.
    """
    if frame.empty:
        return frame
    own = frame[frame["method"] != TIMES].assign(dataset=dataset)
    if dataset == IMAGES:
        return own
    return own.assign(**{PERPLEXITY: _exp(own["test_loss"]), "best_perplexity": _exp(own["best_loss"])})


def _exp(nats: pd.Series) -> pd.Series:
    with np.errstate(over="ignore"):
        return np.exp(nats.astype(float)).replace(np.inf, np.nan)


def beside(frame: pd.DataFrame, loss: str, file: str | None = None) -> pd.DataFrame:
    """Return one column of Table 2 or 8 as text, ours beside the paper's.

    Args:
        frame: Trainings on one set, from `trainings`.
        loss: `PERPLEXITY`, `CE` or `ERROR`.
        file: The paper's table; None leaves ours alone.
    """
    ours = uci_tables.summary(frame, loss=loss)
    theirs = uci_tables.published(file) if file else ours.iloc[:0]
    return uci_tables.beside(ours, theirs, frame["dataset"].iloc[0] if len(frame) else "")


def draw_distributions(axes: Sequence[Axes], text: pd.DataFrame, images: pd.DataFrame) -> None:
    """Draw Figures 12b, 12c and 13b: distributions of final perplexities, cross-entropies and errors."""
    uci_figures.draw_cdf(axes[0], text, TEXT, PERPLEXITY, "test perplexity")
    uci_figures.draw_cdf(axes[1], images, IMAGES, CE, "test cross-entropy")
    uci_figures.draw_cdf(axes[2], images, IMAGES, ERROR, "share of test errors")


def quantiles(text: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Return Figures 12b, 12c and 13b as numbers: quantiles over all runs, a row for each measure and method."""
    panels = [(text, TEXT, PERPLEXITY), (images, IMAGES, CE), (images, IMAGES, ERROR)]
    parts = {loss: uci_figures.cdf_table(frame, name, loss) for frame, name, loss in panels if len(frame)}
    if not parts:
        return pd.DataFrame()
    out = pd.concat({loss.removeprefix("test_"): part for loss, part in parts.items()}, names=["measure"])
    return out.reset_index().set_index("method")
