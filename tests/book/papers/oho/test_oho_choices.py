"""What the OHO paper leaves open: one choice changed at a time, beside the same trainings unchanged."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from gradtune_book import papers
from gradtune_book.papers.oho import choices, performance, tables
from gradtune_book.papers.oho.training import DECAY, LR

TINY = replace(choices.SIZES["smoke"].base, width=4, layers=3, epochs=2)


def test_wider_ranges_keep_the_share_of_the_range() -> None:
    c = replace(TINY, method="Fixed", seed=3)
    narrow, wide = choices.drawn(c), choices.drawn(replace(c, wider=choices.WIDER))
    assert narrow == performance.drawn(c)
    for name in (LR, DECAY):
        low, high = performance.RANGES[name].low, performance.RANGES[name].high
        share = math.log(narrow[name] / low) / math.log(high / low)
        assert wide[name] == pytest.approx((low / 10) * (100 * high / low) ** share)


def test_pixels_stay_from_0_to_1() -> None:
    plain = choices.WithPixels(replace(TINY, method="Fixed", standardised=False), torch.device("cpu")).images.x_train
    assert plain.min() == 0 and plain.max() == 1
    assert choices.WithPixels(replace(TINY, method="Fixed"), torch.device("cpu")).images.x_train.mean().abs() < 1e-5


def test_each_change_changes_the_training_and_stands_beside_it() -> None:
    sizes = choices.Sizes(TINY, 2)
    changed = papers.run_now(choices.STUDY, choices.configs(sizes))
    small = replace(performance.SIZES["smoke"].base, width=4, layers=3, epochs=2)
    chosen = papers.run_now(performance.STUDY, performance.configs(performance.Sizes(small, 2, 0, 1, 0, 1)))
    table = choices.beside(changed, chosen)
    kinds = [choices.AS_CHOSEN, *[c.choice for c in choices.variations(TINY)]]
    assert [*table.index] == [(kind, row) for kind in kinds for row in (tables.GLOBAL, "Fixed", "Cosine")] and (
        table["trainings"] == 2
    ).all()
    one = chosen[chosen["method"].isin(choices.ROWS)]
    assert (pd.concat([one, changed]).groupby(["method", "seed"])["test"].nunique() == len(kinds)).all()
    assert (table[tables.RATIO].xs("Fixed", level=1) == 1).all()


def test_nothing_recorded_is_an_empty_table() -> None:
    empty = papers.run_now(choices.STUDY, [])
    assert choices.beside(empty, empty).empty
