"""Replayed steps give the bits of eager ones, and a step that cannot be replayed is noticed before it is."""

from __future__ import annotations

import math
import pickle
import random
import re
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils._pytree import tree_leaves

from gradtune import Hyper, Tuner, tune
from gradtune.errors import GradtuneError
from gradtune.methods.making import fds
from gradtune.tuning import replaying
from library.tuning.patterns import PATTERNS, VAL, Base, X, Y, made

METHODS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "hd": {"hypers": {"lr": 0.05}, "options": {"lr": 1e-3}},
    "baydin": {"hypers": {"lr": 0.05}},
    "metaoptimize_hf": {"hypers": {"lr": 0.05}},
    "onepass": {"options": {"every": 3}},
    "diff_through_opt": {"options": {"horizon": 2, "every": 4}},
    "oho": {"options": {"lr": 1e-3}},
    "clip_r": {"options": {"radius": 0.5}},
}
HYPERS = {"lr": 0.05, "momentum": 0.8, "weight_decay": 1e-3}
ADAMW = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01}
Between = Callable[[Any, int], None]


class Quiet(Base):
    """A model whose forward pass counts nothing, so that it can be replayed."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def bits(tuner: Tuner) -> list[bytes]:
    """All that a step has left: state, hyperparameters, memory, buffers and losses."""
    problem = tuner._problem
    own = [tuner._run, list(tuner.model.buffers()), problem.seen, problem.seen_val]
    return [x.detach().numpy().tobytes() for x in tree_leaves(own) if isinstance(x, Tensor)]


def batch_of(k: int) -> tuple[Tensor, Tensor]:
    rows = slice(5 * (k % 4), 5 * (k % 4) + 8)
    return X[rows], Y[rows]


def pair(make: Callable[[], nn.Module], loss: Any = cross_entropy, **options: Any) -> tuple[Tuner, Tuner]:
    """An eager tuner and one that replays as soon as possible."""
    both = []
    for replay in (False, None):
        options = {"hypers": HYPERS, "method": "fixed", **options}
        model = made(make)
        tuner = Tuner(model, loss(model) if loss is not cross_entropy else loss, replay=replay, **options)
        tuner._replay._recording = replay is None
        both.append(tuner)
    return both[0], both[1]


def compared(
    eager: Tuner, replayed: Tuner, steps: int = 40, between: Between | None = None, batch: Any = batch_of
) -> int:
    """Take steps with both, compare the bits of each, and return how often steps were taken again."""
    for k in range(steps):
        for tuner in (eager, replayed):
            tuner.step(batch(k), VAL if tuner.needs_val else None)
        assert bits(eager) == bits(replayed), k
        for tuner in (eager, replayed):
            if between is not None:
                between(tuner, k)
    return sum(each.uses for each in replayed._replay._kinds.values())


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_a_replayed_training_has_the_bits_of_an_eager_one(method: str, rule: str) -> None:
    options = dict(METHODS[method])
    if rule == "adamw":
        options["hypers"] = {"lr": 0.01} if "hypers" in options else ADAMW
    eager, replayed = pair(plain, method=method, rule=rule, **options)
    assert compared(eager, replayed) > 15
    assert replayed.replay == "on" and eager.gradients == replayed.gradients


REPLAYED = {
    "an unused layer": "on",
    "a weight in a list": "on",
    "an LSTM": "on",
    "batch norm": "on",
    "batch norm without momentum": "off: a step reads the number in a tensor",
    "assigned buffers": "on",
    "attention": "on",
    "tied": "on",
    "shared": "on",
    "frozen": "on",
    "a checkpoint": "on",
    "parametrisations": "on",
    "norms by hooks": "off: ",
    "a growing buffer": "off: ",
    "a buffer registered late": "off: a step registers or removes a buffer",
    "weights clamped in forward": "off: a step writes into a tensor",
    "weights replaced in forward": "off: ",
    "pruned": "off: weight of Linear has changed in a step",
    "hooks": "not yet: a parameter has a hook",
    "a hook in place": "not yet: a parameter has a hook",
}


@pytest.mark.parametrize("method", ["fixed", "hd", "onepass", "diff_through_opt", "oho"])
@pytest.mark.parametrize("pattern", REPLAYED)
def test_every_pattern_is_replayed_to_the_bit_or_not_at_all(
    pattern: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Base, "forward", Quiet.forward)
    eager, replayed = pair(PATTERNS[pattern], method=method, **METHODS[method])
    used = compared(eager, replayed, 30)
    if method == "fixed":
        assert replayed.replay.startswith(REPLAYED[pattern]), replayed.replay
    assert (used > 4) == (replayed.replay == "on")


@pytest.mark.parametrize("method", ["fixed", "onepass", "oho", "diff_through_opt"])
def test_dropout_is_replayed_with_the_numbers_of_its_step(method: str) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.ReLU(), nn.Dropout1d(0.2), nn.Linear(8, 3))

    eager, replayed = pair(net, method=method, **METHODS[method])
    assert compared(eager, replayed) > 15


# -- options of a tuner ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fixed", "hd", "onepass", "oho"])
def test_a_schedules_factor_is_handed_over(method: str) -> None:
    def moved(tuner: Tuner, k: int) -> None:
        tuner.factor.value = 1.0 if k % 10 == 9 else 0.5 + 0.5 * math.cos(k)

    eager, replayed = pair(plain, method=method, **METHODS[method])
    assert compared(eager, replayed, 60, moved) > 30


@pytest.mark.parametrize("options", [{"clip_norm": 0.3}, {"clip_value": 0.01}])
def test_clipped_gradients(options: dict[str, float]) -> None:
    eager, replayed = pair(plain, method="onepass", **METHODS["onepass"], **options)
    assert compared(eager, replayed) > 15


def test_accumulated_batches() -> None:
    eager, replayed = pair(plain, method="onepass", **METHODS["onepass"], accumulate=2)
    assert compared(eager, replayed, batch=lambda k: [batch_of(k), batch_of(k + 1)]) > 15


def test_each_shape_of_a_batch_has_a_record() -> None:
    eager, replayed = pair(plain, method="onepass", **METHODS["onepass"])
    assert compared(eager, replayed, 80, batch=lambda k: (X[: 3 + k % 2], Y[: 3 + k % 2])) > 30


def test_more_shapes_than_are_kept_are_eager() -> None:
    eager, replayed = pair(plain)
    compared(eager, replayed, 80, batch=lambda k: (X[: 3 + k % 37], Y[: 3 + k % 37]))
    assert len(replayed._replay._kinds) == replaying._MOST_KINDS


def test_a_chain_is_left_when_a_batch_has_another_shape() -> None:
    eager, replayed = pair(plain, method="diff_through_opt", options={"horizon": 4, "every": 4})
    odd = compared(eager, replayed, 60, batch=lambda k: (X[:5], Y[:5]) if k % 13 == 12 else batch_of(k))
    assert odd > 4


def test_tuned_arguments_of_the_loss() -> None:
    def smoothed(model: nn.Module) -> Any:
        def loss(out: Tensor, y: Tensor, smoothing: Tensor | float = 0.0) -> Tensor:
            uniform = -out.log_softmax(1).mean()
            return (1 - smoothing) * cross_entropy(out, y) + smoothing * uniform

        return loss

    hypers = {"lr": 0.05, "smoothing": Hyper("smoothing", 0.1)}
    eager, replayed = pair(plain, smoothed, hypers=[Hyper("lr", 0.05, "log10"), hypers["smoothing"]], method="oho")
    assert compared(eager, replayed) > 15


# -- what changes between steps ----------------------------------------------------------------------------------------


@torch.no_grad()
def scaled(tuner: Tuner, k: int) -> None:
    if k % 7 == 5:
        next(tuner.model.parameters()).mul_(0.9)


def replaced(tuner: Tuner, k: int) -> None:
    if k % 7 == 5:
        first = next(tuner.model.parameters())
        first.data = first.data * 0.9


def loaded(tuner: Tuner, k: int) -> None:
    if k % 7 == 5:
        tuner.model.load_state_dict({n: v * 0.9 for n, v in tuner.model.state_dict().items()}, assign=k % 2 == 0)


def assigned(tuner: Tuner, k: int) -> None:
    if k % 7 == 5:
        tuner.hyperparameters["lr"] = 0.03 + 0.001 * k


def evaluated(tuner: Tuner, k: int) -> None:
    tuner.evaluate(VAL)
    tuner.model.eval()
    tuner.model(X)
    tuner.model.train()


def reloaded(tuner: Tuner, k: int) -> None:
    if k % 7 == 5:
        tuner.load_state_dict(tuner.state_dict())


@pytest.mark.parametrize("method", ["fixed", "onepass", "diff_through_opt"])
@pytest.mark.parametrize("between", [scaled, replaced, loaded, assigned, evaluated, reloaded])
def test_changes_between_steps_reach_a_replayed_one(between: Between, method: str) -> None:
    if between is assigned and method == "fixed":
        method = "hd"
    eager, replayed = pair(normed, method=method, **METHODS[method])
    used = compared(eager, replayed, 40, between)
    assert used > 5 or between is loaded


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


class Tempered(Quiet):
    """Logits divided by a plain number, and helped by an object that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature, self.settings, self.scales = 2.0, Settings(), [1.0, 2.0]
        self.shift = torch.zeros(3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x) / self.temperature * self.settings.inner["scale"] * self.scales[1]
        return out * WORLD["scale"] * FACTOR + self.shift


