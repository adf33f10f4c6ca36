"""Black-box searches on a toy of two hyperparameters whose loss is known in closed form."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.rules import sgd
from gradtune.search import (
    METHODS,
    MULTIPLIER,
    Asha,
    Dimension,
    Population,
    Space,
    Trainable,
    Training,
    prepare,
    search,
)
from problems import Net
from tools import ROOT
from toy import DECAY, GOOD, LOSSES, SPACE, STEPS, closed_form, training

# Training steps in which each method must find the optimum region, for every seed tried; a full trial takes 81.
WITHIN: dict[str, tuple[int, dict[str, Any]]] = {
    "random": (200 * STEPS, {"batch": 50}),
    "random_xlr": (200 * STEPS, {"batch": 50}),
    "random_3batched": (200 * STEPS, {"batch": 50}),
    "grid": (100 * STEPS, {"batch": 50, "points": 10}),
    "bayes": (40 * STEPS, {}),
    "hyperband": (50 * STEPS, {}),
    "bohb": (30 * STEPS, {}),
    "asha": (30 * STEPS, {}),
    "pbt": (40 * STEPS, {}),
}
SIDE_BY_SIDE = [n for n, (_, options) in WITHIN.items() if "batch" in options] + ["pbt"]
NAMES = [m.name for m in METHODS]
WIDE = Space({"lr": Dimension(1e-2, 1e8, "log10"), "weight_decay": Dimension(1e-5, 1.0, "log10")})
"""Most of it diverges: (1e8)^81 is beyond float64."""


TRACED, EAGER = training(trace=True), training()


@pytest.fixture
def trainable(request: pytest.FixtureRequest) -> Training:
    """One for all tests of single runs, so that its steps are recorded once; side by side, few steps are taken."""
    case = getattr(request.node, "callspec", None)
    return EAGER if case and case.params.get("name") in SIDE_BY_SIDE else TRACED


def small(name: str) -> dict[str, Any]:
    """Options for a search of a few trials."""
    return {"bayes": {"startup": 3}, "bohb": {"startup": 3}, "pbt": {"size": 4, "interval": 20}}.get(name, {})


# --- Finding the optimum ----------------------------------------------------------------------------------------------


def test_every_method_has_its_number_of_steps() -> None:
    assert list(WITHIN) == NAMES


def test_toy_is_no_easy_guess() -> None:
    """The region holds less than 5 % of the space, lies around a weight decay of 0.1 and touches no edge."""
    good = LOSSES < GOOD
    assert 0.01 < good.mean() < 0.05
    assert not np.concatenate([good[0], good[-1], good[:, 0], good[:, -1]]).any()
    decays = 10 ** np.linspace(*SPACE["weight_decay"].raw_range, len(good))[good.any(axis=1)]
    assert 0.03 < decays.min() < DECAY < decays.max() < 0.3


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_finds_the_optimum_region(name: str, seed: int, trainable: Training) -> None:
    """Random, random xLR and 3-batched within 16,200 training steps, grid (10 x 10) within 8100, Hyperband within 4050,
    Bayesian optimisation and PBT within 3240, BOHB and ASHA within 2430."""
    budget, options = WITHIN[name]
    result = search(name, trainable, SPACE, budget, seed, **options)
    assert result.spent_steps <= budget
    assert result.best_loss < GOOD
    frame = result.to_frame()
    best = frame.loc[frame["val_loss"].idxmin()]
    if name != "pbt":  # its configuration changed on the way
        factor = best.get(MULTIPLIER, 1.0)
        known = closed_form(best["lr"], best["weight_decay"], int(best["steps"]), factor)
        assert result.best_loss == pytest.approx(float(known), rel=1e-9)
        assert float(closed_form(best["lr"], best["weight_decay"], factor=factor)) < GOOD


# --- Accounts ---------------------------------------------------------------------------------------------------------


class Counting(Training):
    """Counts the training steps that are really taken, all runs together."""

    taken = 0

    def advance(self, members: Any, steps: int) -> Any:
        self.taken += steps * len(members.run.state.w)
        return super().advance(members, steps)


def counting() -> Counting:
    t = training()
    return Counting(t.problem, t.rule, t.hypers, t.sizes, t.init, t.steps)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [3, 500])
def test_budget_to_the_step(name: str, budget: int) -> None:
    """Every step charged is a step taken, once; the trials' ages add up to the budget; the result says where it cut."""
    trainable = counting()
    result = search(name, trainable, SPACE, budget, seed=3, **small(name))
    frame = result.to_frame()
    assert trainable.taken == result.spent_steps == budget == frame["total_steps"].iloc[-1]
    assert frame.groupby("trial")["steps"].max().sum() == budget
    assert result.stopped.startswith(f"{budget} of {budget} training steps are spent; ")
    assert frame["steps"].max() <= STEPS
    assert frame["total_steps"].is_monotonic_increasing
    if name in ("random", "grid", "bayes"):
        assert result.stopped.endswith(f"the last trial was cut after {budget % STEPS} of {STEPS} steps")
    if name == "pbt":  # 500: 4 x 81 steps, then 4 x 44; 3: three members
        assert result.stopped.endswith(
            f"the last population was cut after {44 if budget == 500 else 1} of {STEPS} steps"
        )


