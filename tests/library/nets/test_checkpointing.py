"""Checkpoints inside a module on other weights: the derivatives are those without checkpoints."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.utils.checkpoint as torchs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gradtune.errors import GradtuneError
from gradtune.nets import attention, checkpointing
from gradtune.nets.checkpointing import remembered
from gradtune.nets.draws import Draws
from gradtune.nets.layout import Layout
from gradtune.nets.second_order import granted, is_wanted, layers_in, wanted
from gradtune.nets.swapped import Places

Run = Callable[..., Any]
plain: Run = lambda f, *args: f(*args)  # noqa: E731
again: Run = functools.partial(checkpoint, use_reentrant=False)  # as Hugging Face's models hold it


class Swapped:
    """Calls a module on weights `w` and buffers of its own, then restores it, as `modules.Batched` does."""

    def __init__(self, net: nn.Module, *, seed: int = 3, training: bool = True) -> None:
        self.net, self.layout, self.places, self.seed = net, Layout.of(net), Places(net), seed
        self.training, self.repeated = training, list[int]()

    @contextmanager
    def inside(self, named: dict[str, Tensor], buffers: dict[str, Tensor], draws: Draws | None) -> Iterator[None]:
        before = [(m, m.training) for m in self.net.modules()]
        self.net.train(self.training)
        try:
            with (
                draws.inside(torch.zeros((), dtype=torch.int64)) if draws else nullcontext(),
                self.places.swapped(named, buffers),
                granted(layers_in(self.net)),
                attention.differentiable(),
            ):
                yield
        finally:
            for m, training in before:
                m.training = training

    def loss(self, w: Tensor, x: Tensor, buffers: dict[str, Tensor]) -> Tensor:
        named, draws = self.layout.split(w), Draws([self.seed], 0)

        def enter(number: int, later: Draws | None) -> Any:
            self.repeated.append(number)
            copies = {n: b.clone() for n, b in buffers.items()}
            return self.inside(named, buffers if number == 0 else copies, later)

        self.kept = weakref.ref(enter)
        with draws.elsewhere(w.device), self.inside(named, buffers, draws), remembered(enter, draws):
            return self.net(x).square().sin().sum()

    def derivatives(self, w: Tensor, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Loss, gradient and two Hessian products; the buffers afterwards."""
        w, buffers = w.clone().requires_grad_(), {n: b.clone() for n, b in self.net.named_buffers()}
        with wanted():
            loss = self.loss(w, x, buffers)
        (g,) = torch.autograd.grad(loss, w, create_graph=True)
        after = {n: b.clone() for n, b in buffers.items()}
        z = torch.randn(2, len(w), generator=torch.Generator().manual_seed(5), dtype=w.dtype)
        products = [torch.autograd.grad(g, w, row, retain_graph=True)[0] for row in z]
        assert all(torch.equal(after[n], b) for n, b in buffers.items())
        return [loss, g, *products], after


class Net(nn.Module):
    """Two blocks, each inside a checkpoint, or not."""

    def __init__(self, first: nn.Module, second: nn.Module, run: Run = again) -> None:
        super().__init__()
        self.first, self.second, self.head, self.run = first, second, nn.Linear(6, 2), run

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self.second, self.run(self.first, x)))


class Nested(Net):
    """A checkpoint around both blocks, and one around the second inside it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(lambda x: self.run(self.second, self.first(x)).tanh(), x))


class Sequence(Net):
    """Three segments of a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        parts = nn.Sequential(self.first, self.second, nn.Tanh())
        if self.run is plain:
            return self.head(parts(x))
        return self.head(checkpoint_sequential(parts, 3, x, use_reentrant=False))


class Tied(Net):
    """The second block has the weights of the first, and the head is used inside a checkpoint as well."""

    def __init__(self, first: nn.Sequential, second: nn.Sequential, run: Run = again) -> None:
        super().__init__(first, second, run)
        second[0].weight = first[0].weight

    def forward(self, x: Tensor) -> Tensor:
        middle = self.run(self.first, x)
        return self.run(self.head, self.run(self.second, middle)) + self.head(middle)


