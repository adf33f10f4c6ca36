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

X, Y = torch.zeros(12, 6), torch.arange(12) % 3
NUMBERS = ("steps", "epochs", "restarts", "every", "seed", "batch_size", "accumulate")


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
    ],
)
def test_an_argument_of_another_kind_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(GradtuneError, match=words) as caught:
        call(**change)
    assert "\n" not in str(caught.value)
