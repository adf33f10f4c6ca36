"""What the chapter "Which method should I use?" concludes, held against the records of the study `together`."""

from __future__ import annotations

import pandas as pd
import pytest

from gradtune_book.papers.together import comparison, decisions, ways
from gradtune_book.papers.together import comparison_tables as read
from gradtune_book.records import store
from gradtune_book.tasks import problems

CASES = {case.words: case for case in decisions.CASES}
ANYTHING = CASES["nothing is known of the rate"]
COLUMNS = ["Unroll5", "ClipR", "Greedy", "Lorraine"]


@pytest.fixture(scope="module")
def every() -> pd.DataFrame:
    return read.scored(store.load(comparison.STUDY, "paper"))


@pytest.fixture(scope="module")
def ranked(every: pd.DataFrame) -> pd.DataFrame:
    return decisions.ranked(every, ANYTHING)


def test_all_runs_are_recorded() -> None:
    covered = store.coverage(comparison.STUDY, "paper")
    assert (covered["recorded"] == covered["of"]).all() and covered["of"].sum() > 3000


def test_the_recipe_and_a_cosine_come_first_and_no_papers_form_near_them(ranked: pd.DataFrame) -> None:
    assert ranked.index[:4].tolist() == ["Default", "SGD 0.1, cosine", "Prodigy", "DoG"]
    assert ranked["share"].iloc[1] > ranked["low"].iloc[0] > ranked["share"].iloc[2]
    for way in ways.WAYS.values():
        if way.kind == "gradients" and way.title != "Default":
            assert ranked.loc[way.title, "share"] < min(ranked["low"].iloc[:4]), way.title


def test_who_beats_the_rate_left_alone(every: pd.DataFrame) -> None:
    timed, stepped = (decisions.over_start(read.seen(every, v))["helps"] for v in ("equal time", "equal steps"))
    yes = ["OnePass", "Diff-through-Opt", "HD", "MetaOptimize, SGD", "MetaOptimize", "MetaOptimize by tensor"]
    assert (timed[yes] == "yes").all() and timed["Default"] == "yes"
    assert (timed[COLUMNS] == "no").all()
    assert (timed[["OHO", "FDS", "Per step", "Baydin", "OnePass, AdamW"]] == "not clear").all()
    assert (stepped.drop("Unroll5") == "yes").all() and stepped["Unroll5"] == "not clear"


def test_larger_outer_rates_help_some_and_bring_none_to_the_reference(every: pd.DataFrame) -> None:
    table = read.tuned_outside(every)
    for title in ("OHO", "OnePass", "Diff-through-Opt"):
        assert table.loc[title, 10.0] < table.loc[title, 1.0]
    assert (table["tuned"] > read.NEAR).all()


def test_no_search_is_told_apart_from_a_grid_or_reaches_the_recipe(every: pd.DataFrame, ranked: pd.DataFrame) -> None:
    found = decisions.ranked(every, CASES["one number to search for, many trainings"])
    grid = found.loc["Grid"]
    assert (found["low"] < grid["share"]).all() and (found["high"] > grid["share"]).all()
    assert found["high"].max() < ranked["low"].iloc[0]
    assert decisions.table(every).loc["one number to search for, many trainings", "take"] == "none of these: Default"


def test_momentum_lowers_all_and_smoothing_little(every: pd.DataFrame) -> None:
    table = read.by_tuned(every)
    for title in ("OHO", "Unroll5", "ClipR", "OnePass", "Diff-through-Opt"):
        assert table.loc[title, "rate, decay and momentum"] < table.loc[title, "rate and decay"]
    lower = table["rates by tensor"] < table["rate and decay"].fillna(table["rate"])
    assert lower[table["rates by tensor"].notna()].any() and not lower[table["rates by tensor"].notna()].all()
    smoothed = table["smoothing"].dropna()
    assert smoothed.max() / smoothed.min() < 1.1
    for case in ("momentum is tuned too", "a rate for each tensor", "a hyperparameter of the loss (smoothing)"):
        assert decisions.table(every).loc[case, "take"].startswith("none of these")


def test_on_the_stream_three_ways_are_level_and_cosines_lose(every: pd.DataFrame) -> None:
    stream = read.matrix(read.seen(every, "equal time"))[problems.STREAM]
    assert stream[["AdamW 0.001", "MetaOptimize, SGD", "DoG"]].max() < 1.1
    assert stream[["AdamW 0.001, cosine", "SGD 0.1, cosine"]].min() > 1.5
