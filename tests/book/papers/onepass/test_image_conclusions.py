"""What the chapter on Fashion-MNIST says of batch normalisation, beside the verdicts."""

from __future__ import annotations

import pandas as pd
import pytest

from gradtune_book.papers import registry
from gradtune_book.papers.onepass import image_tables, uci_tables
from gradtune_book.papers.onepass.image_claims import SCALAR
from gradtune_book.papers.onepass.image_onepass import BAYES
from gradtune_book.papers.onepass.image_tables import WITH, WITHOUT


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    every = image_tables.recorded()
    return every[(every["dataset"] == "fashion") & (every["method"] != BAYES)]


def test_batch_norm_lowers_every_average(runs: pd.DataFrame) -> None:
    groups = runs.groupby(["method", runs["batch_norm"].astype(bool)])["test_ce"]
    assert len(groups) == 18 and (groups.size() == 100).all()
    for average in (groups.mean().unstack(), groups.median().unstack()):
        assert (average[True] < average[False]).all()


def test_what_is_said_of_the_errors() -> None:
    words = {j.claim.id: j.ours.words for j in registry.answers() if j.claim.id.startswith("onepass-2-norm")}
    assert words["onepass-2-norm-ours"] == "6 comparisons: 1 within noise, 5 fails"
    assert words["onepass-2-norm-others"] == "10 comparisons: 2 holds, 8 within noise"


def test_which_runs_become_nan(runs: pd.DataFrame) -> None:
    lost = runs["test_ce"].isna().groupby([runs["method"], runs["batch_norm"].astype(bool)]).sum()
    assert (lost["Baydin", False], lost["Baydin", True], lost["WD+HDLR+M", True]) == (10, 0, 1)


def test_which_runs_were_recorded_with_another_update(runs: pd.DataFrame) -> None:
    commits = runs.loc[runs["batch_norm"].astype(bool), "commit"]
    assert sorted(commits.value_counts()) == [170, 730]


def test_wd_lr_is_half_as_far_from_the_paper_with_batch_norm(runs: pd.DataFrame) -> None:
    paper = uci_tables.published("onepass_table9.csv")["median"]
    for method in SCALAR:
        ours = runs[runs["method"] == method].groupby(runs["batch_norm"].astype(bool))["test_ce"].median()
        assert ours[True] - paper[WITH, method] < 0.5 * (ours[False] - paper[WITHOUT, method])
