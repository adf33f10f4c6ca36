"""Arguments of `tune` of another kind: refused in one sentence that names the argument, before anything runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from gradtune import tune
from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hyper

X, Y = torch.zeros(12, 6), torch.arange(12) % 3
NUMBERS = ("steps", "epochs", "restarts", "every", "seed", "batch_size", "accumulate")


NO_DECLARATIONS: list[dict[str, Any]] = [{"windows": w} for w in (0, -1, 1.5, True, "a", None, 100, math.nan, 10**400)]
NO_DECLARATIONS += [{"value": v} for v in ("a", None, 1j, 10**400, [1.0, 2.0], math.nan)]
NO_DECLARATIONS += [{"bounds": b} for b in ("ab", 3, (1.0, 0.0), (0.0,), (math.nan, 1.0), (0, "a"), (0, 1, 2), None)]
NO_DECLARATIONS += [{"shape": s} for s in ("a", None, (1.5,), (0,), (-1,), ("a",))]
NO_DECLARATIONS += [{"difference": d} for d in (-1.0, "a", None, math.nan)]
NO_DECLARATIONS += [{"transform": "x"}, {"transform": None}, {"name": 3}, {"granularity": 3}, {"tuned": ["x"]}]


@pytest.mark.parametrize("change", NO_DECLARATIONS, ids=lambda change: str(change)[:24])
def test_a_declaration_of_another_kind_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(GradtuneError) as caught:
        call(hypers=[Hyper(**{"name": "lr", "value": 0.05, "bounds": (0.0, 1.0), **change})], method="fds", options={})
    assert "\n" not in str(caught.value)


BATCHES: dict[str, Any] = {
    "whole numbers": (torch.ones(12, 6, dtype=torch.int64), Y),
    "truth values": (X > 0, Y),
    "complex numbers": (X + 0j, Y),
    "other features": (X[:, :4], Y),
    "one axis": (X[:, 0], Y),
    "classes beyond the end": (X, Y + 5),
    "classes below 0": (X, Y - 4),
    "targets with a fraction": (X, Y.float()),
    "targets with an axis more": (X, Y[:, None]),
    "two inputs": ((X, X), Y),
    "text": [("a", "b")],
    "no rows": [(X[:0], Y[:0])],
}


@pytest.mark.parametrize("place", ["train", "val", "test"])
@pytest.mark.parametrize("what", BATCHES)
def test_a_batch_that_model_or_loss_refuse_is_described(what: str, place: str) -> None:
    with pytest.raises(GradtuneError, match=r"fails on a batch with the inputs .* and the target|has no row") as caught:
        call(**{place: BATCHES[what]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("model", "said"), [(nn.Linear(5, 3), "shapes"), (nn.Linear(6, 2), "out of bounds")])
def test_a_model_that_does_not_fit_the_data(model: nn.Module, said: str) -> None:
    with pytest.raises(
        GradtuneError, match=rf"inputs float32 \[12, 6\] and the target int64 \[12\] .*{said}"
    ) as caught:
        call(model=model)
    assert isinstance(caught.value.__cause__, (RuntimeError, IndexError))


def test_an_error_of_the_users_own_kind_goes_through() -> None:
    class Enough(RuntimeError):
        pass

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise Enough("no more")

    with pytest.raises(Enough, match="no more"):
        call(loss=loss)


def call(**changes: Any) -> None:
    given: dict[str, Any] = {"model": nn.Linear(6, 3), "loss": cross_entropy, "train": (X, Y), "val": (X, Y)}
    given |= {"steps": 2, "hypers": {"lr": 0.05}, "method": "onepass"}
    tune(**(given | changes))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NUMBERS),
    st.one_of(st.floats(), st.booleans(), st.text(max_size=3), st.integers(max_value=-1), st.just([1]), st.just({})),
)
def test_what_is_no_whole_number_is_no_count(name: str, value: Any) -> None:
    more = {"steps": None} if name == "epochs" else {}
    with pytest.raises(
        GradtuneError, match=r"(expected a whole number >= \d|give one of the two|expected 1 to 12)"
    ) as caught:
        call(**{**more, name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": 3}, "model is a int; expected a torch.nn.Module"),
        ({"hypers": "lr"}, "hypers is a str; expected a dict"),
        ({"hypers": ["lr"]}, "hypers is a list; expected a dict"),
        ({"hypers": {"lr": "a"}}, "lr is given as 'a'"),
        ({"hypers": {"lr": math.nan}}, "lr has the initial value nan"),
        ({"fixed": {"momentum": math.nan}}, "momentum has the initial value nan"),
        ({"fixed": ["momentum"]}, "fixed is a list"),
        ({"options": [1]}, "options is a list"),
        ({"options": "every"}, "options is a str"),
        ({"options": {"look_back": 2.5}}, "look_back is 2.5; expected a number of terms >= 0"),
        ({"options": {"look_back": math.nan}}, "look_back is nan"),
        ({"callbacks": 3}, "callbacks is a int"),
        ({"callbacks": [3]}, "callbacks is a list"),
        ({"checkpoint": 5}, "checkpoint is a int"),
        ({"hypers": {"lr": 10**400}}, "lr is given as 1000"),
        ({"hypers": {"lr": torch.ones(2)}}, "lr is given as tensor"),
        ({"hypers": {"lr": True}}, "lr is given as True"),
        ({"options": {"every": 1.5}}, r"every = 1\.5; expected a whole number >= 1"),
        ({"options": {"every": "a"}}, "every = 'a'; expected a whole number >= 1"),
        ({"method": "hd", "options": {"lr": "a"}}, "the method hd cannot be made with options"),
        ({"method": {}}, "method is a dict"),
        ({"rule": ["sgd"]}, "rule is a list"),
        ({"loss": 3}, "loss is a int"),
        ({"loss": nn.CrossEntropyLoss}, "loss is the class CrossEntropyLoss; expected a function"),
        ({"val_loss": "mse"}, "val_loss is a str"),
        ({"callbacks": nn.Linear}, "callbacks is the class Linear"),
        ({"scaler": 3}, "scaler is a int"),
        ({"probe": "no"}, "probe is a str; expected True, False or None"),
        ({"guard": 1}, "guard is 1; expected True, False or None"),
        ({"in_place": 1}, "in_place is 1"),
        ({"replay": math.nan}, "replay is nan"),
        ({"checkpoint_seconds": math.nan}, "checkpoint_seconds is nan; expected a number >= 0"),
        ({"checkpoint_seconds": torch.ones(2)}, "checkpoint_seconds is a Tensor"),
        ({"clip_norm": "a"}, "clip_norm is a str; expected a number > 0"),
        ({"clip_value": -1.0}, r"clip_value is -1\.0; expected a number > 0"),
        ({"clip_value": math.inf}, "clip_value is inf"),
        ({"restarts": 10**400}, r"restarts = 1000.*expected a whole number >= 0 and < 2\*\*63"),
    ],
)
def test_an_argument_of_another_kind_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(GradtuneError, match=words) as caught:
        call(**change)
    assert "\n" not in str(caught.value)
