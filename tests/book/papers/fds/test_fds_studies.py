"""The studies of the FDS paper: their numbers against an independent computation, their records, their tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, SignHalving
from gradtune.recursion.rules import sgd
from gradtune.recursion.wrapped import Kept
from gradtune.training.loop import Loop
from gradtune_book import config, papers
from gradtune_book.config import check
from gradtune_book.notebooks.stats import PLUS_MINUS
from gradtune_book.papers import series
from gradtune_book.papers.fds import (
    cifar_regret,
    cifar_searches,
    cifar_tables,
    cifar_training,
    common,
    schedules_tables,
    sharing_mse,
    sharing_tables,
)
from gradtune_book.papers.fds import schedules as fds_schedules
from gradtune_book.records import environment, store
from gradtune_book.records.store import POINTS, Result

CPU = torch.device("cpu")
NAMES = ("fds_schedules", "fds_cifar_regret", "fds_sharing_mse")


# -- fds_sharing_mse ---------------------------------------------------------------------------------------------------

TINY = sharing_mse.Config("non-greedy", 3, "svhn_like", 60, steps=4, batch=10, validation=20, dtype="float64")


def test_the_hypergradients_of_figure_2_are_exact() -> None:
    """Both methods against autograd through the whole training (float64)."""
    task = sharing_mse.trainings(TINY, [TINY.seed], CPU)
    rates = common.schedule("cosine", TINY.lr, TINY.steps)
    declared = [Hyper("lr", rates, windows=4), Hyper("momentum", 0.9, tuned=False)]
    rule, hypers, w = sgd(weight_decay=False), Hypers(declared, task.layout.sizes, TINY.steps), task.init()
    exact, _ = sharing_mse.hypergradients(task, TINY)
    torch.testing.assert_close(exact, oracle.unrolled(task, rule, hypers, w, TINY.steps), rtol=1e-8, atol=1e-12)

    greedy, _ = sharing_mse.hypergradients(task, replace(TINY, method="greedy"))
    for t in range(TINY.steps):
        through = oracle.unrolled(task, rule, hypers, w, t + 1)
        torch.testing.assert_close(greedy[:, t], through[:, t], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(greedy[:, -1], exact[:, -1])  # the last step has nothing behind it
    assert not torch.allclose(greedy[:, 0], exact[:, 0], rtol=0.05)


def test_the_schedule_is_a_cosine_over_all_steps() -> None:
    rates = common.schedule("cosine", 0.01, 250)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=250)
    for rate in rates[:100]:
        assert theirs.get_last_lr()[0] == pytest.approx(float(rate), rel=1e-12)
        optimiser.step()
        theirs.step()
    with pytest.raises(GradtuneError, match="unknown schedule 'cosinus'; did you mean 'cosine'"):
        common.schedule("cosinus", 0.01, 3)


def test_pieces_survive_a_record() -> None:
    values = np.linspace(-1, 1, 123)
    parts = series.pieces("g", list(values), digits=7)
    assert list(parts) == ["g_0", "g_1", "g_2"] and max(map(len, parts.values())) <= POINTS
    frame = pd.DataFrame([parts, parts])
    assert series.whole(frame, "g") == pytest.approx(np.stack([values, values]), abs=1e-6)


@pytest.fixture(scope="module")
def shared() -> pd.DataFrame:
    sizes = sharing_mse.Sizes(("svhn_like",), 3, 6, 10, 20, 60)
    return papers.run_now(papers.get("fds_sharing_mse"), sharing_mse.configs(sizes))


def test_the_tables_of_figure_2(shared: pd.DataFrame) -> None:
    found = sharing_tables.samples(shared, "svhn_like")
    assert [s.name for s in found] == ["Figure 2: learning rate from 0.01", "Figure 6: learning rate from 0.001"]
    assert found[0].exact.shape == (3, 6) and found[0].greedy is not None and found[1].greedy is None
    table = sharing_tables.curves(found[0])
    assert table.index[0] == 1 and table.index[-1] == 6
    assert (table["non-greedy"] <= table["bound"] + 1e-12).all()
    numbers = sharing_tables.numbers(found)
    assert numbers.loc["MSE at W = 1"].iloc[0] == pytest.approx(found[0].exact.var(axis=0).mean())


def test_a_diverged_seed_is_left_out(shared: pd.DataFrame) -> None:
    broken = shared.copy()
    k = broken.index[broken["method"] == "non-greedy"][0]
    broken.at[k, "hypergradient_0"] = [float("nan")] * 6
    assert [len(s.exact) for s in sharing_tables.samples(broken, "svhn_like")] == [2, 3]


def test_the_papers_own_numbers_in_its_bound() -> None:
    """Lowest where d/dW of (1 - c) V / W + epsilon^2 W^2 / 12 is zero: W^3 = 6 (1 - c) V / epsilon^2."""
    table = sharing_tables.bound_of_the_paper((0.0, 0.5))
    assert table.loc[0.0, "W = 1"] == 0.25
    assert table.loc[0.0, "W = 50"] == pytest.approx(0.25 / 50 + 0.08**2 * 2499 / 12)
    for c, best in table["best W"].items():
        assert best == pytest.approx((6 * (1 - float(str(c))) * 0.25 / 0.08**2) ** (1 / 3), rel=0.06)


def test_figure_5_stays_below_the_bound() -> None:
    table = sharing_tables.profile_errors(40, 6, 0.05, 1.0, 0.1)
    lines = table.drop(columns="bound")
    assert (lines.le(table["bound"] + 1e-12, axis=0)).all().all()
    assert table[0].to_numpy() == pytest.approx(table["bound"].to_numpy())  # the largest drift reaches it
    assert (lines.ge(table[1] - 1e-12, axis=0)).all().all()


# -- fds_schedules -----------------------------------------------------------------------------------------------------


def _little(method: str, **changes: int) -> fds_schedules.Config:
    little = fds_schedules.Config(method, 5, "svhn_like", 200, 6, 10, windows=2, outer_steps=2, validation=20)
    return config.replace(little, **changes)


@pytest.mark.parametrize("method", ["FDS", "non-greedy"])
def test_a_schedule_moves_by_the_clipped_mean_hypergradient(method: str) -> None:
    """The first outer step against forward mode, which FDS is, from the same weights and batches."""
    c = _little(method)
    windows = 2 if method == "FDS" else 6
    trainer = fds_schedules._Trainer(c, CPU)
    task = trainer.task(0)
    hypers = Hypers([Hyper("lr", 0.0, windows=windows), trainer.momentum], task.layout.sizes, 6)
    loop = Loop(task, trainer.rule, hypers, methods.fds(6, Kept(SGD(0.0))))
    mean = loop.advance(loop.start(task.init()), 6).outer.hypergradient[0] * windows / 6
    learned = trainer.learn(environment.Stopwatch(trainer.device))
    assert mean.abs().min() > 1e-3 and learned.rates[0].tolist() == [0.0] * windows
    torch.testing.assert_close(learned.rates[1], -0.1 * mean.clamp(-3, 3), rtol=1e-4, atol=1e-6)
    assert len(learned.accuracies) == len(learned.rates) == 2


def test_schedules_and_their_tables() -> None:
    frame = papers.run_now(papers.get("fds_schedules"), [_little(m) for m in fds_schedules.METHODS])
    assert frame["test_accuracy"].between(0, 1).all()
    tuned = frame["method"] == fds_schedules.TUNED
    assert (frame.loc[~tuned, "best_outer_step"] <= 1).all()
    greedy = frame[frame["method"] == "greedy"]
    assert series.whole(greedy, "last_schedule").shape == (1, 6)
    table = schedules_tables.table(frame)
    assert list(table.index) == [("svhn_like", m) for m in fds_schedules.METHODS] and (table["n"] == 1).all()
    shown = schedules_tables.rates_at(frame, "svhn_like", points=3)
    assert shown["cosine"].mean() == pytest.approx(common.schedule("cosine", 0.1, 6).mean().item(), rel=1e-4)
    last = schedules_tables.rates_at(frame, "svhn_like", points=2, which="last_schedule")
    assert last["FDS"].tolist() == pytest.approx(frame.loc[frame["method"] == "FDS", "last_schedule_0"].iloc[0])


def test_a_tuned_cosine_starts_where_validation_was_best() -> None:
    (row,) = papers.run_now(papers.get("fds_schedules"), [_little(fds_schedules.TUNED)]).to_dict("records")
    rates, accuracies = fds_schedules.COSINE_RATES, row["val_curve"]
    assert len(accuracies) == len(rates) and row["best_outer_step"] == int(np.argmax(accuracies))
    kept = common.schedule("cosine", rates[row["best_outer_step"]], 6)
    assert row["schedule_0"] == pytest.approx(kept.tolist(), rel=1e-5)


def test_outer_steps_are_compared_side_by_side() -> None:
    sizes = replace(fds_schedules.SIZES["laptop"], sets=("mnist", "svhn_like"), seeds=1)
    found = [(c.data, c.outer_lr, c.method) for c in fds_schedules.configs(sizes)]
    assert len(found) == len(set(found)) == 5 + 5 + 3  # of MNIST the further step is the first one
    frame = pd.DataFrame(found, columns=["data", "outer_lr", "method"])
    shown = schedules_tables.by_step(frame)
    assert list(shown["data"].unique()) == ["mnist", "svhn_like", "svhn_like, outer step 0.03"]
    assert (shown.groupby("data")["method"].agg(set) == set(fds_schedules.METHODS)).all()
    assert (shown[shown["data"] == "svhn_like"]["outer_lr"] == 0.1).all()


def test_what_a_training_carries_is_constant_for_fds_and_grows_in_reverse_mode() -> None:
    c = _little("FDS", batch=4)
    found = fds_schedules.carried(c, [3, 9], CPU)
    short, long = found["reverse"]
    weights = 62_006 * 4 / 2**20
    assert found["FDS"][0] == found["FDS"][1] == pytest.approx((2 + c.windows * 2) * weights, rel=0.02)
    assert long - short == pytest.approx(6 * 2 * weights, rel=1e-3)  # weights and momentum of six more steps


def test_an_unknown_method_of_a_schedule_is_named() -> None:
    with pytest.raises(GradtuneError, match="unknown method 'greedi'; did you mean 'greedy'"):
        fds_schedules.run([_little("greedi")], CPU)


# -- fds_cifar_regret --------------------------------------------------------------------------------------------------

SMALL = replace(
    cifar_regret.SIZES["smoke"].base, steps=8, first_steps=2, outer_step_steps=4, outer_steps=3, budget_steps=20,
    batch=32, validation=40, seed=2,
)  # fmt: skip


def test_the_grid_is_that_of_appendix_f() -> None:
    sizes = replace(cifar_regret.SIZES["smoke"], grid_every=1)
    grid = [c for c in cifar_regret.configs(sizes) if c.method == "Grid"]
    assert len(grid) == 135
    recipe = cifar_training.grid_recipe(replace(grid[0], grid_lr=0.2, grid_factor=0.2))
    hypers = Hypers(recipe.hypers(), [3], 200)
    rates = [hypers.at(*hypers.init(torch.zeros(1, 3, dtype=torch.float64)), t).lam["lr"].item() for t in range(200)]
    steps = torch.optim.lr_scheduler.MultiStepLR
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    theirs = steps(optimiser, milestones=[60, 120, 160], gamma=0.2)
    for rate in rates:
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimiser.step()
        theirs.step()


def test_the_searched_range_is_what_ten_steps_of_the_sign_rule_span() -> None:
    bench = cifar_training.Bench(replace(SMALL, method="FDS", outer_steps=10), CPU)
    gamma = torch.tensor([0.1] * 7 + [0.15, 4e-4], dtype=torch.float64)
    low, high = SignHalving(gamma).search_range(torch.zeros(9, dtype=torch.float64), bench.c.outer_steps)
    space = cifar_searches.space(7)
    assert [d.low for d in space.values()] == pytest.approx(low.tolist())
    assert [d.high for d in space.values()] == pytest.approx(high.tolist())


def _numbers(result: Result, name: str) -> list[float]:
    """A series without gaps."""
    return [x for x in result.series[name] if x is not None]


def test_fds_spends_what_it_says_and_its_answers_are_worth_what_it_says() -> None:
    c = replace(SMALL, method="FDS", budget_steps=0)
    (result,) = cifar_regret.run([c], CPU)
    assert result.series["at_steps"] == [2, 6, 10] and result.metrics["hypergradient_steps"] == 10
    seconds = _numbers(result, "at_seconds")
    assert sorted(seconds) == seconds and seconds[0] > 0 and (result.metrics["evaluation_seconds"] or 0) > 0
    lr = tuple(_numbers(result, f"answer_lr_{k}")[-1] for k in range(7))
    rest = (_numbers(result, f"answer_{n}")[-1] for n in ("momentum", "weight_decay"))
    worth = cifar_training.Bench(c, CPU).worth(cifar_training.Recipe(lr, *rest))
    assert worth == pytest.approx(result.metrics["accuracy"])
    assert all(abs(x) <= 0.3 + 1e-6 for x in lr) and any(x for x in lr)
    assert len(result.series["hypergradient_lr_0"]) == 3


def test_the_search_of_the_study_resumes_in_the_middle_of_an_outer_step(tmp_path: Path) -> None:
    c = replace(SMALL, method="FDS", lr_windows=2)
    wanted, before, after = (cifar_regret.fds_search(cifar_training.Bench(c, CPU), {}) for _ in range(3))
    end = wanted.advance(wanted.start()).run.raw
    before.save(before.advance(before.start(), 5), tmp_path / "search.pt")
    assert torch.equal(after.advance(after.load(tmp_path / "search.pt")).run.raw, end)


@pytest.mark.parametrize("method", ["Random", "BOHB", "HD"])
def test_black_box_and_greedy_spend_their_budget_to_the_step(method: str) -> None:
    (result,) = cifar_regret.run([replace(SMALL, method=method)], CPU)
    assert result.metrics["training_steps"] == 20
    assert result.metrics["hypergradient_steps"] == (20 if method == "HD" else 0)
    steps, seconds = _numbers(result, "at_steps"), _numbers(result, "at_seconds")
    assert sorted(steps) == steps and steps[-1] <= 20 and len(seconds) == len(steps) >= 1
    assert max(seconds) <= (result.metrics["seconds"] or 0)
    assert 0 <= (result.metrics["accuracy"] or 0) <= 1


def test_a_diverged_recipe_is_worth_chance() -> None:
    bench = cifar_training.Bench(replace(SMALL, method="Grid"), CPU)
    assert bench.worth(cifar_training.Recipe((1e30,), 2.0, 0.0)) == pytest.approx(0.1)
    with pytest.raises(GradtuneError, match="unknown net 'wrn16'; did you mean 'wrn-16-1'"):
        cifar_training.Bench(replace(SMALL, method="Grid", net="wrn16"), CPU).net()


def _frame() -> pd.DataFrame:
    """Two seeds of FDS and Random, and a grid, by hand."""
    base = {"training_steps": 100, "hypergradient_steps": 0, "seconds": 10.0, "evaluation_seconds": 1.0}
    rows = []
    for method, seconds, values in (("FDS", [1.0, 4.0], [0.2, 0.9]), ("Random", [2.0, 9.0], [0.5, 0.7])):
        rows += [
            base | {"method": method, "seed": s, "accuracy": values[-1] - 0.1 * s, "at_seconds": seconds,
                    "at_steps": [10 * x for x in seconds], "at_accuracy": [v - 0.1 * s for v in values]}
            for s in range(2)
        ]  # fmt: skip
    for k in range(3):
        rows.append(base | {"method": "Grid", "seed": 0, "accuracy": 0.6 + 0.1 * k, "grid_lr": 0.1 * k,
                            "grid_factor": 0.1, "grid_momentum": 0.9, "grid_decay": 0.0})  # fmt: skip
    return pd.DataFrame(rows)


def test_regret_is_read_off_the_answers() -> None:
    frame = _frame()
    best, setting = cifar_tables.best_of_grid(frame)
    assert best == pytest.approx(0.8) and setting["grid_lr"] == pytest.approx(0.2)
    found = cifar_tables.worth_at(frame[frame["method"] == "FDS"], [0.5, 1.0, 3.9, 4.0, 50.0], "seconds")
    assert found[0] == pytest.approx([np.nan, 0.2, 0.2, 0.9, 0.9], nan_ok=True)
    assert list(cifar_tables.within(frame, [5, 100], "steps").loc["FDS"]) == ["–", f"85.0{PLUS_MINUS}5.0"]
    regret = cifar_tables.to_regret(frame, (0.05, 0.0)).loc["0 points"]
    assert regret.loc["FDS", "seeds that get there"] == "2 of 2" and regret.loc["FDS", "seconds"] == 4.0
    assert regret.loc["Random", "seeds that get there"] == "0 of 2"
    assert regret["last answer there"].to_dict() == {"FDS": "2 of 2", "Random": "0 of 2"}
    account = cifar_tables.account(frame)
    assert account.loc["FDS", "ms a step"] == "100.0" and account.loc["Grid", "n"] == 3
    assert account.loc["Grid", "seconds"] == "–"
    summary, by_value = cifar_tables.grid_summary(frame).iloc[0], cifar_tables.grid_by_value(frame)
    assert (summary["its accuracy"], summary["median"]) == pytest.approx((80, 70))
    assert summary["first learning rate"] == pytest.approx(0.2)
    assert by_value.loc[("momentum", "0.9")].tolist() == pytest.approx([70, 60, 80])


def test_nothing_recorded_is_an_empty_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path))
    assert sharing_tables.samples(store.load(papers.get("fds_sharing_mse"), "laptop"), "mnist") == []
    table = store.coverage(papers.get("fds_schedules"), "laptop", "data")
    assert table["recorded"].sum() == 0 and table["of"].sum() == len(fds_schedules.STUDY.runs("laptop")) == 39


# -- every scale -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", config.SCALES)
def test_every_run_is_a_configuration_of_its_own(name: str, scale: str) -> None:
    study = papers.get(name)
    found = study.runs(scale)
    assert len({check(c) for c in found}) == len(found) > 0
    assert all(study.cost(c) > 0 for c in found)
