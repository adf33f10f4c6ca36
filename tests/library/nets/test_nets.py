"""Every estimator stays exact on LSTM, convolutions, batch norm, dropout and a tuned label smoothing; float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.estimators.reverse import Reverse
from gradtune.nets.losses import cross_entropy
from gradtune.nets.modules import Batched, Layout, batch_statistics, batched
from gradtune.nets.plain import LSTM, Dropout, LanguageModel, conv_bn, lenet, lstm_cell, mlp
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule, sgd
from tools import hypergradient, normal, relative, three_runs, whole

T = 4
SEEDS: Sequence[int] = (11, 5, 8)


class Task:
    """Training on three batches of rows x (along `axis`), validation on a fourth, of the runs with these seeds."""

    stationary = False

    def __init__(self, module: nn.Module, x: Tensor, y: Tensor, axis: int = 0, seeds: Sequence[int] = SEEDS) -> None:
        self.x, self.y = x.chunk(4, axis), y.chunk(4, axis)
        self.module, self.seeds = module.double(), seeds
        self.buffers: dict[str, Tensor] = {}
        self.layout, self.loss = Layout.of(module), batched(module, cross_entropy)

    def init(self) -> Tensor:
        d = sum(self.layout.sizes)
        return torch.stack([0.4 * normal(d, seed=s) for s in self.seeds])

    def keep(self, lam: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: lam[n] for n in ("keep",) if n in lam}

    def smoothing(self, lam: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: lam[n] for n in ("smoothing",) if n in lam}

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        here = self.x[t % 3], self.y[t % 3]
        return self.loss(w, *here, net_lam=self.keep(lam), loss_lam=self.smoothing(lam), seeds=self.seeds, t=t)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.loss(w, self.x[3], self.y[3], mode="eval", buffers=self.buffers)


def language(seeds: Sequence[int]) -> Task:
    return Task(LanguageModel(5, 3, 2), whole(5, 3, 8), whole(5, 3, 8, seed=1), axis=1, seeds=seeds)


def convolutions(seeds: Sequence[int]) -> Task:
    return Task(lenet(16, 1, 3, widths=(2, 3, 5, 4)), normal(12, 1, 16, 16), whole(3, 12), seeds=seeds)


def batch_norm(seeds: Sequence[int]) -> Task:
    """Validation in evaluation mode with statistics of the initial weights, a constant set a run."""
    task = Task(conv_bn(8, 2, 3, widths=(3, 4)), normal(20, 2, 8, 8), whole(3, 20), seeds=seeds)
    task.buffers = batch_statistics(task.module, task.init(), task.x[:3])
    return task


def unmodified_dropout(seeds: Sequence[int]) -> Task:
    net = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
    return Task(net, normal(16, 4), whole(3, 16), seeds=seeds)


def multilayer(seeds: Sequence[int]) -> Task:
    return Task(mlp([4, 5, 3], nn.Tanh), normal(16, 4), whole(3, 16), seeds=seeds)


def fixed_keep() -> Hyper:
    return Hyper("keep", torch.tensor([0.7, 0.5, 0.9], dtype=torch.float64), tuned=False)


def tuned_smoothing() -> Hyper:
    return Hyper("smoothing", torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64), "sigmoid")


CASES: dict[str, tuple[Callable[[Sequence[int]], Any], list[Hyper]]] = {
    "lstm": (language, []),
    "lstm-dropout": (language, [fixed_keep()]),
    "lenet": (convolutions, []),
    "batch-norm": (batch_norm, []),
    "nn.Dropout": (unmodified_dropout, []),
    "smoothing": (multilayer, [tuned_smoothing()]),
    "everything": (language, [fixed_keep(), tuned_smoothing()]),
}


def case(name: str, runs: slice = slice(None)) -> tuple[Any, Rule, Hypers, Tensor]:
    """Problem, rule, hyperparameters and weights of some of the three runs."""
    make, extra = CASES[name]
    task = make(SEEDS[runs])
    common = [
        Hyper("lr", 0.2, "log10"),
        Hyper("momentum", 0.6, "sigmoid", granularity="tensor"),
        Hyper("weight_decay", 0.05, "log10"),
    ]
    mine = [Hyper(h.name, torch.as_tensor(h.value)[runs], h.transform, tuned=h.tuned) for h in extra]
    return task, sgd(), Hypers(common + mine, task.layout.sizes), task.init()


@pytest.mark.parametrize("name", CASES)
def test_forward_is_reverse_is_unrolled(name: str) -> None:
    exact = oracle.unrolled(*case(name), T)
    assert exact.isfinite().all() and (exact.abs().amax(0) > 1e-6).all()
    for estimator in (Forward(), Reverse(T), Reverse(T, "graph")):
        error = (hypergradient(*case(name), estimator, T) - exact).abs().amax(0) / exact.abs().amax(0)
        assert error.max() < 1e-10


@pytest.mark.parametrize("name", CASES)
def test_unrolled_is_central_differences(name: str) -> None:
    """ReLU and max pooling have kinks, which these weights do not cross within the width: 1e-6 holds there too."""
    problem, rule, hypers, w = case(name)
    exact = oracle.unrolled(problem, rule, hypers, w, T)
    assert relative(oracle.central_differences(problem, rule, hypers, w, T), exact) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_runs_together_are_runs_alone(name: str) -> None:
    together = hypergradient(*case(name), Forward(), T)
    alone = [hypergradient(*case(name, slice(r, r + 1)), Forward(), T) for r in range(len(SEEDS))]
    assert relative(together, torch.cat(alone)) < 1e-10


# --- LSTM ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_lstm_is_torchs_lstm() -> None:
    theirs = nn.LSTM(3, 4, 2).double()
    ours = LSTM(3, 4, 2).double()
    ours.load_state_dict(theirs.state_dict())
    x, state = normal(6, 5, 3), (normal(2, 5, 4, seed=1), normal(2, 5, 4, seed=2))
    for start in (None, state):
        (a, (ha, ca)), (b, (hb, cb)) = ours(x, start), theirs(x, start)
        assert max(relative(a, b), relative(ha, hb), relative(ca, cb)) < 1e-12
    theirs.load_state_dict(ours.state_dict())


@torch.no_grad()
def test_lstm_cell_is_torchs_cell() -> None:
    cell = nn.LSTMCell(3, 4).double()
    x, h, c = normal(5, 3), normal(5, 4, seed=1), normal(5, 4, seed=2)
    ours = lstm_cell(nn.functional.linear(x, cell.weight_ih, cell.bias_ih + cell.bias_hh), h, c, cell.weight_hh)
    for a, b in zip(ours, cell(x, (h, c)), strict=True):
        assert relative(a, b) < 1e-12


def test_lstm_drops_no_recurrent_connection() -> None:
    """With the input dropped entirely the state still moves by the recurrent weights: as without input."""
    lstm = LSTM(3, 4).double()
    x = normal(6, 5, 3)
    assert relative(lstm(x, keep=1e-300)[0], lstm(0 * x)[0]) < 1e-12
    assert torch.equal(lstm(x, keep=1.0)[0], lstm(x)[0])


# --- random numbers -------------------------------------------------------------------------------------------------


class Mask(nn.Module):
    """Dropout of its own weights: the derivative of their sum is the mask."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.layer, self.own = nn.Parameter(torch.ones(4, 3, 5)), layer, Dropout()

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.layer(self.weight) if self.layer else self.own(self.weight, keep)


