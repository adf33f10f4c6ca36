"""A search on a model of one's own that is killed or interrupted, and goes on from its file to the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from gradtune.errors import GradtuneError
from gradtune.tuning.by_search import Found, tune_by_search
from gradtune.tuning.trials import Trial, Trials

RNG = torch.Generator().manual_seed(0)
X = torch.randn(120, 12, generator=RNG)
Y = (X @ torch.randn(12, 4, generator=RNG)).argmax(1)
TRAIN, VAL = (X[:90], Y[:90]), (X[90:], Y[90:])
SPACE: dict[str, Any] = {"lr": (1e-3, 1.0), "weight_decay": (1e-5, 1e-1)}
OPTIONS: dict[str, dict[str, Any]] = {"grid": {"points": 2}, "bayes": {"startup": 2}, "pbt": {"size": 3, "interval": 3}}
TIMES = ("training_seconds", "sampler_seconds")


class Killed(Exception):
    pass


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))


def searched(method: str = "random", model: nn.Module | None = None, **changes: Any) -> Found:
    given: dict[str, Any] = {"loss": cross_entropy, "train": TRAIN, "val": VAL, "space": SPACE, "steps": 9}
    given |= {"trials": 4, "batch_size": 30, "seed": 1, "method": method, "options": OPTIONS.get(method)}
    return tune_by_search(model or net(), **(given | changes))


def rows(found: Found) -> list[dict[str, Any]]:
    return [{n: v for n, v in row.items() if n not in TIMES} for row in found.search.rows]


def same(a: Found, b: Found) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return rows(a) == rows(b) and a.best == b.best and all(torch.equal(x, y) for x, y in pairs)


def dying(monkeypatch: pytest.MonkeyPatch, name: str, after: int, error: type[BaseException]) -> list[int]:
    """Let a method of the trials raise at its call of that number; returns the count of calls."""
    calls, whole = [0], getattr(Trials, name)

    def method(self: Trials, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise error
        return whole(self, *arguments)

    monkeypatch.setattr(Trials, name, method)
    return calls


def through_kills(path: Path, method: str, each: int, **changes: Any) -> tuple[Found, int]:
    """Search, killed after every few evaluations, until it ends; returns the result and the number of kills."""
    for kills in range(100):
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, "val_loss", each, Killed)
            try:
                return searched(method, checkpoint=path, checkpoint_seconds=0.0, **changes), kills
            except Killed:
                continue
    raise AssertionError("it never ends")


@pytest.mark.parametrize("method", ["random", "bayes", "asha", "pbt"])
def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(method: str, tmp_path: Path) -> None:
    whole = searched(method)
    found, kills = through_kills(tmp_path / "search.pt", method, 2)
    assert kills >= 1 and same(found, whole)
    assert found.search.stopped == whole.search.stopped


def test_no_step_before_the_last_evaluation_is_taken_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of 9-step trials killed after each evaluation, a sitting trains no trial that is on file."""
    steps = []
    step = Trials._step

    def counted(self: Trials, trial: Trial) -> None:
        steps.append(1)
        step(self, trial)

    monkeypatch.setattr(Trials, "_step", counted)
    _, kills = through_kills(tmp_path / "search.pt", "random", 2)
    again = 9 * (kills + 1)  # the trial at whose evaluation a sitting was killed
    assert kills >= 1 and 36 <= len(steps) <= 36 + again


@pytest.mark.parametrize("method", ["asha", "pbt"])
def test_interrupted_inside_a_trial_it_returns_what_it_has_and_goes_on_from_there(method: str, tmp_path: Path) -> None:
    whole, path = searched(method), tmp_path / "search.pt"
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, "_step", 20, KeyboardInterrupt)
        part = searched(method, checkpoint=path, checkpoint_seconds=1e9)
    assert "interrupted" in part.search.stopped and 0 < len(rows(part)) < len(rows(whole))
    assert rows(part) == rows(whole)[: len(rows(part))]
    assert same(searched(method, checkpoint=path), whole)


def test_a_schedule_and_a_loader_are_where_they_were(tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(
            TensorDataset(*TRAIN), batch_size=30, shuffle=True, generator=torch.Generator().manual_seed(3)
        )

    more: dict[str, Any] = {"schedule": lambda factor: CosineAnnealingLR(factor, 9), "batch_size": None}
    whole = searched("asha", train=loader(), **more)
    found, kills = through_kills(tmp_path / "search.pt", "asha", 3, train=loader(), **more)
    assert kills >= 1 and same(found, whole)


def test_times_of_all_sittings_add_up(tmp_path: Path) -> None:
    found, _ = through_kills(tmp_path / "search.pt", "random", 2)
    for name in TIMES:
        column = [row[name] for row in found.search.rows]
        assert column == sorted(column) and column[0] >= 0
    again = searched(checkpoint=tmp_path / "search.pt")
    assert [[row[n] for n in TIMES] for row in again.search.rows] == [[r[n] for n in TIMES] for r in found.search.rows]


def test_a_search_that_has_ended_trains_nothing_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = searched("hyperband", checkpoint=tmp_path / "search.pt")
    calls = dying(monkeypatch, "_step", 0, Killed)
    assert same(searched("hyperband", checkpoint=tmp_path / "search.pt"), first) and calls == [0]


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 2}, "search"),
    "method": ({"method": "bayes"}, "search"),
    "budget": ({"trials": 5}, "search"),
    "space": ({"space": {"lr": (1e-3, 0.5), "weight_decay": (1e-5, 1e-1)}}, "space"),
    "data": ({"train": (X[:90] + 1, Y[:90])}, "data"),
    "validation": ({"val": (X[90:] + 1, Y[90:])}, "data"),
    "loss": ({"loss": lambda out, y: 2 * cross_entropy(out, y)}, "loss"),
    "rule": ({"rule": "adamw"}, "settings"),
    "steps": ({"steps": 8, "trials": None, "budget_steps": 36}, "settings"),
    "fixed": ({"fixed": {"momentum": 0.5}}, "settings"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_search_is_refused_with_what_differs(what: str, tmp_path: Path) -> None:
    searched(checkpoint=tmp_path / "search.pt")
    changes, topic = OTHERS[what]
    with pytest.raises(GradtuneError, match=rf"was saved with other {topic} \("):
        searched(**({"method": "random"} | changes), checkpoint=tmp_path / "search.pt")


def test_other_initial_weights_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.pt"
    searched(checkpoint=path)
    other = net()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(GradtuneError, match="other initial weights"):
        searched(model=other, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GradtuneError, match="no whole checkpoint"):
        searched(checkpoint=path)
    torch.save({"tuner": 1}, path)
    with pytest.raises(GradtuneError, match="no whole checkpoint"):
        searched(checkpoint=path)


def test_a_search_that_draws_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version of optuna might."""
    from gradtune.search import asking

    path = tmp_path / "search.pt"
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, "val_loss", 2, Killed)
        with pytest.raises(Killed):
            searched(checkpoint=path, checkpoint_seconds=0.0)
    ask = asking.Asker.ask

    def other(self: Any) -> Any:
        trial, config = ask(self)
        return trial, {**config, "lr": config["lr"] * 1.01}

    monkeypatch.setattr(asking.Asker, "ask", other)
    with pytest.raises(GradtuneError, match="does not go the way"):
        searched(checkpoint=path)


def test_the_state_of_a_trial_is_whole() -> None:
    """What `Trial` gains must be saved too."""
    assert set(Trial.__dataclass_fields__) == {"tuner", "train", "config", "schedule"}
