"""Random and random xLR through `search.Training` against the published program's runs on UCI Energy (float64, CPU)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from gradtune.recursion.hypers import Hyper
from gradtune.recursion.rules import sgd
from gradtune.search import MULTIPLIER, Training
from gradtune_book.tasks.uci import Table, TableRegression
from tools import REFERENCE

FILE = REFERENCE / "onepass_uci_energy.npz"
HYPERS = [
    Hyper("lr", 0.1, "log10", bounds=(1e-10, 1.0)),
    Hyper("weight_decay", 1e-3, "log10"),
    Hyper("momentum", 0.5, "sigmoid"),
]


def relative(ours: float, theirs: float) -> float:
    return abs(ours / theirs - 1)


@pytest.fixture(scope="module")
def z() -> dict[str, np.ndarray]:
    return dict(np.load(FILE))


@pytest.fixture(scope="module")
def task(z: dict[str, np.ndarray]) -> TableRegression:
    a, b, c, d, e, f = (torch.tensor(z[f"{p}_{q}"]) for q in ("train", "val", "test") for p in "xy")
    return TableRegression(Table(a, b, c, d, e, f, y_std=float(z["y_std"])).merged())


@pytest.fixture(scope="module")
def training(z: dict[str, np.ndarray], task: TableRegression) -> Training:
    """One training for all cases, whose initial weights stand in for draws from a seed."""

    def init(seeds: Sequence[int]) -> Tensor:
        return torch.stack([torch.tensor(z[f"traj_Random_{k}_init_weights"]) for k in seeds])

    return Training(task, sgd(), HYPERS, task.layout.sizes, init, steps=4000, trace=True)


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("name", ["Random", "Random_SteppedLR"])
def test_whole_training(
    name: str, case: int, z: dict[str, np.ndarray], task: TableRegression, training: Training
) -> None:
    """All 4000 steps: losses of the first 20 updates to 1e-9, of all others and at the end to 1e-6; every learning rate
    to 1e-9."""
    prefix = f"traj_{name}_{case}_"
    lr, decay, momentum, factor = (float(x) for x in z[prefix + "init_raw"])
    config = {"lr": 10.0**lr, "weight_decay": 10.0**decay, "momentum": 1 / (1 + math.exp(-momentum))}
    if name == "Random_SteppedLR":
        config[MULTIPLIER] = factor
    members = training.start([config], [case])
    for update in range(401):
        mse = float(task.test_mse(members.run.state.w))
        assert relative(mse, float(z[prefix + "test_mse"][update])) < (1e-9 if update <= 20 else 1e-6)
        if name == "Random_SteppedLR":
            assert relative(float(members.run.fixed["lr"]), z[prefix + "lr"][update]) < 1e-9
        if update < 400:
            members = training.advance(members, 10)
    assert members.run.t == 4000
    assert relative(mse, float(z[prefix + "final_test_mse"])) < 1e-6
