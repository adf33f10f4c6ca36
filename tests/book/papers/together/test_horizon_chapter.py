"""The studies and tables of the chapter on long horizons: their numbers by other ways, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune.estimators.reverse import Reverse
from gradtune.estimators.tree import tree_cost
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.recursion.wrapped import Kept
from gradtune.training.loop import Method
from gradtune_book import papers
from gradtune_book.papers.together import cleaning, horizon_claims, long_schedules, long_sharing
from gradtune_book.papers.together import horizon_tables as read
from gradtune_book.tasks import images

CPU = torch.device("cpu")
STUDIES = {"long_schedules": long_schedules, "long_sharing": long_sharing, "hyper_cleaning": cleaning}


@pytest.fixture(scope="module")
def runs() -> dict[str, pd.DataFrame]:
    return {name: papers.run_now(papers.get(name), papers.get(name).runs("smoke")) for name in STUDIES}


@pytest.mark.parametrize("name", STUDIES)
def test_every_method_has_runs_at_every_scale(name: str) -> None:
    study = papers.get(name)
    for scale in study.sizes:
        assert {c.method for c in study.runs(scale)} == set(STUDIES[name].METHODS)


@pytest.mark.parametrize("name", STUDIES)
def test_an_unknown_method_is_told(name: str) -> None:
    c = replace(papers.get(name).runs("smoke")[0], method="never")
    with pytest.raises(GradtuneError, match="unknown method 'never'"):
        papers.get(name).run([c], CPU)


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_schedules_learn_and_count_their_tree(runs: dict[str, pd.DataFrame]) -> None:
    frame = runs["long_schedules"].set_index("method")
    for method in (long_schedules.PER_STEP, long_schedules.FDS):
        run = frame.loc[method]
        cost = tree_cost(run["steps"], run["branching"])
        assert (run["states"], run["replayed"]) == (cost.states, cost.replayed)
        assert run["val_curve"][-1] > 0.5 > run["val_curve"][0]
    assert len(read.schedules(runs["long_schedules"])) == 3 and read.draw_schedules(runs["long_schedules"]).axes


def test_a_process_of_its_own_learns_the_same_and_tells_its_memory() -> None:
    c = replace(papers.get("long_schedules").runs("smoke")[0], steps=20, outer_steps=2, branching=4)
    apart, here = (papers.run_now(long_schedules.STUDY, [replace(c, own_process=own)]).iloc[0] for own in (True, False))
    assert apart["schedule_0"] == here["schedule_0"] and apart["test_accuracy"] == here["test_accuracy"]
    assert here["memory_mb"] is None and apart["memory_mb"] > 0


# -- sharing -----------------------------------------------------------------------------------------------------------


def test_the_noise_is_the_hypergradient_of_every_step(runs: dict[str, pd.DataFrame]) -> None:
    c = replace(papers.get("long_sharing").runs("smoke")[0], steps=12)
    given = images.load(c.data, torch.float32, CPU, 0, c.images).flat()
    task = long_sharing.training(c, [c.seed], given)
    hypers = [Hyper("lr", c.lr, windows=12), Hyper("momentum", 0.0, tuned=False)]
    wanted = oracle.unrolled(
        task, sgd(weight_decay=False), Hypers(hypers, task.layout.sizes, 12), task.init(), 12
    )  # fmt: skip
    found = read.noises(runs["long_sharing"])[12][0]
    assert found == pytest.approx(wanted[0].double().numpy(), rel=2e-3, abs=1e-5)


def test_the_table_of_sharing_by_hand() -> None:
    rng = np.random.default_rng(0)
    g = 1 + rng.normal(size=(40, 21))
    frame = pd.DataFrame({"method": "noise", "steps": 21, "hypergradient_0": list(g)})
    table = read.sharing_numbers(frame)["T = 21"]
    error = ((g - g.mean(0)) ** 2).mean()
    assert table["error per step (MSE at W = 1)"] == pytest.approx(error)
    means = np.repeat(g.reshape(40, 7, 3).mean(2), 3, axis=1)
    assert table["7 windows over per step"] == pytest.approx(((means - g.mean(0)) ** 2).mean() / error)
    assert table["7 windows over per step"] < 0.5 and abs(table["mean correlation of two steps"]) < 0.05


def test_the_tables_of_live_runs(runs: dict[str, pd.DataFrame]) -> None:
    learned = read.learned(runs["long_sharing"])
    assert {m for m, _ in learned.index} == set(long_sharing.METHODS[1:])
    assert read.draw_sharing(runs["long_sharing"]).axes


# -- cleaning ----------------------------------------------------------------------------------------------------------


def small() -> cleaning.Config:
    return replace(papers.get("hyper_cleaning").runs("smoke")[0], rows=60, validation=30, steps=6, batch=20, hidden=4)


def test_a_share_of_the_labels_is_wrong() -> None:
    c = small()
    data, clean = cleaning.rows(c, CPU), cleaning.rows(replace(c, wrong=0.0), CPU)
    wrong = data.train[1] != clean.train[1]
    assert wrong.sum() == round(0.3 * len(wrong)) and torch.equal(~wrong, data.right)
    assert torch.equal(data.val[1], clean.val[1])


def test_the_weights_hypergradient_is_that_of_unrolled_autograd() -> None:
    c = small()
    data = cleaning.rows(c, CPU)
    data = data._replace(train=(data.train[0].double(), data.train[1]), val=(data.val[0].double(), data.val[1]))
    problem = cleaning.Cleaning(c, data, 0)
    problem.net.double()
    method = Method(Reverse(c.steps, "tree", 2), Kept(SGD(0.0)), c.steps)
    loop = cleaning._loop(c, problem, method, 0.5)
    wanted = oracle.unrolled(problem, loop.rule, loop.hypers, problem.init(), c.steps)
    found = loop.advance(loop.start(problem.init()), c.steps).outer.hypergradient
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    assert (found != 0).sum() == c.rows


def test_separation_by_hand() -> None:
    right = np.array([True, True, False, False])
    assert cleaning.separation(np.array([0.9, 0.8, 0.1, 0.2]), right) == 1
    assert cleaning.separation(np.array([0.1, 0.2, 0.9, 0.8]), right) == 0
    assert cleaning.separation(np.array([0.5, 0.5, 0.5, 0.5]), right) == 0.5


def test_whole_trainings_tell_wrong_labels(runs: dict[str, pd.DataFrame]) -> None:
    frame = runs["hyper_cleaning"].set_index("method")
    assert frame.loc[cleaning.WHOLE, "separation"] > 0.9
    assert frame.loc[cleaning.WHOLE, "test_accuracy"] > frame.loc[cleaning.ALL, "test_accuracy"]
    assert list(read.cleaned(runs["hyper_cleaning"]).index) == list(cleaning.METHODS)
    assert read.draw_cleaned(runs["hyper_cleaning"]).axes


# -- tables and claims -------------------------------------------------------------------------------------------------


def test_the_formulas_keep_their_bounds() -> None:
    table = read.formulas()
    assert (table["gradients a step"] <= table["1 + log_k T"]).all() and (table["states"] <= table["k log_k T"]).all()
    assert (table["fewest gradients"] <= table["gradients a step"]).all()


def test_claims_name_their_chapter_once() -> None:
    names = [claim.id for claim in horizon_claims.CLAIMS]
    assert len(set(names)) == len(names) and {claim.notebook for claim in horizon_claims.CLAIMS} == {"long_horizons"}
