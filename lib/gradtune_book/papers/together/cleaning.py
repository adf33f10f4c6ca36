"""A weight for each of thousands of training rows, part of them with wrong labels, found by hypergradients.

A share of the training rows has a wrong label. Every row has a weight in its loss, the sigmoid of a coordinate of its
own, and all coordinates move so that the loss on a few rows with right labels falls ("hyper-cleaning", Franceschi et
al. 2017). Forward mode would carry thousands of columns; here:

* "whole training": exact through all steps of a training (`Reverse(T, "tree")`), from new weights after each update;
* "OnePass" and "Diff-through-Opt": the last update, and the last five steps, of one long training;
* "closed form": exact for a linear classifier by weighted least squares, whose solution is a formula;
* "all rows", "right rows" and "validation rows": no weights at all, only the rows whose label is right (which nobody
  knows), and the rows that validate in place of those that train.

All that search have the same budget of gradients but for the closed form. Every set of weights is judged by nets that
are trained with it anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from gradtune.errors import unknown
from gradtune.estimators import Estimator
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.nets.draws import number
from gradtune.nets.modules import batched
from gradtune.nets.plain import mlp
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import Adam
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method
from gradtune.training.restarts import Progress, Restarts, Task
from gradtune_book.papers.series import short
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import images

WHOLE, ONEPASS, SHORT, CLOSED = "whole training", "OnePass", "Diff-through-Opt", "closed form"
ALL, RIGHT, VALIDATION = "all rows", "right rows", "validation rows"
METHODS = (WHOLE, ONEPASS, SHORT, CLOSED, ALL, RIGHT, VALIDATION)
_LABELS, _WEIGHTS, _ORDER, _TEST = range(4)  # what a seed is used for
_EVERY = 10  # training steps between two updates of the online methods
_LOOK_BACK = 5


@dataclass(frozen=True)
class Config:
    """One set of weights, found and judged."""

    method: str  # one of `METHODS`
    seed: int  # draws which labels are wrong, weights and batches
    data: str = "mnist"
    rows: int = 5000  # training rows
    validation: int = 1000  # rows with right labels
    wrong: float = 0.3  # share of training rows with a wrong label
    hidden: int = 32  # units of the hidden layer
    steps: int = 400  # T: steps of a training
    batch: int = 250
    lr: float = 0.05
    momentum: float = 0.9
    outer_steps: int = 20  # updates of "whole training", and twice as many of the closed form
    outer_lr: float = 0.3  # Adam's, on the coordinates, where a training ends before an update
    online_lr: float = 0.05  # Adam's, where it goes on
    ridge: float = 0.01  # penalty of the closed form, times the number of rows
    branching: int = 20  # k of the tree
    tests: int = 3  # trainings that judge the weights
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and the number of seeds."""

    data: str
    rows: int
    validation: int
    hidden: int
    steps: int
    batch: int
    outer_steps: int
    branching: int
    tests: int
    seeds: int


