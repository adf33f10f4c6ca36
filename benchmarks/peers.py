"""The same hypergradient by other libraries that a user could install, each through its public call and through ours.

* Through ten steps on an MLP, by the weight decay: autograd as one writes it by hand, `higher` (SGD), and `torchopt`
  (Adam).
* An outer step of hypertorch's example, logistic regression with a penalty for every feature (`examples/
  logistic_regression.ipynb` of prolearner/hypertorch): a hundred steps of gradient descent from zero, and the
  hypergradient through the last ten, by its `reverse`.

No library is needed: a row whose library is absent is skipped with a line that says so.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import gradtune
from benchmarks.subjects import Batch, Subject, classifier
from benchmarks.timing import Pair, Work
from gradtune.errors import GradtuneError
from gradtune.estimators.reverse import Reverse
from gradtune.nets.plain import mlp
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.outer import SGD
from gradtune.training.loop import Method

STEPS, LR, ADAM_LR, DECAY = 10, 0.05, 1e-3, 1e-3
FEATURES, ROWS, DESCENT, LOOK_BACK, DESCENT_LR = 20, 500, 100, 10, 0.1


class Absent(GradtuneError):
    """A row needs something that is not installed."""


def installed(name: str, member: str, source: str = "") -> Any:
    """Import the library of a name.

    Args:
        name: Its name.
        member: What is called of it. A library of the same name without it is another one.
        source: What to install it from, if not by its name.

    Raises:
        Absent: It is not installed, or cannot be imported here. The row that needs it is skipped.
    """
    absent = Absent(f"{name} is not installed (pip install {source or name})")
    if importlib.util.find_spec(name) is None:
        raise absent
    try:
        library = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise Absent(f"{name} is installed and cannot be imported here ({error})") from error
    if not hasattr(library, member):
        raise absent
    return library


# --- ten steps on an MLP ----------------------------------------------------------------------------------------------


def penalty(params: Iterable[Tensor]) -> Tensor:
    """Compute `|w|^2 / 2` over all parameters."""
    return sum((p.square().sum() for p in params), torch.zeros(())) / 2


def unrolled(subject: Subject, decay: Tensor) -> Tensor:
    """Compute the hypergradient by autograd as one writes it by hand.

    The weights are a dictionary and the steps are written out, with one `autograd.grad` with a graph a step.
    """
    params = {n: p.detach().clone().requires_grad_() for n, p in subject.net.named_parameters()}
    for _ in range(STEPS):
        grads = torch.autograd.grad(_loss(subject, params, subject.train), tuple(params.values()), create_graph=True)
        params = {n: p - LR * (g + decay * p) for (n, p), g in zip(params.items(), grads, strict=True)}
    return torch.autograd.grad(_loss(subject, params, subject.val), decay)[0]


def _loss(subject: Subject, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
    x, y = batch
    return subject.loss(functional_call(subject.net, dict(params), (x,)), y)


def with_higher(subject: Subject, decay: Tensor) -> Tensor:
    """Compute the hypergradient by `higher.innerloop_ctx`, its differentiable SGD."""
    (x, y), (xv, yv) = subject.train, subject.val
    optimiser = torch.optim.SGD(subject.net.parameters(), lr=LR, weight_decay=DECAY)
    override = {"weight_decay": [decay]}
    with _higher().innerloop_ctx(subject.net, optimiser, override=override) as (net, inner):
        for _ in range(STEPS):
            inner.step(subject.loss(net(x), y))
        return torch.autograd.grad(subject.loss(net(xv), yv), decay)[0]


def _higher() -> Any:
    return installed("higher", "innerloop_ctx")


def with_torchopt(subject: Subject, decay: Tensor) -> Tensor:
    """Compute the hypergradient by `torchopt.MetaAdam`, whose own weight decay is no tensor: it is in the loss.

    It works on a copy of the net, whose weights it replaces by tensors with a graph.
    """
    net, (x, y), (xv, yv) = copy.deepcopy(subject.net), subject.train, subject.val
    inner = _torchopt().MetaAdam(net, lr=ADAM_LR)
    for _ in range(STEPS):
        inner.step(subject.loss(net(x), y) + decay * penalty(net.parameters()))
    return torch.autograd.grad(subject.loss(net(xv), yv), decay)[0]


def _torchopt() -> Any:
    return installed("torchopt", "MetaAdam")


def ours(subject: Subject, rule: str) -> Tensor:
    """Compute the hypergradient by `gradtune.hypergradient`, called again and again as in an outer loop.

    Args:
        subject: The net, its loss and its batches.
        rule: "sgd", without momentum, or "adam".
    """
    found = gradtune.hypergradient(
        subject.net,
        subject.loss,
        [subject.train] * STEPS,
        subject.val,
        hypers={"weight_decay": DECAY},
        fixed={"lr": ADAM_LR if rule == "adam" else LR},
        rule=rule,
        replay=True,
    )
    return torch.tensor(found.natural["weight_decay"])


def _on_the_mlp(theirs: Callable[[Subject, Tensor], Tensor], rule: str, device: torch.device) -> Both:
    subject = classifier(mlp([784, 128, 128, 128, 10]), [784], 100, device)
    decay = torch.tensor(DECAY, device=device, requires_grad=True)
    return Both(lambda: theirs(subject, decay), lambda: ours(subject, rule))


# --- logistic regression ----------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A linear classifier from zero, which hands its weights to the penalty of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and the weights."""
        return x @ self.w, self.w


