"""What is read off MetaOptimize's runs, on made-up runs whose answers are known; and the recorded runs."""

from __future__ import annotations

import math
import types

import numpy as np
import pandas as pd
import pytest

from gradtune.optim.settings import DEFAULT
from gradtune_book.notebooks.stats import plus_minus
from gradtune_book.papers.metaoptimize import cifar, continual, framework, language, overhead, sensitivity, tables
from gradtune_book.papers.metaoptimize.others import OF_PACKAGES
from gradtune_book.papers.metaoptimize.tables import BEST
from gradtune_book.papers.metaoptimize.training import BLOCKS, COSINE, FIXED, SCALAR
from gradtune_book.records import store


def test_the_best_fixed_step_size_is_by_the_mean_and_never_one_with_a_nan() -> None:
    fixed = pd.DataFrame({"lr": [0.1, 0.1, 0.01, 0.01, 1.0, 1.0], "loss": [0.2, 0.6, 0.3, 0.3, 0.1, math.nan]})
    assert tables.best_of(fixed, "loss", True) == 0.01
    assert tables.best_of(fixed, "loss", False) == 0.1


def test_rows_of_a_study_with_pairs() -> None:
    rows = [
        (SCALAR, "Lion", "Lion", 1e-5, 3.0),
        (BLOCKS, "Lion", "Lion", 1e-5, 2.5),
        (FIXED, "Lion", "none", 1e-3, 2.0),
        (FIXED, "Lion", "none", 1e-2, 4.0),
        (COSINE, "AdamW", "none", 1e-2, 1.0),
        ("DoG", "AdamW", "none", 1e-2, 5.0),
    ]
    frame = pd.DataFrame(rows, columns=["method", "base", "meta", "lr", "loss"])
    named = tables.named(frame, "loss", True).set_index("row")["loss"]
    assert named[f"{SCALAR} (Lion, Lion)"] == 3.0 and named[f"{BLOCKS} (Lion, Lion)"] == 2.5
    assert named[f"{BEST} Lion"] == 2.0 and named["Lion, fixed 0.01"] == 4.0
    assert named[f"best {COSINE}"] == 1.0 and named["DoG"] == 5.0 and len(named) == len(rows) + 2
    assert tables.named(frame, "loss", False).set_index("row")["loss"][f"{BEST} Lion"] == 4.0


def test_rows_in_the_order_of_their_means() -> None:
    frame = pd.DataFrame({"row": ["a", "b", "a", "b"], "loss": [1.0, 2.0, 5.0, 2.5]})
    assert tables.by_mean(frame, "row", "loss")["row"].tolist() == ["b", "b", "a", "a"]


def test_movements_of_step_sizes() -> None:
    """Ten tasks: within each the step size rises by a tenth after its start, and over them it falls by a half each."""
    n = continual.READINGS
    path = np.array([0.5**task * np.array([1.0, *[1.1] * (n - 1)]) for task in range(10)])
    run: dict[str, object] = {"row": continual.BLOCKS}
    for block, values in ((0, path), (1, 1 / path)):
        for piece in range(5):
            run[f"lr_{block}_{piece}"] = values[2 * piece : 2 * piece + 2].ravel().tolist()
    found = tables.movements(pd.DataFrame([run])).iloc[0]
    assert found["rise_0"] == pytest.approx(math.log(1.1)) and found["rise_1"] == pytest.approx(-math.log(1.1))
    assert found["slope_0"] == pytest.approx(8 * math.log(0.5)) and found["slope_1"] == pytest.approx(
        -8 * math.log(0.5)
    )


def test_passes_are_told_apart_by_setting_and_start() -> None:
    def one(method: str, meta_step: float, lr: float, value: float) -> dict[str, object]:
        return {"method": method, "meta_step": meta_step, "lr": lr, "cumulative": value, "seed": 0}

    frame = pd.DataFrame(
        [
            one(continual.SCALAR, 1e-3, 1e-4, 0.1),
            one(continual.SCALAR, 5e-3, 1e-4, 0.2),
            one(continual.SCALAR, 1e-3, 1e-3, 0.3),
            one(continual.FIXED, 1e-3, 1e-3, 0.4),
            one(continual.FIXED, 1e-3, 1e-2, 0.5),
        ]
    )
    for scaled, start, value in ((False, 1e-4, 0.1), (True, 1e-4, 0.2), (False, 1e-3, 0.3)):
        rows = tables.passes(frame, scaled, start).set_index("row")["cumulative"]
        assert rows[continual.SCALAR] == value and rows[BEST] == 0.5 and rows["AdamW, 0.001"] == 0.4


