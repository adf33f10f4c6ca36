"""Tables, figures and numbers of the OnePass chapters: on numbers made for the purpose and on the published ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gradtune_book.notebooks import plots, stats, tables
from gradtune_book.notebooks.stats import PLUS_MINUS
from gradtune_book.papers.onepass import (
    image_horizon,
    uci_figures,
    uci_horizon,
    uci_onepass,
    uci_sensitivity,
    uci_tables,
)
from gradtune_book.papers.onepass.uci_sensitivity import Config, proportion

# --- statistics -------------------------------------------------------------------------------------------------------


def test_bootstrap_errors_against_closed_forms() -> None:
    """Mean: s / sqrt(n) (with n - 1 in place of n in the resamples' variance). Minimum of n distinct values: it is the
    smallest with probability 1 - (1 - 1/n)^n. Median of two values half and half: a coin's."""
    x = np.random.default_rng(1).normal(size=300)
    assert stats.bootstrap_error(x, sets=4000) == pytest.approx(x.std() / np.sqrt(300), rel=0.05)
    n = 20
    first = np.array([0.0] + [1.0] * (n - 1))
    p = 1 - (1 - 1 / n) ** n
    assert stats.bootstrap_error(first, np.nanmin, sets=8000) == pytest.approx(np.sqrt(p * (1 - p)), rel=0.05)
    odd = np.array([0.0] * 25 + [1.0] * 26)
    assert 0.45 < stats.bootstrap_error(odd, np.nanmedian) < 0.5


def test_a_band_is_the_error_of_every_column_and_ignores_nan() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)) * [1, 2, 3]
    x[:20, 1] = np.nan
    band = stats.bootstrap_band(x, np.nanmean, sets=500)
    assert band == pytest.approx([stats.bootstrap_error(x[:, k], sets=500) for k in range(3)])
    assert band[1] == pytest.approx(2 / np.sqrt(40), rel=0.25)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_fast_median_is_numpys(axis: int) -> None:
    x = np.random.default_rng(0).normal(size=(7, 8, 5))
    x[np.random.default_rng(1).random(x.shape) < 0.4] = np.nan
    x[:, :, 0] = np.nan
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        expected = np.nanmedian(x, axis=axis)
    assert np.array_equal(stats.nanmedian(x, axis), expected, equal_nan=True)


def test_failures_lower_the_ceiling_of_a_cdf() -> None:
    x, share = stats.cdf([3.0, np.nan, 1.0, np.inf])
    assert list(x) == [1.0, 3.0] and list(share) == [0.25, 0.5]


def test_peers_lie_in_the_error_bar_of_the_best() -> None:
    assert list(stats.peers([2.0, 1.0, 1.4, np.nan], [9.0, 0.5, 0.0, 1.0])) == [False, True, True, False]
    assert list(stats.peers([2.0, 1.0, 1.0], [np.nan] * 3)) == [False, True, True]
    assert not stats.peers([np.nan], [1.0]).any()
    assert stats.apart((3.0, 3.0), (13.0, 4.0)) == pytest.approx(2.0)


# --- tables -----------------------------------------------------------------------------------------------------------


def runs(method: str, losses: list[float], dataset: str = "energy", cpu_s: float = 1.0, **more: Any) -> pd.DataFrame:
    """Made-up runs of one method."""
    columns = {"dataset": dataset, "method": method, "seed": range(len(losses)), "test_mse": losses, "cpu_s": cpu_s}
    return pd.DataFrame(columns | {"best_mse": [0.5 * v for v in losses], "steps": 4000} | more)


def test_summary_counts_nan_leaves_them_out_and_takes_the_best_of_any_time() -> None:
    table = uci_tables.summary(pd.concat([runs("Random", [2.0, 4.0, np.nan]), runs("Random", [1.0, 2.0], "kin8nm")]))
    row = table.loc[("energy", "Random")]
    assert (row["runs"], row["nan"], row["mean"], row["median"], row["best"]) == (3, 1, 3.0, 3.0, 1.0)
    assert table.loc[("kin8nm", "Random"), "mean"] == 1500.0  # printed times 1000
    lost = uci_tables.summary(runs("Random", [np.nan, np.nan])).iloc[0]
    assert lost["nan"] == 2 and np.isnan(lost["mean"]) and np.isnan(lost["best"])
    assert uci_tables.summary(pd.DataFrame()).empty


