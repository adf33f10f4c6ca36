"""OnePass's baseline "Baydin" on UCI Energy against the numbers of the published program (float64, CPU)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradtune.methods import baydin
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Run
from gradtune_book.tasks.uci import Table, TableRegression
from tools import REFERENCE


@pytest.fixture(scope="module")
def energy() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE / "onepass_uci_energy.npz"))


def task(energy: dict[str, np.ndarray], rows: str) -> TableRegression:
    a, b, c, d, e, f = (torch.tensor(energy[f"{p}_{q}"]) for q in (rows, "val", "test") for p in "xy")
    return TableRegression(Table(a, b, c, d, e, f, y_std=float(energy["y_std"])))


def hypers(raw: Tensor, problem: TableRegression) -> Hypers:
    """A tuned log10 learning rate and fixed weight decay and momentum from raw coordinates `[R, 3 or more]`. The
    published baseline has no bounds."""
    return Hypers(
        [
            Hyper("lr", 10.0 ** raw[:, 0], "log10"),
            Hyper("weight_decay", 10.0 ** raw[:, 1], tuned=False),
            Hyper("momentum", torch.sigmoid(raw[:, 2]), tuned=False),
        ],
        problem.layout.sizes,
    )


def test_merged_rows_are_the_baselines_training_rows(energy: dict[str, np.ndarray]) -> None:
    merged = task(energy, "train").table.merged()
    assert torch.equal(merged.x_train, torch.tensor(energy["x_trainval"]))
    assert torch.equal(merged.y_train, torch.tensor(energy["y_trainval"]))


def test_baydin_hypergradient(energy: dict[str, np.ndarray]) -> None:
    """-<g(w_1), g(w_0)> of eight nets, and 0 before the first step."""
    seen: list[Tensor] = []

    class Frozen(SGD):
        def update(
            self, raw: Tensor, hypergradient: Tensor, state: tuple[()], lam: Mapping[str, Tensor]
        ) -> tuple[Tensor, tuple[()]]:
            seen.append(hypergradient)
            return raw, state

    problem = task(energy, "trainval")
    init = torch.cat([torch.tensor(energy[f"hg_init_{p}"]).reshape(8, -1) for p in ("W1", "b1", "W2", "b2")], dim=1)
    method: Any = baydin()
    object.__setattr__(method, "outer", Frozen(0.0))
    loop = Loop(problem, sgd(), hypers(torch.tensor(energy["hg_hyper_raw"]), problem), method)
    loop.advance(loop.start(init), 2)
    assert not seen[0].any()
    theirs = torch.tensor(energy["hg_baydin_step1"])
    assert (seen[1] / theirs - 1).abs().max() < 1e-10


def test_baydin_trajectories(energy: dict[str, np.ndarray]) -> None:
    """Both published runs, all 4000 steps: the learning rate in force at every recorded step and the test error."""
    problem = task(energy, "trainval")
    raw, w, rates, errors, final = (
        torch.tensor(np.stack([energy[f"traj_Baydin_{k}_{name}"] for k in (0, 1)]))
        for name in ("init_raw", "init_weights", "lr_every_step", "test_mse", "final_test_mse")
    )
    loop = Loop(problem, sgd(), hypers(raw, problem), baydin(), trace=True)
    differences: list[float] = []

    def compare(run: Run) -> None:
        lr = loop.hypers.natural(run.raw)["lr"][:, 0]  # in force at the step just taken, number t - 1
        mse = problem.test_mse(run.state.w)
        differences.append(float((lr / rates[:, run.t - 1] - 1).abs().max()))
        differences.append(float((mse / errors[:, run.t // 10] - 1).abs().max()))

    early = loop.advance(loop.start(w), 200, compare, watch_every=10)
    assert max(differences) < 1e-9
    end = loop.advance(early, 3800, compare, watch_every=10)
    assert max(differences) < 1e-6 and len(differences) == 800
    assert (problem.test_mse(end.state.w) / final - 1).abs().max() < 1e-6
    assert not torch.allclose(rates[:, 0], rates[:, 1000], rtol=0.5)  # the learning rates have moved far