def masks(seeds: Sequence[int], t: int, keep: float = 0.5, layer: nn.Module | None = None) -> Tensor:
    """Which weights each run keeps, `[R, 4, 3, 5]`."""
    f = batched(Mask(layer), lambda output, y: output.sum())
    w = torch.ones(len(seeds), 60, dtype=torch.float64, requires_grad=True)
    net_lam = None if layer else {"keep": torch.full((len(seeds), 1), keep, dtype=torch.float64)}
    total = f(w, torch.ones(1), torch.ones(1), net_lam=net_lam, seeds=seeds, t=t).sum()
    return torch.autograd.grad(total, w)[0].view(len(seeds), 4, 3, 5) != 0


@pytest.mark.parametrize("layer", [None, nn.Dropout(0.5), nn.AlphaDropout(0.5)], ids=["own", "nn", "alpha"])
def test_a_mask_depends_on_seed_and_step(layer: nn.Module | None) -> None:
    first = masks([3, 4], 7, layer=layer)
    assert torch.equal(first, masks([3, 4], 7, layer=layer))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, masks([3, 4], 8, layer=layer))
    assert not torch.equal(first, masks([5, 6], 7, layer=layer))


@pytest.mark.parametrize("layer", [None, nn.Dropout(0.5)], ids=["own", "nn"])
def test_a_mask_does_not_depend_on_the_runs_beside_it(layer: nn.Module | None) -> None:
    assert torch.equal(masks([3, 4, 9], 7, layer=layer)[1:], masks([4, 9], 7, layer=layer))
    assert torch.equal(masks([3, 4, 9], 7, layer=layer)[:1], masks([3], 7, layer=layer))


