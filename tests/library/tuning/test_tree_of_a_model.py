"""Reverse mode over a tree of checkpoints through `hypergradient`, `Tuner` and `tune`: models with a state of their
own, files, interruptions, and finite steps beside the hypergradient."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim.lr_scheduler import StepLR

import gradtune
from gradtune.errors import GradtuneError
from gradtune.estimators.reverse import Reverse
from gradtune.estimators.tree import tree_cost
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.outer import SGD
from gradtune.training.loop import Method
from gradtune.tuning.once import Hypergradient
from tools import ROOT, normal, whole

RATES: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.1, "weight_decay": 1e-3},
    "nesterov": {"lr": 0.05, "momentum": 0.8},
    "adam": {"lr": 0.01, "beta1": 0.8, "beta2": 0.95},
    "adamw": {"lr": 0.01, "weight_decay": 0.01},
    "rmsprop": {"lr": 0.01, "weight_decay": 0.01},
    "lion": {"lr": 0.003, "weight_decay": 0.01},
}


class Stateful(nn.Module):
    """Batch norm, dropout, noise on the inputs, a buffer that follows the data and a count that the output reads."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.register_buffer("average", torch.zeros(()))
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            self.average.mul_(0.9).add_(x.detach().mean(), alpha=0.1)
            x = x + 0.1 * torch.randn_like(x)
        return self.body(x) * (1 + 0.01 * (self.count % 3) + self.average)


