"""What the page of omissions and the chapters say of OnePass's recorded runs on tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gradtune_book.papers.onepass import uci_choices, uci_onepass, uci_trajectories
from gradtune_book.papers.onepass.uci_choices import BAYDIN, CHAIN, METHOD, TARGET, USUAL
from gradtune_book.papers.onepass.uci_training import DECAY, LR, RANGES
from gradtune_book.records import store


@pytest.fixture(scope="module")
def energy() -> pd.DataFrame:
    return uci_choices.on(store.load(uci_choices.STUDY, "paper"), "energy")


def _pairs(energy: pd.DataFrame, method: str, choice: str) -> np.ndarray:
    runs = energy[energy["method"] == method].set_index("seed")
    usual = runs.loc[runs["choice"] == USUAL, "test_mse"]
    return (runs.loc[runs["choice"] == choice, "test_mse"] / usual).dropna().to_numpy()


def test_the_chain_factor_raises_the_loss_of_baydin(energy: pd.DataFrame) -> None:
    ratio = _pairs(energy, BAYDIN, CHAIN)
    assert len(ratio) == 99 and 1.1 < np.median(ratio) < 1.15 and (ratio > 1).mean() > 0.95  # one usual run is NaN


def test_a_target_in_its_own_unit_loses_runs_and_raises_the_loss_of_others(energy: pd.DataFrame) -> None:
    chosen = energy[(energy["method"] == METHOD) & (energy["choice"] == TARGET)]
    assert (len(chosen), int(chosen["test_mse"].isna().sum())) == (100, 15)
    assert np.median(_pairs(energy, METHOD, TARGET)) > 3


def test_what_narrower_ranges_would_show_of_figure_3() -> None:
    every = store.load(uci_trajectories.STUDY, "paper")
    lowest = {}
    for name, runs in every[every["method"] == uci_trajectories.RANDOM].groupby("dataset"):
        inside = runs["log10_lr"].between(*RANGES[LR]) & runs["log10_decay"].between(*RANGES[DECAY])
        narrow = runs[inside]
        assert (len(narrow), int(narrow["test_mse"].isna().sum())) == (198, 0)
        lr, decay, loss = uci_trajectories.grid(uci_trajectories.surface(narrow))
        columns, rows = lr <= RANGES[LR][1] + 1e-9, decay <= RANGES[DECAY][1] + 1e-9
        lowest[name] = lr[columns][loss[rows][:, columns].argmin(1)], lr[columns].max()
    at, end = lowest["energy"]
    assert (at == end).all()
    at, end = lowest["yacht"]
    assert (at < end).all() and 10 ** at.min() > 0.02 and 10 ** at.max() < 0.07


def test_a_third_of_the_runs_on_naval_is_lost_where_the_momentum_is_tuned() -> None:
    runs = uci_onepass.main_runs(store.load(uci_onepass.STUDY, "paper"))
    naval = runs[runs["dataset"] == "naval"].groupby("method")["test_mse"]
    assert (naval.size().drop(uci_onepass.BAYES, errors="ignore") == 200).all()
    lost = naval.agg(lambda losses: losses.isna().mean())
    assert lost[["WD+LR+M", "Diff-through-Opt"]].between(0.28, 0.36).all()
    assert lost.drop(["WD+LR+M", "Diff-through-Opt"]).max() < 0.2