@pytest.mark.parametrize("file", ["onepass_table1.csv", "onepass_table10.csv", "onepass_table11.csv"])
def test_our_rule_of_bold_cells_gives_the_published_ones(file: str) -> None:
    """Rounded values decide most cells: those whose printed numbers tie with the limit are left out."""
    table = uci_tables.published(file)
    checked = 0
    for _, part in table.groupby(level="dataset"):
        here = part.droplevel("dataset")
        for name in ("mean", "median"):
            limit = here[name].min() + here.loc[here[name].idxmin(), f"{name}_error"]
            clear = (here[name] - limit).abs() > 0.01 * limit
            ours = pd.Series(uci_tables.emboldened(here, name), index=here.index)
            assert (ours[clear] == here[f"bold_{name}"][clear]).all()
            checked += int(clear.sum())
    assert checked > 5


def test_published_tables_repeat_one_another() -> None:
    first, thirteen = (uci_tables.published(f"onepass_table{n}.csv").loc["energy"] for n in (1, 13))
    pd.testing.assert_frame_equal(first, thirteen.loc[first.index])
    usual = uci_tables.published("onepass_table14.csv").loc[proportion(0.8)]
    columns = ["mean", "median", "best", "mean_error"]
    pd.testing.assert_frame_equal(usual[columns], first.loc[usual.index, columns])
    assert uci_tables.published("onepass_table6.csv").loc[("kin8nm", "Bayes"), "mean"] == 7.3
    fifteen = uci_tables.published("onepass_table15.csv").loc["energy"]
    pd.testing.assert_frame_equal(first[columns], fifteen.loc[first.index, columns])


def test_published_tables_on_fashion_mnist_repeat_one_another() -> None:
    columns = ["mean", "median", "best", "mean_error", "median_error"]
    two, seven, eight, nine, twelve = (uci_tables.published(f"onepass_table{n}.csv") for n in (2, 7, 8, 9, 12))
    first = two.loc["Fashion-MNIST", columns]
    for other in (seven.loc["Fashion-MNIST"], nine.loc["without batch normalisation"], twelve.loc["cross-entropy"]):
        pd.testing.assert_frame_equal(first, other.loc[first.index, columns])
    errors = eight.loc["Fashion-MNIST", columns]
    pd.testing.assert_frame_equal(errors, twelve.loc["error"].loc[errors.index, columns])


def test_a_table_stands_beside_the_published_one() -> None:
    ours = uci_tables.summary(pd.concat([runs("WD+LR+M", [0.9, 1.0, 1.1] * 9), runs("Random", [20.0, 30.0] * 9)]))
    table = uci_tables.beside(ours, uci_tables.published("onepass_table1.csv"), "energy")
    assert list(table.index) == ["Random", "OnePass WD+LR+M"]
    assert table.loc["OnePass WD+LR+M", "mean"] == f"**1.00{PLUS_MINUS}0.02**"
    assert (
        table.loc["OnePass WD+LR+M", "mean, paper"] == f"0.96{PLUS_MINUS}0.08"
        and table.loc["Random", "best, paper"] == "0.124"
    )
    text = tables.markdown(table)
    assert text.count("\n") == 3 and text.startswith("| method | mean |")
    assert uci_tables.beside(ours, ours, "power").index[0] == "no run is recorded yet"
    assert list(uci_tables.listed(ours, ["energy"])["method"]) == list(table.index)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.964, 0.078, f"0.96{PLUS_MINUS}0.08"),
        (24.4, 2.1, f"24{PLUS_MINUS}2"),
        (4713.0, 692.0, f"4713{PLUS_MINUS}692"),
        (0.1236, np.nan, "0.124"),
    ],
)
def test_numbers_have_the_digits_their_error_leaves(value: float, error: float, text: str) -> None:
    assert uci_tables.shown(value, error) == text
    assert uci_tables.shown(np.nan) == "–"


# --- ours and theirs --------------------------------------------------------------------------------------------------