SIZES = {
    "smoke": Sizes("digits", 500, 200, 16, 60, 50, 6, 8, 1, 1),
    "laptop": Sizes("mnist", 5000, 2000, 32, 300, 250, 16, 18, 3, 3),
    "paper": Sizes("mnist", 5000, 5000, 300, 2000, 250, 100, 45, 5, 10),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale, method by method.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    same = {n: v for n, v in asdict(sizes).items() if n != "seeds"}
    return [Config(m, s, **same) for m in METHODS for s in range(seed, seed + sizes.seeds)]


class Rows(NamedTuple):
    """The data of a run.

    Attributes:
        train: Training rows with the labels that are given.
        right: Which of these labels are right.
        val: Validation rows.
        given: The set.
    """

    train: tuple[Tensor, Tensor]
    right: Tensor
    val: tuple[Tensor, Tensor]
    given: images.Images


def rows(c: Config, device: torch.device) -> Rows:
    """Return the training rows, a share of them with another label than theirs, and the validation rows."""
    given = images.load(c.data, torch.float32, device, c.validation, c.rows + c.validation).flat()
    x, y = given.train
    rng = torch.Generator().manual_seed(number(c.seed, _LABELS))
    wrong, classes = torch.randperm(len(y), generator=rng)[: round(c.wrong * len(y))], int(y.max()) + 1
    moved, right = y.clone(), torch.ones(len(y), dtype=torch.bool, device=device)
    moved[wrong] = (y[wrong] + torch.randint(1, classes, (len(wrong),), generator=rng).to(device)) % classes
    right[wrong] = False
    return Rows((x, moved), right, given.val, given)


def _weighted(output: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    losses = cross_entropy(output, y, reduction="none")
    return (losses if weights is None else losses * weights).mean()


class Cleaning:
    """The losses of a net on weighted rows: a `problems.Problem` with the hyperparameter `weight`, an entry a row.

    Batch t is a function of (seed, t).

    Args:
        c: Configuration.
        data: The rows.
        seed: Draws weights and batches.
        train: Rows that train, with weights 1; by default those of `data`, with their own.

    Attributes:
        stationary: False, as the losses depend on t.
        layout: Where each parameter lies.
    """

    stationary = False

    def __init__(self, c: Config, data: Rows, seed: int, train: tuple[Tensor, Tensor] | None = None) -> None:
        self._c, self._data, self._seed = c, data, seed
        self._train, self._own = train or data.train, train is None
        x, y = data.given.train
        self._sizes = (x.shape[1], c.hidden, int(y.max()) + 1)
        self.net = mlp(self._sizes).to(x)
        self._loss = batched(self.net, _weighted)
        self.layout, self._order = self._loss.layout, (-1, torch.empty(0))

    def init(self) -> Tensor:
        """Return initial weights `[1, D]`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number(self._seed, _WEIGHTS))
            fresh = mlp(self._sizes)
        return self.layout.flatten(dict(fresh.named_parameters()))[None].to(self._train[0])

    def batch_rows(self, t: int) -> Tensor:
        """Return the numbers of the rows of batch t."""
        epoch, place = divmod(t, max(1, len(self._train[1]) // self._c.batch))
        if self._order[0] != epoch:
            rng = torch.Generator().manual_seed(number(self._seed, _ORDER, epoch))
            self._order = epoch, torch.randperm(len(self._train[1]), generator=rng).to(self._train[1].device)
        return self._order[1][place * self._c.batch : (place + 1) * self._c.batch]

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        chosen = self.batch_rows(t)
        own = {"weights": lam["weight"][:, chosen]} if self._own else None
        return self._loss(w, self._train[0][chosen], self._train[1][chosen], loss_lam=own)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self._loss(w, *self._data.val)

    @torch.no_grad()
    def tested(self, w: Tensor) -> tuple[float, float]:
        """Return loss and share of right classes on the test images."""
        x, y = self._data.given.test
        output = torch.func.functional_call(self.net, self.layout.split(w[0]), (x,))
        return float(cross_entropy(output, y)), float((output.argmax(-1) == y).double().mean())


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Find and judge weights, one run after the other.

    Metrics: `test_loss` and `test_accuracy` of nets trained anew with the weights found; `separation`, the chance that
    a row with a right label has a larger weight than one with a wrong label; `wrong_kept` and `right_dropped`, shares
    of the rows on the wrong side of 1/2; and `updates`. Series: `right_weights` and `wrong_weights`, deciles of the
    weights; `val_curve`, the validation loss before each update, as far as a method takes it.

    Raises:
        GradtuneError: A method is unknown.
    """
    return [_run(c, device) for c in batch]


class _Found(NamedTuple):
    weights: Tensor
    curve: list[float]
    updates: int


def _run(c: Config, device: torch.device) -> Result:
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    data = rows(c, device)
    with Stopwatch(device) as spent:
        found = _found(c, data)
    losses, right = zip(*(_judged(c, data, found.weights, number(c.seed, _TEST, k)) for k in range(c.tests)))
    metrics: dict[str, float | int | None] = {
        "test_loss": float(np.mean(losses)),
        "test_accuracy": float(np.mean(right)),
        "updates": found.updates,
    }
    series: dict[str, list[float | None]] = {}
    if c.method in (WHOLE, ONEPASS, SHORT, CLOSED):
        weights, good = found.weights.double().cpu().numpy(), data.right.cpu().numpy()
        metrics |= {
            "separation": separation(weights, good),
            "wrong_kept": float((weights[~good] > 0.5).mean()),
            "right_dropped": float((weights[good] < 0.5).mean()),
        }
        deciles = np.linspace(0, 1, 11)
        series = {
            f"{n}_weights": short(np.quantile(weights[m], deciles)) for n, m in (("right", good), ("wrong", ~good))
        }
        series["val_curve"] = list(found.curve)
    return Result(metrics, series, **spent.share(1), dataset=data.given.caption, dataset_sha256=data.given.sha256)


def separation(weights: np.ndarray, right: np.ndarray) -> float:
    """Return the chance that a row with a right label has a larger weight than one with a wrong label (ties: half)."""
    ranks, n = rankdata(weights), int(right.sum())
    return float((ranks[right].sum() - n * (n + 1) / 2) / (n * (len(right) - n)))


def _found(c: Config, data: Rows) -> _Found:
    if c.method in (ALL, VALIDATION):
        return _Found(torch.ones_like(data.right, dtype=data.train[0].dtype), [], 0)
    if c.method == RIGHT:
        return _Found(data.right.to(data.train[0].dtype), [], 0)
    if c.method == CLOSED:
        return _linear(c, data)
    return _trained(c, data)


def _hypers(c: Config, weights: Tensor | float, tuned: bool) -> list[Hyper]:
    weight = Hyper("weight", weights, transform="sigmoid", shape=(c.rows,), tuned=tuned)
    return [weight, Hyper("lr", c.lr, tuned=False), Hyper("momentum", c.momentum, tuned=False)]


def _loop(c: Config, problem: Cleaning, method: Method, weights: Tensor | float) -> Loop:
    declared = _hypers(c, weights, method.estimator is not None)
    return Loop(problem, sgd(weight_decay=False), Hypers(declared, problem.layout.sizes), method)


def online_steps(c: Config) -> int:
    """Return how many steps an online method takes with the gradients of all trainings of "whole training".

    A step of a whole training costs it about five gradients: two to reach it, one with its graph and a Hessian product
    of two. An online step costs one, and ten steps an update with five products and a validation gradient that is worth
    four of a batch.
    """
    of_update = 2 * _LOOK_BACK + c.validation / c.batch
    return round(c.outer_steps * c.steps * 5 / (1 + of_update / _EVERY) / _EVERY) * _EVERY


def _trained(c: Config, data: Rows) -> _Found:
    if c.method == WHOLE:
        return _whole(c, data)
    problem, steps = Cleaning(c, data, c.seed), online_steps(c)
    estimator: Estimator = Neumann(_LOOK_BACK) if c.method == ONEPASS else Reverse(_LOOK_BACK, "graph")
    loop = _loop(c, problem, Method(estimator, Adam(c.online_lr), _EVERY), 0.5)
    raw = loop.advance(loop.start(problem.init()), steps).raw
    return _Found(raw.sigmoid()[0], [], steps // _EVERY)


def _whole(c: Config, data: Rows) -> _Found:
    """Find the weights along the hypergradients of whole trainings, each from new weights and in a new order."""
    curve: list[float] = []
    problems: dict[int, Cleaning] = {}

    def make(k: int) -> Task:
        problems.clear()
        problems[k] = Cleaning(c, data, number(c.seed, k))
        return Task(problems[k], problems[k].init(), problems[k].layout.sizes)

    def watch(progress: Progress) -> None:
        with torch.no_grad():
            curve.append(float(problems[progress.number].val_loss(progress.run.state.w, {}, 0)))

    def method(steps: int) -> Method:
        return Method(Reverse(steps, "tree", c.branching), Adam(c.outer_lr), steps)

    search = Restarts(make, sgd(weight_decay=False), _hypers(c, 0.5, True), method, [c.steps] * c.outer_steps)
    raw = search.advance(search.start(), watch=watch).run.raw
    return _Found(raw.sigmoid()[0], curve, c.outer_steps)


def _linear(c: Config, data: Rows) -> _Found:
    """Find the weights of weighted least squares with a ridge, differentiating its solution."""
    (x, y), (x_val, y_val) = (
        (torch.cat((a, torch.ones_like(a[:, :1])), 1).double(), b) for a, b in (data.train, data.val)
    )
    classes = int(y.max()) + 1
    targets, wanted = one_hot(y, classes).double(), one_hot(y_val, classes).double()
    penalty = c.ridge * len(x) * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    raw, curve = torch.zeros(1, len(x), dtype=torch.float64, device=x.device), []
    outer = Adam(c.outer_lr)
    state = outer.init(raw)
    for _ in range(2 * c.outer_steps):
        raw = raw.detach().requires_grad_()
        weighted = x * raw.sigmoid().T
        loss = ((x_val @ torch.linalg.solve(weighted.T @ x + penalty, weighted.T @ targets) - wanted) ** 2).mean()
        (g,) = torch.autograd.grad(loss, raw)
        curve.append(float(loss.detach()))
        raw, state = outer.update(raw.detach(), g, state, {})
    return _Found(raw.sigmoid()[0].to(data.train[0].dtype), curve, 2 * c.outer_steps)


def _judged(c: Config, data: Rows, weights: Tensor, seed: int) -> tuple[float, float]:
    """Return test loss and accuracy of a net that is trained anew with these weights."""
    only = data.val if c.method == VALIDATION else None
    problem = Cleaning(replace(c, batch=min(c.batch, c.validation)), data, seed, only)
    loop = _loop(c, problem, Method(), weights)
    return problem.tested(loop.advance(loop.start(problem.init()), c.steps).state.w)


def _cost(c: Config) -> float:
    searched = c.method in (WHOLE, ONEPASS, SHORT)
    return c.steps * (5.0 * c.outer_steps * searched + c.tests) + 2000.0 * (c.method == CLOSED)


STUDY = Study("hyper_cleaning", Config, SIZES, configs, run, chunk=1, cost=_cost)
