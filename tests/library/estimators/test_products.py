"""Hessian products forward over reverse: the numbers of reverse over reverse, for every rule, estimator and kind of
net, and the choice between the two under a limit of memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, huber_loss, mse_loss, smooth_l1_loss

import gradtune
from gradtune.errors import GradtuneError
from gradtune.estimators.forward import FirstOrder, Forward, Split
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.nets.plain import LanguageModel, conv_bn, lenet, mlp
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.products import Products, kept_bytes
from gradtune.recursion.rules import Rule, adamw, sgd
from gradtune.recursion.wrapped import Kept
from gradtune.training.loop import Loop, Method
from problems import RULES, START, Net

ESTIMATORS: dict[str, Callable[[Any], Any]] = {
    "forward": lambda mode: Forward(mode=mode),
    "clipped": lambda mode: Forward(radius=0.5, product_limit=0.2, mode=mode),
    "reset": lambda mode: Forward(reset_every=3, mode=mode),
    "split": lambda mode: Split(mode=mode),
    "state": lambda mode: Reverse(7, mode=mode),
    "graph": lambda mode: Reverse(7, "graph", mode=mode),
    "tree": lambda mode: Reverse(7, "tree", 2, mode=mode),
    "short": lambda mode: Reverse(3, "graph", mode=mode),
    "neumann": lambda mode: Neumann(4, mode=mode),
    "fresh": lambda mode: Neumann(4, fresh=True, mode=mode),
}
T = 7


def found(rule: Rule, estimator: Any, l2: bool, runs: int = 1, windows: int = 1) -> tuple[Tensor, Loop]:
    problem = Net(val_uses_l2=l2)
    names = [*rule.hypers, *["l2"] * l2]
    hypers = Hypers([Hyper(n, START[n], windows=windows) for n in names], problem.layout.sizes, T)
    loop = Loop(problem, rule, hypers, Method(estimator, Kept(SGD(0.0)), every=T))
    return loop.advance(loop.start(problem.init(runs)), T).outer.hypergradient, loop


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_both_modes_give_the_same_numbers(name: str, rule: str) -> None:
    for l2 in (False, True):
        one, other = (found(RULES[rule], ESTIMATORS[name](mode), l2)[0] for mode in ("reverse", "forward"))
        assert other.abs().sum() > 0
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["forward", "state", "tree"])
def test_forward_over_reverse_is_unrolled_autograd(name: str, rule: str) -> None:
    problem = Net(val_uses_l2=True)
    hypers = Hypers([Hyper(n, START[n]) for n in (*RULES[rule].hypers, "l2")], problem.layout.sizes, T)
    wanted = oracle.unrolled(problem, RULES[rule], hypers, problem.init(1), T)
    torch.testing.assert_close(found(RULES[rule], ESTIMATORS[name]("forward"), True)[0], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["forward", "state", "neumann"])
def test_several_runs_and_windows(name: str) -> None:
    windows = 3 if name != "neumann" else 1
    one, other = (found(sgd(), ESTIMATORS[name](m), True, 3, windows)[0] for m in ("reverse", "forward"))
    torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-13)


def test_the_tree_has_the_bits_of_stored_states_in_forward_mode() -> None:
    states, tree = (found(adamw(), ESTIMATORS[name]("forward"), True)[0] for name in ("state", "tree"))
    assert torch.equal(states, tree)


def test_first_order() -> None:
    problem = Net()
    hypers = Hypers([Hyper("lr", 0.05, tuned=False), Hyper("l2", 0.05)], problem.layout.sizes)
    loops = [
        Loop(problem, sgd(momentum=False, weight_decay=False), hypers, Method(FirstOrder(mode=m), Kept(SGD(0.0))))
        for m in ("reverse", "forward")
    ]
    one, other = (loop.advance(loop.start(problem.init(1)), 2).outer.hypergradient for loop in loops)
    torch.testing.assert_close(other, one, rtol=1e-10, atol=0)


# -- models of a user --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [nn.SiLU, nn.GELU, nn.Softplus, nn.ELU])
@pytest.mark.parametrize("loss", [mse_loss, huber_loss, smooth_l1_loss, partial(huber_loss, delta=0.3)])
def test_losses_and_units(unit: type[nn.Module], loss: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), unit(), nn.Linear(4, 1)).double()
    batches = [(torch.randn(6, 3).double(), torch.randn(6, 1).double()) for _ in range(4)]
    one, other = (
        gradtune.hypergradient(net, loss, batches[:3], batches[3], hypers={"lr": 0.1}, options={"mode": mode}).values
        for mode in ("reverse", "forward")
    )
    assert other == pytest.approx(one, rel=1e-9)


class Decoder(nn.Module):
    """A decoder of one layer on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.next = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]).to(self.next.weight)
        out: Tensor = self.next(self.layer(self.words(x), mask, is_causal=True))
        return out.transpose(1, 2)


