"""What reaches a model's weights and state past the module: lists, attributes, functions, aliases, hooks."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler

from gradtune import Tuner, tune
from gradtune.errors import GradtuneError
from library.tuning.patterns import OPTIMISERS, VAL, Base, X, Y, apart, batches, by_torch, by_tuner, made

Make = Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]
METHODS: dict[str, dict[str, Any]] = {
    "fixed": {"method": "fixed"},
    "onepass": {"method": "onepass", "options": {"every": 3, "lr": 0.2}},
    "diff_through_opt": {"method": "diff_through_opt", "options": {"every": 3, "lr": 0.2}},
}


class Scale(torch.autograd.Function):
    """A linear layer that `__torch_function__` does not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.t() @ x


class Lazily(Base):
    """A list of weights made in the first forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept = [self.head.weight]
        return functional.linear(self.features(x), self.kept[0], self.head.bias)


class Applied(Base):
    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.head.weight]

    def forward(self, x: Tensor) -> Tensor:
        return Scale.apply(self.features(x), self.kept[0]) + self.head.bias


class Clamped(Base):
    """Weights replaced through a list."""

    def forward(self, x: Tensor) -> Tensor:
        for p in self.parameters():
            p.data = p.data.clamp(-0.2, 0.2)
        return super().forward(x)


class Teacher(Base):
    """Frozen weights that follow the trained ones (BYOL, MoCo)."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(6, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for p, q in zip(self.teacher.parameters(), self.first.parameters(), strict=True):
                    p.mul_(0.9).add_(q, alpha=0.1)
        return super().forward(x) + self.teacher(x).sum(1, keepdim=True) * self.head.bias


class Remembering(Base):
    """A list, a tensor and a number that the forward pass changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[int] = []
        self.n = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.memory.append(1)
        self.n += 1
        return super().forward(x) / (1 + 0.1 * len(self.memory) + 0.1 * self.n)


class Aliased(Base):
    """An attribute that is a buffer."""

    m: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("m", torch.zeros(6, dtype=torch.float64))
        self.alias = [self.m]

    def double(self) -> Aliased:
        self.first.double(), self.head.double(), self.unused.double()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.alias[0].mul_(0.9).add_(0.1 * x.mean(0))
        return super().forward(x - self.m)


class Noisy(Base):
    """A generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = torch.Generator().manual_seed(7)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(len(x), 1, generator=self.rng, dtype=x.dtype) if self.training else 0.5
        return super().forward(x) * (1 + noise)