def test_own_and_torchs_dropout_share_their_masks() -> None:
    assert torch.equal(masks([3, 4], 7, keep=0.5), masks([3, 4], 7, layer=nn.Dropout(0.5)))


def test_masks_of_two_keep_probabilities_are_coupled() -> None:
    seeds, low, high = list(range(40)), 0.5, 0.6
    fewer, more = masks(seeds, 0, low), masks(seeds, 0, high)
    assert (more | ~fewer).all() and (more & ~fewer).any()
    for mask, keep in ((fewer, low), (more, high)):
        assert abs(float(mask.double().mean()) - keep) < 4 * (keep * (1 - keep) / mask.numel()) ** 0.5


def test_dropout_of_maps_drops_whole_maps() -> None:
    mask = masks([3, 4], 0, layer=nn.Dropout1d(0.5))
    assert (mask == mask[..., :1]).all() and 0 < float(mask.double().mean()) < 1


def test_dropout_scales_what_it_keeps() -> None:
    kept = Dropout()(torch.ones(1000, dtype=torch.float64), 0.8)
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert torch.equal(Dropout().eval()(torch.ones(5), 0.8), torch.ones(5))


class Linearised:
    """`task` with a training loss whose gradient moves with keep along `slope`, as coupled differences say, and whose
    derivatives are autograd's own."""

    stationary = False

    def __init__(self, task: Task, keep: Tensor, half: float) -> None:
        self.task, self.keep, self.half, self.val_loss = task, keep, half, task.val_loss

    def gradient(self, w: Tensor, keep: Tensor, t: int) -> Tensor:
        w = w.detach().requires_grad_()
        return torch.autograd.grad(self.task.train_loss(w, {"keep": keep}, t).sum(), w)[0]

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        low, high = (self.keep - self.half).clamp(min=0), (self.keep + self.half).clamp(max=1)
        slope = (self.gradient(w, high, t) - self.gradient(w, low, t)) / (high - low)
        return self.task.train_loss(w, {"keep": self.keep}, t) + ((lam["keep"] - self.keep) * slope * w).sum(-1)


