"""What the chapters on FDS say of their recorded runs, beside the verdicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gradtune_book.papers.fds import cifar_claims, cifar_regret, cifar_tables
from gradtune_book.papers.fds.schedules import COSINE, FDS, GREEDY, NON_GREEDY, STUDY, TUNED
from gradtune_book.records import store


def test_what_the_chapter_on_schedules_says_of_the_papers_size() -> None:
    runs = store.load(STUDY, "paper")
    groups = runs[runs["data"] == "mnist"].groupby("method")
    assert (groups.size() == 3).all() and set(groups.groups) == {COSINE, FDS, GREEDY, NON_GREEDY, TUNED}
    lost, mean = groups["diverged"].sum(), groups["test_accuracy"].mean()
    assert lost[FDS] == 0 < lost[GREEDY] and lost[NON_GREEDY] > 75  # of 150 trainings
    assert max(mean[GREEDY], mean[NON_GREEDY]) < mean[FDS] < min(mean[COSINE], mean[TUNED])
    error = groups["test_accuracy"].sem()
    for other in (GREEDY, NON_GREEDY):
        assert mean[FDS] - mean[other] < 4.3 * error[other]  # Student's t with two degrees of freedom
    assert min(mean[COSINE], mean[TUNED]) - mean[FDS] < 4.3 * max(error[COSINE], error[TUNED])


@pytest.fixture(scope="module")
def regret() -> pd.DataFrame:
    return store.load(cifar_regret.STUDY, "laptop")


def test_what_the_chapter_on_regret_says_of_fds(regret: pd.DataFrame) -> None:
    runs = regret[regret["method"] == cifar_regret.FDS]
    worth = np.array([*runs["at_accuracy"]])  # [seeds, outer steps]
    first = np.array([[path[0] for path in runs[f"answer_lr_{k}"]] for k in range(7)])
    wrong = (first < 0).any(axis=0)
    assert (len(runs), wrong.sum()) == (8, 1) and first[:, ~wrong] == pytest.approx(0.1)
    grid = regret[regret["method"] == cifar_regret.GRID]
    median = grid.groupby([*cifar_regret.GRID_VALUES])["accuracy"].mean().median()
    assert np.abs(worth[~wrong, 0] - median).max() < 0.02  # of a grid from 0.1 to 0.42
    assert worth[wrong, 0] < 0.2 and abs(worth[wrong, 2] - worth[~wrong, 2].mean()) < 0.01
    assert worth.mean(axis=0).argmax() == 3
    best, _ = cifar_tables.best_of_grid(regret)
    assert abs(worth[:, -1].mean() - best) < worth[:, -1].std(ddof=1) / np.sqrt(8)


def test_what_the_chapter_on_regret_says_of_the_searches(regret: pd.DataFrame) -> None:
    searches = ["Random", "Bayes", "Hyperband", "BOHB"]
    found = regret.loc[regret["method"].isin(searches), "accuracy"]
    assert (len(found), (found > 0.25).sum(), (found > 0.2).sum()) == (32, 8, 8)
    middle = regret.loc[regret["method"] == cifar_regret.GRID, "accuracy"].median()
    assert regret.loc[regret["method"] == "HD", "accuracy"].mean() < middle


def test_what_the_chapter_on_regret_says_of_figure_7() -> None:
    (count,) = cifar_claims.cifar_estimates().counts.values()
    assert count == (7, 8)


def test_what_a_step_of_fds_costs_in_plain_ones(regret: pd.DataFrame) -> None:
    runs = regret[regret["seed"] < 3]
    each = (runs["seconds"] / runs["training_steps"]).groupby(runs["method"]).mean()
    assert 12.5 < each[cifar_regret.FDS] / each["Random"] < 13.5