@pytest.mark.parametrize("name", NAMES)
def test_frame(name: str, trainable: Training) -> None:
    """Incumbents are the running minimum; seconds only grow; configurations lie in the space."""
    frame = search(name, trainable, SPACE, 700, seed=1, **small(name)).to_frame()
    loss = frame["val_loss"].where(np.isfinite(frame["val_loss"]))
    assert frame["incumbent_loss"].equals(loss.cummin().ffill().rename("incumbent_loss"))
    for row in frame.itertuples():
        assert frame.loc[: row.Index].query("trial == @row.incumbent")["val_loss"].min() == row.incumbent_loss
    for column in ("training_seconds", "sampler_seconds"):
        assert frame[column].is_monotonic_increasing
        assert frame[column].iloc[0] > 0
    for n, d in SPACE.items():
        assert frame[n].between(d.low, d.high).all()
    assert (frame["copied_from"].notna().any()) == (name == "pbt")
    assert not frame.loc[frame["steps"] < STEPS, "kept"].any()


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_search(name: str, trainable: Training) -> None:
    def run(seed: int) -> pd.DataFrame:
        frame = search(name, trainable, SPACE, 600, seed, **small(name)).to_frame()
        return frame.drop(columns=["training_seconds", "sampler_seconds"])

    assert run(5).equals(run(5))
    assert not run(5).equals(run(6))


def test_batches_are_the_same_trials() -> None:
    """Trials trained side by side get the configurations, seeds and losses that they get alone."""
    alone, batched = (search("random", EAGER, SPACE, 8 * STEPS, batch=b).to_frame() for b in (1, 3))
    assert alone["trial"].equals(batched["trial"])
    assert alone[[*SPACE]].equals(batched[[*SPACE]])
    assert np.allclose(alone["val_loss"], batched["val_loss"], rtol=1e-12, atol=0)


def test_grid_ends_when_visited(trainable: Training) -> None:
    result = search("grid", trainable, SPACE, 100 * STEPS, points=3)
    frame = result.to_frame()
    assert len(frame) == 9 == len(frame[[*SPACE]].drop_duplicates())
    assert sorted(set(frame["lr"])) == pytest.approx([1e-4, 10**-1.5, 10.0])
    assert result.stopped.endswith("all 9 points of the grid are visited")
    assert result.spent_steps == 9 * STEPS


def test_three_batched_keeps_one_of_three(trainable: Training) -> None:
    """Ten full trials and a cut one: three complete groups; the kept ones have the lowest losses, the trials are those
    of random search."""
    frame = search("random_3batched", trainable, SPACE, 10 * STEPS + 1).to_frame()
    assert frame["val_loss"].equals(search("random", trainable, SPACE, 10 * STEPS + 1).to_frame()["val_loss"])
    assert len(frame) == 11
    kept = frame[frame["kept"]]
    groups = frame["val_loss"].to_numpy()[:9].reshape(3, 3)
    assert kept["val_loss"].tolist() == groups.min(axis=1).tolist()