@pytest.mark.parametrize("estimator", [Forward(), Reverse(T), Reverse(T, "graph")], ids=repr)
def test_keep_of_a_language_model_is_tuned_by_coupled_differences(estimator: Any) -> None:
    """Three runs, one of them so near keep = 1 that the upper end of its difference is cut there."""
    task, half = language(SEEDS), 0.05
    keep = torch.tensor([[0.7], [0.5], [0.97]], dtype=torch.float64)
    hypers = Hypers(
        [Hyper("lr", 0.2, "log10"), Hyper("keep", keep[:, 0], "sigmoid", difference=half)], task.layout.sizes
    )
    rule, w = sgd(momentum=False, weight_decay=False), task.init()
    exact = oracle.unrolled(Linearised(task, keep, half), rule, hypers, w, T)
    assert exact.abs().min() > 1e-6
    assert relative(hypergradient(task, rule, hypers, w, estimator, T), exact) < 1e-10


def test_no_derivative_flows_to_keep() -> None:
    keep = torch.tensor(0.5, requires_grad=True)
    assert not Dropout()(torch.ones(3), keep).requires_grad


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    masks([3], 7, layer=nn.AlphaDropout(0.5))
    assert torch.equal(before, torch.random.get_rng_state())


# --- buffers --------------------------------------------------------------------------------------------------------


