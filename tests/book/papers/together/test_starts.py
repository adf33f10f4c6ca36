"""The study `starts`: its runs at tiny sizes, which runs there are, and its tables against numbers found by hand."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune_book import papers
from gradtune_book.claims.claim import answer
from gradtune_book.papers import packages
from gradtune_book.papers.packages import PACKAGES, installed
from gradtune_book.papers.together import claims, start_tables, start_trainings, starts
from gradtune_book.papers.together.start_trainings import OF_PACKAGES, STARTED, training
from gradtune_book.records import jsonl, store
from gradtune_book.tasks import small

CPU = torch.device("cpu")
STUDY = papers.get("starts")


def config(
    method: str, start: float | None = 1e-2, task: str = "tables", steps: int = 12, **more: Any
) -> starts.Config:
    return starts.Config(method, 0, task, small.resolve(task, "embedded"), steps, start, **more)


def metrics(c: starts.Config) -> dict[str, Any]:
    return starts.run([c], CPU)[0].metrics


@pytest.mark.parametrize("method", STARTED)
def test_every_method_trains_with_its_defaults(method: str) -> None:
    found = metrics(config(method))
    assert found["val"] < found["initial_val"] and math.isfinite(found["test"])
    assert found["rewinds"] == 0 and found["final_lr"] > 0


def test_a_run_is_the_same_again_and_starts_alike() -> None:
    first, again = (metrics(config("onepass", task="norm")) for _ in range(2))
    assert first == again
    assert metrics(config("AdamW", task="norm"))["initial_val"] == first["initial_val"]


def test_a_fixed_rate_is_a_point_of_the_grid_and_stays() -> None:
    one = metrics(config("AdamW", 1e-3))
    assert one == metrics(config("grid", 1e-3, rule="adamw", weight_decay=0.1))
    assert one["final_lr"] == 1e-3
    assert metrics(config("grid", 1e-3, rule="sgd", weight_decay=0.0))["val"] != one["val"]


def test_a_plain_loop_sees_the_batches_of_tune() -> None:
    """Without dropout, plain SGD in a loop and `method="fixed"` are one training."""
    import gradtune

    task = small.load("convolutions", "digits")
    model, _ = gradtune.tune(
        task.net(0),
        task.loss,
        task.train,
        method="fixed",
        hypers={"lr": 0.1},
        fixed={"weight_decay": 1e-4},
        steps=5,
        batch_size=task.batch,
        seed=0,
    )
    loss = start_trainings.mean_loss(task, model, task.val)
    assert metrics(config("SGD", 0.1, "convolutions", 5))["val"] == pytest.approx(loss, rel=1e-5)


def test_a_training_that_diverges_is_recorded_as_nan() -> None:
    result = starts.run([config("SGD", 1e4, steps=60)], CPU)[0]
    line = store.line("starts", "smoke", config("SGD", 1e4, steps=60), result, "cpu", 1, None)
    assert line["metrics"]["val"] is None


@pytest.mark.parametrize(("method", "package"), [(m, PACKAGES[m][1]) for m in OF_PACKAGES])
def test_a_method_of_a_package_that_is_absent_says_so(
    method: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(GradtuneError, match=f"{method} needs the package {package}, which is not installed"):
        metrics(config(method))


@pytest.mark.parametrize("method", OF_PACKAGES)
def test_methods_of_packages_train_where_they_are_installed(method: str) -> None:
    if not installed(method):
        pytest.skip(f"{PACKAGES[method][1]} is not installed")
    found = metrics(config(method, task="norm"))
    assert math.isfinite(found["val"]) and found["rewinds"] == 0


def test_errors_name_what_is_unknown() -> None:
    with pytest.raises(GradtuneError, match="did you mean 'onepass'"):
        training("onepas", 1.0)
    with pytest.raises(GradtuneError, match="did you mean 'adamw'"):
        training("grid", 1.0, "adam")


def test_the_default_the_fixed_rates_and_the_grid_come_first() -> None:
    runs = starts.configs(starts.SIZES["smoke"])
    order = list(dict.fromkeys(c.method for c in runs))
    assert order[:4] == ["default", "AdamW", "SGD", "grid"] and set(order) == {*STARTED, "grid"}
    assert len(set(runs)) == len(runs)
    grid = [c for c in runs if c.method == "grid"]
    assert len(grid) == 2 * 2 * 4 and {c.rule for c in grid} == {"adamw", "sgd"}


def test_a_grid_has_twenty_five_points_a_rule() -> None:
    points = starts.points(5)
    assert len(set(points)) == 50
    assert starts.points(1) == [(1e-2, "adamw", 1e-2), (3e-1, "sgd", 1e-4)]


def test_runs_of_an_absent_package_are_those_that_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are neither lost to a reader nor asked of a machine that cannot compute them."""
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path))
    monkeypatch.setattr(starts, "installed", lambda method: True)
    every = [c for c in STUDY.runs("smoke") if c.method == "DoG"]
    assert len(every) == 2 and all(c.start is None for c in every)
    result = store.Result({"val": 1.0})
    jsonl.append(
        store.path("starts", "smoke", "DoG"), [store.line("starts", "smoke", every[1], result, "cpu", 1, None)]
    )
    assert len(store.load(STUDY, "smoke")) == 1
    monkeypatch.setattr(starts, "installed", lambda method: method not in OF_PACKAGES)
    assert [c for c in STUDY.runs("smoke") if c.method in OF_PACKAGES] == [every[1]]
    assert list(store.load(STUDY, "smoke")["task"]) == [every[1].task]
    monkeypatch.setenv("GRADTUNE_RECORDS", os.pathsep.join([str(tmp_path / "new"), str(tmp_path)]))
    assert list(store.load(STUDY, "smoke")["task"]) == [every[1].task]  # a second folder is read beside the first


