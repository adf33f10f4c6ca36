"""What the Clip paper leaves open for its language model, measured: Clip10 with one choice changed at a time.

The choices are those of the study `clip_ptb`. The partner of every run is the run of `clip_ptb` at the same scale with
the same seed: it has the same initial weights and the same random numbers for the masks. A half-width of 0.08 and a
lower bound of 0.10 leave 0.02 at the lower end of the difference, so that neither can be moved much further that way.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from gradtune_book.papers.clip import ptb
from gradtune_book.papers.clip.ptb import SIZES, Sizes, run
from gradtune_book.records.study import Study

METHOD, USUAL = "Clip10", "as in this book"


@dataclass(frozen=True)
class Config(ptb.Config):
    """One run: a configuration of `clip_ptb`, and the name of the choice that its fields make."""

    choice: str = USUAL  # one of `changes`, whose values the other fields have


def changes(c: ptb.Config) -> dict[str, dict[str, Any]]:
    """Return what each choice changes of a configuration.

    "Loss averaged over words" is the other reading of the learning rate and of the longest gradient: that loss is the
    summed one divided by the words of a piece.
    """
    words = c.unrolled
    return {
        "c / 3": {"outer_rate": c.outer_rate / 3},
        "3 c": {"outer_rate": 3 * c.outer_rate},
        "half the learning rate": {"lr": c.lr / 2},
        "loss averaged over words": {
            "lr": c.lr / words,
            "max_norm": c.max_norm * words,
            "outer_rate": c.outer_rate * words,
        },
        "half-width 0.02": {"difference": 0.02},
        "half-width 0.08": {"difference": 0.08},
        "joint difference": {"product": "joint"},
        "no warm-up": {"warm_up": 0},
        "start at 0.80": {"keep": 0.8},
        "lower bound 0.20": {"low": 0.2},
    }


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return one run of each choice.

    Args:
        sizes: what the scale sets.
        seed: seed of all runs.
    """
    usual = next(c for c in ptb.configs(sizes, seed) if c.method == METHOD)
    return [Config(**asdict(usual) | {"choice": choice} | new) for choice, new in changes(usual).items()]


STUDY = Study("clip_ptb_choices", Config, SIZES, configs, run, chunk=1)


def effects(usual: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return what each choice does to Clip10, below the usual runs.

    Args:
        usual: runs of `clip_ptb`.
        chosen: runs of this study.

    Returns:
        Text. The first row has the usual run of the same seed, the second the range of the usual runs over all seeds,
        the others one choice each. The columns are the validation perplexity with and without early stopping, the
        increase between them in per cent, the keep probability at the end, and the share of clipped steps. Empty
        without runs.
    """
    base = usual[(usual["method"] == METHOD) & (usual["outer_scale"] == 1)] if len(usual) else usual
    if base.empty or chosen.empty:
        return pd.DataFrame()
    same = base[base["seed"].isin(chosen["seed"])].assign(choice=USUAL)
    rows = _read(pd.concat([same, chosen])).set_index("choice").map("{:.2f}".format)
    spread = _read(base).drop(columns="choice", errors="ignore")
    between = {n: f"{spread[n].min():.2f} to {spread[n].max():.2f}" for n in spread}
    return pd.concat([rows.iloc[:1], pd.DataFrame(between, index=[f"{USUAL}, {len(base)} seeds"]), rows.iloc[1:]])


def _read(frame: pd.DataFrame) -> pd.DataFrame:
    best, end = np.exp(frame["best_val"]), np.exp(frame["val"])
    read = {"with early stopping": best, "without": end, "stability (%)": 100 * (end / best - 1)}
    read |= {"keep at the end": frame["keep_end"], "clipped": frame["clipped"]}
    return pd.DataFrame(read if "choice" not in frame else {"choice": frame["choice"]} | read)