def test_rungs() -> None:
    assert Asha().rungs(81) == [3, 9, 27, 81]
    assert Asha(min_steps=1, reduction=4).rungs(4000) == [1, 4, 16, 64, 256, 1024, 4000]  # OnePass, Appendix B.8.2
    assert Asha(min_steps=5).rungs(5) == [5]
    assert Asha(min_steps=60).rungs(81) == [60, 81]
    assert Asha(min_steps=8).rungs(400) == [8, 24, 72, 216, 400]


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_no_rung_lies_just_before_the_end(reduction: int) -> None:
    """By default there are at most four; a rung is followed by at least as many steps as the first one has."""
    assert Asha().rungs(4000) == [148, 444, 1332, 4000]  # and not 3996
    assert Asha(min_steps=148).rungs(4000) == [148, 444, 1332, 4000]
    assert Asha().rungs(100) == [3, 9, 27, 100]
    for full in range(1, 300):
        for least in (None, 1, 7):
            if least is None or least <= full:
                rungs = Asha(least, reduction).rungs(full)
                assert rungs[-1] == full and sorted(set(rungs)) == rungs and (least is not None or len(rungs) <= 4)
                assert all(full - age >= rungs[0] for age in rungs[1:-1])
                assert all(b == reduction * a for a, b in itertools.pairwise(rungs[:-1]))