def study_frame() -> pd.DataFrame:
    """Runs around the published means of Energy, a tenth of spread, with costs in the claimed proportion."""
    means = uci_tables.published("onepass_table1.csv").loc["energy"]["mean"]
    draw = np.random.default_rng(0)
    spread = draw.normal(1, 0.1, 60)
    parts = [runs(m, list(v * spread), cpu_s=2.5 if "WD" in m else 1.0) for m, v in means.items()]
    return pd.concat([*parts, runs("Bayes", list(0.4 * spread[:32]))])


def test_rank_correlations_and_core_minutes() -> None:
    frame = study_frame()
    ranks = uci_tables.ranks(uci_tables.summary(frame), uci_tables.published("onepass_table1.csv"))
    assert ranks.loc["energy", "methods"] == 9 and ranks.loc["energy", "mean"] > 0.9
    assert ranks.loc["energy", "of"] == 18 and ranks.loc["energy", "within 2 s.e."] >= 9
    minutes = uci_tables.core_minutes(frame)
    assert minutes.loc["Random", "energy"] == pytest.approx(200 / 60)
    assert minutes.loc["OnePass WD+LR", "energy / Random"] == pytest.approx(2.5)


def test_rounding_is_measured_between_runs_of_one_seed() -> None:
    parts = [
        runs("Random", [1.0, 2.0], dtype="float64", form="stacked"),
        runs("Random", [1.1, 2.0], dtype="float32", form="stacked"),
        runs("Random", [1.0, 2.000002], dtype="float64", form="module"),
    ]
    table = uci_onepass.rounding_table(pd.concat(parts))
    gaps = ["5.0e-02", "1.0e-01", "5.0e-07", "1.0e-06"]
    assert list(table.loc["Random"]) == [*gaps, f"1.6{PLUS_MINUS}0.4", f"1.5{PLUS_MINUS}0.5"]
    assert uci_onepass.rounding_table(parts[1]).empty
    assert len(uci_onepass.main_runs(pd.concat(parts))) == 2


def test_conventions_say_what_nan_and_any_time_change() -> None:
    frame = runs("Random", [1.0, 2.0, 5.0, np.nan, np.nan])
    frame["best_mse"] = [0.5, 2.0, 5.0, 0.25, 7.0]
    row = uci_tables.conventions(frame, "energy").loc["Random"]
    assert row.tolist() == [1.0, 0.25, 2.0, 5.0, 2]
    assert uci_tables.conventions(frame.iloc[:0], "energy").empty


def test_triples_say_how_often_validation_finds_the_best() -> None:
    """A triple chosen rightly, one 50 % above its best, one with two diverged runs, one wholly diverged, a rest."""
    nan = np.nan
    frame = runs("Random", [3.0, 1.0, 2.0, 2.0, 3.0, 9.0, nan, 4.0, nan, nan, nan, nan, 5.0])
    frame["val_mse"] = [3.0, 1.0, 2.0, 2.0, 1.0, 9.0, nan, 4.0, nan, nan, nan, nan, 5.0]
    other = runs("Baydin", [1.0, 2.0, 3.0]).assign(val_mse=[3.0, 2.0, 1.0])
    table = uci_tables.chosen_of_three(pd.concat([frame.sample(frac=1, random_state=0), other]))
    assert table.loc["UCI Energy"].tolist() == pytest.approx([3, 2 / 3, 0.0, 50.0])
    assert uci_tables.chosen_of_three(frame.iloc[:0]).empty


# --- sensitivity ------------------------------------------------------------------------------------------------------


def grid_frame(gain: float = 0.5) -> pd.DataFrame:
    """Losses that fall with T; OnePass by `gain` below Random, the exact form a little lower; i = 5 a little worse."""
    parts = []
    for t in (1, 10, 100):
        parts.append(runs("Random", [8.0 / t] * 3, every=t, look_back=0, train_share=0.8))
        for i in (1, 5):
            loss = gain * 8.0 / t * (1 + 0.01 * i)
            parts.append(runs("WD+LR+M", [loss, loss, np.nan], every=t, look_back=i, train_share=0.8))
            parts.append(runs("Diff-through-Opt", [0.9 * loss] * 3, every=t, look_back=i, train_share=0.8))
    return pd.concat(parts)


def test_the_grid_of_medians() -> None:
    table = uci_sensitivity.medians(grid_frame())
    assert table.loc[("Random", 0), 10] == 0.8 and table.loc[("WD+LR+M", 5), 1] == pytest.approx(4.2)