class Playing(Base):
    """Python's own random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + random.random() if self.training else 1.5)


class Overlapping(Base):
    """A buffer that is a part of another one."""

    total: Tensor
    part: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(6, dtype=torch.float64))
        self.register_buffer("part", self.total[:3])

    def double(self) -> Overlapping:
        self.first.double(), self.head.double(), self.unused.double()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total += 0.1
        return super().forward(x) * (1 + self.part.sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [Lazily, Applied, Clamped, Teacher, Remembering, Aliased, Noisy, Playing, Overlapping])
def test_a_model_trains_as_torch_trains_it(make: Any, method: str) -> None:
    random.seed(3)
    ours, values = by_tuner(made(make), "sgd", 12, **({"hypers": OPTIMISERS["sgd"][1]} | METHODS[method]))
    random.seed(3)
    theirs = by_torch(made(make), "sgd", 12, values=values)
    assert apart(ours, theirs) < 1e-11
    assert len(getattr(ours, "memory", ())) == len(getattr(theirs, "memory", ()))


def lazy_penalty(model: nn.Module) -> Any:
    class Penalty:
        kept: list[Tensor] | None = None

        def __call__(self, out: Tensor, y: Tensor) -> Tensor:
            if self.kept is None:
                self.kept = [p for p in model.parameters() if p.dim() > 1]
            return cross_entropy(out, y) + 0.1 * sum((p**2).sum() for p in self.kept)

    return Penalty()


def by_attribute(model: Any) -> Any:
    model.head.weight.strength = 0.3
    return lambda out, y: (
        cross_entropy(out, y) + sum(getattr(p, "strength", 0.0) * (p**2).sum() for p in model.parameters())
    )


def by_identity(model: Any) -> Any:
    table = {model.head.weight: 0.3}
    return lambda out, y: cross_entropy(out, y) + sum(table.get(p, 0.0) * (p**2).sum() for p in model.parameters())


def of_gradients(model: nn.Module) -> Any:
    own = [p for n, p in model.named_parameters() if "unused" not in n]

    def loss(out: Tensor, y: Tensor) -> Tensor:
        value = cross_entropy(out, y)
        return value + 0.1 * sum((g**2).sum() for g in torch.autograd.grad(value, own, create_graph=True))

    return loss


def annealed(model: nn.Module) -> Any:
    """A counter in the closure, and a list of weights."""
    own, count = list(model.parameters()), [0]

    def loss(out: Tensor, y: Tensor) -> Tensor:
        count[0] += 1
        return cross_entropy(out, y) + min(1.0, count[0] / 10) * 0.05 * sum((p**2).sum() for p in own)

    return loss


class Centred(nn.Module):
    """A loss with a buffer of its own (DINO)."""

    centre: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(3, dtype=torch.float64))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        loss = cross_entropy(out - self.centre, y)
        with torch.no_grad():
            self.centre.mul_(0.9).add_(0.1 * out.mean(0))
        return loss


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [lazy_penalty, by_attribute, by_identity, of_gradients, annealed, Centred])
def test_a_loss_trains_as_torch_trains_it(make: Any, method: str) -> None:
    first, second = made(Base), made(Base)
    options: dict[str, Any] = {"hypers": OPTIMISERS["sgd"][1], "val_loss": cross_entropy} | METHODS[method]
    ours, values = by_tuner(first, "sgd", 12, make(first), **options)
    assert apart(ours, by_torch(second, "sgd", 12, make(second), values)) < 1e-11


def test_a_state_that_cannot_be_followed_is_refused() -> None:
    class Counter:
        def __init__(self) -> None:
            self.inner = type("Inner", (), {})()
            self.inner.count = 0

        def __call__(self, out: Tensor, y: Tensor) -> Tensor:
            self.inner.count += 1
            return cross_entropy(out, y) * self.inner.count

    with pytest.raises(GradtuneError, match=r"computed again, .*keeps a state that cannot be followed"):
        tune(made(Base), Counter(), (X, Y), VAL, steps=3, hypers={"lr": 0.1})
    tune(made(Base), Counter(), (X, Y), VAL, steps=3, hypers={"lr": 0.1}, method="fixed")


# -- memory that is shared, hooks -------------------------------------------------------------------------------------


def tied_by_memory() -> nn.Module:
    first, second = nn.Linear(6, 4), nn.Linear(4, 6)
    second.weight.data = first.weight.data.t()
    return nn.Sequential(first, second, nn.Linear(6, 3))


def alias_in_a_buffer() -> nn.Module:
    module = Base()
    module.register_buffer("row", module.first.weight.data[0])
    return module


def alias_in_an_attribute() -> nn.Module:
    module = Base()
    module.row = [module.first.weight.detach().t()]  # type: ignore[assignment]
    return module


class Detached(Base):
    """An alias that the first forward pass makes."""

    def forward(self, x: Tensor) -> Tensor:
        self.row = self.head.weight.detach()[0]
        return super().forward(x) * self.row.sum()


@pytest.mark.parametrize("make", [tied_by_memory, alias_in_a_buffer, alias_in_an_attribute, Detached])
def test_shared_memory_is_named(make: Any) -> None:
    with pytest.raises(GradtuneError, match="share memory without being one parameter; tie weights as"):
        Tuner(make(), cross_entropy, hypers={"lr": 0.1}, method="fixed").step((X.float(), Y))


def test_a_tie_or_another_shape_between_steps_is_named() -> None:
    for change in (
        lambda m: setattr(m[1], "weight", m[0].weight),
        lambda m: setattr(m[1], "bias", nn.Parameter(torch.zeros(1, dtype=torch.float64))),
    ):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
        tuner = Tuner(model, lambda out, y: cross_entropy(out, y), hypers={"lr": 0.1}, method="fixed")
        tuner.step((X, Y))
        change(model)
        with pytest.raises(GradtuneError, match=r"has changed since the tuner was made: .*make a new Tuner"):
            tuner.step((X, Y))


def hooked(value: float = 0.01) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = Base()
        module.first.weight.register_hook(lambda g: g.clamp(-value, value))
        module.head.bias.register_hook(lambda g: g + value)
        module.unused.weight.register_hook(lambda g: g + 1)
        return module

    return make


def test_hooks_act_on_the_gradient_of_each_batch() -> None:
    model, expected = made(hooked()), made(hooked())
    tuner = Tuner(model, cross_entropy, hypers={"lr": 0.1}, method="fixed", accumulate=3, clip_norm=0.5)
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1)
    for _ in range(4):
        tuner.step(list(batches(3)))
        optimiser.zero_grad()
        for x, y in batches(3):
            (cross_entropy(expected(x), y) / 3).backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        optimiser.step()
    assert apart(model, expected) < 1e-7
    with pytest.raises(GradtuneError, match="hooks on parameters act on the gradient of each of several batches"):
        Tuner(made(hooked()), cross_entropy, hypers={"lr": 0.1}, method="oho", accumulate=2).step(list(batches(2)), VAL)


def test_hooks_see_the_scaled_gradient_as_torchs_do() -> None:
    model, expected = made(hooked(1.0)).float(), made(hooked(1.0)).float()
    scalers = [torch.amp.GradScaler("cpu", init_scale=64.0) for _ in range(2)]
    tuner = Tuner(model, cross_entropy, hypers={"lr": 0.1}, method="fixed", scaler=scalers[0])
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1)
    for x, y in batches(6):
        tuner.step((x.float(), y))
        optimiser.zero_grad()
        scalers[1].scale(cross_entropy(expected(x.float()), y)).backward()
        scalers[1].step(optimiser)
        scalers[1].update()
    assert apart(model, expected) < 1e-6


@pytest.mark.parametrize(
    ("method", "add", "message"),
    [
        ("fixed", lambda m: m.first.weight.register_post_accumulate_grad_hook(lambda p: None), "post_accumulate"),
        ("oho", lambda m: m.first.register_full_backward_hook(lambda *a: None), "backward hook"),
    ],
)
def test_hooks_that_come_later_are_named(method: str, add: Any, message: str) -> None:
    model = made(Base)
    tuner = Tuner(model, cross_entropy, hypers={"lr": 0.1}, method=method)
    tuner.step((X, Y), VAL)
    add(model)
    with pytest.raises(GradtuneError, match=message):
        tuner.step((X, Y), VAL)


def test_a_hook_on_several_gradients_is_named() -> None:
    model = made(Base)
    torch.autograd.graph.register_multi_grad_hook(list(model.parameters()), lambda grads: None)
    with pytest.raises(GradtuneError, match="register_multi_grad_hook"):
        Tuner(model, cross_entropy, hypers={"lr": 0.1})


def test_only_the_parameters_that_the_model_offers_are_trained() -> None:
    class Part(Base):
        def parameters(self, recurse: bool = True) -> Any:
            return self.head.parameters(recurse)

    ours, _ = by_tuner(made(Part), "sgd", 6)
    assert apart(ours, by_torch(made(Part), "sgd", 6)) < 1e-12


# -- going on ---------------------------------------------------------------------------------------------------------


class Counting(Base):
    def __init__(self) -> None:
        super().__init__()
        self.t, self.n = 0, torch.zeros(())
        self.target = nn.Linear(6, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.t, self.n = self.t + 1, self.n + 0.5
        if self.training:
            self.target.weight.data = 0.9 * self.target.weight.data + 0.1 * self.first.weight.data
        return (
            super().forward(x + self.target(x).mean(1, keepdim=True)) * (1 + 0.1 * (self.t % 3)) / (1 + 0.01 * self.n)
        )


def warm_up_and_cosine(factor: Any) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.LinearLR(factor, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(factor, 8)]
    return lr_scheduler.SequentialLR(factor, parts, [4])


@pytest.mark.parametrize("method", ["fixed", "onepass", "diff_through_opt"])
def test_all_that_a_forward_pass_changes_goes_on(method: str, tmp_path: Any) -> None:
    def train(steps: int, **more: Any) -> Any:
        data = list(batches(3))
        return tune(
            made(Counting),
            cross_entropy,
            data,
            VAL,
            steps=steps,
            every=1,
            hypers={"lr": 0.1},
            schedule=warm_up_and_cosine,
            **METHODS[method],
            **more,
        )

    straight, history = train(11)
    train(5, checkpoint=tmp_path / "run.pt")
    resumed, again = train(11, checkpoint=tmp_path / "run.pt")
    assert apart(straight, resumed) == 0 and history.to_frame().equals(again.to_frame())
    assert resumed.t == straight.t


def test_a_restart_begins_from_the_attributes_too() -> None:
    once, _ = tune(made(Counting), cross_entropy, (X, Y), steps=4, hypers={"lr": 0.1}, method="fixed")
    twice, _ = tune(made(Counting), cross_entropy, (X, Y), steps=4, restarts=1, hypers={"lr": 0.1}, method="fixed")
    assert apart(once, twice) == 0 and once.t == twice.t == 4


@pytest.mark.parametrize("normalised", [False, True])
def test_random_numbers_of_validation_follow_the_seed(normalised: bool) -> None:
    """With batch norm, whose statistics follow the weights, as well as without."""

    class Sampled(Base):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8) if normalised else nn.Identity()

        def features(self, x: Tensor) -> Tensor:
            features: Tensor = self.norm(super().features(functional.dropout(x, 0.3, training=True)))
            return features

    ends = []
    for seed in (1, 2):
        model = made(Sampled)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        tune(model, cross_entropy, (X, Y), VAL, steps=6, hypers={"lr": 0.1}, options={"every": 2})
        assert torch.equal(before, torch.get_rng_state())
        ends.append(model)
    assert apart(*ends) == 0


def test_a_read_loss_writes_no_weights() -> None:
    class Bounded(Base):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.first.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    tuner = Tuner(made(Bounded), cross_entropy, hypers={"lr": 0.1}, method="fixed")
    before = [p.clone() for p in tuner.model.parameters()]
    tuner.evaluate(VAL)
    assert all(torch.equal(p, q) for p, q in zip(before, tuner.model.parameters(), strict=True))


def test_functions_of_a_loss_that_know_each_other() -> None:
    def make() -> Callable[[Tensor, Tensor], Tensor]:
        def even(n: int, value: Tensor) -> Tensor:
            return value if n == 0 else odd(n - 1, value)

        def odd(n: int, value: Tensor) -> Tensor:
            return value if n == 0 else even(n - 1, value)

        return lambda out, y: even(4, cross_entropy(out, y))

    tune(made(Base), make(), (X, Y), VAL, steps=3, hypers={"lr": 0.1}, options={"every": 1})


# -- one sentence -----------------------------------------------------------------------------------------------------


def cached() -> nn.Module:
    module = made(Base)
    module.cache = module.first(X)  # type: ignore[operator]
    return module


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: tune(cached(), cross_entropy, (X, Y), steps=1, hypers={"lr": 0.1}, in_place=False),
            "cannot be copied",
        ),
        (lambda: fixed(schedule=lambda f: lr_scheduler.OneCycleLR(f, 1.0, 12)), "cycle_momentum=False"),
        (lambda: fixed(schedule=lambda f: lr_scheduler.ReduceLROnPlateau(f)), "ReduceLROnPlateau needs a loss"),
        (lambda: fixed(hypers={"lr": "0.1"}), "lr"),
        (lambda: fixed(hypers={"lr": None}), "lr"),
    ],
)
def test_a_mistake_is_one_sentence(run: Any, message: str) -> None:
    with pytest.raises(GradtuneError, match=message):
        run()


def fixed(**more: Any) -> Any:
    return tune(made(Base), cross_entropy, (X, Y), steps=2, **({"hypers": {"lr": 0.1}, "method": "fixed"} | more))


@pytest.mark.parametrize("hypers", [{"lr": 2.0}, {"lr": 0.0}, {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}])
def test_what_is_not_tuned_may_have_any_value(hypers: dict[str, float]) -> None:
    ours, _ = by_tuner(made(Base), "sgd", 4, hypers=hypers)
    values = [{"momentum": 0.0, "weight_decay": 0.0} | hypers] * 4
    theirs = by_torch(made(Base), "sgd", 4, values=values)
    assert apart(ours, theirs) < 1e-12


def test_setting_what_is_fixed_or_no_number() -> None:
    tuner = Tuner(made(Base), cross_entropy, hypers={"lr": 0.1}, fixed={"weight_decay": 0.1})
    with pytest.raises(GradtuneError, match="weight_decay is fixed in this training"):
        tuner.hyperparameters["weight_decay"] = 0.2
    with pytest.raises(GradtuneError, match="lr was set to 'a'; expected a number"):
        tuner.hyperparameters["lr"] = "a"  # type: ignore[assignment]
    tuner.hyperparameters |= {"lr": 0.2}
    assert tuner.hyperparameters["lr"] == pytest.approx(0.2) == copy.copy(tuner.hyperparameters)["lr"]