class Settings:
    def __init__(self) -> None:
        self.inner = {"scale": 1.0}


WORLD = {"scale": 1.0}
FACTOR = 1.0


def temperature(tuner: Any, k: int) -> None:
    tuner.model.temperature = 2.0 if k < 20 else 3.0


def settings(tuner: Any, k: int) -> None:
    tuner.model.settings.inner["scale"] = 1.0 if k < 20 else 0.5


def other_settings(tuner: Any, k: int) -> None:
    if k == 20:
        tuner.model.settings = Settings()
        tuner.model.settings.inner = {"scale": 0.5}


def entry(tuner: Any, k: int) -> None:
    tuner.model.scales[1] = 2.0 if k < 20 else 1.0


def world(tuner: Any, k: int) -> None:
    WORLD["scale"] = 1.0 if k % 30 < 20 else 0.5


def shift(tuner: Any, k: int) -> None:
    tuner.model.shift.add_(0.1)


def other_shift(tuner: Any, k: int) -> None:
    if k == 20:
        tuner.model.shift = torch.ones(3, dtype=torch.float64)


def hook(tuner: Any, k: int) -> None:
    if k == 20:
        tuner.model.head.register_forward_hook(lambda m, args, out: 0.5 * out)


def frozen_part(tuner: Any, k: int) -> None:
    if k == 20:
        tuner.model.unused.training = False