@pytest.mark.parametrize("method", ["Random", "WD+LR+M", "Diff-through-Opt"])
def test_a_grid_that_lacks_runs_is_not_complete(method: str) -> None:
    sizes = replace(uci_sensitivity.SIZES["smoke"], intervals=(1, 10, 100), look_backs=(1, 5), runs=3)
    grid = grid_frame().reset_index(drop=True)
    one = grid.index[(grid["method"] == method) & (grid["every"] == 100)][-1]
    assert uci_sensitivity.complete(grid, sizes) and not uci_sensitivity.complete(grid.drop(index=one), sizes)
    assert not uci_sensitivity.complete(pd.DataFrame(), sizes)


def hypergradient_frame() -> pd.DataFrame:
    rows = []
    for seed in range(4):
        row = {"method": "Hypergradients", "dtype": "float64", "every": 10, "look_backs": [1, 5], "seed": seed}
        for name, exact in (("lr", -0.5), ("weight_decay", 1e-8), ("momentum", 2.0)):
            row |= {f"exact_{name}": [exact, exact], f"approximate_{name}": [exact, 3 * exact]}
        row["approximate_momentum"] = [2.0, -2.0]  # the wrong sign
        rows.append(row)
    return pd.DataFrame(rows)


def test_the_published_measure_sees_signs_and_tiny_gradients_only() -> None:
    errors = uci_sensitivity.gradient_errors(hypergradient_frame())
    at = errors[errors["i"] == 5].groupby("hyperparameter")[["honest", "published"]].mean()
    assert at.loc["lr", "honest"] == pytest.approx(2.0) and at.loc["lr", "published"] < 1e-7
    assert at.loc["momentum"].to_list() == pytest.approx([2.0, 2.0])
    assert at.loc["weight_decay", "published"] == pytest.approx(0.75 / 0.5 - 1)  # 3e-8 / 4e-8 against 1e-8 / 2e-8
    assert uci_sensitivity.error_grid(errors, "lr", "honest").loc[5, 10] == pytest.approx(200.0)
    shares = uci_sensitivity.sign_shares(errors)
    assert shares["lr"] == shares["momentum"] == 1.0 and shares["weight_decay"] == 0.0


def test_two_hypergradients_of_zero_agree() -> None:
    assert uci_sensitivity._relative(np.array([0.0, 1.0]), np.array([0.0, 2.0])).tolist() == [0.0, 0.5]


def test_proportions_are_compared_with_the_usual_one() -> None:
    assert [proportion(s) for s in (0.8, 0.5625)] == ["80%/10%/10%", "56.25%/33.75%/10%"]
    usual = pd.concat([runs(m, [1.0, 2.0]) for m in ("WD+LR+M", "WD+HDLR+M", "Random")])
    other = [runs(m, [0.5, 1.0], train_share=0.675) for m in ("WD+LR+M", "WD+HDLR+M")]
    table = uci_sensitivity.share_table(pd.concat(other), usual)
    assert len(table) == 4 and table.loc[("67.5%/22.5%/10%", "WD+LR+M"), "mean"] == 0.75
    assert Config("Random", 0).train_share == uci_sensitivity.SHARES[0]


# --- horizons ---------------------------------------------------------------------------------------------------------


def test_runs_of_the_horizons() -> None:
    methods = {"Random": 40.0, "WD+LR+M": 30.0, "Diff-through-Opt": 30.0, "Long-Diff-through-Opt": 14.0}
    short = pd.concat([runs(m, [v, 1.1 * v], steps=200) for m, v in methods.items()])
    usual = short[short["method"] != uci_horizon.LONG].assign(steps=4000)
    full = uci_horizon.full_runs(pd.concat([short, runs(uci_horizon.LONG, [70.0, 71.0])]), usual)
    assert len(full) == 8 and full.groupby("method")["test_mse"].min()[uci_horizon.LONG] == 70
    images = short.assign(test_ce=short["test_mse"], best_ce=1.0, test_error=0.1, best_error=0.1, dataset="mnist")
    assert image_horizon.summary(images).loc[("error", "Random"), "mean"] == pytest.approx(0.1)


# --- figures ----------------------------------------------------------------------------------------------------------


