"""The studies at tiny sizes, and what the notebooks read off the recorded runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune_book import papers
from gradtune_book.notebooks import stats
from gradtune_book.papers.clip import quadratic
from gradtune_book.papers.onepass import uci_trajectories
from gradtune_book.records import store
from gradtune_book.tasks.quadratic import sample
from tools import ROOT


def test_an_unknown_study_suggests_the_nearest() -> None:
    with pytest.raises(GradtuneError, match="clip_quadratic"):
        papers.get("clip_quadrat")


def test_closed_forms_of_the_quadratic_toy() -> None:
    """lam* minimises L_V(theta*(lam)), theta* has zero gradient, and y* is the derivative of theta*."""
    toy = sample([0, 1, 2])
    best = toy.optimal_penalty()
    assert ((best >= 0.2) & (best <= 0.4)).all()
    for shift in (-0.01, 0.01):
        assert (toy.val_loss(toy.minimiser(best + shift)) > toy.best_val_loss()).all()
    w = toy.minimiser(best).requires_grad_()
    (g,) = torch.autograd.grad(toy.train_loss(w, {"penalty": best[:, None]}).sum(), w)
    assert float(g.abs().max()) < 1e-12
    slope = (toy.minimiser(best + 1e-6) - toy.minimiser(best - 1e-6)) / 2e-6
    assert torch.allclose(slope, toy.sensitivity(best), rtol=1e-8)


def test_the_number_of_repeats_does_not_change_an_instance() -> None:
    few, many = (quadratic.configs(quadratic.Sizes(n, 60)) for n in (1, 3))
    one = papers.run_now(papers.get("clip_quadratic"), few)
    all_three = papers.run_now(papers.get("clip_quadratic"), many)
    both = one.merge(all_three, on=["method", "seed"])
    assert len(both) == 5
    assert np.allclose(both["excess_1_x"], both["excess_1_y"], rtol=1e-10)
    assert (both["excess_2_steps_x"][:1].to_numpy() == both["excess_2_updates_x"][:1].to_numpy()).all()  # Unroll1


def test_trajectories_count_nan_and_keep_the_others() -> None:
    sizes = uci_trajectories.Sizes(("diabetes",), 12, 3, 40)
    frame = papers.run_now(papers.get("onepass_uci_trajectories"), uci_trajectories.configs(sizes))
    table = uci_trajectories.summary(frame)
    assert list(table["runs"]) == [12, 3]
    assert table.loc["Random", "NaN"] == frame.loc[frame["method"] == "Random", "test_mse"].isna().sum() > 0
    height = uci_trajectories.surface(frame)
    assert np.isfinite(uci_trajectories.grid(height, 5)[2]).all()
    found = uci_trajectories.ends(frame)
    assert int(found["trajectories"]) == 3 - table.loc["WD+LR", "NaN"] >= int(found["in the valley"])


def test_the_cut_off_of_the_embedded_set_is_one_and_a_half_variances() -> None:
    from gradtune_book.tasks.uci import load

    assert abs(uci_trajectories.WORST["diabetes"] / (1.5 * load("diabetes").y_std ** 2) - 1) < 0.05


@pytest.mark.parametrize(("study", "runs"), [("clip_quadratic", 2500), ("onepass_uci_trajectories", 1040)])
def test_paper_scale_is_recorded_in_full(study: str, runs: int) -> None:
    frame = store.load(papers.get(study), "paper")
    assert len(frame) == runs
    assert not frame["dirty"].any()


def test_recorded_table_1_has_the_papers_distances() -> None:
    frame = store.load(papers.get("clip_quadratic"), "paper")
    offset = (frame.groupby("method")[["distance_1"]].mean() - quadratic.published()[["distance_1"]]).abs()
    assert float(offset.max().iloc[0]) < 0.01


def test_bootstrap_error_of_the_mean_is_the_standard_error() -> None:
    x = np.random.default_rng(0).normal(size=400)
    assert abs(stats.bootstrap_error(x, sets=4000) / stats.mean_error(x)[1] - 1) < 0.1


def test_verdicts() -> None:
    assert [stats.verdict(c) for c in ({"a": True}, {"a": True, "b": False}, {"a": False}, {"a": None}, {})] == [
        "reproduced",
        "partly",
        "not",
        "not run",
        "not run",
    ]
    assert stats.verdict({"a": True, "b": True, "c": None}) == "reproduced (2 of 3 claims run)"


def test_bounds_are_round() -> None:
    assert [stats.bound(x) for x in (0.0, 3e-11, 0.5)] == ["< 1e-12", "< 1e-10", "0.5"]


def test_published_tables_name_their_source() -> None:
    for path in sorted((ROOT / "data" / "published").glob("*.csv")):
        assert {"value", "source", "page"} <= set(pd.read_csv(path).columns), path.name