def hooked_weight(tuner: Any, k: int) -> None:
    if k == 20:
        tuner.model.head.weight.register_hook(lambda g: 0.5 * g)


CHANGES = [temperature, settings, other_settings, entry, world, shift, other_shift, hook, frozen_part, hooked_weight]


@pytest.mark.parametrize("method", ["fixed", "hd", "onepass"])
@pytest.mark.parametrize("between", CHANGES)
def test_what_python_code_reads_is_compared_before_each_step(between: Between, method: str) -> None:
    eager, replayed = pair(Tempered, method=method, **METHODS[method])
    for k in range(40):  # a change that both see is made once
        for tuner in (eager, replayed):
            tuner.step(batch_of(k), VAL if tuner.needs_val else None)
        assert bits(eager) == bits(replayed), k
        if k == 19:
            assert replayed.replay == "on"
        between(eager, k)
        between(replayed, k)


def test_a_global_that_is_bound_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, replayed = pair(Tempered)
    assert compared(eager, replayed, 10) > 4
    monkeypatch.setitem(globals(), "FACTOR", 0.5)
    compared(eager, replayed, 10)


def test_a_variable_around_a_loss() -> None:
    weight = 1.0

    def of(model: nn.Module) -> Any:
        return lambda out, y: weight * cross_entropy(out, y)

    eager, replayed = pair(plain, of)
    assert compared(eager, replayed, 10) > 4
    weight = 0.5
    compared(eager, replayed, 10)
    assert replayed.replay.startswith("not yet: ") and "has changed between two steps" in replayed.replay


def test_a_change_doubles_the_time_to_the_next_record() -> None:
    _, replayed = pair(Tempered)
    for k in range(10):
        replayed.step(batch_of(k))
    replayed.model.temperature = 3.0  # type: ignore[assignment]
    replayed.step(batch_of(0))
    assert replayed.replay == "not yet: temperature of Tempered has changed between two steps"
    assert replayed._replay._patience == 2 * replaying._PATIENCE