def norm_net(momentum: float | None = 0.1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_loss_leaves_the_module_as_it_is(momentum: float | None) -> None:
    net = norm_net(momentum)
    net[2].eval()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    f, w = batched(net, cross_entropy), three_runs(net)
    for runs in (w, w[:1]):
        for mode in ("train", "eval"):
            f(runs, normal(6, 3), whole(2, 6), mode=mode)
    assert all(torch.equal(before[n], v) for n, v in net.state_dict().items())
    assert net.training and net[1].training and not net[2].training and net[1].momentum == momentum


def test_training_mode_uses_the_batch_and_evaluation_the_running_statistics() -> None:
    net = norm_net()
    f, w, (x, y) = batched(net, cross_entropy), three_runs(net), (normal(6, 3), whole(2, 6))
    buffers = batch_statistics(net, w, [normal(50, 3, seed=1)])
    for r in range(3):
        params = {n: v[r] for n, v in f.layout.split(w).items()}
        net.load_state_dict(params | {n: b[r] for n, b in buffers.items()})
        with torch.no_grad():
            evaluated, trained = net.eval()(x), net.train()(x)
        assert relative(f(w, x, y, mode="eval", buffers=buffers)[r], cross_entropy(evaluated, y)) < 1e-12
        assert relative(f(w, x, y)[r], cross_entropy(trained, y)) < 1e-12


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_from_nothing_are_update_bn_of_each_run(momentum: float | None) -> None:
    net, batches = norm_net(momentum), [normal(6, 3, seed=s) for s in range(4)]
    w = three_runs(net)
    ours = batch_statistics(net, w, batches)
    for r in range(3):
        alone = norm_net(momentum)
        alone.load_state_dict({n: v[r] for n, v in Layout.of(net).split(w).items()}, strict=False)
        torch.optim.swa_utils.update_bn(batches, alone)
        for name in ("1.running_mean", "1.running_var"):
            assert relative(ours[name][r], alone.state_dict()[name]) < 1e-12
    assert not net.state_dict()["1.running_mean"].any() and net[1].momentum == momentum


def test_statistics_go_on_as_in_training() -> None:
    net, batches = norm_net(0.3), [normal(6, 3, seed=s) for s in range(4)]
    w = three_runs(net)
    buffers = batch_statistics(net, w, batches[:1])
    first = {n: b[1].clone() for n, b in buffers.items()}
    for x in batches[1:]:
        buffers = batch_statistics(net, w, [x], start=buffers)
    net.load_state_dict({n: v[1] for n, v in Layout.of(net).split(w).items()} | first)
    for x in batches[1:]:
        net(x)
    assert all(relative(buffers[n][1], net.state_dict()[n]) < 1e-12 for n in ("1.running_mean", "1.running_var"))


def test_each_run_can_have_its_own_batch() -> None:
    net = mlp([3, 4, 2], nn.Tanh).double()
    w, x, y = three_runs(net), normal(3, 6, 3), whole(2, 3, 6)
    own = batched(net, cross_entropy, shared_batch=False)(w, x, y)
    shared = batched(net, cross_entropy)
    assert relative(own, torch.cat([shared(w[r : r + 1], x[r], y[r]) for r in range(3)])) < 1e-12


# --- errors ---------------------------------------------------------------------------------------------------------


class Item(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.a.item()


class Noise(Item):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.a * torch.bernoulli(torch.full((), 0.5))


def run(module: nn.Module, runs: int = 2, loss: Any = cross_entropy, **options: Any) -> Callable[[], object]:
    f = Batched(module, loss)
    return lambda: f(torch.ones(runs, sum(f.layout.sizes)), torch.ones(4, 3), torch.zeros(4).long(), **options)


ERRORS: dict[str, Callable[[], object]] = {
    r"unknown mode 'evaluate'; did you mean 'eval'\?": run(mlp([3, 2]), mode="evaluate"),
    r"keep = 0 is outside \(0, 1\]": lambda: Dropout()(torch.ones(3), 0.0),
    r"keep = 1.2 is outside \(0, 1\]": run(Mask(), net_lam={"keep": torch.tensor([0.5, 1.2])}, seeds=[0, 1]),
    r"smoothing = 1 is outside \[0, 1\)": lambda: cross_entropy(torch.ones(2, 3), torch.zeros(2).long(), 1.0),
    r"smoothing = -0.5 is outside": run(mlp([3, 2]), loss_lam={"smoothing": torch.tensor([0.5, -0.5])}),
    r"Item works for one run but not for several.*\.item\(\)": run(Item()),
    r"Sequential draws random numbers \(Dropout\); hand over seeds": run(nn.Sequential(nn.Linear(3, 2), nn.Dropout())),
    r"Mask draws random numbers \(Dropout\)": run(Mask(), 1, net_lam={"keep": torch.ones(1)}),
    r"Noise draws random numbers \(a random call": run(Noise()),
    r"1 seeds for 2 runs": run(mlp([3, 2]), seeds=[4]),
    r"seeds = \[0, -1\], t = 0; expected whole numbers >= 0": run(mlp([3, 2]), seeds=[0, -1]),
    r"smoothing has shape \[3\]; expected \[2, ...\]": run(mlp([3, 2]), loss_lam={"smoothing": torch.zeros(3)}),
    r"unknown buffer of Sequential '0.running_men'; did you mean '0.running_mean'": run(
        nn.Sequential(nn.BatchNorm1d(3)), mode="eval", buffers={"0.running_men": torch.ones(2, 3)}
    ),
    r"buffer 0.running_var has shape \[3\]; expected \[2, 3\]": run(
        nn.Sequential(nn.BatchNorm1d(3)), mode="eval", buffers={"0.running_var": torch.ones(3)}
    ),
    r"the loss of a run has shape \[4, 2\]; expected one number": run(mlp([3, 2]), loss=lambda output, y: output),
    r"batches holds no batch": lambda: batch_statistics(mlp([3, 2]), torch.ones(1, 8), []),
    r"size is 12; expected images of at least 16 x 16": lambda: lenet(12),
    r"size is 3; expected at least 4 for 2 poolings": lambda: conv_bn(3),
    r"inputs, hidden, layers = 3, 0, 1; expected each": lambda: LSTM(3, 0),
}


@pytest.mark.parametrize("message", ERRORS)
def test_one_clear_sentence(message: str) -> None:
    with pytest.raises(GradtuneError, match=message):
        ERRORS[message]()


def test_a_modules_own_fault_keeps_its_words() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        run(mlp([5, 2]))()


def test_a_diverged_run_passes_the_range_check() -> None:
    loss_lam = {"smoothing": torch.tensor([0.5, float("nan")])}
    losses = run(mlp([3, 2]), loss_lam=loss_lam)()
    assert isinstance(losses, Tensor) and losses.isnan().tolist() == [False, True]