def test_asha_stops_what_is_behind(trainable: Training) -> None:
    """Whoever trains past a rung was, when it got there, in the best third of all that had reached it, or the best."""
    frame = search("asha", trainable, SPACE, 900, seed=2).to_frame()
    for rung in (3, 9, 27):
        reached = frame[frame["steps"] == rung].reset_index(drop=True)
        for k, row in reached.iterrows():
            rank = int((reached.loc[: int(str(k)), "val_loss"] < row["val_loss"]).sum())
            went_on = bool((frame[frame["trial"] == row["trial"]]["steps"] > rung).any())
            assert went_on == (rank < max(1, (int(str(k)) + 1) // 3)) or row.name == len(reached) - 1
    assert (frame["steps"] == STEPS).sum() < frame["trial"].nunique() / 3


# --- Divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_diverged_trials_are_spent_shown_never_chosen(name: str, trainable: Training) -> None:
    result = search(name, trainable, WIDE, 12 * STEPS, seed=0, **small(name))
    frame = result.to_frame()
    diverged = frame[~np.isfinite(frame["val_loss"])]
    assert len(diverged) > 0
    assert frame.groupby("trial")["steps"].max().sum() == result.spent_steps == 12 * STEPS
    assert math.isfinite(result.best_loss)
    assert not frame.loc[diverged.index, "kept"].any()
    assert np.isfinite(frame["incumbent_loss"].dropna()).all()


@pytest.mark.parametrize("name", NAMES)
def test_all_diverged(name: str, trainable: Training) -> None:
    """Nothing is chosen; the budget is spent all the same."""
    space = Space({"lr": Dimension(1e7, 1e8, "log10"), "weight_decay": Dimension(1e-5, 1.0, "log10")})
    late = {n: {"min_steps": 60} for n in ("asha", "hyperband", "bohb")} | {"pbt": {"size": 4, "interval": 60}}
    budget = 8 * 60 if name in late else 6 * STEPS  # no trial is evaluated before 60 steps, when it overflows
    result = search(name, trainable, space, budget, **late.get(name, {}))
    frame = result.to_frame()
    assert result.spent_steps == budget
    assert not np.isfinite(frame["val_loss"]).any()
    assert not frame["kept"].any()
    assert result.best is None
    assert math.isnan(result.best_loss)
    assert frame["incumbent"].isna().all()


# --- Population based training ----------------------------------------------------------------------------------------


class Scripted:
    """Members are lists of (weights, configuration); the loss is a function of the weights. Records what is copied."""

    steps = 30

    def __init__(self, losses: Sequence[float]) -> None:
        self.losses, self.copies = losses, list[tuple[list[int], list[Mapping[str, float]]]]()

    def start(self, configs: Sequence[Mapping[str, float]], seeds: Sequence[int]) -> list[int]:
        return list(range(len(configs)))

    def advance(self, members: list[int], steps: int) -> list[int]:
        return list(members)

    def val_loss(self, members: list[int]) -> list[float]:
        return [self.losses[m] for m in members]

    def select(self, members: list[int], rows: Sequence[int], configs: Sequence[Mapping[str, float]]) -> list[int]:
        self.copies.append((list(rows), list(configs)))
        return [members[r] for r in rows]


def test_pbt_truncation_selection_and_perturbation() -> None:
    """The worst fifth takes over from the best fifth, times 1.2 or 0.8 inside the space; a diverged member goes too;
    the others stay as they are."""
    losses = [5.0, 1.0, math.nan, 4.0, 2.0, 9.0, 8.0, 3.0, 7.0, 6.0]  # best: 1, 4; worst: the diverged 2, and 5
    script = Scripted(losses)
    frame = search("pbt", script, SPACE, 10 * 20, interval=10).to_frame()
    before, after = (frame[frame["steps"] == s].reset_index(drop=True) for s in (10, 20))
    (rows, configs), *_ = script.copies
    assert [r for m, r in enumerate(rows) if m not in (2, 5)] == [0, 1, 3, 4, 6, 7, 8, 9]
    assert {rows[2], rows[5]} <= {1, 4}
    assert after["copied_from"].dropna().to_dict() == {2: rows[2], 5: rows[5]}
    for m, config in enumerate(configs):
        for n, d in SPACE.items():
            old = before.loc[rows[m], n]
            assert after.loc[m, n] == config[n]
            assert config[n] in ([d.clip(1.2 * old), d.clip(0.8 * old)] if m in (2, 5) else [old])


def test_pbt_draws_some_hyperparameters_anew() -> None:
    """With probability 1 both are drawn; in between some are drawn and some multiplied."""
    losses = [float(k) for k in range(10)]
    for resample, drawn in ((1.0, {True}), (0.5, {True, False})):
        script = Scripted(losses)
        options: dict[str, Any] = {"interval": 5, "fraction": 0.5, "resample": resample}
        frame = search("pbt", script, SPACE, 10 * 20, **options).to_frame()
        configs = frame.set_index(["trial", "steps"])
        found = set()
        for rows, new in script.copies[:1]:
            for m, d in enumerate(rows):
                old = configs.loc[(d, 5)]
                if d != m:
                    found |= {
                        new[m][n] not in (SPACE[n].clip(1.2 * old[n]), SPACE[n].clip(0.8 * old[n])) for n in SPACE
                    }
        assert found == drawn
        assert all(SPACE[n].low <= c[n] <= SPACE[n].high for _, new in script.copies for c in new for n in SPACE)


def test_pbt_starts_again() -> None:
    """After full-length training, and as soon as all members diverged."""
    frame = search("pbt", Scripted([1.0, 2.0, 3.0]), SPACE, 180, size=3, interval=10).to_frame()
    assert frame["trial"].nunique() == 6
    frame = search("pbt", Scripted([math.inf] * 3), SPACE, 180, size=3, interval=10).to_frame()
    assert frame["trial"].nunique() == 18


def test_pbt_last_steps_go_to_the_first_members() -> None:
    """89 = 3 x 30 - 1: two of three members take the last step. 91: one member of a new population takes a step."""
    result = search("pbt", Scripted([1.0, 2.0, 3.0]), SPACE, 89, size=3, interval=10)
    assert result.to_frame().groupby("trial")["steps"].max().tolist() == [30, 30, 29]
    assert result.stopped.endswith("only 2 of the last 3 members took step 30 of 30")
    result = search("pbt", Scripted([1.0, 2.0, 3.0]), SPACE, 91, size=3, interval=10)
    assert result.to_frame().groupby("trial")["steps"].max().tolist() == [30, 30, 30, 1]
    assert search("pbt", Scripted([1.0, 2.0]), SPACE, 60, size=2).stopped.endswith("no trial was cut")


def test_copied_rows_train_like_their_donor() -> None:
    """Weights and buffers are copied: a clone with its donor's hyperparameters stays equal, and its neighbours do not
    notice."""
    net = Net(stationary=True)
    hypers = [Hyper("lr", 0.1, "log10"), Hyper("momentum", 0.5, "sigmoid"), Hyper("weight_decay", 1e-2, "log10")]
    t = Training(net, sgd(), hypers, net.layout.sizes, lambda seeds: net.init(len(seeds), seeds[0]), 40)
    configs = [{"lr": 0.05}, {"lr": 0.1}, {"lr": 0.2}]
    half = t.advance(t.start(configs, [0, 1, 2]), 20)
    after = t.advance(t.select(half, [0, 1, 1], [configs[0], configs[1], configs[1]]), 20)
    alone = t.advance(half, 20)
    assert torch.equal(after.run.state.w[:2], alone.run.state.w[:2])
    assert torch.equal(after.run.state.w[2], after.run.state.w[1])
    assert torch.equal(after.run.state.buf["v"][2], after.run.state.buf["v"][1])


# --- The trainable ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [None, 0.97])
def test_resumed_training_is_uninterrupted_training(factor: float | None) -> None:
    t = training()
    config = {"lr": 0.3, "weight_decay": 0.1} | ({} if factor is None else {MULTIPLIER: factor})
    whole = t.advance(t.start([config], [0]), STEPS)
    parts = t.start([config], [0])
    for steps in (3, 6, 1, 10, 61):
        parts = t.advance(parts, steps)
    assert torch.equal(whole.run.state.w, parts.run.state.w)
    assert t.val_loss(whole)[0] == pytest.approx(float(closed_form(0.3, 0.1, factor=factor or 1.0)), rel=1e-12)


def test_loss_hyperparameters_and_windows() -> None:
    """A configuration may name a hyperparameter of the loss; one with windows gets the same value in all of them."""
    net = Net(val_uses_l2=True)
    hypers = [Hyper("lr", 0.1, windows=4), Hyper("l2", 0.5)]
    rule = sgd(momentum=False, weight_decay=False)
    t = Training(net, rule, hypers, net.layout.sizes, lambda seeds: net.init(1), 8)
    m = t.advance(t.start([{"lr": 0.05, "l2": 0.2}], [0]), 8)
    w = net.init(1)
    for step in range(8):
        w = w.detach().requires_grad_()
        lam = {"l2": torch.tensor([[0.2]], dtype=torch.float64)}
        (g,) = torch.autograd.grad(net.train_loss(w, lam, step).sum(), w)
        w = w - 0.05 * g
    assert torch.allclose(m.run.state.w, w, rtol=1e-13)
    assert t.val_loss(m)[0] == pytest.approx(float(net.val_loss(w.detach(), lam, 7)), rel=1e-13)


# --- What the user is told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda t: search("ahsa", t, SPACE, 100), "unknown search method 'ahsa'; did you mean 'asha'?"),
        (lambda t: search("grid", t, SPACE, 100, pionts=3), "unknown option of grid 'pionts'; did you mean 'points'?"),
        (
            lambda t: search("random", t, Space({"wieght_decay": Dimension(0.1, 1)}), 100),
            "unknown hyperparameter 'wieght_decay'; did you mean 'weight_decay'?",
        ),
        (lambda t: search("random", t, Space({"trial": Dimension(0.1, 1)}), 100), "name of a column of the result"),
        (lambda t: search("random", t, Space({"lr": Dimension(-1, 1)}), 100), "lr = -1 is outside"),
        (lambda t: search("random", t, SPACE, 0), "budget_steps = 0; expected a whole number >= 1"),
        (lambda t: search("random", t, SPACE, 10, seed=-1), "seed = -1; expected a whole number >= 0"),
        (lambda t: search("random", t, SPACE, 10, batch=0), "batch = 0"),
        (lambda t: search("grid", t, SPACE, 10, points=1), "points = 1"),
        (lambda t: search("bayes", t, SPACE, 10, startup=0), "startup = 0"),
        (lambda t: search("bohb", t, SPACE, 10, startup=0), "startup = 0"),
        (lambda t: search("asha", t, SPACE, 10, reduction=1), "reduction = 1"),
        (lambda t: search("asha", t, SPACE, 10, min_steps=0), "min_steps = 0"),
        (lambda t: search("asha", t, SPACE, 10, min_steps=100), "min_steps = 100 is more than the 81 steps"),
        (lambda t: search("pbt", t, SPACE, 10, size=1), "size = 1"),
        (lambda t: search("pbt", t, SPACE, 10, interval=0), "interval = 0"),
        (lambda t: search("pbt", t, SPACE, 10, fraction=0.7), "fraction = 0.7; expected more than 0"),
        (lambda t: search("pbt", t, SPACE, 10, resample=1.5), "resample = 1.5; expected a probability"),
        (
            lambda t: search("pbt", t, Space({**SPACE, MULTIPLIER: Dimension(0.9, 1)}), 400),
            "search without lr_multiplier",
        ),
        (lambda t: Space({}), "the search space has no dimension"),
        (lambda t: Dimension(1.0, 0.1), "the range from 1.0 to 0.1 cannot be searched"),
        (lambda t: Dimension(0.0, 0.1, "log10"), "strictly inside (0.0, inf), the values that log10 expresses"),
        (lambda t: Dimension(0.0, math.inf), "cannot be searched"),
        (lambda t: Dimension(0.1, 0.2, "log1"), "unknown transform 'log1'; did you mean 'log10'?"),
        (lambda t: training(steps=0), "steps = 0, every = 10; expected both >= 1"),
    ],
)
def test_bad_input_gets_a_sentence(call: Any, sentence: str, trainable: Training) -> None:
    with pytest.raises(GradtuneError) as e:
        call(trainable)
    assert sentence in str(e.value)