def test_a_teacher_that_follows_the_weights() -> None:
    """Frozen weights that are no buffers are read as they are."""

    class Distilled(Quiet):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Linear(6, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.1 * self.teacher(x)

    @torch.no_grad()
    def moved(tuner: Any, k: int) -> None:
        tuner.model.teacher.weight.mul_(0.99).add_(0.01 * tuner.model.first.weight[:3])

    for method in ("fixed", "onepass", "diff_through_opt"):
        eager, replayed = pair(Distilled, method=method, **METHODS[method])
        compared(eager, replayed, 40, moved)
        assert method == "diff_through_opt" or replayed.replay == "on"


# -- what cannot be replayed -------------------------------------------------------------------------------------------


class Drawing(Quiet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 0.1 * random.random())


class OfNumpy(Quiet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 0.1 * float(np.random.rand()))  # noqa: NPY002


class Holding(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.rng, self.count = np.random.default_rng(0), count()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 0.1 * self.rng.random())


class Iterating(Holding):
    def forward(self, x: Tensor) -> Tensor:
        return super(Holding, self).forward(x) / (1 + next(self.count))


class Timed(Quiet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.0 * time.time()


class Branching(Quiet):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return 0.5 * out if out.mean() > 0 else out


class Reading(Quiet):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out * out.detach().std().item()


class ThroughNumpy(Quiet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.from_numpy(x.detach().numpy().mean(1, keepdims=True))


class Choosing(Quiet):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out + out[out > 0].mean()


class Printing(Quiet):
    def forward(self, x: Tensor) -> Tensor:
        print(end="")
        return super().forward(x)


class Counting(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().forward(x) * min(1.0, 0.1 * self.steps)


class Logging(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.seen.append(out.detach())
        return out


class Masked(Quiet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.bernoulli(torch.full((3,), 0.9, dtype=x.dtype))


class Privately(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.source = Source()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.source()


class Source:
    """A generator out of sight."""

    def __init__(self) -> None:
        self.own = torch.Generator()

    def __call__(self) -> Tensor:
        return 1 + 0.1 * torch.rand((), generator=self.own, dtype=torch.float64)


REFUSED = {
    Drawing: "is random\\(\\)|uses the module random|calls random",
    OfNumpy: "computes by numpy|uses the module random",
    Holding: "rng of Holding is a Generator",
    Iterating: "count of Iterating is a count",
    Timed: "uses the module time",
    Branching: "reads the number in a tensor",
    Reading: "calls item\\(\\)|reads the number in a tensor",
    ThroughNumpy: "calls numpy\\(\\)|a step looks at the memory",
    Choosing: "result has a shape that depends on numbers",
    Printing: "calls print\\(\\)",
    Counting: "steps of Counting has changed in a step",
    Logging: "the contents of seen of Logging have changed in a step",
    Masked: "draws random numbers by bernoulli",
    Privately: "from a generator of its own|own of Source is a Generator",
}


@pytest.mark.parametrize("make", REFUSED)
def test_what_cannot_be_replayed_is_said_and_trains_as_before(make: Any) -> None:
    _, replayed = pair(make)
    for k in range(8):
        replayed.step(batch_of(k))
    assert replayed.replay.startswith("off: ")
    assert re.search(REFUSED[make], replayed.replay), replayed.replay
    assert replayed.steps == 8


@pytest.mark.parametrize("make", [Branching, Reading, ThroughNumpy, Choosing, Printing, Counting, Logging, Masked])
def test_a_training_that_falls_back_has_the_bits_of_an_eager_one(make: Any) -> None:
    compared(*pair(make), 12)


def test_hooks_that_note_what_passes_are_run_at_every_step() -> None:
    eager, replayed = pair(plain)
    lists: list[list[Tensor]] = [[], []]

    def noting(seen: list[Tensor]) -> Any:
        return lambda m, args, out: seen.append(out.detach())

    for tuner, seen in zip((eager, replayed), lists, strict=True):
        tuner.model[1].register_forward_hook(noting(seen))  # type: ignore[index]
    compared(eager, replayed, 12)
    assert len(lists[0]) == len(lists[1]) == 12 and replayed.replay != "on"


def test_a_profiler_of_others_stays_in_charge() -> None:
    eager, replayed = pair(plain)
    sys.setprofile(lambda *_: None)
    try:
        compared(eager, replayed, 4)
    finally:
        sys.setprofile(None)
    assert replayed.replay == "not yet: a profiler is at work, which recording needs for itself"
    assert compared(eager, replayed, 12) > 4


def test_wanted_replay_that_is_impossible_is_an_error() -> None:
    tuner = Tuner(made(Counting), cross_entropy, hypers={"lr": 0.1}, method="fixed", replay=True)
    with pytest.raises(GradtuneError, match=r"replay=True was given, .* steps of Counting has changed in a step"):
        for k in range(5):
            tuner.step(batch_of(k))
    with pytest.raises(GradtuneError, match="time windows"):
        Tuner(made(plain), cross_entropy, hypers=[Hyper("lr", 0.1, "log10", windows=2)], method=fds(9), horizon=9,
              replay=True)  # fmt: skip


def test_methods_of_others_and_long_looks_back_stay_eager() -> None:
    long = Tuner(made(plain), cross_entropy, hypers=HYPERS, method="diff_through_opt",
                 options={"horizon": 30, "every": 30})  # fmt: skip
    assert long.replay == "off: the method looks back on 30 steps, and on up to 20 steps are recorded"
    assert Tuner(made(plain), cross_entropy, hypers=HYPERS, replay=False).replay == "off: replay=False was given"


def test_a_wrong_replay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that computes something else never takes a step."""
    from gradtune.training.programs import Program

    right = Program.step

    def wrong(self: Program, *args: Any) -> Any:
        found, carried = right(self, *args)
        return [found[0] + 1e-9, *found[1:]], carried

    monkeypatch.setattr(Program, "step", wrong)
    eager, replayed = pair(plain)
    compared(eager, replayed, 8)
    assert replayed.replay == "off: a replayed step did not give the bits of an eager one"


def test_a_step_is_checked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradtune.tuning.recorded import Recorded

    checks: list[int] = []
    check = Recorded.check

    def noted(self: Recorded, *args: Any) -> Any:
        checks.append(self.uses)
        return check(self, *args)

    monkeypatch.setattr(Recorded, "check", noted)
    compared(*pair(plain), 45)
    assert checks == [0, 1, 2, 4, 8, 16, 32]


def test_a_torn_state_goes_on_to_the_same_bits() -> None:
    """In the middle of steps that belong together, through a state and through pickle."""
    for method in ("onepass", "diff_through_opt"):
        eager, replayed = pair(plain, method=method, **METHODS[method])
        compared(eager, replayed, 27)
        again = Tuner(made(plain, 5), cross_entropy, hypers=HYPERS, method=method, **METHODS[method])
        again.load_state_dict(replayed.state_dict())
        pickled = pickle.loads(pickle.dumps(replayed))
        for k in range(27, 40):
            for tuner in (eager, again, pickled):
                tuner.step(batch_of(k), VAL)
        assert bits(eager) == bits(again) == bits(pickled)


def test_a_gradient_pulled_back_after_replayed_steps() -> None:
    eager, replayed = pair(plain, method="diff_through_opt", options={"horizon": 4, "every": 4})
    compared(eager, replayed, 30)
    for a, b in zip(tree_leaves(eager.pulled_back(VAL)), tree_leaves(replayed.pulled_back(VAL)), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_a_restart_goes_on_from_the_weights_of_the_model() -> None:
    eager, replayed = pair(plain, method="onepass", **METHODS["onepass"])
    assert compared(eager, replayed, 20) > 5
    eager.restart()
    replayed.restart()
    compared(eager, replayed, 20)


# -- when it pays ------------------------------------------------------------------------------------------------------


def test_recording_begins_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds of eager steps, or early where the rest of a training is known to be long."""
    clock = iter(x * 0.05 for x in range(10**6))  # a step takes 0.05 s
    monkeypatch.setattr(replaying.time, "process_time", lambda: next(clock))

    def steps_until_on(**options: Any) -> int:
        tuner = Tuner(made(plain), cross_entropy, hypers=HYPERS, method="fixed", **options)
        for k in range(120):
            if tuner.replay == "on":
                return k
            tuner.step(batch_of(k))
        return 120

    patient = steps_until_on()
    assert 40 <= patient <= 46  # 2 s, two records and a check
    assert 20 <= steps_until_on(horizon=10000) <= 26
    assert steps_until_on(horizon=30) == 120


def test_long_steps_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(x) for x in range(10**6))
    monkeypatch.setattr(replaying.time, "process_time", lambda: next(clock))
    tuner = Tuner(made(plain), cross_entropy, hypers=HYPERS, method="fixed")
    for k in range(40):
        tuner.step(batch_of(k))
    assert tuner.replay == "not yet: a step takes 1 s, nearly all of it in torch's kernels"


def test_tune_replays_to_the_same_bits() -> None:
    found = []
    for replay in (False, True):
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
        data = (x, x.sum(1, keepdim=True).tanh())
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        options: dict[str, Any] = {"batch_size": 10, "steps": 90, "hypers": HYPERS, "replay": replay}
        result = tune(net, mse_loss, (data[0][:48], data[1][:48]), (data[0][48:], data[1][48:]), **options)
        found.append((torch.nn.utils.parameters_to_vector(net.parameters()), result.history.to_frame()))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1].equals(found[1][1])