def frame() -> pd.DataFrame:
    """Two seeds of a problem: grids whose best are 1 and 2, and three methods from two starts."""
    rows: list[tuple[Any, ...]] = []
    for seed, best in ((0, 1.0), (1, 2.0)):
        rows += [("grid", seed, s, v, 1.0) for s, v in ((0.1, best), (0.2, 3 * best), (0.3, np.nan))]
        rows += [("default", seed, s, 1.2 * best, 2.0) for s in (0.1, 10.0)]
        rows += [("AdamW", seed, 0.1, 1.4 * best, 1.0), ("AdamW", seed, 10.0, np.nan, 1.0)]
        rows += [("hd", seed, 0.1, (1 + 2 * seed) * best, 1.5), ("hd", seed, 10.0, 4 * best, 1.5)]
    rows += [("Prodigy", 0, np.nan, 1.5, 1.0), ("Prodigy", 1, np.nan, 2.0, 1.0)]
    out = pd.DataFrame(rows, columns=["method", "seed", "start", "val", "cpu_s"])
    return out.assign(task="tables")


def test_ratios_are_to_the_best_point_of_the_same_seed() -> None:
    runs = start_tables.ratios(frame())
    table = start_tables.by_start(runs)
    assert list(table.index) == ["Default", "HD", "AdamW"]
    assert table.loc["Default"].tolist() == pytest.approx([1.2, 1.2])
    assert table.loc["HD"].tolist() == pytest.approx([2.0, 4.0])
    assert table.loc["AdamW"].tolist() == pytest.approx([1.4, math.inf])
    assert runs.loc[runs["nan"], "method"].tolist() == ["AdamW", "AdamW"]


def test_a_seed_without_a_whole_grid_is_left_out() -> None:
    whole = frame()
    part = whole.drop(whole[(whole["method"] == "grid") & (whole["seed"] == 1)].index[:1])
    assert set(start_tables.ratios(part)["seed"]) == {0}


def test_the_summary_counts_what_ends_near_and_what_it_costs() -> None:
    table = start_tables.summary(start_tables.ratios(frame()))
    assert table["n"].to_dict() == {"Default": 4, "HD": 4, "AdamW": 4, "Prodigy": 2}
    assert table["different"].to_dict() == {"Default": 2, "HD": 4, "AdamW": 4, "Prodigy": 2}
    assert table["near"].to_dict() == {"Default": 4, "HD": 1, "AdamW": 2, "Prodigy": 2}
    assert table["NaN"].to_dict() == {"Default": 0, "HD": 0, "AdamW": 2, "Prodigy": 0}
    assert table["cost"].to_dict() == {"Default": 2.0, "HD": 1.5, "AdamW": 1.0, "Prodigy": 1.0}
    assert table.loc["AdamW", "95 %"] == math.inf
    near = start_tables.by_task(start_tables.ratios(frame()))
    assert near.loc["HD"].to_dict() == {"tables": 1}


def test_without_plain_trainings_there_is_no_cost() -> None:
    runs = start_tables.ratios(frame())
    table = start_tables.summary(runs[runs["method"] != "AdamW"])
    assert table["cost"].isna().all()


def answers(runs: pd.DataFrame) -> list[str]:
    table = claims.estimates_of(runs)
    return [answer(c.check, lambda: table).word for c in claims.CLAIMS if c.notebook == "your_own_model"]


def many(seeds: int = 30) -> pd.DataFrame:
    """`frame`, with its two seeds fifteen times and all the methods that a claim waits for."""
    parts = [frame().assign(seed=frame()["seed"] + 2 * k) for k in range(seeds // 2)]
    runs = start_tables.ratios(pd.concat(parts, ignore_index=True))
    runs["ratio"] *= 1 - 1e-3 * runs["seed"] / seeds  # not all alike, so that there is an error
    poor = runs[runs["method"] == "hd"]
    every = [poor.assign(method=m) for m in STARTED if m not in ("default", "fds", "AdamW", "hd")]
    return pd.concat([runs, *every], ignore_index=True)


def test_claims_wait_for_runs_and_two_seeds_decide_nothing() -> None:
    runs = start_tables.ratios(frame())
    assert answers(runs) == ["within noise", "within noise", "within noise", "not run", "within noise"]
    assert answers(runs[runs["method"] == "hd"]) == ["not run"] * 5
    assert answers(runs[runs["method"] != "AdamW"])[-1] == "not run"


def test_claims_follow_the_table() -> None:
    runs = many()
    rival = runs[runs["method"] == "Prodigy"].index
    assert answers(runs.drop(rival))[:4] == ["within noise", "holds", "holds", "holds"]
    assert answers(runs)[3] == "within noise"  # Prodigy is always near, as the default is
    worse = runs.assign(ratio=runs["ratio"] + 1.0 * (runs["method"] == "default"))
    assert answers(worse)[:4] == ["fails", "holds", "fails", "fails"]
    assert answers(runs.assign(nan=runs["nan"] | (runs["method"] == "default")))[1] == "fails"


def test_a_start_that_changes_nothing_is_no_run_of_its_own() -> None:
    table = claims.estimates_of(start_tables.ratios(frame()))
    assert table.count("trainings with a ratio of at most 1.5") == (2, 2)  # four trainings, two of them different
    assert table.at("AdamW", claims.SHARE).values == (0.5, 0.5)


def test_the_figure_has_a_panel_a_problem_and_a_curve_a_method() -> None:
    fig = start_tables.draw(start_tables.ratios(frame()), small.TITLES)
    (ax,) = fig.axes
    assert [line.get_label() for line in ax.get_lines()][:3] == ["Default", "HD", "AdamW"]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    import matplotlib.pyplot as plt

    plt.close(fig)