def test_wrong_shapes_get_a_sentence() -> None:
    t = training()
    t.init = lambda seeds: torch.zeros(2, dtype=torch.float64)
    with pytest.raises(GradtuneError, match=r"init gave weights of shape \(2,\) for 2 seeds"):
        search("random", t, SPACE, 10)

    class Mean(Scripted):
        def val_loss(self, members: list[int]) -> list[float]:
            return [0.0]

    with pytest.raises(GradtuneError, match="expected one a run, never a mean"):
        search("pbt", Mean([]), SPACE, 100)


def test_pbt_needs_copyable_runs() -> None:
    class NoCopy:
        steps = 3
        start, advance, val_loss = Scripted.start, Scripted.advance, Scripted.val_loss

    no_copy: Trainable = NoCopy()
    with pytest.raises(GradtuneError, match="NoCopy cannot copy its runs"):
        search("pbt", no_copy, SPACE, 10)
    assert Population().size == 10


@pytest.mark.parametrize("name", [n for n in NAMES if n != "pbt"])
def test_missing_optuna(name: str, trainable: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(GradtuneError, match=r"not installed; install it with `pip install 'gradtune\[search\]'`"):
        search(name, trainable, SPACE, 10)


def test_optuna_is_imported_by_need_alone() -> None:
    """Neither the import of the package nor population based training asks for it."""
    code = (
        "import sys; import gradtune.search as s; from toy import training, SPACE; "
        "s.search('pbt', training(3), SPACE, 30); assert 'optuna' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "tests", timeout=120)


def test_optuna_is_quiet_and_left_as_it_was(trainable: Training, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    search("random", trainable, SPACE, 2 * STEPS)
    assert "Trial" not in capfd.readouterr().err
    assert optuna.logging.get_verbosity() == before == optuna.logging.INFO


def test_every_search_has_its_line_in_the_one_table_of_methods() -> None:
    frame = methods.table().set_index("name")
    assert [n for n in frame.index if n in NAMES] == NAMES
    assert (frame.loc[NAMES, ["method", "paper", "outer rule", "cost"]].map(len) > 0).all(axis=None)


# --- Those who follow a search ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_best_trial_is_handed_over_when_it_is_the_best(name: str, trainable: Training) -> None:
    """With its state and configuration of that evaluation: each incumbent once, the last one is the answer."""
    strategy, ledger = prepare(name, trainable, SPACE, 700, 1, small(name))
    seen: list[tuple[dict[str, float], float]] = []
    ledger.on_best = lambda cohort, m: seen.append((dict(cohort.configs[m]), trainable.val_loss(cohort.state)[m]))
    with ledger:
        how = strategy.run(ledger, SPACE)
    result = ledger.result(name, how, strategy.group)
    assert seen[-1] == (result.best, result.best_loss)
    assert [loss for _, loss in seen] == result.to_frame()["incumbent_loss"].dropna().unique().tolist()
    assert search(name, trainable, SPACE, 700, 1, **small(name)).best == result.best


class Bar:
    """A progress bar that notes by how much it was moved."""

    def __init__(self, total: int, **_: Any) -> None:
        self.total, self.n, self.moves, self.closed = total, 0, list[int](), False

    def update(self, by: int) -> None:
        self.n += by
        self.moves += [by] * (by > 0)

    def close(self) -> None:
        self.closed = True


def test_the_bar_counts_every_step_once(trainable: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the trainable moves it while it trains or not."""
    monkeypatch.setattr("gradtune.search.ledger.tqdm", Bar)
    for ticks in (False, True):
        strategy, ledger = prepare("asha", trainable, SPACE, 200, 0, {})
        advance = trainable.advance

        def by_step(members: Any, steps: int, ledger: Any = ledger, advance: Any = advance) -> Any:
            for _ in range(steps):
                members = advance(members, 1)
                ledger.bar.update(1)
            return members

        with ledger, monkeypatch.context() as patch:
            if ticks:
                patch.setattr(trainable, "advance", by_step)
            strategy.run(ledger, SPACE)
        bar: Any = ledger.bar
        assert bar.n == bar.total == 200 and bar.closed and (set(bar.moves) == {1}) == ticks
