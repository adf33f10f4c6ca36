"""The studies on the OnePass paper's experiments at tiny sizes: which runs there are, what they record, how they go on
after an interruption, and the restarted and image trainings."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Run
from gradtune_book import config, papers
from gradtune_book.data import manifest
from gradtune_book.notebooks.stats import PLUS_MINUS
from gradtune_book.papers.onepass import (
    image_horizon,
    image_training,
    uci_choices,
    uci_horizon,
    uci_onepass,
    uci_sensitivity,
    uci_tables,
)
from gradtune_book.papers.onepass.uci_training import SETTINGS, declared, draw, regression, train
from gradtune_book.papers.restarts import restarted
from gradtune_book.records import jsonl, recorder, store, verification
from gradtune_book.records.store import Result
from gradtune_book.records.study import batches
from gradtune_book.tasks import fashion

CPU = torch.device("cpu")
TINY = uci_onepass.Sizes(("diabetes",), 3, 20, 2, 3)


# --- uci_onepass ------------------------------------------------------------------------------------------------------


def test_paper_scale_holds_what_it_promises_in_the_promised_order() -> None:
    every = uci_onepass.STUDY.runs("paper")
    plain = Counter((c.dataset, c.method) for c in every if c.dtype == "float32")
    assert all(plain[name, m] == 200 for name in ("energy", "kin8nm", "power") for m in uci_onepass.ONE_PASS)
    assert all(plain[name, m] == 200 for name in uci_onepass.OTHER_SETS for m in uci_onepass.ONE_PASS)
    assert [plain[name, "Bayes"] for name in ("energy", "kin8nm", "power")] == [32] * 3
    assert len({config.key("uci_onepass", c) for c in every}) == len(every)
    assert list(dict.fromkeys(c.dataset for c in every))[:3] == ["energy", "kin8nm", "power"]
    assert {c.dtype for c in every if c.form == "module"} == {"float64"}
    chunks = batches(uci_onepass.STUDY, every)
    assert max(map(len, chunks)) == 20
    assert {len(b) for b in chunks if b[0].method == "Bayes" and b[0].dataset == "power"} == {8}


@pytest.fixture(scope="module")
def tiny() -> pd.DataFrame:
    return papers.run_now(uci_onepass.STUDY, uci_onepass.configs(TINY))


def test_every_method_starts_a_seed_from_the_same_values(tiny: pd.DataFrame) -> None:
    one_pass = tiny[~tiny["method"].isin(["Bayes", "Random-3-batched"])]
    assert len(one_pass) == 8 * 3
    for name in ("log10_lr", "log10_decay", "momentum_start"):
        assert (one_pass.groupby("seed")[name].nunique() == 1).all() and one_pass[name].nunique() == 3
    assert (one_pass["test_curve"].str[0].groupby(one_pass["seed"]).nunique() == 1).all()
    assert one_pass["test_mse"].nunique() > len(one_pass) - 4  # a tiny learning rate leaves float32 little to tell


def test_three_batched_keeps_the_lowest_validation_loss(tiny: pd.DataFrame) -> None:
    kept = tiny[tiny["method"] == "Random-3-batched"].set_index("seed")
    c = uci_onepass.Config("Random", 0, "diabetes", 20, trials=3)
    for seed in range(3):
        thirds = train(c, [10_000 + 3 * seed + j for j in range(3)], CPU, 10)
        best = int(thirds.val.argmin())
        assert kept.loc[seed, "val_mse"] == pytest.approx(thirds.val[best], rel=1e-5)
        assert kept.loc[seed, "test_mse"] == pytest.approx(thirds.test[best, -1], rel=1e-5)
        assert kept.loc[seed, "log10_lr"] == pytest.approx(float(thirds.start.lr[best].log10()))


def test_best_and_incumbents_are_minima_over_the_readings(tiny: pd.DataFrame) -> None:
    for _, run in tiny[tiny["method"] != "Bayes"].iterrows():
        curve, incumbent = np.array(run["test_curve"]), np.array(run["incumbent_curve"])
        assert np.allclose(incumbent, np.minimum.accumulate(curve))  # all three readings are points of the curve here
        assert run["best_mse"] == pytest.approx(curve.min(), rel=1e-3)
        assert run["best_step"] == 10 * int(curve.argmin())
    search = tiny[tiny["method"] == "Bayes"].iloc[0]
    best = int(np.argmin(search["trial_val"]))
    assert search["test_mse"] == pytest.approx(search["trial_test"][best], rel=1e-3)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(uci_onepass.SIZES, "smoke", TINY)
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path))
    return tmp_path


def test_an_interrupted_recording_goes_on_to_the_same_numbers(small: Path) -> None:
    """Ctrl-C in the middle of the fourth batch, then the same command again; every record is short and verifies."""
    calls = 0

    def stopped(batch: Sequence[Any], device: torch.device) -> list[Result]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return uci_onepass.run(batch, device)

    study = uci_onepass.STUDY
    first = recorder.record(dataclasses.replace(study, run=stopped), "smoke")
    assert first.interrupted and (first.recorded, first.total) == (9, 9 * 3 + 2)
    second = recorder.record(study, "smoke")
    assert (second.recorded, second.left) == (20, 0)
    frame, again = store.load(study, "smoke"), papers.run_now(study, uci_onepass.configs(TINY))
    assert (frame["test_mse"] == again["test_mse"]).all() and (frame["cpu_s"] > 0).all()
    lines = [line for file in store.all_files() for line in jsonl.read(file)]
    assert max(len(json.dumps(line)) for line in lines) < 2300
    assert max(len(v) for line in lines for v in line["series"].values()) <= store.POINTS
    assert all(each.same for each in verification.verify(study, "smoke", count=2))


def test_cost_follows_rows_steps_and_trainings() -> None:
    c = uci_onepass.Config("Random", 0, "energy")
    cost = uci_onepass.STUDY.cost
    assert cost(dataclasses.replace(c, dataset="kin8nm")) > 3 * cost(c)
    assert cost(dataclasses.replace(c, trials=30)) == pytest.approx(30 * cost(c))


# --- uci_sensitivity --------------------------------------------------------------------------------------------------


def test_the_grid_is_whole_and_exact_differentiation_stops_at_the_last_update() -> None:
    sizes = uci_sensitivity.SIZES["paper"]
    every = uci_sensitivity.configs(sizes)
    cells = Counter(
        (c.method, c.every, c.look_back) for c in every if c.steps == 400 * c.every and c.train_share == 0.8
    )
    assert all(cells["WD+LR+M", t, i] == 100 for t in sizes.intervals for i in sizes.look_backs)
    assert {(t, i) for m, t, i in cells if m == "Diff-through-Opt"} == {
        (t, i) for t in sizes.intervals for i in sizes.look_backs if i <= t
    }
    shares = Counter((c.method, c.train_share) for c in every if c.train_share != 0.8)
    assert len(shares) == 6 and set(shares.values()) == {200}
    assert len({config.key("uci_sensitivity", c) for c in every}) == len(every)


def test_hypergradients_agree_where_the_series_is_exact() -> None:
    """One term is the derivative through the last step; more terms are not; exact ones do not go back before the
    start."""
    c = uci_sensitivity.Config("Hypergradients", 0, "diabetes", 2, every=2, dtype="float64", look_backs=(1, 2, 5))
    (run,) = uci_sensitivity.run([c], CPU)
    for name in ("lr", "weight_decay", "momentum"):
        approximate, exact = (np.array(run.series[f"{kind}_{name}"]) for kind in ("approximate", "exact"))
        assert approximate[0] == pytest.approx(exact[0], rel=1e-9)
        assert abs(approximate[1] / exact[1] - 1) > 1e-6
        assert exact[1] == exact[2]
        assert run.metrics[f"error_{name}"] == pytest.approx(abs(approximate[2] - exact[2]) / abs(exact[2]), rel=1e-6)


# --- uci_choices ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chosen() -> pd.DataFrame:
    sizes = uci_choices.Sizes("diabetes", 2, 2, 2, 80)
    return papers.run_now(uci_choices.STUDY, uci_choices.configs(sizes))


def test_each_choice_changes_what_it_says_and_keeps_the_rest(chosen: pd.DataFrame) -> None:
    """The usual one repeats the run of the big study; a change shows in the losses, not in the initial values."""
    assert set(chosen["choice"]) == set(uci_choices.CHOICES)
    plain = chosen[chosen["choice"] == uci_choices.USUAL].set_index(["method", "seed"])
    assert len(plain) == 4
    for method, seed in plain.index:
        same = uci_onepass.run([uci_onepass.Config(method, seed, "diabetes", 80)], CPU)[0].metrics
        assert plain.loc[(method, seed), "test_mse"] == pytest.approx(same["test_mse"], rel=1e-5)
    for (method, choice), part in chosen.groupby(["method", "choice"]):
        pair, usual = part.set_index("seed"), plain.loc[method]
        assert (pair["log10_lr"] == usual["log10_lr"]).all()
        if choice not in (uci_choices.USUAL, "no limits on the learning rate"):  # no rate meets a limit so soon
            # of a run that starts at a tiny learning rate, 80 steps can give the same loss in single precision
            assert (pair["test_mse"] != usual["test_mse"]).any(), choice


def test_choices_hold_the_trainers_settings() -> None:
    c = uci_choices.Config("WD+LR+M", 0, "diabetes", 20)
    free = dataclasses.replace(c, choice="no limits on the learning rate").setting()
    assert free.bounds == (0, float("inf")) and c.setting().bounds == (1e-10, 1)
    more = dataclasses.replace(c, choice="one more term").setting().make(5, 10)
    assert (more.estimator.look_back, c.setting().make(5, 10).estimator.look_back) == (6, 5)  # type: ignore[union-attr]
    task = regression(c, CPU, merged=False)
    w1, b1, _, b2 = task.layout.split(uci_choices.glorot(task, [0, 1])).values()
    assert float(w1.abs().max()) <= (6 / (10 + 50)) ** 0.5 < 1.1 * float(w1.abs().max())
    assert not b1.any() and not b2.any() and not torch.equal(w1[0], w1[1])
    with pytest.raises(GradtuneError, match="did you mean 'one more term'"):
        dataclasses.replace(c, choice="one more turn").setting()
    train_only = dataclasses.replace(c, choice="scaled by the training rows").table(CPU)
    assert train_only.x_train.mean(0).abs().max() < 1e-6 < c.table(CPU).x_train.mean(0).abs().max()
    raw, scaled = dataclasses.replace(c, choice=uci_choices.TARGET).table(CPU), c.table(CPU)
    assert raw.y_std == 1 and torch.equal(raw.x_train, scaled.x_train)
    assert float(raw.y_test.std() / scaled.y_test.std()) == pytest.approx(scaled.y_std, rel=1e-4)
    chained = dataclasses.replace(c, method="Baydin", choice=uci_choices.CHAIN).setting()
    made, usual = chained.make(5, 10), methods.baydin()
    assert made.estimator == dataclasses.replace(usual.estimator, chain=True)  # type: ignore[type-var]
    assert (made.outer, made.outer_loss, chained.merged) == (usual.outer, usual.outer_loss, True)


def test_splits_are_compared_at_the_same_seeds(chosen: pd.DataFrame) -> None:
    assert sorted(uci_choices.few(chosen)["split"]) == [0, 0, 1, 1]
    table = uci_choices.splits(chosen)
    one = chosen[(chosen["choice"] == uci_choices.SPLIT) & (chosen["split"] == 1)]
    assert table.loc[1, "test_mse"] == one["test_mse"].median()
    assert table.loc[1, "log10_decay_end"] == one["log10_decay_end"].median() != one["log10_decay"].median()
    assert uci_choices.split_spread(chosen).startswith("2 splits, 2 runs each")
    assert uci_choices.splits(chosen.iloc[:0]).empty


def test_the_splits_of_other_sets_are_run_alone_and_stand_beside_the_papers_mean() -> None:
    sizes = uci_choices.Sizes("energy", 1, 2, 2, 80, ("power",))
    other = [c for c in uci_choices.configs(sizes) if c.dataset == "power"]
    assert [(c.choice, c.split, c.seed) for c in other] == [
        *((uci_choices.USUAL, 0, k) for k in (0, 1)),
        *((uci_choices.SPLIT, 1, k) for k in (0, 1)),
    ]
    rows = [(uci_choices.USUAL, 0, 18.0), (uci_choices.USUAL, 0, 20.0), (uci_choices.SPLIT, 1, 16.0)]
    frame = pd.DataFrame(rows, columns=["choice", "split", "test_mse"])
    frame = frame.assign(dataset="power", seed=[0, 1, 0], method=uci_choices.METHOD)
    row = uci_choices.split_table(frame, uci_tables.published("onepass_table1.csv")).loc["UCI Power"]
    assert (row["this book's"], row["lowest"], row["splits"], row["splits below the paper's"]) == (18.0, 16.0, 2, 1)
    assert row["the paper's"] == 17.19


def test_effects_are_paired() -> None:
    rows = [("as in this book", s, x) for s, x in enumerate((1.0, 2.0, 4.0))]
    rows += [("one more term", s, x) for s, x in enumerate((1.1, 2.4, np.nan))]
    frame = pd.DataFrame(rows, columns=["choice", "seed", "test_mse"]).assign(method=uci_choices.METHOD)
    other = frame[frame["choice"] == uci_choices.USUAL].assign(method=uci_choices.BAYDIN, test_mse=100.0)
    table = uci_choices.effects(pd.concat([frame, other])).loc[uci_choices.METHOD]
    assert table.loc["one more term", "NaN"] == 1 and table.loc["one more term", "better in, %"] == "0"
    assert table.loc["one more term", "change, %"].startswith(f"+15.0{PLUS_MINUS}")
    assert table.loc["as in this book", "change, %"] == ""


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_restarts_keep_the_outer_state_and_nothing_else() -> None:
    """Three trainings by hand: same weights at every start, Adam going on."""
    c = uci_horizon.Config(uci_horizon.LONG, 0, "diabetes", 30, dtype="float64", every=30, look_back=30, trainings=3)
    task, start = regression(c, CPU, merged=False), draw([0, 1])
    w = task.init([0, 1])
    hypers = Hypers(declared(SETTINGS["WD+LR+M"], start, w), task.layout.sizes)
    loop = Loop(task, sgd(), hypers, methods.diff_through_opt(30, 30))
    seen: list[Run] = []
    restarted(loop, w, *hypers.init(w), 30, 3, seen.append)
    run = loop.start(w)
    for k in range(3):
        assert torch.equal(seen[k].raw, run.raw)
        run = loop.advance(run, 30)
        assert torch.equal(seen[k].state.w, run.state.w)
        fresh = loop.start(w)
        run = fresh._replace(raw=run.raw, outer=run.outer)
    assert run.outer.updates == 3
    results = uci_horizon.run([c, dataclasses.replace(c, seed=1)], CPU)
    test = [task.test_mse(each.state.w) for each in seen]
    assert results[1].series["test_curve"] == pytest.approx([float(x[1]) for x in test], rel=1e-3)
    assert results[0].metrics["test_mse"] == pytest.approx(float(test[-1][0]), rel=1e-9)


def test_horizon_studies_have_their_papers_sizes() -> None:
    cells = Counter((c.dataset, c.method, c.steps, c.trainings) for c in uci_horizon.STUDY.runs("paper"))
    assert cells["kin8nm", "Long-Diff-through-Opt", 200, 30] == 60
    assert cells["energy", "Long-Diff-through-Opt", 4000, 30] == 36
    sizes = dataclasses.replace(image_horizon.SIZES["paper"], dataset="digits")
    images = Counter((c.method, c.steps, c.every, c.trainings) for c in image_horizon.configs(sizes))
    assert images["Long-Diff-through-Opt", 1000, 1000, 50] == 60
    assert images["Medium-Diff-through-Opt", 10_000, 200, 1] == 100


# --- images -----------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the IDX format."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny set in Fashion-MNIST's layout, one file of it compressed."""
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
    monkeypatch.setitem(fashion._VALIDATION, "fashion", 4)
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    random, digests = np.random.RandomState(0), {}
    for part, rows in (("train", 12), ("t10k", 5)):
        pixels, labels = (random.randint(0, 256, (rows, 28, 28)), random.randint(0, 10, rows))
        files = {f"{part}-images-idx3-ubyte": idx(pixels.astype(np.uint8))}
        files[f"{part}-labels-idx1-ubyte"] = idx(labels.astype(np.uint8))
        for name, content in files.items():
            packed = name.endswith("images-idx3-ubyte")
            (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
            digests[f"FashionMNIST/raw/{name}"] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(manifest, "plain", lambda: digests)
    return folder


def test_images_are_read_as_torchvision_lays_them_out(pictures: Path) -> None:
    from torchvision.datasets import FashionMNIST

    images = fashion.load("auto", torch.float64)
    assert images.name == "fashion" and len(images.sha256) == 64
    assert [len(x) for x in (images.x_train, images.x_val, images.x_test)] == [8, 4, 5]
    whole = torch.cat([images.x_train, images.x_val])
    assert abs(float(whole.mean())) < 1e-6 and float(whole.std(correction=0)) == pytest.approx(1, abs=1e-6)
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (pictures / name).write_bytes(gzip.decompress((pictures / f"{name}.gz").read_bytes()))
    theirs = FashionMNIST(str(pictures.parents[1]), train=False)
    assert torch.equal(theirs.targets, images.y_test)
    pixels, ours = theirs.data.double().flatten(1), images.x_test.flatten(1)
    assert torch.allclose((pixels - pixels.mean()) / pixels.std(), (ours - ours.mean()) / ours.std())


def test_absent_and_damaged_images_are_named(pictures: Path) -> None:
    with pytest.raises(GradtuneError, match=r"MNIST is not in .*gradtune data fetch mnist"):
        fashion.resolve("mnist")
    with pytest.raises(GradtuneError, match="did you mean 'fashion'"):
        fashion.resolve("fashon")
    file = pictures / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(GradtuneError, match=r"t10k-labels-idx1-ubyte is altered"):
        fashion.load("fashion")
    file.unlink()
    with pytest.raises(GradtuneError, match=r"t10k-labels-idx1-ubyte is missing"):
        fashion.load("fashion")
    (pictures / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(GradtuneError, match=r"train-images-idx3-ubyte\.gz is truncated or no gzip file"):
        fashion.load("fashion")


def test_batches_visit_every_image_once_an_epoch_and_come_again() -> None:
    images = fashion.load("digits")
    task = fashion.problem(images, 5, batch=50)
    batches = len(images.x_train) // 50
    numbered = dataclasses.replace(images, x_train=torch.arange(len(images.y_train))[:, None].float())
    rows = fashion.problem(numbered, 5, batch=50).train
    seen = torch.cat([rows.at(t)[0][:, 0] for t in range(batches)])
    assert len(seen.unique()) == 50 * batches
    assert torch.equal(task.train.at(2)[0], fashion.problem(images, 5, batch=50).train.at(2)[0])
    assert not torch.equal(rows.at(2)[0], rows.at(2 + batches)[0])
    first, again = (task.val.at(t)[0] for t in (0, len(images.y_val) // 50))
    assert torch.equal(first, images.x_val[:50].flatten(1)) and torch.equal(first, again)
    w = task.init([3])
    ce, error = task.evaluate(w, "test")
    assert 1.5 < float(ce) < 4 and 0.5 < float(error) <= 1


def test_outlying_losses_count_as_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    c = image_horizon.Config("Random", 0, "digits", 20)
    plain: dict[str, Any] = image_horizon.run([c], CPU)[0].metrics
    monkeypatch.setattr(image_training, "OUTLYING", 0.1)
    cut: dict[str, Any] = image_horizon.run([c], CPU)[0].metrics
    assert plain["diverged"] == 0 and plain["best_ce"] <= plain["test_ce"]
    assert cut["diverged"] == 1 and np.isnan(cut["test_ce"]) and np.isnan(cut["test_error"])
