"""Strict configurations: what is refused, in which words, and what identifies a run."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from gradtune.errors import GradtuneError, unknown
from gradtune_book import config


@dataclass(frozen=True)
class Example:
    method: str
    seed: int = 0
    version: int = 1
    rate: float = 0.1
    radius: float | None = None
    early: bool = False
    mode: Literal["layerwise", "global"] = "global"
    windows: tuple[float, ...] = (1.0, 2.0)
    pair: tuple[int, str] = (1, "a")


def make(**values: Any) -> Example:
    return config.from_dict(Example, {"method": "clip2", **values})


def test_defaults_and_values_arrive() -> None:
    cfg = make(seed=3, rate=0.5, radius=2.0, early=True, mode="layerwise", windows=[3.0], pair=[2, "b"])
    assert cfg == Example("clip2", 3, 1, 0.5, 2.0, True, "layerwise", (3.0,), (2, "b"))
    assert make() == Example("clip2")


def test_an_int_is_welcome_where_a_float_is_declared_and_becomes_one() -> None:
    cfg = make(rate=1, radius=2, windows=(1, 2))
    assert [type(value) for value in (cfg.rate, cfg.radius, *cfg.windows)] == [float] * 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sed": 1}, ["'sed'", "did you mean 'seed'?", "Example"]),
        ({"METHODS": "x"}, ["did you mean 'method'?"]),
        ({"zzzzzz": 1}, ["'zzzzzz'", "known: early, method"]),
        ({"seed": "1"}, ["Example.seed must be int, not str: '1'"]),
        ({"seed": True}, ["Example.seed must be int, not bool"]),
        ({"seed": 1.0}, ["Example.seed must be int, not float"]),
        ({"rate": False}, ["Example.rate must be float, not bool"]),
        ({"rate": "1e-3"}, ["Example.rate must be float, not str: '1e-3'"]),
        ({"rate": None}, ["Example.rate must be float, not NoneType"]),
        ({"rate": math.nan}, ["Example.rate must be a finite number"]),
        ({"radius": math.inf}, ["Example.radius must be a finite number"]),
        ({"radius": "2"}, ["Example.radius must be float, not str: '2' (or None)"]),
        ({"early": 1}, ["Example.early must be bool, not int"]),
        ({"method": 3}, ["Example.method must be str, not int"]),
        ({"mode": "layerwize"}, ["Example.mode", "did you mean 'layerwise'?"]),
        ({"windows": 3.0}, ["Example.windows must be tuple[float, ...], not float"]),
        ({"windows": [1.0, "2"]}, ["Example.windows[1] must be float"]),
        ({"pair": [1, "a", 2]}, ["Example.pair must hold 2 values, not 3"]),
    ],
)
def test_bad_values_are_refused_in_one_clear_sentence(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(GradtuneError) as caught:
        make(**values)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(GradtuneError, match="Example needs a value for method"):
        config.from_dict(Example, {"seed": 1})


def test_replace_is_checked_too() -> None:
    assert config.replace(make(), seed=4).seed == 4
    with pytest.raises(GradtuneError, match="did you mean 'rate'"):
        config.replace(make(), rat=0.3)
    with pytest.raises(GradtuneError, match="must be int"):
        config.replace(make(), seed=0.3)


def test_check_finds_what_a_dataclass_lets_through() -> None:
    assert config.check(Example("clip2", rate=1)).rate == 1.0
    with pytest.raises(GradtuneError, match=r"Example\.seed must be int"):
        config.check(Example("clip2", seed="1"))  # type: ignore[arg-type]


def test_dict_round_trip_is_plain_json() -> None:
    cfg = make(windows=(3.0, 4.0))
    assert config.to_dict(cfg)["windows"] == [3.0, 4.0]
    assert config.from_dict(Example, config.to_dict(cfg)) == cfg


def test_only_dataclasses_are_configurations() -> None:
    with pytest.raises(GradtuneError, match="int is none"):
        config.from_dict(int, {})


def test_key_identifies_a_run() -> None:
    key = config.key("study", make())
    assert len(key) == 12
    assert int(key, 16) >= 0
    assert key == config.key("study", make(seed=0, rate=0.1))
    assert config.key("study", Example("clip2", rate=1)) == config.key("study", Example("clip2", rate=1.0))
    others = [config.key("other", make()), config.key("study", make(seed=1)), config.key("study", make(version=2))]
    assert len({key, *others}) == 4


def test_key_is_the_same_on_every_machine() -> None:
    assert config.key("study", make(radius=0.3)) == "ae5eebdda6f8"


def test_scales() -> None:
    assert [config.check_scale(scale) for scale in config.SCALES] == ["smoke", "laptop", "paper"]
    with pytest.raises(GradtuneError, match=r"unknown scale 'papper'; did you mean 'paper'\?"):
        config.check_scale("papper")


def test_unknown_says_what_there_is_when_nothing_is_near() -> None:
    assert str(unknown("study", "qqq", ["b", "a"])) == "unknown study 'qqq'; known: a, b"
    assert str(unknown("study", "qqq", [])) == "unknown study 'qqq'; there is none"