def curve_frame() -> pd.DataFrame:
    curve, path = [4.0, 2.0, 1.0], [0.1, 0.01]
    parts = [runs("Random", [1.0, 1.0], test_curve=[curve] * 2, incumbent_curve=[curve] * 2)]
    more: dict[str, Any] = {"lr_path": [path] * 2, "lr_min_path": [path] * 2, "lr_max_path": [[0.2, 0.1]] * 2}
    lost = [4.0, None, None]
    parts.append(runs("WD+HDLR+M", [1.0, np.nan], test_curve=[curve, lost], incumbent_curve=[curve, [4.0] * 3], **more))
    parts.append(runs("Bayes", [1.0], cpu_s=30.0, trial_val=[[2.0, None, 1.0]], trial_test=[[3.0, None, 5.0]]))
    return pd.concat(parts, ignore_index=True)


def test_figures_and_their_tables() -> None:
    frame = curve_frame()
    for draw in (uci_figures.draw_evolution, uci_figures.draw_cdf, uci_figures.draw_rates, uci_figures.draw_incumbents):
        fig = uci_figures.sheet(draw, frame)
        assert fig.axes[0].lines
        plots.plt.close(fig)
    empty = uci_figures.sheet(uci_figures.draw_cdf, pd.DataFrame())
    assert empty.axes[0].texts[0].get_text() == "no run is recorded yet"
    plots.plt.close(empty)
    evolution = uci_figures.tables(uci_figures.evolution_table, frame).loc["UCI Energy"]
    assert list(evolution.loc["OnePass WD+HDLR+M"])[-1] == 1.0 and list(evolution.columns)[-1] == 4000
    shares = uci_figures.cdf_table(frame, "energy")
    assert shares.loc["OnePass WD+HDLR+M", "finite"] == 0.5 and np.isinf(shares.loc["OnePass WD+HDLR+M", "90 %"])
    assert list(uci_figures.rates_table(frame, "energy").loc["OnePass WD+HDLR+M"])[-1] == -2.0


def test_incumbents_follow_time_and_the_search_its_validation_loss() -> None:
    frame = curve_frame()
    bayes = uci_figures.incumbents(frame[frame["method"] == "Bayes"], np.array([5.0, 10.0, 29.0, 30.0]))
    assert np.isnan(bayes[0, 0]) and list(bayes[0, 1:]) == [3.0, 3.0, 5.0]
    random = uci_figures.incumbents(frame[frame["method"] == "Random"], np.array([0.0, 0.5, 0.9, 7.0]))
    assert list(random[0]) == [4.0, 2.0, 2.0, 1.0]


def test_restarted_curves_are_drawn_over_all_their_trainings() -> None:
    frame = runs("Long-Diff-through-Opt", [1.0], steps=200, trainings=3)
    assert list(uci_figures.steps_of(frame, 3)) == [200, 400, 600]
    assert list(uci_figures.steps_of(frame.assign(trainings=1, steps=100), 3)) == [0, 50, 100]


def test_what_the_last_training_adds() -> None:
    frame = runs("Long-Diff-through-Opt", [1.0, 2.0, 3.0], steps=200)
    frame["test_curve"] = [[9.0, 2.0, 1.0], [9.0, 2.5, 2.0], [9.0, 4.0, None]]
    row = uci_horizon.last_trainings(pd.concat([frame, runs("Random", [1.0], steps=200)])).loc["UCI Energy", "200"]
    assert (row["runs"], row["last but one"], row["last"]) == (2, "2.25", "1.5")
    assert row["change, %"].startswith(f"-35{PLUS_MINUS}")
    assert uci_horizon.last_trainings(pd.DataFrame()).empty


def test_heat_maps_of_the_sensitivity_study() -> None:
    fig, axes = plots.panels(3)
    uci_sensitivity.draw_medians(axes, uci_sensitivity.medians(grid_frame()))
    assert axes[1].get_title().startswith("OnePass WD+LR+M")
    assert all(text.get_text().replace(".", "").isdigit() or not text.get_text() for ax in axes for text in ax.texts)
    plots.plt.close(fig)
    fig, axes = plots.panels(3)
    uci_sensitivity.draw_errors(axes, uci_sensitivity.gradient_errors(hypergradient_frame()), "honest")
    assert [text.get_text() for text in axes[2].texts] == ["200", "0"]
    plots.plt.close(fig)
