"""The studies of the FDS paper: their numbers against an independent computation, their records, their tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from gradhpo import oracle, studies
from gradhpo.config import check
from gradhpo.errors import GradhpoError
from gradhpo.hypers import Hyper, Hypers
from gradhpo.records import POINTS
from gradhpo.rules import sgd
from gradhpo.studies import fds_common, fds_sharing_mse, fds_sharing_tables

CPU = torch.device("cpu")


# -- fds_sharing_mse ---------------------------------------------------------------------------------------------------

TINY = fds_sharing_mse.Config("non-greedy", 3, "svhn_like", 60, steps=4, batch=10, validation=20, dtype="float64")


def test_the_hypergradients_of_figure_2_are_exact() -> None:
    """Both methods against autograd through the whole training (float64)."""
    task, _ = fds_sharing_mse.trainings(TINY, [TINY.seed], CPU)
    rates = fds_common.schedule("cosine", TINY.lr, TINY.steps)
    declared = [Hyper("lr", rates, windows=4), Hyper("momentum", 0.9, tuned=False)]
    rule, hypers, w = sgd(weight_decay=False), Hypers(declared, task.layout.sizes, TINY.steps), task.init()
    exact, _ = fds_sharing_mse.hypergradients(task, TINY)
    torch.testing.assert_close(exact, oracle.unrolled(task, rule, hypers, w, TINY.steps), rtol=1e-8, atol=1e-12)

    greedy, _ = fds_sharing_mse.hypergradients(task, replace(TINY, method="greedy"))
    for t in range(TINY.steps):
        through = oracle.unrolled(task, rule, hypers, w, t + 1)
        torch.testing.assert_close(greedy[:, t], through[:, t], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(greedy[:, -1], exact[:, -1])  # the last step has nothing behind it
    assert not torch.allclose(greedy[:, 0], exact[:, 0], rtol=0.05)


def test_the_schedule_is_a_cosine_over_all_steps() -> None:
    rates = fds_common.schedule("cosine", 0.01, 250)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=250)
    for rate in rates[:100]:
        assert theirs.get_last_lr()[0] == pytest.approx(float(rate), rel=1e-12)
        optimiser.step()
        theirs.step()
    with pytest.raises(GradhpoError, match="unknown schedule 'cosinus'; did you mean 'cosine'"):
        fds_common.schedule("cosinus", 0.01, 3)


def test_pieces_survive_a_record() -> None:
    values = np.linspace(-1, 1, 123)
    parts = fds_common.pieces("g", list(values), digits=7)
    assert list(parts) == ["g_0", "g_1", "g_2"] and max(map(len, parts.values())) <= POINTS
    frame = pd.DataFrame([parts, parts])
    assert fds_common.whole(frame, "g") == pytest.approx(np.stack([values, values]), abs=1e-6)


@pytest.fixture(scope="module")
def shared() -> pd.DataFrame:
    sizes = fds_sharing_mse.Sizes(("svhn_like",), 3, 6, 10, 20, 60)
    return studies.run_now(studies.get("fds_sharing_mse"), fds_sharing_mse.configs(sizes))


def test_the_tables_of_figure_2(shared: pd.DataFrame) -> None:
    found = fds_sharing_tables.samples(shared, "svhn_like")
    assert [s.name for s in found] == ["Figure 2: learning rate from 0.01", "Figure 6: learning rate from 0.001"]
    assert found[0].exact.shape == (3, 6) and found[0].greedy is not None and found[1].greedy is None
    table = fds_sharing_tables.curves(found[0])
    assert table.index[0] == 1 and table.index[-1] == 6
    assert (table["non-greedy"] <= table["bound"] + 1e-12).all()
    numbers = fds_sharing_tables.numbers(found)
    assert numbers["MSE at W = 1"].iloc[0] == pytest.approx(found[0].exact.var(axis=0).mean())
    claims = fds_sharing_tables.checks(found)
    assert claims["the bound of Theorem 4.1 holds for every window"] is True and len(claims) == 7


def test_a_diverged_seed_is_left_out(shared: pd.DataFrame) -> None:
    broken = shared.copy()
    k = broken.index[broken["method"] == "non-greedy"][0]
    broken.at[k, "hypergradient_0"] = [float("nan")] * 6
    assert [len(s.exact) for s in fds_sharing_tables.samples(broken, "svhn_like")] == [2, 3]


def test_figure_5_stays_below_the_bound() -> None:
    table = fds_sharing_tables.profile_errors(40, 6, 0.05, 1.0, 0.1)
    lines = table.drop(columns="bound")
    assert (lines.le(table["bound"] + 1e-12, axis=0)).all().all()
    assert table[0].to_numpy() == pytest.approx(table["bound"].to_numpy())  # the largest drift reaches it
    assert (lines.ge(table[1] - 1e-12, axis=0)).all().all()


# -- every scale -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fds_sharing_mse"])
@pytest.mark.parametrize("scale", studies.SCALES)
def test_every_run_is_a_configuration_of_its_own(name: str, scale: str) -> None:
    study = studies.get(name)
    found = study.runs(scale)
    assert len({check(c) for c in found}) == len(found) > 0
    assert all(study.cost(c) > 0 for c in found)