def linear(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), *more)


def smooth() -> tuple[nn.Module, nn.Module]:
    return linear(nn.Tanh()), linear(nn.Sigmoid())


def norms() -> tuple[nn.Module, nn.Module]:
    return linear(nn.BatchNorm1d(6), nn.ReLU()), linear(nn.Tanh(), nn.BatchNorm1d(6))


def drops() -> tuple[nn.Module, nn.Module]:
    return linear(nn.Dropout(0.4), nn.Tanh()), linear(nn.Dropout1d(0.3), nn.AlphaDropout(0.3), nn.Dropout(0.2))


def attends() -> tuple[nn.Module, nn.Module]:
    layer = nn.TransformerEncoderLayer(6, 2, 5, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(0, (3, 4)), layer, nn.Flatten(0, 1)), linear(nn.Tanh())


KINDS: dict[str, tuple[type[Net], Callable[[], tuple[Any, Any]]]] = {
    "two in a row": (Net, smooth),
    "batch norm": (Net, norms),
    "dropout": (Net, drops),
    "attention": (Net, attends),
    "nested": (Nested, smooth),
    "nested, batch norm": (Nested, norms),
    "nested, dropout": (Nested, drops),
    "a sequence": (Sequence, norms),
    "tied": (Tied, smooth),
    "tied, batch norm": (Tied, norms),
}


def test_wrappers_of_torch_make_their_checkpoints_the_same_way() -> None:
    wrapping = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    net, w, x = make("batch norm", plain)
    expected = Swapped(net).derivatives(w, x)[0]
    net.first, net.second = wrapping.checkpoint_wrapper(net.first), wrapping.checkpoint_wrapper(net.second)
    swapped = Swapped(net)
    for a, b in zip(expected, swapped.derivatives(w, x)[0], strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    assert swapped.repeated == [0, 0, 1, 1, 2, 2]


def test_draws_are_restored_where_torch_does_not_restore_its_own() -> None:
    found = []
    for run in (plain, functools.partial(again, preserve_rng_state=False)):
        torch.manual_seed(1)
        net = Net(*drops(), run)
        net.second = linear(nn.Dropout(0.5), nn.Tanh())  # without a layer that draws from torch's own generators
        net.double()
        w = torch.randn(sum(Layout.of(net).sizes), dtype=torch.float64)
        found.append(Swapped(net).derivatives(w, torch.ones(12, 6, dtype=torch.float64))[0])
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(*found, strict=True))


def make(name: str, run: Run) -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(1)
    kind, blocks = KINDS[name]
    net = kind(*blocks(), run).double()
    w = torch.randn(sum(Layout.of(net).sizes), dtype=torch.float64) / 2  # not the module's own weights
    return net, w, torch.randn(12, 6, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", KINDS)
def test_derivatives_are_those_without_checkpoints(name: str, training: bool) -> None:
    found = []
    for run in (plain, again):
        net, w, x = make(name, run)
        before = {n: (v, v.clone()) for n, v in net.state_dict(keep_vars=True).items()}
        state, flags = torch.get_rng_state(), [m.training for m in net.modules()]
        found.append(Swapped(net, training=training).derivatives(w, x)[0])
        now = net.state_dict(keep_vars=True)
        assert all(now[n] is v and torch.equal(v, kept) for n, (v, kept) in before.items())
        assert torch.equal(torch.get_rng_state(), state) and [m.training for m in net.modules()] == flags
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["batch norm", "nested, batch norm", "a sequence", "tied, batch norm"])
def test_running_statistics_are_those_of_torchs_loop(name: str) -> None:
    """They are updated in the call and in the first repetition, never in a Hessian product."""
    net, w, x = make(name, again)
    _, buffers = Swapped(net).derivatives(w, x)
    with torch.no_grad():
        for n, v in Layout.of(net).split(w).items():
            net.get_parameter(n).copy_(v)
    net(x).square().sin().sum().backward()
    own = dict(net.named_buffers())
    assert all(torch.allclose(own[n], b, rtol=1e-12) for n, b in buffers.items())
    assert int(own["first.1.num_batches_tracked"]) >= 2


