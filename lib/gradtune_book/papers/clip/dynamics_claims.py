"""What the Clip paper claims about its Appendix B.2, the dynamics on Penn Treebank, as data.

Appendix B.1 draws the same for MNIST; the text says nothing of what is to be seen there.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Setting
from gradtune_book.claims.estimates import Estimates, measured, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.clip import ptb, tables
from gradtune_book.papers.clip.training import GTGV
from gradtune_book.records import store

FIRST, SECOND = "Appendix B.2, first figure", "Appendix B.2, second figure"
_LAST = {FIRST: 180, SECOND: 250}
_FROM, _OF = 120, 250
"""Moments in thousands of the paper's steps: the last panel of each figure; the panel from which on we count, and the
length of the training. Ours are at the same shares of a shorter training."""


def moves(item: str) -> Estimates:
    """Read off the records by how much the keep probability rises between two panels of a figure, over seeds."""
    frame = tables.online(store.load(ptb.STUDY, "laptop"))
    if frame.empty:
        return Estimates()
    plain = frame[frame["outer_scale"] == 1]
    steps = list(ptb.schedule(ptb.STUDY.runs("laptop")[0]).panels)
    first, last = (steps.index(round(steps[-1] * moment / _OF)) for moment in (_FROM, _LAST[item]))
    rise = pd.Series([path[last] - path[first] for path in plain["panel_keep"]], index=plain.index)
    return measured(plain.assign(rise=rise), "method", ["rise"], instance="seed")


def _rise(methods: tuple[str, ...], item: str, t: Estimates) -> Finding:
    what = f"{{}}, keep probability from {_FROM}K to {_LAST[item]}K of the paper's steps"
    return Finding(tuple(judging.above_limit(t.at(m, "rise"), 0, what.format(m)) for m in methods))


def _rises_less(t: Estimates) -> Finding:
    return judging.all_below(t, ("Clip5",), ("Unroll5",), "rise")


def _claim(name: str, item: str, statement: str, check: Check) -> Claim:
    setting = Setting(
        "laptop",
        "10,000 words of Penn Treebank, a smaller LSTM",
        remembered(partial(moves, item)),
    )
    note = "at the same shares of a shorter training"
    return Claim(
        f"clip-B2-{name}", "Clip", "Section 4.3", (item,), statement, "shape", check, "clip_ptb", (setting,), note=note
    )


CLAIMS = (
    _claim(
        "one-step",
        FIRST,
        "close to convergence Unroll1-gTgV and Unroll1 drift to higher keep probabilities",
        partial(_rise, (GTGV, "Unroll1"), FIRST),
    ),
    _claim(
        "longer",
        SECOND,
        "close to convergence Unroll5 drifts to higher keep probabilities",
        partial(_rise, ("Unroll5",), SECOND),
    ),
    _claim("clipped", SECOND, "close to convergence Clip5 drifts upwards less than Unroll5", _rises_less),
)
