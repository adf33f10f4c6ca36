"""A model of one's own trains to the weights that torch.optim gives, whatever the module does; or one sentence."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradtune import Tuner
from gradtune.errors import GradtuneError
from library.tuning.patterns import (
    OPTIMISERS,
    PATTERNS,
    VAL,
    Attending,
    Base,
    X,
    Y,
    apart,
    batches,
    by_torch,
    by_tuner,
    made,
)

# Adam divides gradients that are zero but for rounding (biases before batch norm) by their own size
ROUNDING = {"sgd": 1e-12, "rmsprop": 1e-9, "adamw": 1e-9, "adam": 1e-9}


@pytest.mark.parametrize("rule", OPTIMISERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_trains_as_torch_trains_it(pattern: str, rule: str) -> None:
    ours, _ = by_tuner(made(PATTERNS[pattern]), rule, 12)
    theirs = by_torch(made(PATTERNS[pattern]), rule, 12)
    assert apart(ours, theirs) < ROUNDING[rule]
    assert getattr(ours, "calls", 0) == getattr(theirs, "calls", 0)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_tuned_training_replayed_by_torch(pattern: str) -> None:
    """The hyperparameters of each step, read back, give the same weights by torch.optim."""
    options = {"every": 3, "lr": 0.2}
    ours, values = by_tuner(made(PATTERNS[pattern]), "sgd", 12, method="diff_through_opt", options=options)
    assert values[-1] != values[0]
    theirs = by_torch(made(PATTERNS[pattern]), "sgd", 12, values=values)
    assert apart(ours, theirs) < 1e-11


class Prototypes(Base):
    """Parameters that only the loss reads."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes, self.temperature = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.ones(()))


def of_prototypes(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda out, y: cross_entropy(-torch.cdist(out, model.prototypes) * model.temperature.exp(), y)


def penalised(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda out, y: cross_entropy(out, y) + 0.02 * sum(p.abs().sum() for p in model.parameters())


def penalised_by_list(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    own, start = list(model.parameters()), [p.detach().clone() for p in model.parameters()]
    return lambda out, y: (
        cross_entropy(out, y) + 0.1 * sum(((p - q) ** 2).sum() for p, q in zip(own, start, strict=True))
    )


def penalised_late(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The penalty begins in the middle of the training."""
    own, seen = list(model.parameters()), []

    def loss(out: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled() and out.requires_grad:
            seen.append(0)
        late = 0.02 * sum(p.norm() for p in own) if len(seen) > 5 else 0.0
        return cross_entropy(out, y) + late

    return loss


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize(("make", "loss"), [(Prototypes, of_prototypes), (Base, penalised), (Base, penalised_by_list)])
def test_a_loss_that_reads_the_model(make: Any, loss: Any, rule: str) -> None:
    first, second = made(make), made(make)
    ours, _ = by_tuner(first, rule, 12, loss(first))
    assert apart(ours, by_torch(second, rule, 12, loss(second))) < ROUNDING[rule]


def test_a_penalty_that_begins_late() -> None:
    first, second = made(Base), made(Base)
    ours, _ = by_tuner(first, "sgd", 5, penalised_late(first))
    assert apart(ours, by_torch(second, "sgd", 5, penalised_late(second))) < 1e-12


def scaled(model: nn.Module, k: int) -> None:
    if k == 4:
        with torch.no_grad():
            next(model.parameters()).mul_(0.5)


def replaced(model: nn.Module, k: int) -> None:
    if k == 4:
        first = next(model.parameters())
        first.data = first.data * 0.5


def loaded(model: nn.Module, k: int) -> None:
    if k == 4:
        model.load_state_dict({n: v * 0.5 for n, v in model.state_dict().items()})


def from_vector(model: nn.Module, k: int) -> None:
    if k == 4:
        vector = nn.utils.parameters_to_vector(model.parameters()).detach()
        nn.utils.vector_to_parameters(0.5 * vector, model.parameters())


def transposed(model: Any, k: int) -> None:
    """Other strides, the same values."""
    model.first.weight.data = model.first.weight.data.t().contiguous().t()


def buffers(model: nn.Module, k: int) -> None:
    if k == 4:
        for b in model.buffers():
            if b.is_floating_point():
                b.add_(0.5)


@pytest.mark.parametrize("between", [scaled, replaced, loaded, from_vector, transposed, buffers])
def test_weights_and_buffers_changed_between_steps(between: Any) -> None:
    ours, _ = by_tuner(made(PATTERNS["batch norm"]), "sgd", 12, between=between)
    theirs = by_torch(made(PATTERNS["batch norm"]), "sgd", 12, between=between)
    assert apart(ours, theirs) < 1e-12


def test_other_parameters_of_the_same_names_are_taken_over() -> None:
    """`load_state_dict(assign=True)`, after which torch's optimiser would train tensors that nobody has."""
    model = made(Base)
    tuner = Tuner(model, cross_entropy, hypers={"lr": 0.1}, method="fixed")
    other = made(Base, seed=2)
    model.load_state_dict(other.state_dict(), assign=True)
    tuner.step((X, Y))
    by_torch(other, "sgd", 0)
    optimiser = torch.optim.SGD(other.parameters(), lr=0.1)
    cross_entropy(other(X), Y).backward()
    optimiser.step()
    assert apart(model, other) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.first.requires_grad_(False), "first.weight is gone or frozen"),
        (lambda m: setattr(m, "head", nn.Linear(8, 3).double()), "its modules or parameters are others"),
        (lambda m: nn.utils.prune.random_unstructured(m.first, "weight", 0.5), "parameters are others|gone or frozen"),
        (lambda m: m.float(), r"were torch\.float64 on cpu .*float32.*make a new Tuner after model\.to"),
        (lambda m: m.register_parameter("more", nn.Parameter(torch.ones(1))), "parameters are others"),
    ],
)
def test_a_change_that_cannot_be_honoured_is_named(change: Any, message: str) -> None:
    model = made(Base)
    tuner = Tuner(model, cross_entropy, hypers={"lr": 0.1}, method="fixed")
    tuner.step((X, Y))
    change(model)
    with pytest.raises(GradtuneError, match=message):
        tuner.step((X, Y))


def test_a_loss_with_weights_of_its_own_is_refused() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, out: Tensor, y: Tensor) -> Tensor:
            return self.scale * cross_entropy(out, y)

    with pytest.raises(GradtuneError, match="loss Learned has parameters of its own"):
        Tuner(Base(), Learned(), hypers={"lr": 0.1})
    assert Tuner(Base(), Learned().requires_grad_(False), hypers={"lr": 0.1}).steps == 0