def test_repetitions_are_counted_for_each_checkpoint() -> None:
    net, w, x = make("two in a row", again)
    swapped = Swapped(net)
    swapped.derivatives(w, x)
    assert swapped.repeated == [0, 0, 1, 1, 2, 2]


def test_a_repetition_wants_a_graph_if_the_call_did() -> None:
    seen: list[bool] = []

    def enter(number: int, draws: Draws | None) -> Any:
        seen.append(is_wanted())
        assert draws is None
        return nullcontext()

    w = torch.randn(3, requires_grad=True)
    for want in (wanted(), nullcontext()):
        with want, remembered(enter):
            loss = again(lambda x: x.tanh().square(), w).sum()
        torch.autograd.grad(loss, w)
    assert seen == [True, False]


def test_calls_without_a_graph_and_outside_are_left_alone() -> None:
    w = torch.randn(3, requires_grad=True)
    calls: list[int] = []

    def enter(number: int, draws: Draws | None) -> Any:
        calls.append(number)
        return nullcontext()

    with remembered(enter), torch.no_grad():
        again(torch.tanh, w)
        checkpoint(torch.tanh, w, use_reentrant=True)
    loss = again(torch.tanh, w).sum() + checkpoint(torch.tanh, w, use_reentrant=True).sum()
    loss.backward()
    assert w.grad is not None and not calls


@pytest.mark.filterwarnings("ignore:.*use_reentrant parameter should be:UserWarning")
@pytest.mark.parametrize("options", [{"use_reentrant": True}, {}])
def test_a_reentrant_checkpoint_is_refused_at_the_call(options: dict[str, Any]) -> None:
    w = torch.randn(3, requires_grad=True)
    with remembered(lambda number, draws: nullcontext()), pytest.raises(GradtuneError, match="use_reentrant=False"):
        checkpoint(torch.tanh, w, **options)


def test_several_runs_are_refused() -> None:
    w = torch.randn(2, 3, requires_grad=True)
    with remembered(lambda number, draws: nullcontext()), pytest.raises(GradtuneError, match="one run at a time"):
        torch.func.vmap(lambda w: again(torch.tanh, w).sum())(w)


def test_threads_do_not_see_each_other() -> None:
    w, found = torch.randn(3, requires_grad=True), list[Any]()

    def other() -> None:
        try:
            found.append(checkpoint(torch.tanh, w, use_reentrant=True))
        except GradtuneError as error:
            found.append(error)

    with remembered(lambda number, draws: nullcontext()):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert isinstance(found[0], Tensor)


def test_a_graph_is_freed_without_the_garbage_collector() -> None:
    net, w, x = make("nested, dropout", again)
    gc.collect()
    gc.disable()
    try:
        swapped, w = Swapped(net), w.requires_grad_()
        with wanted():
            loss = swapped.loss(w, x, {})
        (g,) = torch.autograd.grad(loss, w, create_graph=True)
        torch.autograd.grad(g.sum(), w, retain_graph=True)
        assert swapped.kept() is not None
        del loss, g
        assert swapped.kept() is None
    finally:
        gc.enable()


class Unknown:
    """A frame of another version of torch."""

    def __init__(self, run_again: Any) -> None:
        self.run_again = run_again


def test_an_unknown_way_of_making_checkpoints_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unknown, "__init__", Unknown.__init__)
    checkpointing._follow_frames(Unknown)
    Unknown(None)
    with remembered(lambda number, draws: nullcontext()):
        with pytest.raises(GradtuneError, match="in a way that is not known here"):
            Unknown(None)
        monkeypatch.setattr(torchs, "checkpoint", torchs.checkpoint)
        monkeypatch.setattr(torchs, "_checkpoint_without_reentrant_generator", None)
        monkeypatch.setattr(torchs, "_checkpoint_impl", None, raising=False)
        checkpointing._follow_frames(None)
        with pytest.raises(GradtuneError, match="use an older version of torch"):
            torchs.checkpoint(torch.tanh, torch.ones(2), use_reentrant=False)