def _penalised(output: tuple[Tensor, Tensor], y: Tensor, l2: Tensor) -> Tensor:
    logits, w = output
    return cross_entropy(logits, y) + 0.5 * (l2 * w * w).sum()


def _unpenalised(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return cross_entropy(output[0], y)


def features(device: torch.device) -> tuple[Batch, Batch]:
    """Return generated rows of the example's shape, for training and for validation."""
    rng = torch.Generator().manual_seed(1)
    direction = torch.randn(FEATURES, generator=rng)

    def draw() -> Batch:
        x = torch.randn(ROWS, FEATURES, generator=rng)
        y = (x @ direction + 0.1 * torch.randn(ROWS, generator=rng) > 0).float()
        return x.to(device), y.to(device)

    return draw(), draw()


def with_hypertorch(train: Batch, val: Batch, l2: Tensor) -> Tensor:
    """Compute the hypergradient `[FEATURES]` as the example does."""
    hypergrad = _hypertorch()

    def step(params: list[Tensor], hparams: list[Tensor]) -> list[Tensor]:
        w = params[0]
        loss = cross_entropy(train[0] @ w, train[1]) + 0.5 * (w[None] @ torch.diag(hparams[0]) @ w[:, None]).sum()
        return [w - DESCENT_LR * torch.autograd.grad(loss, params, create_graph=True)[0]]

    def outer(params: list[Tensor], hparams: list[Tensor]) -> Tensor:
        return cross_entropy(val[0] @ params[0], val[1])

    history = [[torch.zeros(FEATURES, device=l2.device, requires_grad=True)]]
    for _ in range(DESCENT):
        history.append(step(history[-1], [l2]))
    last = history[-LOOK_BACK - 1 :]
    found: Tensor = hypergrad.reverse(last, [l2], [step] * LOOK_BACK, outer, set_grad=False)[0]
    return found


def _hypertorch() -> Any:
    return installed("hypergrad", "reverse", "git+https://github.com/prolearner/hypertorch")


def ours_of_features(model: Linear, train: Batch, val: Batch) -> Tensor:
    """Compute the hypergradient `[FEATURES]` by `gradtune.hypergradient`."""
    found = gradtune.hypergradient(
        model,
        _penalised,
        [train] * DESCENT,
        val,
        hypers=[Hyper("l2", torch.ones(FEATURES), "identity", shape=(FEATURES,))],
        fixed={"lr": DESCENT_LR},
        rule="sgd",
        method=Method(Reverse(LOOK_BACK, "graph"), SGD(0.0), every=DESCENT),
        val_loss=_unpenalised,
        replay=True,
    )
    return torch.tensor([*found.natural.values()])


def _on_features(device: torch.device) -> Both:
    (train, val), model = features(device), Linear().to(device)
    l2 = torch.ones(FEATURES, device=device, requires_grad=True)
    return Both(lambda: with_hypertorch(train, val, l2), lambda: ours_of_features(model, train, val))


# --- the rows ---------------------------------------------------------------------------------------------------------


class Both(NamedTuple):
    """A hypergradient by a peer and by ours, ready to be computed."""

    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]


class Peer(NamedTuple):
    """A line of the peers' table.

    Attributes:
        name: Its name.
        title: What the table shows.
        goal: Largest cost in theirs that is good enough.
        against: Whose cost it is compared with.
        library: Imports what it needs.
        make: Prepares both on a device.
    """

    name: str
    title: str
    goal: float
    against: str
    library: Callable[[], Any]
    make: Callable[[torch.device], Both]


PEERS = {
    p.name: p
    for p in (
        Peer(
            *("sgd-by-hand", f"{STEPS} unrolled SGD steps and autograd by hand", 1.0, "autograd by hand", lambda: None),
            lambda device: _on_the_mlp(unrolled, "sgd", device),
        ),
        Peer(
            *("sgd-higher", f"{STEPS} unrolled SGD steps and higher", 0.6, "higher", _higher),
            lambda device: _on_the_mlp(with_higher, "sgd", device),
        ),
        Peer(
            *("adam-torchopt", f"{STEPS} unrolled Adam steps and TorchOpt", 0.7, "torchopt", _torchopt),
            lambda device: _on_the_mlp(with_torchopt, "adam", device),
        ),
        Peer(
            *("hypertorch", "hypertorch's logistic regression, an outer step", 0.9, "hypertorch", _hypertorch),
            _on_features,
        ),
    )
}


def pair(name: str, device: torch.device, quick: bool) -> Pair:
    """Prepare a peer and ours.

    Args:
        name: Name of the peer, one of `PEERS`.
        device: Where both are computed.
        quick: Compute one hypergradient a repeat in place of five.

    Returns:
        The peer as the base and ours as the method. A step of their `Work` is one whole hypergradient.

    Raises:
        Absent: The peer is not installed.
    """
    peer, times = PEERS[name], 1 if quick else 5
    peer.library()
    both = peer.make(device)

    def repeated(call: Callable[[], object]) -> Work:
        return Work(lambda: [call() for _ in range(times)], times)

    return Pair(repeated(both.theirs), repeated(both.ours))
