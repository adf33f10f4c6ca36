"""The study `long_horizons`: shortcuts that must agree with the exact hypergradient do, and its tables by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from gradtune.errors import GradtuneError
from gradtune_book import papers
from gradtune_book.papers.together import long_horizons as study
from gradtune_book.tasks import small

CPU = torch.device("cpu")
T = 12


def config(method: str, amount: float = T, task: str = "tables") -> study.Config:
    return study.Config(method, 0, task, small.resolve(task, "embedded"), T, float(amount))


def found(c: study.Config) -> list[float]:
    metrics = study.run([c], CPU)[0].metrics
    return [float(metrics[f"d_{name}"] or 0.0) for name in study.COORDINATES]


@pytest.mark.parametrize("task", study.TASKS)
def test_shortcuts_that_look_back_on_everything_are_exact(task: str) -> None:
    exact = found(config(study.EXACT, T, task))
    assert all(exact)
    for method, amount in (("Diff-through-Opt", T), ("UnrollK", T), ("ClipR", 1e9)):
        assert found(config(method, amount, task)) == pytest.approx(exact, rel=1e-9)


def test_shorter_ones_are_not_and_those_of_one_length_agree() -> None:
    exact, short = found(config(study.EXACT)), found(config("Diff-through-Opt", 4))
    assert short != pytest.approx(exact, rel=1e-2)
    assert found(config("UnrollK", 4)) == pytest.approx(short, rel=1e-9)
    assert found(config("OnePass", 1)) == pytest.approx(found(config("Diff-through-Opt", 1)), rel=1e-9)
    assert found(config("ClipR", 1e-3)) != pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("task", study.TASKS)
def test_smooth_units(task: str) -> None:
    problem = small.load(task, small.resolve(task, "embedded"))
    rough, smooth = ({type(m) for m in study.net(problem, units, 0).modules()} for units in study.UNITS)
    kinks = {nn.ReLU, nn.MaxPool2d}
    assert rough & kinks and not smooth & kinks
    states = [study.net(problem, units, 0).state_dict() for units in study.UNITS]
    assert all(torch.equal(x, states[1][n]) for n, x in states[0].items())


def test_what_is_unknown_is_told() -> None:
    with pytest.raises(GradtuneError, match="unknown units 'rough'"):
        study.net(small.load("tables", "diabetes"), "rough", 0)
    with pytest.raises(GradtuneError, match="unknown method 'exactly'; did you mean 'exact'"):
        study.run([replace(config(study.EXACT), method="exactly")], CPU)


@pytest.mark.parametrize("scale", study.SIZES)
def test_the_runs_of_a_scale(scale: str) -> None:
    runs = papers.get("long_horizons").runs(scale)
    assert runs[0].method == study.EXACT and {c.method for c in runs} == set(study.METHODS)
    assert all(c.steps % c.amount == 0 for c in runs if c.method == "UnrollK")
    lengths = {c.amount for c in runs if c.method == "Diff-through-Opt"}
    assert min(lengths) == 1 and max(lengths) == runs[0].steps


def test_the_smoke_runs_and_their_tables() -> None:
    study_ = papers.get("long_horizons")
    runs = [c for c in study_.runs("smoke") if c.task == "tables"]
    frame = papers.run_now(study_, runs)
    table = study.by_amount(study.bias(frame))
    errors = table[small.TITLES["tables"], "relu"]
    assert errors["Diff-through-Opt", 30.0] < 1e-9 < errors["Diff-through-Opt", 10.0] < errors["Diff-through-Opt", 1.0]
    assert study.smoothness(frame).loc[("tables", "smooth", 0), 1e-3] == pytest.approx(1.0, abs=1e-3)


def test_bias_by_hand() -> None:
    base = {"task": "tables", "dataset": "diabetes", "seed": 0, "steps": 5, "lr": 0.02, "version": 1, "units": "relu"}
    frame = pd.DataFrame(
        [
            base | {"method": study.EXACT, "amount": 5.0, "d_lr": 3.0, "d_momentum": 4.0, "d_weight_decay": 0.0},
            base | {"method": "OnePass", "amount": 2.0, "d_lr": 3.0, "d_momentum": -4.0, "d_weight_decay": 0.0},
            base
            | {"method": "OnePass", "seed": 1, "amount": 2.0, "d_lr": 1.0, "d_momentum": 1.0, "d_weight_decay": 0.0},
        ]
    )
    (row,) = study.bias(frame).to_dict("records")
    assert (row["error"], row["cosine"], row["length"], row["signs"]) == (8 / 5, -7 / 25, 1.0, 2)
    assert math.isclose(study.by_amount(study.bias(frame)).iloc[0, 0], 8 / 5)