@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({"clip_norm": 0.1}, lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1)),
        ({"clip_value": 0.01}, lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01)),
    ],
)
def test_clipped_gradients(options: Any, clip: Any) -> None:
    ours, _ = by_tuner(made(PATTERNS["hooks"]), "sgd", 12, **options)
    assert apart(ours, by_torch(made(PATTERNS["hooks"]), "sgd", 12, before_step=clip)) < 1e-8


def test_gradients_averaged_over_batches() -> None:
    model, expected = made(PATTERNS["batch norm"]), made(PATTERNS["batch norm"])
    tuner = Tuner(model, cross_entropy, hypers={"lr": 0.1, "momentum": 0.9}, method="fixed", accumulate=3)
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        tuner.step(list(batches(3)))
        optimiser.zero_grad()
        for x, y in batches(3):
            (cross_entropy(expected(x), y) / 3).backward()
        optimiser.step()
    assert apart(model, expected) < 1e-12
    with pytest.raises(GradtuneError, match="accumulate=3 a step takes a list of as many batches"):
        tuner.step((X, Y))


def test_a_scheduler_of_torch_beside_the_rate() -> None:
    """Warm-up, then a cosine."""

    def schedule(optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        warm_up = torch.optim.lr_scheduler.LinearLR(optimiser, 0.1, total_iters=4)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 8)
        return torch.optim.lr_scheduler.SequentialLR(optimiser, [warm_up, cosine], [4])

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Detected call of `lr_scheduler.step")
        model, expected = made(Base), made(Base)
        tuner = Tuner(model, cross_entropy, rule="adamw", hypers={"lr": 0.05}, method="fixed")
        optimiser = torch.optim.AdamW(expected.parameters(), lr=0.05)
        ours, theirs = schedule(tuner.factor), schedule(optimiser)
        for x, y in batches(12):
            tuner.step((x, y))
            optimiser.zero_grad()
            cross_entropy(expected(x), y).backward()
            optimiser.step()
            ours.step()
            theirs.step()
    assert apart(model, expected) < 1e-9


# -- drawn at random --------------------------------------------------------------------------------------------------


class Drawn(nn.Module):
    """A chain of parts drawn at random, each with a pattern of its own."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.parts = nn.ModuleList(made(PATTERNS[name]) for name in rng.sample(CHAINED, rng.randint(1, 3)))
        self.mix = nn.Parameter(torch.ones(len(self.parts)))

    def forward(self, x: Tensor) -> Tensor:
        return sum((m * part(x) for m, part in zip(self.mix, self.parts, strict=True)), torch.zeros(()))


CHAINED = [name for name in PATTERNS if PATTERNS[name] is not Attending]
ROUNDS = 24


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_modules_drawn_at_random(seed: int) -> None:
    rng = random.Random(seed)
    rule = rng.choice(list(OPTIMISERS))
    loss = rng.choice([None, penalised, penalised_by_list])
    between = rng.choice([None, scaled, loaded, buffers, from_vector])
    state = rng.getstate()

    def model() -> nn.Module:
        rng.setstate(state)
        return Drawn(rng).double()

    first, second = model(), model()
    losses = [cross_entropy if loss is None else loss(m) for m in (first, second)]
    ours, _ = by_tuner(first, rule, 9, losses[0], between=between)
    theirs = by_torch(second, rule, 9, losses[1], between=between)
    assert apart(ours, theirs) < ROUNDING[rule], [type(p).__name__ for p in first.parts]  # type: ignore[union-attr]


def test_validation_leaves_no_trace() -> None:
    model = made(PATTERNS["assigned buffers"])
    tuner = Tuner(model, cross_entropy, hypers={"lr": 0.1}, options={"every": 2})
    for _ in range(4):
        tuner.step((X, Y), VAL)
        tuner.evaluate(VAL)
    assert float(model.n) == 4 and model.calls == 4  # type: ignore[arg-type]