def test_serving_is_the_loss_over_the_best_fixed_one_at_each_number_of_steps() -> None:
    shared = {"gamma": 1.0, "form": "ours", "steps": 300, "seed": 0}
    frame = pd.DataFrame(
        [
            {"method": "MetaOptimize", "lr": 1e-4, "meta_step": 1e-3, "val_100": 2.0, "val_300": 1.5} | shared,
            {"method": "AdamW", "lr": 1e-2, "meta_step": 0.0, "val_100": 1.0, "val_300": 1.0} | shared,
            {"method": "AdamW", "lr": 1e-3, "meta_step": 0.0, "val_100": 1.6, "val_300": 0.5} | shared,
        ]
    )
    found = tables.serving(frame)
    assert found.loc[("0.0001", "0.001")].tolist() == [2.0, 3.0]


def test_the_rule_is_read_off_the_nearest_recorded_meta_step() -> None:
    def one(method: str, eta: float, late: float, lr: float = 1e-4) -> dict[str, object]:
        return {"method": method, "meta_step": eta, "lr": lr, "val_100": 2 * late, "val_300": late} | shared

    shared = {"gamma": 1.0, "form": "ours", "steps": 300, "seed": 0}
    frame = pd.DataFrame(
        [one("MetaOptimize", eta, late) for eta, late in ((1e-3, 5.0), (0.02, 2.0), (0.06, 3.0), (0.09, 4.0))]
        + [one("AdamW", 0.0, 1.0, 1e-2)]
    )
    found = tables.ruled(frame)
    assert found.loc[("0.0001", "300 steps")].tolist() == [20 / 300, 3.0, 2.0, 5.0, 2.0]
    assert found.loc[("0.0001", "100 steps")].tolist() == [0.1, 4.0, 2.0, 5.0, 2.0]
    assert tables.ruled(frame.head(0)).empty


def test_the_two_forms_are_compared_run_by_run() -> None:
    rows = [
        {"form": form, "lr": 1e-4, "seed": s, "gamma": 1.0, "meta_step": DEFAULT, "val_10": value}
        for form, values in (("ours", (1.0, 3.0)), ("package", (1.5, 3.5)))
        for s, value in enumerate(values)
    ]
    found = tables.forms(pd.DataFrame(rows), 10).loc["from 0.0001"]
    assert found["ours"] == plus_minus(2.0, 1.0, 4) and found["package − ours"] == plus_minus(0.5, 0.0, 4)


def test_costs_are_read_off_one_kind_of_comparison() -> None:
    shared = {"net": "words", "seed": 0, "time AdamW, fused": 0.0}
    rows = [
        shared | {"method": overhead.METHOD, "time MetaOptimize, scalar": 1.0},
        shared | {"method": overhead.OTHERS, "time MetaOptimize, scalar": 2.0, "time DoG": 9.0},
    ]
    frame = pd.DataFrame(rows)
    assert list(tables.costs(frame, "time").columns) == ["net", "seed", "AdamW, fused", "MetaOptimize, scalar"]
    assert tables.costs(frame.head(1), "time", overhead.OTHERS).empty
    assert tables.costs(frame, "time", overhead.OTHERS)[["MetaOptimize, scalar", "DoG"]].to_numpy().tolist() == [[2, 9]]


def test_the_published_table() -> None:
    table = tables.published_overhead()
    assert table.loc["MetaOptimize (AdamW, Lion)", ["ImageNet, time", "TinyStories, time"]].tolist() == [44, 13]
    assert len(table) == 6


@pytest.mark.parametrize("data", ["mnist", "fashion"])
def test_the_rule_for_the_meta_step_serves_on_the_records(data: str) -> None:
    """On both sets, from all starts: near the best fixed step size from 300 steps on, and never far from the best."""
    found = tables.ruled(tables.of_set(store.load(sensitivity.STUDY, "laptop"), data))
    assert len(found) == 12
    longer = found[found.index.get_level_values("training") != "100 steps"]
    assert (longer["by the rule"] < 1.35).all()
    assert (found["by the rule"] < 1.35 * found["best"]).all()
    low = longer[longer.index.get_level_values("start") == "1e-06"]
    assert (low["with 0.001"] > 2).all()


@pytest.mark.parametrize("study", [framework, continual, language, overhead, sensitivity, cifar])
def test_laptop_scale_is_recorded_in_full_from_clean_checkouts(study: types.ModuleType) -> None:
    frame = store.load(study.STUDY, "laptop")
    assert len(frame) == len(study.STUDY.runs("laptop"))
    assert not frame["dirty"].any()


def test_the_packages_of_others_are_recorded() -> None:
    words, costs = (store.load(study.STUDY, "laptop") for study in (language, overhead))
    assert words["method"].value_counts()[list(OF_PACKAGES)].tolist() == [3] * 6
    beside = tables.costs(costs, "time", overhead.OTHERS)
    assert len(beside) == 15 and beside[list(OF_PACKAGES)].notna().all(axis=None)
