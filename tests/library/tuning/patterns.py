"""Modules as people write them: ties, hooks, constraints, state that is no weight; and training by torch.optim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from gradtune import Tuner

RNG = torch.Generator().manual_seed(3)
X = torch.randn(40, 6, generator=RNG, dtype=torch.float64)
Y = torch.randint(0, 3, (40,), generator=RNG)
VAL = (X[28:], Y[28:])

OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, float]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01}),
}


class Base(nn.Module):
    """Two layers, and one that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Any = nn.Linear(6, 8)
        self.head: Any = nn.Linear(8, 3)
        self.unused = nn.Linear(3, 3)
        self.calls = 0

    def features(self, x: Tensor) -> Tensor:
        return self.first(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.features(x))


class Sometimes(Base):
    """A layer is used at every third step, as in stochastic depth or a mixture of experts."""

    def features(self, x: Tensor) -> Tensor:
        h = super().features(x)
        return h + self.unused(x[:, :3]).mean() if self.calls % 3 == 0 else h


class Assigned(Base):
    """Buffers that the forward pass assigns anew, and a plain number that it counts."""

    n: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))

    def features(self, x: Tensor) -> Tensor:
        if self.training:
            self.n = self.n + 1
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return super().features(x - self.mean)


class Bank(Base):
    """A buffer without value at first, whose shape grows."""

    bank: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", None)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.bank = y.detach() if self.bank is None else torch.cat([self.bank, y.detach()])[-20:]
        return y - self.bank.mean(0)


class Registering(Base):
    """A buffer that the first forward pass registers."""

    n: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "n"):
            self.register_buffer("n", torch.zeros((), dtype=x.dtype))
        self.n += 1
        return super().forward(x) / self.n


class Clamped(Base):
    """Weights bounded in place by the forward pass."""

    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.first.weight.clamp_(-0.3, 0.3)
        return super().features(x)


class Renormalised(Base):
    """Weights replaced by the forward pass."""

    def features(self, x: Tensor) -> Tensor:
        self.first.weight.data = functional.normalize(self.first.weight.data, dim=1)
        return super().features(x)


class Listed(Base):
    """A weight that is reached through a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.list = [self.head.weight]

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.features(x), self.list[0], self.head.bias)


class Recurrent(Base):
    """torch's own LSTM, which keeps a flat list of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(2, 8, batch_first=True)

    def features(self, x: Tensor) -> Tensor:
        return self.first(x.view(-1, 3, 2))[0][:, -1]


class Reparametrised(Base):
    """Spectral and weight norm, by parametrisations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))


class Normed(Base):
    """The same by hooks before the forward pass, as older programs have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.utils.spectral_norm(nn.Linear(6, 8)), nn.utils.weight_norm(nn.Linear(8, 3))


class Normalised(Base):
    """Batch norm."""

    momentum: float | None = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, momentum=self.momentum)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(super().features(x))


class Averaged(Normalised):
    """Batch norm whose running statistics are plain means."""

    momentum = None


class Checkpointed(Normalised):
    """Batch norm inside a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.features, x, use_reentrant=False))


class Attending(Base):
    """Attention for which torch would choose a kernel without second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True)
        self.head = nn.Linear(2, 3)

    def features(self, x: Tensor) -> Tensor:
        return self.layer(x.view(-1, 3, 2)).mean(1)


def pruned() -> Base:
    module = Base()
    nn.utils.prune.random_unstructured(module.first, "weight", 0.5)
    return module


def hooked() -> Base:
    module = Base()
    module.first.weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
    module.head.weight.register_hook(lambda g: 0.5 * g)
    module.head.weight.register_hook(lambda g: g + 0.01)
    return module


def hooked_in_place() -> Base:
    def halve(g: Tensor) -> None:
        g.mul_(0.5)

    module = Base()
    module.first.weight.register_hook(halve)
    return module


def tied() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    module[2].weight = module[0].weight
    return module


def shared() -> nn.Sequential:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3))


def frozen() -> Base:
    module = Normalised()
    module.first.requires_grad_(False)
    return module


PATTERNS: dict[str, Callable[[], nn.Module]] = {
    "an unused layer": Base,
    "a layer used sometimes": Sometimes,
    "assigned buffers": Assigned,
    "a growing buffer": Bank,
    "a buffer registered late": Registering,
    "weights clamped in forward": Clamped,
    "weights replaced in forward": Renormalised,
    "a weight in a list": Listed,
    "an LSTM": Recurrent,
    "parametrisations": Reparametrised,
    "norms by hooks": Normed,
    "batch norm": Normalised,
    "batch norm without momentum": Averaged,
    "a checkpoint": Checkpointed,
    "attention": Attending,
    "pruned": pruned,
    "hooks": hooked,
    "a hook in place": hooked_in_place,
    "tied": tied,
    "shared": shared,
    "frozen": frozen,
}


def made(make: Callable[[], nn.Module], seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return make().double()


def batches(count: int, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    for k in range(count):
        rows = slice(size * (k % 3), size * (k % 3) + size)
        yield X[rows], Y[rows]


Loss = Callable[[Tensor, Tensor], Tensor]


def by_torch(
    model: nn.Module,
    rule: str,
    steps: int,
    loss: Loss = cross_entropy,
    values: list[dict[str, float]] | None = None,
    before_step: Callable[[nn.Module], Any] | None = None,
    between: Callable[[nn.Module, int], None] | None = None,
    **hypers: float,
) -> nn.Module:
    """Train by torch.optim; `values` are hyperparameters of each step."""
    make, given = OPTIMISERS[rule]
    optimiser = make(model.parameters(), **(given | hypers))
    for k, (x, y) in enumerate(batches(steps)):
        if values is not None:
            optimiser.param_groups[0].update(values[k])
        optimiser.zero_grad()
        loss(model(x), y).backward()
        if before_step is not None:
            before_step(model)
        optimiser.step()
        if between is not None:
            between(model, k)
    return model


def by_tuner(
    model: nn.Module,
    rule: str,
    steps: int,
    loss: Loss = cross_entropy,
    between: Callable[[nn.Module, int], None] | None = None,
    **options: Any,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train by a tuner; return the hyperparameters of each step too."""
    tuner = Tuner(model, loss, rule=rule, **({"hypers": OPTIMISERS[rule][1], "method": "fixed"} | options))
    values = []
    for k, batch in enumerate(batches(steps)):
        values.append(dict(tuner.hyperparameters))
        tuner.step(batch, VAL if tuner.needs_val else None)
        if between is not None:
            between(model, k)
    return model, values


def apart(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of anything in two modules: weights and buffers."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((p.double() - q.double()).abs().max()) for p, q in pairs if p.numel())
