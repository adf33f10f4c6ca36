"""The ten methods on images: the same draws and trainings as elsewhere, searches, turns, batch norm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import killed
from gradtune.errors import GradtuneError
from gradtune_book import papers
from gradtune_book.papers.onepass import image_horizon, image_onepass, image_tables
from gradtune_book.papers.onepass.image_onepass import BAYES, ONE_PASS, STUDY, THREE, TIMES, Config
from gradtune_book.papers.onepass.image_training import problem

CPU = torch.device("cpu")
TINY = Config("Random", 0, "digits", 40)


def _metrics(c: Config) -> dict[str, Any]:
    return dict(image_onepass.run([c], CPU)[0].metrics)


@pytest.mark.parametrize("method", image_horizon.SHORT)
def test_a_training_is_that_of_the_study_of_horizons(method: str) -> None:
    ours = image_onepass.run([replace(TINY, method=method, seed=s) for s in (3, 4)], CPU)
    theirs = image_horizon.run([image_horizon.Config(method, s, "digits", 40) for s in (3, 4)], CPU)
    for a, b in zip(ours, theirs, strict=True):
        assert a.metrics == b.metrics and a.series == b.series


def test_every_method_of_the_paper_trains_with_and_without_batch_norm() -> None:
    sizes = replace(image_onepass.SIZES["smoke"], runs=2, steps=40, trials=2, timed_steps=10)
    frame = papers.run_now(STUDY, image_onepass.configs(sizes))
    assert set(frame["method"]) == {*ONE_PASS, BAYES, TIMES}
    trained = frame[frame["method"] != TIMES]
    assert np.isfinite(trained["test_ce"]).all() and trained["test_error"].between(0, 1).all()
    both = trained[trained["method"] != BAYES].groupby(["method", "seed"])
    assert (both["batch_norm"].nunique() == 2).all() and (both["test_ce"].nunique() == 2).all()
    table = image_tables.times(frame)
    assert (table[image_tables.MS] > 0).all()
    assert (table.loc[table["method"] == "Random", image_tables.RATIO] == 1).all()
    norms = image_tables.normalised(trained[trained["method"] != BAYES])
    assert {"Random", "Random, batch norm"} <= set(norms.index) and (norms["runs"] == 2).all()
    assert len(image_tables.gap_table(trained)) == len(ONE_PASS)
    without = trained[~trained["batch_norm"].astype(bool)]
    assert not any("batch norm" in method for method in image_tables.normalised(without).index)
    assert image_tables.normalised(without.iloc[:0]).empty and image_tables.gap_table(without).empty


def test_three_batched_keeps_the_training_of_lowest_validation_loss() -> None:
    kept = _metrics(replace(TINY, method=THREE, trials=3, seed=2))
    thirds = [_metrics(replace(TINY, seed=10_000 + 6 + j)) for j in range(3)]
    best = min(thirds, key=lambda m: float(m["val_ce"]))
    assert kept == best and len({m["val_ce"] for m in thirds}) == 3


def test_a_search_keeps_the_training_of_lowest_loss_on_all_validation_images() -> None:
    (found,) = image_onepass.run([replace(TINY, method=BAYES, trials=6)], CPU)
    val, test = (np.array(found.series[n], dtype=float) for n in ("trial_val", "trial_test"))
    assert len(val) == 6 and found.metrics["val_ce"] == pytest.approx(val.min(), rel=1e-3)
    assert found.metrics["test_ce"] == pytest.approx(test[val.argmin()], rel=1e-3)


def test_searches_side_by_side_are_those_alone() -> None:
    both = image_onepass.run([replace(TINY, method=BAYES, trials=3, seed=s) for s in (0, 1)], CPU)
    alone = image_onepass.run([replace(TINY, method=BAYES, trials=3, seed=1)], CPU)[0]
    assert both[1].series["trial_val"] == pytest.approx(alone.series["trial_val"], rel=1e-4)


def test_batch_norm_takes_the_statistics_of_the_images_at_hand() -> None:
    task = problem(TINY, CPU, merged=False, batch_norm=True)
    w = task.init([0])
    net = task.nets.fresh().double()
    assert isinstance(net, nn.Sequential)
    torch.nn.utils.vector_to_parameters(w[0].double(), net.parameters())
    x, y = task.images.test
    first, norm, _, last = net
    hidden = first(x.double())
    normal = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    logits = last(torch.relu(normal * norm.weight + norm.bias))
    expected = torch.nn.functional.cross_entropy(logits, y)
    assert task.evaluate(w, "test")[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(GradtuneError, match="Randon"):
        image_onepass.run([replace(TINY, method="Randon")], CPU)


def test_at_the_papers_size_no_training_is_computed_twice() -> None:
    chosen = image_onepass.configs(replace(image_onepass.SIZES["paper"], dataset="digits"))
    plain = {c.method for c in chosen if not c.batch_norm}
    assert plain == {*ONE_PASS, BAYES, TIMES} - {*image_horizon.SHORT}
    assert {c.method for c in chosen if c.batch_norm} == {*ONE_PASS}
    assert len(set(chosen)) == len(chosen)


def test_runs_are_joined_with_those_of_the_same_length() -> None:
    horizon = pd.DataFrame(
        [
            {"method": m, "steps": n, "dataset": "fashion"}
            for m in ("Random", image_horizon.MEDIUM)
            for n in (1000, 10_000)
        ]
    )
    own = pd.DataFrame(
        [
            {"method": m, "steps": 10_000, "dataset": "fashion", "batch_norm": b}
            for m, b in (("Baydin", False), ("Random", True), (TIMES, False))
        ]
    )
    both = image_tables.joined(own, horizon)
    assert both[["method", "batch_norm"]].to_numpy().tolist() == [
        ["Random", False],
        ["Baydin", False],
        ["Random", True],
    ]


@pytest.mark.parametrize("method", ["Random-xLR", "WD+LR+M", THREE])
def test_a_killed_run_goes_on_to_the_same_record(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [replace(TINY, method=method, steps=60, seed=s, trials=3 if method == THREE else 1) for s in (0, 1)]
    monkeypatch.setenv("GRADTUNE_CHECKPOINT_SECONDS", "0")
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / "whole"))
    whole = killed.plain(killed.once(STUDY, batch))
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / "broken"))
    for ticks in (2, 3):
        with pytest.raises(killed.Killed), killed.after(ticks):
            killed.once(STUDY, batch)
    assert killed.plain(killed.once(STUDY, batch)) == whole
