"""Every method with every rule on nets of three families, in float32, on a device: what the tests of devices train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradtune.methods import making
from gradtune.nets.modules import batched
from gradtune.nets.plain import LanguageModel
from gradtune.recursion import outer, rules
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Loop, Method
from gradtune.training.metaoptimize import MetaOptimize

STEPS = 2  # of an interval between outer updates, of a horizon, and of a look-back
SEEDS = (3, 4)
_NO_THIRD_DERIVATIVES = {("metaoptimize_full", "convolutions")}  # torch's batch norm has none


def convolutional() -> nn.Module:
    """A convolution with batch norm and dropout."""
    first = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, nn.Flatten(), nn.Dropout(0.25), nn.Linear(18, 3))


class Words(nn.Module):
    """An LSTM language model with dropout, its logits `[T B, vocabulary]`."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.drop = LanguageModel(5, 4), nn.Dropout(0.25)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.drop(self.net(tokens)).flatten(0, 1)
        return out


def _pixels(rng: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6, *shape, generator=rng), torch.randint(0, 3, (4, 6), generator=rng)


def _words(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, 5, (4, 4, 2), generator=rng)
    return text[:, :-1], text[:, 1:].flatten(1)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], tuple[Tensor, Tensor]]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), lambda rng: _pixels(rng, 6)),
    "convolutions": (convolutional, lambda rng: _pixels(rng, 1, 8, 8)),
    "words": (Words, _words),
}