class Recurrent(nn.Module):
    """torch's own LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.lstm(x)[0][-1])
        return out


def tokens(output: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(output.flatten(0, 1), y.flatten())


def model(name: str) -> tuple[nn.Module, Callable[..., Tensor], Callable[[int], tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    images = lambda n: (torch.randn(6, 1, 16, 16), torch.randint(10, (6,)))  # noqa: E731
    rows = lambda n: (torch.randn(6, 4), torch.randint(3, (6,)))  # noqa: E731
    made: dict[str, Any] = {
        "mlp": (nn.Sequential(mlp([4, 6, 3]), nn.Dropout(0.2)), cross_entropy, rows),
        "lenet": (lenet(16, 1), cross_entropy, images),
        "batch norm": (conv_bn(16, 1), cross_entropy, images),
        "lstm": (LanguageModel(11, 6, 2), tokens, lambda n: (torch.randint(11, (5, 3)), torch.randint(11, (5, 3)))),
        "torch's lstm": (Recurrent(), cross_entropy, lambda n: (torch.randn(5, 6, 3), torch.randint(2, (6,)))),
        "decoder": (Decoder(), cross_entropy, lambda n: (torch.randint(11, (3, 6)), torch.randint(11, (3, 6)))),
    }  # fmt: skip
    net, loss, batch = made[name]
    return net.double(), loss, lambda n: tuple(x.double() if x.is_floating_point() else x for x in batch(n))


@pytest.mark.parametrize("name", ["mlp", "lenet", "batch norm", "lstm", "torch's lstm", "decoder"])
@pytest.mark.parametrize("store", ["state", "tree"])
def test_a_model_of_a_user(name: str, store: str) -> None:
    net, loss, batch = model(name)
    batches, val = [batch(k) for k in range(4)], batch(9)
    hypers = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01}
    before = list(net.parameters())
    values = [
        gradtune.hypergradient(
            net, loss, batches, val, hypers=hypers, options={"store": store, "mode": mode}, replay=False
        ).values
        for mode in ("reverse", "forward")
    ]
    assert all(p is q for p, q in zip(net.parameters(), before, strict=True))
    assert values[1] == pytest.approx(values[0], rel=1e-8, abs=1e-14) and all(values[0].values())


@pytest.mark.parametrize("method", ["oho", "onepass", "diff_through_opt"])
def test_a_tuner(method: str) -> None:
    raws = []
    for mode in ("reverse", "forward"):
        net, loss, batch = model("batch norm")
        tuner = gradtune.Tuner(net, loss, hypers={"lr": 0.1}, method=method, options={"mode": mode}, replay=False)
        torch.manual_seed(1)
        for k in range(20):
            tuner.step(batch(k), batch(100 + k))
        raws.append(float(tuner.raw))
    assert raws[1] == pytest.approx(raws[0], rel=1e-9) and raws[0] != -1.0


def test_a_loss_hyperparameter_of_a_user() -> None:
    net, _, _ = model("mlp")
    batches = [(torch.randn(6, 4).double(), torch.randint(3, (6,))) for _ in range(4)]

    def smoothed(output: Tensor, y: Tensor, label_smoothing: Any = 0.0) -> Tensor:
        hard, soft = cross_entropy(output, y), -output.log_softmax(1).mean()
        return (1 - label_smoothing) * hard + label_smoothing * soft

    hypers = [Hyper("lr", 0.1), Hyper("label_smoothing", 0.1)]
    one, other = (
        gradtune.hypergradient(net, smoothed, batches[:3], batches[3], hypers=hypers, options={"mode": mode}).values
        for mode in ("reverse", "forward")
    )
    assert other == pytest.approx(one, rel=1e-8) and one["label_smoothing"]


def test_the_derivative_by_the_initial_weights() -> None:
    net, loss, batch = model("lenet")
    batches, val = [batch(k) for k in range(3)], batch(9)
    one, other = (
        gradtune.hypergradient(
            net, loss, batches, val, hypers={"lr": 0.1}, options={"mode": mode}, initial_weights=True
        ).weights
        for mode in ("reverse", "forward")
    )
    assert one is not None and other is not None
    for name, g in one.items():
        torch.testing.assert_close(other[name], g, rtol=1e-8, atol=1e-14)


# -- the choice --------------------------------------------------------------------------------------------------------


def bytes_of(net: nn.Module, x: Tensor, y: Tensor) -> int:
    own = list(net.parameters())
    return kept_bytes(lambda: torch.autograd.grad(mse_loss(net(x), y), own, create_graph=True), own)


def test_the_bytes_of_a_graph_grow_with_the_batch_and_leave_out_the_weights() -> None:
    net = nn.Sequential(nn.Linear(10, 100), nn.Tanh(), nn.Linear(100, 1))
    few, many = (bytes_of(net, torch.randn(n, 10), torch.randn(n, 1)) for n in (100, 1000))
    assert few > 100 * 100 * 4 and 9 < many / few < 10.1


@pytest.mark.parametrize("name", ["state", "graph", "forward"])
def test_a_limit_chooses(name: str) -> None:
    reverse, forward = (found(sgd(), ESTIMATORS[name](mode), True)[0] for mode in ("reverse", "forward"))
    for limit, wanted, chosen in ((100.0, reverse, False), (1e-5, forward, True)):
        numbers, loop = found(sgd(), ESTIMATORS[name](limit), True)
        assert torch.equal(numbers, wanted) and loop.products.forward is chosen


def test_graphs_that_are_kept_count_together() -> None:
    net = nn.Linear(10, 1)
    size = bytes_of(net, torch.randn(10, 10), torch.randn(10, 1))
    for graphs, chosen in ((1, False), (3, True)):
        products = Products(2 * size / 2**20, graphs)
        x, y = torch.randn(10, 10), torch.randn(10, 1)
        own = list(net.parameters())
        products.decide(lambda: torch.autograd.grad(mse_loss(net(x), y), own, create_graph=True), own)  # noqa: B023
        assert products.forward is chosen


def test_a_limit_chooses_for_a_model_and_leaves_nothing_behind() -> None:
    net, loss, batch = model("batch norm")
    batches, val = [batch(k) for k in range(3)], batch(9)
    buffers = {n: b.clone() for n, b in net.named_buffers()}

    def values(mode: Any) -> dict[str, float]:
        options = {"store": "state", "mode": mode}
        return gradtune.hypergradient(net, loss, batches, val, hypers={"lr": 0.1}, options=options, replay=False).values

    assert values(1000.0) == values("reverse") and values(0.001) == values("forward")
    assert all(torch.equal(b, buffers[n]) for n, b in net.named_buffers())


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Forward, Neumann, FirstOrder, lambda **mode: Reverse(3, **mode)])
def test_an_unknown_mode(make: Any) -> None:
    with pytest.raises(GradtuneError, match="unknown mode of Hessian products 'forwards'; did you mean 'forward'"):
        make(mode="forwards")
    with pytest.raises(GradtuneError, match="expected 'reverse', 'forward', or a limit in megabytes > 0"):
        make(mode=-1.0)


def test_modes_are_for_exact_products() -> None:
    with pytest.raises(GradtuneError, match="products are differences of gradients"):
        Forward(product=0.01, mode="forward")


class Doubled(torch.autograd.Function):
    """A function without a derivative in forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class Past(nn.Module):
    """A part whose weight the loss reaches past the module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.hidden = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.hidden[0].T + self.linear.bias


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda: Past(), "weights reach the loss past the model's modules"),
        (lambda: nn.Sequential(nn.Linear(4, 3), Call()), "has no derivative in forward mode"),
    ],
)
def test_what_forward_mode_cannot_follow_is_told(net: Callable[[], nn.Module], words: str) -> None:
    batch = torch.randn(5, 4), torch.randint(3, (5,))
    with pytest.raises(GradtuneError, match=words):
        gradtune.hypergradient(
            net(), cross_entropy, [batch] * 2, batch, hypers={"lr": 0.1}, options={"mode": "forward"}
        )


class Call(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Doubled.apply(x)
        return out
