"""The same hypergradient by other means: `dL_V / d l2` through five SGD steps on a loss with a penalty.

The penalty is `l2/2 |w|^2`. `unrolled` is autograd as one writes it by hand; `higher` and `torchopt` are libraries that
a user could install. Neither library is needed: a row whose library is absent is skipped with a line that says so.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.subjects import Subject, classifier
from benchmarks.timing import Pair, Work
from gradtune.errors import GradtuneError
from gradtune.estimators.reverse import Reverse
from gradtune.nets.plain import mlp
from gradtune.recursion import rules
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.outer import SGD
from gradtune.training.loop import Loop, Method

STEPS, LR, L2 = 5, 0.05, 1e-3

Hypergradient = Callable[[Subject, Tensor], Tensor]


class Absent(GradtuneError):
    """A row needs something that is not installed."""


def installed(name: str) -> object:
    """Import the library of a name.

    Raises:
        Absent: It is not installed, or cannot be imported here. The row that needs it is skipped.
    """
    if importlib.util.find_spec(name) is None:
        raise Absent(f"{name} is not installed (pip install {name})")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise Absent(f"{name} is installed and cannot be imported here ({error})") from error


def penalty(params: Iterable[Tensor]) -> Tensor:
    """Compute `|w|^2 / 2` over all parameters."""
    return sum((p.square().sum() for p in params), torch.zeros(())) / 2


def unrolled(subject: Subject, l2: Tensor) -> Tensor:
    """Compute the hypergradient by autograd as one writes it by hand.

    The weights are a dictionary and the steps are written out, with one `autograd.grad` with a graph a step.
    """
    params = {n: p.detach().clone().requires_grad_() for n, p in subject.net.named_parameters()}
    for _ in range(STEPS):
        loss = _loss(subject, params, subject.train) + l2 * penalty(params.values())
        grads = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
        params = {n: p - LR * g for (n, p), g in zip(params.items(), grads, strict=True)}
    return torch.autograd.grad(_loss(subject, params, subject.val), l2)[0]


def _loss(subject: Subject, params: Mapping[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return subject.loss(functional_call(subject.net, dict(params), (x,)), y)


def with_higher(subject: Subject, l2: Tensor) -> Tensor:
    """Compute the hypergradient by `higher.innerloop_ctx`, its differentiable SGD."""
    higher = installed("higher")
    (x, y), (xv, yv) = subject.train, subject.val
    optimiser = torch.optim.SGD(subject.net.parameters(), lr=LR)
    with higher.innerloop_ctx(subject.net, optimiser) as (net, inner):  # type: ignore[attr-defined]
        for _ in range(STEPS):
            inner.step(subject.loss(net(x), y) + l2 * penalty(net.parameters()))
        return torch.autograd.grad(subject.loss(net(xv), yv), l2)[0]


def with_torchopt(subject: Subject, l2: Tensor) -> Tensor:
    """Compute the hypergradient by `torchopt.MetaSGD`.

    It works on a copy of the net, whose weights it replaces by tensors with a graph.
    """
    torchopt = installed("torchopt")
    net, (x, y), (xv, yv) = copy.deepcopy(subject.net), subject.train, subject.val
    inner = torchopt.MetaSGD(net, lr=LR)  # type: ignore[attr-defined]
    for _ in range(STEPS):
        inner.step(subject.loss(net(x), y) + l2 * penalty(net.parameters()))
    return torch.autograd.grad(subject.loss(net(xv), yv), l2)[0]


PEERS: dict[str, Hypergradient] = {"unrolled": unrolled, "higher": with_higher, "torchopt": with_torchopt}


class _Penalised(Subject):
    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return super().train_loss(w, lam, t) + lam["l2"][:, 0] * (w * w).sum(-1) / 2


def ours(subject: Subject, trace: bool = True) -> Callable[[], Tensor]:
    """Prepare the hypergradient by `Reverse(5, "graph")`, as Diff-through-Opt computes it.

    Args:
        subject: The net, its loss and its batches.
        trace: Whether the loop records its operations once and replays them.

    Returns:
        A function that computes the hypergradient `[1, 1]`.
    """
    problem = _Penalised(subject.net, subject.loss, subject.train, subject.val, stationary=False)
    hypers = problem.hypers([Hyper("lr", LR, tuned=False), Hyper("l2", L2)])
    rule = rules.sgd(momentum=False, weight_decay=False)
    loop = Loop(problem, rule, hypers, Method(Reverse(STEPS, "graph"), SGD(1.0), every=STEPS), trace=trace)
    start = loop.start(problem.init())
    return lambda: start.raw - loop.advance(start, STEPS).raw


def pair(name: str, device: torch.device, quick: bool) -> Pair:
    """Prepare a peer and ours on the MLP 784-128x3-10 with batches of 100.

    Args:
        name: Name of the peer, one of `PEERS`.
        device: Where both are computed.
        quick: Compute one hypergradient a repeat in place of five.

    Returns:
        The peer as the base and ours as the method. A step of their `Work` is one whole hypergradient.

    Raises:
        Absent: The peer is not installed.
    """
    subject = classifier(mlp([784, 128, 128, 128, 10]), [784], 100, device)
    peer, l2 = PEERS[name], torch.tensor(L2, device=device, requires_grad=True)
    if peer is not unrolled:
        installed(name)
    times, mine = 1 if quick else 5, ours(subject)

    def repeated(call: Callable[[], object]) -> Work:
        return Work(lambda: [call() for _ in range(times)], times)

    return Pair(repeated(lambda: peer(subject, l2)), repeated(mine))