def drawn(net: str, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A net, three training batches and a validation batch of inputs, and of targets."""
    make, data = NETS[net]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    x, y = data(torch.Generator().manual_seed(1))
    return module.to(device), x.to(device), y.to(device)


class Task:
    """Losses of the runs on batches that change from step to step."""

    stationary = False

    def __init__(self, net: str, device: str) -> None:
        module, self.x, self.y = drawn(net, device)
        self.seeds = SEEDS[: 1 if net == "convolutions" else 2]  # one run is no stack
        self._loss = batched(module, cross_entropy)
        self.layout = self._loss.layout
        flat = self.layout.flatten(dict(module.named_parameters())).detach()
        self.w = torch.stack([flat * (1 + 0.1 * k) for k in range(len(self.seeds))])

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.on_batch(w, lam, t, self.x[t % 3], self.y[t % 3])

    def on_batch(self, w: Tensor, lam: Mapping[str, Tensor], t: int, x: Tensor, y: Tensor) -> Tensor:
        penalty = 0.5 * (lam["l2"] * w * w).sum(-1) if "l2" in lam else 0.0
        return self._loss(w, x, y, seeds=self.seeds, t=t) + penalty

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self._loss(w, self.x[3], self.y[3], seeds=self.seeds, t=t, mode="eval")


class HandedOver(Task):
    """The same losses, whose batches a recorded block is handed."""

    def batch(self, t: int) -> tuple[Tensor, ...]:
        return self.x[t % 3], self.y[t % 3]

    def on(self, batch: tuple[Tensor, ...]) -> OnBatch:
        return OnBatch(self, batch)


class OnBatch:
    stationary = True

    def __init__(self, task: Task, batch: tuple[Tensor, ...]) -> None:
        self.task, self.given = task, batch

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.task.on_batch(w, lam, t, *self.given)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.task.val_loss(w, lam, t)


RULES: dict[str, Callable[[], Rule]] = {
    "sgd": rules.sgd,
    "nesterov": lambda: rules.sgd(nesterov=True),
    "adam": lambda: rules.adam(weight_decay=True),
    "adamw": rules.adamw,
    "rmsprop": rules.rmsprop,
    "lion": rules.lion,
    "clipped": lambda: rules.clipped(rules.sgd(), 0.01),
    "norm_clipped": lambda: rules.norm_clipped(rules.adamw(), 0.1),
}
_START: dict[str, Any] = {
    "momentum": ("sigmoid", 0.8),
    "weight_decay": ("log10", 1e-3),
    "beta1": ("sigmoid", 0.9),
    "beta2": ("sigmoid", 0.99),
}
_RATE_ALONE = ("hd", "baydin", "metaoptimize_hf", "idbd")

METHODS: dict[str, Callable[[], Method]] = {
    "fixed": making.fixed,
    "oho": lambda: making.oho(1e-3),
    "oho_program": lambda: making.oho(1e-3, product=0.01),
    "unroll1_gtgv": making.unroll1_gtgv,
    "unroll_k": lambda: making.unroll_k(STEPS),
    "clip_r": lambda: making.clip_r(0.5),
    "fds": lambda: making.fds(STEPS),
    "fds_sign": lambda: making.fds(STEPS, outer.SignHalving(0.1), product_limit=10.0),
    "per_step": lambda: making.per_step(STEPS, 1e-3),
    "greedy": lambda: making.greedy(1e-3),
    "hd": lambda: making.hd(1e-3),
    "hd_multiplicative": lambda: making.hd(1e-3, multiplicative=True),
    "baydin": making.baydin,
    "onepass": lambda: making.onepass(STEPS, STEPS),
    "onepass_hdlr": lambda: making.onepass(STEPS, STEPS),
    "lorraine": lambda: making.lorraine(STEPS, STEPS),
    "diff_through_opt": lambda: making.diff_through_opt(STEPS, STEPS),
    "diff_through_opt_tree": lambda: making.diff_through_opt(STEPS, STEPS, store="tree"),
    "metaoptimize_hf": making.metaoptimize_hf,
}
FRAMEWORK = {"metaoptimize_full": "full", "metaoptimize_2x2": "2x2", "metaoptimize_l": "L"}
ONLINE = {"fixed", "oho", "oho_program", "unroll1_gtgv", "unroll_k", "clip_r", "greedy", "hd", "hd_multiplicative"} | {
    *("baydin", "onepass", "onepass_hdlr", "lorraine", "metaoptimize_hf", *FRAMEWORK)
}
"""Methods that move the hyperparameters during the one training."""


def hypers(method: str, rule: Rule, layout: Any) -> Hypers:
    """Hyperparameters of a rule: a learning rate per tensor for some methods, in windows for FDS, the others global."""
    alone = method.startswith(_RATE_ALONE) or method in FRAMEWORK
    bounds = {"bounds": (1e-6, 1.0)}
    windows = 2 if method.startswith("fds") else STEPS if method == "per_step" else 1
    fine = {"onepass_hdlr": "weight", "oho": "tensor", "metaoptimize_2x2": "tensor", "baydin": "tensor"}
    of_loss = method.startswith("unroll1")
    granularity = fine.get(method, "global") if len(layout.sizes) < 6 else "global"
    each = [Hyper("lr", 0.05, "log10", granularity, windows, tuned=not of_loss, **bounds)]  # type: ignore[arg-type]
    for name in rule.hypers[1:]:
        transform, value = _START[name]
        each.append(Hyper(name, value, transform, tuned=not (alone or of_loss)))
    if of_loss or method == "lorraine":
        each.append(Hyper("l2", 1e-3, "log10"))
    return Hypers(each, layout.sizes, STEPS if windows > 1 else None, layout.names, layout.shapes)


def every() -> list[tuple[str, str, str]]:
    """Every method with every rule on the MLP, and on the other nets with a rule, another one for each method."""
    methods, named = [*METHODS, *FRAMEWORK], list(RULES)
    found = [(method, rule, "mlp") for method in methods for rule in named]
    for k, method in enumerate(methods):
        found += [(method, named[(k + j) % len(named)], net) for j, net in enumerate(("convolutions", "words"))]
    return [each for each in found if (each[0], each[2]) not in _NO_THIRD_DERIVATIVES]


def trained(method: str, rule: str, net: str, device: str, kind: type[Task] = Task) -> Callable[[int], Any]:
    """Return a function that takes some steps and returns all that is left, as nested tensors."""
    task, chosen = kind(net, device), RULES[rule]()
    declared = hypers(method, chosen, task.layout)
    if method in FRAMEWORK:
        full = MetaOptimize(task, chosen, declared, outer.SGD(1e-3), 0.9, FRAMEWORK[method])
        return _stepping(full, full.start(task.w))
    loop = Loop(task, chosen, declared, METHODS[method]())
    return _stepping(loop, loop.start(task.w))


def _stepping(loop: Any, run: Any) -> Callable[[int], Any]:
    held = [run]  # at first the start

    def step(count: int) -> Any:
        held[0] = loop.advance(held[0], count)
        return held[0]

    return step
