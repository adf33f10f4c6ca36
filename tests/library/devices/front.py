"""What a user calls, on a device: `Tuner` with every method, `MetaOptimize`, for the tests of devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradtune import Tuner
from gradtune.optim import MetaOptimize
from library.devices.cases import drawn

SETTLED, STEPS = 24, 4
ADAMW = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01}
_SGD = {"lr": 0.05, "momentum": 0.8, "weight_decay": 1e-3}
TUNERS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "hd": {"hypers": {"lr": 0.05}, "options": {"lr": 1e-3}},
    "baydin": {"hypers": {"lr": 0.05}},
    "metaoptimize_hf": {"hypers": {"lr": 0.05}},
    "onepass": {"options": {"every": 2}},
    "onepass, adamw": {"options": {"every": 2}, "rule": "adamw", "hypers": ADAMW},
    "onepass, convolutions": {"options": {"every": 2}, "net": "convolutions"},
    "onepass, words": {"options": {"every": 2}, "net": "words"},
    "diff_through_opt": {"options": {"horizon": 2, "every": 4}},
    "oho": {"options": {"lr": 1e-3}},
    "clip_r": {"options": {"radius": 0.5}},
    "unroll_k": {"options": {"k": 2}},
    "greedy": {"options": {"lr": 1e-3}},
}
OPTIMISERS = [(base, meta) for base in ("sgd", "sgdm", "rmsprop", "adamw", "lion") for meta in ("sgd", "adam", "lion")]


def made(name: str, device: str, **more: Any) -> tuple[Tuner, Tensor, Tensor]:
    """A tuner of `TUNERS`, and three training batches and a validation batch of inputs and targets."""
    given = {"method": name.partition(",")[0], "hypers": _SGD, **TUNERS[name], **more}
    given.setdefault("replay", device == "cuda")  # as soon as possible
    module, x, y = drawn(given.pop("net", "mlp"), device)
    return Tuner(module, cross_entropy, **given), x, y


def tuner(name: str, device: str, **more: Any) -> Callable[[int], Any]:
    """Return a function that takes some steps and returns all that is left, as nested tensors."""
    made_, x, y = made(name, device, **more)

    def step(count: int) -> Any:
        for _ in range(count):
            k = made_.steps % 3
            made_.step((x[k], y[k]), (x[3], y[3]) if made_.needs_val else None)
        return made_._run._replace(past=()), made_._problem.seen, list(made_.model.buffers())

    return step


def optimiser(base: str, meta: str, device: str) -> Callable[[int], Any]:
    """The same of `gradtune.optim.MetaOptimize` on a net, with a learning rate a group."""
    net, x, y = drawn("mlp", device)
    assert isinstance(net, nn.Sequential)
    groups = [{"params": list(net[k].parameters())} for k in (0, 2)]
    optim = MetaOptimize(groups, base=base, meta=meta, lr=0.01)

    def step(count: int) -> Any:
        for k in range(count):
            optim.zero_grad()
            cross_entropy(net(x[k % 3]), y[k % 3]).backward()
            optim.step()
        return [p.detach() for p in net.parameters()], torch.zeros(())

    return step