def made(kind: Callable[[], nn.Module] = Stateful, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return kind().to(dtype)


def batches(steps: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    return [(normal(6, 5, seed=k).to(dtype), whole(3, 6, seed=k)) for k in range(steps)]


def found(
    model: nn.Module, steps: int = 13, rule: str = "sgd", dtype: Any = torch.float64, **more: Any
) -> Hypergradient:
    given = batches(steps + 1, dtype)
    options = {n: more.pop(n) for n in ("store", "branching", "on", "folder") if n in more}
    arguments = {"hypers": RATES[rule], "rule": rule, "options": options} | more
    return gradtune.hypergradient(model, cross_entropy, given[:-1], given[-1], **arguments)


# -- bits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", RATES)
def test_tree_is_state(rule: str, dtype: torch.dtype) -> None:
    model = made(dtype=dtype)
    before = {n: x.clone() for n, x in model.state_dict().items()}
    wanted = found(model, rule=rule, dtype=dtype, store="state")
    for branching, on in ((2, "memory"), (3, "disk"), (8, "memory")):
        tree = found(model, rule=rule, dtype=dtype, store="tree", branching=branching, on=on)
        assert tree.values == wanted.values and tree.val_loss == wanted.val_loss
        assert tree.cost[3:] == tree_cost(13, branching)
        assert tree.cost.gradients == wanted.cost.gradients + tree.cost.replayed + 1  # the first step has no graph
        assert tree.cost.hessian_products == wanted.cost.hessian_products
    assert any(wanted.values.values())
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items()) and model.count == 0


@pytest.mark.parametrize("store", ["state", "tree"])
def test_without_statistics_it_is_the_graph(store: str) -> None:
    wanted, close = found(made()), found(made(), store=store)
    assert close.values == pytest.approx(wanted.values, rel=1e-12)


def test_a_single_step() -> None:
    assert found(made(), 1, store="tree").values == found(made(), 1, store="state").values


class Renormed(nn.Module):
    """Its forward pass writes into its weights (`max_norm`)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4, max_norm=0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).mean(1))


def test_weights_that_a_forward_pass_writes() -> None:
    given = [(whole(7, 6, 5, seed=k), whole(3, 6, seed=k)) for k in range(12)]
    values = [
        gradtune.hypergradient(
            made(Renormed), cross_entropy, given[:-1], given[-1], hypers={"lr": 0.3}, options={"store": store}
        ).values
        for store in ("state", "tree")
    ]
    assert values[0] == values[1] != {"lr": 0.0}


def test_initial_weights() -> None:
    a, b = (found(made(), store=store, initial_weights=True) for store in ("state", "tree"))
    assert a.weights is not None and b.weights is not None
    assert a.values == b.values and all(torch.equal(x, b.weights[n]) for n, x in a.weights.items())


class Lazy(Sequence[Any]):
    """Batches that are made when they are asked for."""

    def __init__(self, steps: int) -> None:
        self.steps, self.asked = steps, list[int]()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, k: Any) -> Any:
        if not 0 <= k < self.steps:
            raise IndexError(k)
        self.asked.append(k)
        return normal(6, 5, seed=k), whole(3, 6, seed=k)


def test_batches_are_asked_for_again() -> None:
    lazy, val = Lazy(13), batches(14)[-1]
    lazily = gradtune.hypergradient(
        made(), cross_entropy, lazy, val, hypers=RATES["sgd"], options={"store": "tree", "branching": 3}
    )
    assert lazily.values == found(made(), store="state").values
    assert len(lazy.asked) == 1 + 13 + tree_cost(13, 3).replayed + 13


def tuned(how: Reverse, steps: int, stop: int = 0, **more: Any) -> list[Any]:
    """Weights, buffers and hyperparameters after a training with updates every 7 steps, saved and loaded at a step."""

    def tuner() -> gradtune.Tuner:
        method = Method(how, SGD(0.01), every=7)
        return gradtune.Tuner(made(), cross_entropy, rule="adamw", hypers=RATES["adamw"], method=method, **more)

    given, now = batches(2 * steps + 1), tuner()
    count = more.get("accumulate", 1)
    schedule = StepLR(now.factor, 4, 0.7) if "accumulate" not in more else None
    for t in range(steps):
        if t == stop and stop:
            before, now = now, tuner()
            now.load_state_dict(before.state_dict())
            schedule = None
        batch = given[count * t] if count == 1 else given[count * t : count * t + count]
        now.step(batch, given[-1] if now.needs_val else None)
        if schedule is not None:
            schedule.step()
    return [*now.model.state_dict().values(), now.raw]


@pytest.mark.parametrize("stop", [0, 3, 7, 11])
@pytest.mark.parametrize("more", [{}, {"accumulate": 2, "clip_norm": 0.5}], ids=str)
def test_a_tuner(stop: int, more: dict[str, Any]) -> None:
    """With a schedule or several batches a step; saved and loaded between updates, too."""
    wanted = tuned(Reverse(6), 21, stop, **more)
    for how in (Reverse(6, "tree", 2), Reverse(20, "tree", 2)):
        same = wanted if how.horizon == 6 else tuned(Reverse(20), 21, stop, **more)
        assert all(torch.equal(a, b) for a, b in zip(tuned(how, 21, stop, **more), same, strict=True))


def test_a_tuner_with_a_folder_is_saved_and_loaded(tmp_path: Path) -> None:
    how = Reverse(7, "tree", 2, "disk", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(tuned(how, 21, 11), tuned(Reverse(7), 21, 11), strict=True))
    assert not list(tmp_path.iterdir()) and str(tmp_path) not in repr(how)


def test_tune() -> None:
    """Rows of tensors are drawn again, so no batch is kept; with a restart."""
    data = normal(40, 5), whole(3, 40)

    def values(how: Reverse) -> list[float]:
        result = gradtune.tune(
            *(made(), cross_entropy, data, data),
            steps=24,
            batch_size=8,
            rule="sgd",
            hypers=RATES["sgd"],
            restarts=1,
            method=Method(how, SGD(0.1), every=8),
            every=3,
        )
        return [float(x) for row in result.history._rows for x in row.raw]

    wanted = values(Reverse(8))
    assert values(Reverse(8, "tree", 2)) == wanted and len(set(wanted)) > 4


# -- what is told ------------------------------------------------------------------------------------------------------


def test_weights_that_somebody_changes_are_told() -> None:
    tuner = gradtune.Tuner(
        made(), cross_entropy, hypers={"lr": 0.1}, method=Method(Reverse(6, "tree", 2), SGD(0.1), every=6)
    )
    given = batches(7)
    for t in range(5):
        tuner.step(given[t])
        if t == 1:
            with torch.no_grad():
                next(tuner.model.parameters()).add_(1e-3)
    with pytest.raises(GradtuneError, match=r"step 2, taken again.*changed between two steps"):
        tuner.step(given[5], given[6])


def test_options_of_exact() -> None:
    with pytest.raises(GradtuneError, match="unknown option of exact 'branches'; did you mean 'branching'"):
        gradtune.hypergradient(
            made(), cross_entropy, batches(2), batches(1)[0], hypers={"lr": 0.1}, options={"branches": 3}
        )


def test_a_scaler_is_refused() -> None:
    with pytest.raises(GradtuneError, match="a scaler leaves out steps by its own state"):
        gradtune.Tuner(
            made(),
            cross_entropy,
            hypers={"lr": 0.1},
            method=Method(Reverse(4, "tree"), SGD(0.1), every=4),
            scaler=torch.amp.GradScaler("cpu"),
        )


def test_replay_is_refused() -> None:
    with pytest.raises(GradtuneError, match="takes steps again from a tree of checkpoints"):
        found(made(), store="tree", replay=True)


# -- files and interruptions -------------------------------------------------------------------------------------------


KILLED = """
    import os, signal, sys
    sys.path[:0] = [{tests!r}, {here!r}]
    from gradtune.training import shelves
    from gradtune.tuning.supervised import Supervised
    from test_tree_of_a_model import found, made
    shelves._PAUSE = 0.0
    calls, real = 0, Supervised.train_gradient
    def counted(*given, **named):
        global calls
        calls += 1
        if calls == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    Supervised.train_gradient = counted
    found(made(), 40, "adamw", store="tree", branching=3, on="disk", folder={folder!r})
"""


@pytest.mark.parametrize("at", [20, 60, 125])
def test_a_killed_hypergradient_goes_on(at: int, tmp_path: Path) -> None:
    """Killed in the training, and at two places of the way back."""
    code = textwrap.dedent(KILLED).format(
        tests=str(ROOT / "tests"), here=str(Path(__file__).parent), at=at, folder=str(tmp_path)
    )
    path = os.pathsep.join([str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=False)
    assert ended.returncode == -signal.SIGKILL
    wanted = found(made(), 40, "adamw", store="state")
    again = found(made(), 40, "adamw", store="tree", branching=3, on="disk", folder=tmp_path)
    assert again.values == wanted.values and again.val_loss == wanted.val_loss
    whole_way = 40 + tree_cost(40, 3).replayed + 40 + 1
    assert again.cost.gradients <= whole_way - at + 28  # of the 40 steps, the longest part between two files has 14
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_training(tmp_path: Path) -> None:
    keep_files(tmp_path)
    same: dict[str, Any] = {"model": made(), "store": "tree", "branching": 3, "on": "disk", "folder": tmp_path}
    for more in ({"steps": 12}, {"rule": "adamw"}, {"branching": 4}):
        with pytest.raises(GradtuneError, match="holds checkpoints of another training"):
            found(**(same | more))


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    keep_files(tmp_path)
    file = max(tmp_path.glob("state-*.pt"), key=lambda f: int(f.stem.split("-")[1]))
    file.write_bytes(file.read_bytes()[:-70] + b"x" * 70)
    with pytest.raises(GradtuneError, match="is no whole checkpoint"):
        found(made(), store="tree", branching=3, on="disk", folder=tmp_path)


def test_other_batches_than_before_are_told(tmp_path: Path) -> None:
    keep_files(tmp_path)
    given = [(x + 1e-6, y) for x, y in batches(14)]
    with pytest.raises(GradtuneError, match="taken again, does not give"):
        gradtune.hypergradient(
            *(made(), cross_entropy, given[:-1], given[-1]),
            hypers=RATES["sgd"],
            options={"store": "tree", "branching": 3, "on": "disk", "folder": tmp_path},
        )


def keep_files(folder: Path) -> None:
    """Leave the files of an interrupted call in a folder."""

    class Stopping(Lazy):
        def __getitem__(self, k: Any) -> Any:
            if k == 11:
                raise KeyboardInterrupt
            return super().__getitem__(k)

    with pytest.raises(KeyboardInterrupt):
        gradtune.hypergradient(
            *(made(), cross_entropy, Stopping(13), batches(14)[-1]),
            hypers=RATES["sgd"],
            options={"store": "tree", "branching": 3, "on": "disk", "folder": folder},
        )
    assert len(list(folder.glob("state-*.pt"))) > 3


# -- finite steps ------------------------------------------------------------------------------------------------------


class Cubic(nn.Module):
    """The loss (w^2 - 1)^2 / 4: gradient descent is the map w -> (1 + lr) w - lr w^3, chaotic for lr near 1.9."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return ((self.w**2 - 1) ** 2 / 4 + 0 * x).mean()


def test_finite_steps_of_a_smooth_training() -> None:
    """Gradient descent on least squares for 30 steps."""
    x = normal(20, 4)
    y = x @ normal(4, 1, seed=1)
    model = made(lambda: nn.Linear(4, 1))
    smooth = gradtune.hypergradient(
        *(model, mse_loss, [(x, y)] * 30, (x, y + 0.1)),
        hypers={"lr": 0.01, "weight_decay": 1e-2},
        options={"store": "tree"},
        check_steps=(1e-1, 1e-2, 1e-3, 1e-4),
    )
    assert [a.step for a in smooth.agreement] == [1e-1, 1e-2, 1e-3, 1e-4]
    assert [a.ratio for a in smooth.agreement] == pytest.approx([1.0] * 4, abs=0.05)
    assert [a.ratio for a in smooth.agreement[1:]] == pytest.approx([1.0] * 3, abs=1e-3)
    length = sum(v * v for v in smooth.values.values()) ** 0.5
    assert [a.derivative for a in smooth.agreement] == pytest.approx([length] * 4, rel=1e-12)


def test_finite_steps_of_a_chaotic_training() -> None:
    """The derivative grows with the training and tells nothing of any step that is not tiny."""
    batch = (torch.zeros(1, dtype=torch.float64),)
    for rate, agree in ((0.005, True), (1.9, False)):
        checked = gradtune.hypergradient(
            *(Cubic(), None, [batch] * 60, batch),
            hypers=[Hyper("lr", rate)],
            options={"store": "tree", "branching": 4},
            check_steps=(1e-2, 1e-4, 1e-6),
        )
        assert all((abs(a.ratio - 1) < 0.1) == agree for a in checked.agreement[1:]), checked


def test_finite_steps_leave_no_trace() -> None:
    model = made()
    before = {n: x.clone() for n, x in model.state_dict().items()}
    plain, checked = found(model), found(model, check_steps=(1e-2,))
    assert plain.values == checked.values and plain.agreement == ()
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items()) and model.count == 0


def test_with_batch_statistics_finite_steps_agree() -> None:
    """Running statistics as "following" has them are no exact derivative after few steps; those of the batch are."""
    (exact,), (other,) = (
        found(made(), statistics=form, check_steps=(1e-4,)).agreement for form in ("batch", "following")
    )
    assert abs(exact.ratio - 1) < 1e-4 < 1e-2 < abs(other.ratio - 1)


@pytest.mark.parametrize("eps", [0.0, -1e-3, float("nan"), float("inf")])
def test_lengths_of_finite_steps(eps: float) -> None:
    with pytest.raises(GradtuneError, match=r"a step of check_steps is .*expected a length > 0"):
        found(made(), check_steps=(eps,))


def test_a_zero_hypergradient_agrees_with_nothing() -> None:
    zero = gradtune.hypergradient(
        *(Cubic(), None, [(torch.zeros(1, dtype=torch.float64),)], (torch.zeros(1, dtype=torch.float64),)),
        hypers={"weight_decay": 0.1},
        fixed={"lr": 0.0},
        check_steps=(1e-2,),
    )
    assert zero.values == {"weight_decay": 0.0} and zero.agreement[0].ratio != zero.agreement[0].ratio
