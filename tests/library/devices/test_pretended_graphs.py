"""Blocks of steps as CUDA graphs on the pretended device: the CPU's bits, hardly a launch, no wait."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from gradtune.errors import GradtuneWarning
from gradtune.methods import making
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import sgd
from gradtune.training.captured import Captured, Refused
from gradtune.training.loop import Loop
from library.devices import cases
from library.devices.checks import equal
from pretended import plain, pretended

IN_GRAPHS = [m for m in cases.METHODS if m not in ("per_step", "fds", "fds_sign", "diff_through_opt_tree")]


@pytest.mark.parametrize("net", cases.NETS)
@pytest.mark.parametrize("method", IN_GRAPHS)
def test_graphs_have_the_bits_of_the_cpus_eager_steps(method: str, net: str) -> None:
    rule = list(cases.RULES)[IN_GRAPHS.index(method) % len(cases.RULES)]
    wanted = cases.trained(method, rule, net, "cpu", cases.HandedOver)(20)
    with pretended() as log:
        step = cases.trained(method, rule, net, "cuda", cases.HandedOver)
        step(16)
        log.clear()
        found = plain(step(4))
        assert log.kernels["graph"] == 1 and log.launches <= 12 and not log.syncs, (log.kernels, log.syncs)
    assert equal(wanted, found)


@pytest.mark.parametrize("horizon", [16, 40, 41])
def test_every_window_has_a_graph_of_its_own(horizon: int) -> None:
    """Columns whose window has not begun take no part: other operations in each window."""

    def trained(device: str) -> Any:
        task = cases.HandedOver("mlp", device)
        each = [Hyper("lr", 0.05, windows=3), Hyper("momentum", 0.3, windows=2), Hyper("weight_decay", 1e-3)]
        loop = Loop(task, sgd(), Hypers(each, task.layout.sizes, horizon), making.fds(horizon))
        return loop.advance(loop.start(task.w), horizon)

    wanted = trained("cpu")
    with pretended() as log:
        found = plain(trained("cuda"))
    assert equal(wanted, found)
    assert log.kernels["graph"] >= (2 if horizon > 16 else 0)


def test_a_recorded_loop_becomes_a_graph_too() -> None:
    def trained(device: str, trace: bool) -> Any:
        task = cases.HandedOver("mlp", device)
        hypers = cases.hypers("onepass", sgd(), task.layout)
        loop = Loop(task, sgd(), hypers, making.onepass(3, 5), trace=trace)
        return loop.advance(loop.start(task.w), 30)

    wanted = trained("cpu", False)
    with pretended() as log:
        found = plain(trained("cuda", True))
    assert equal(wanted, found) and log.kernels["graph"] == 5  # of six intervals


class Branching(cases.OnBatch):
    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        loss = super().train_loss(w, lam, t)
        return loss if float(loss.sum()) > 0 else -loss


class Unseeded(cases.OnBatch):
    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return super().train_loss(w, lam, t) + 0 * torch.rand(len(w), device=w.device)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Branching, "CaptureError: .*not permitted when stream"), (Unseeded, "random numbers that follow from no seed")],
)
def test_what_cannot_be_captured_is_said_once_and_trained_as_before(kind: type[cases.OnBatch], why: str) -> None:
    class Here(cases.HandedOver):
        def on(self, batch: tuple[Tensor, ...]) -> cases.OnBatch:
            return kind(self, batch)

        def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
            return self.on(self.batch(t)).train_loss(w, lam, t)

    wanted = cases.trained("onepass", "sgd", "mlp", "cpu", Here)(12)
    with pretended() as log, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = plain(cases.trained("onepass", "sgd", "mlp", "cuda", Here)(12))
    told = [str(w.message) for w in said if w.category is GradtuneWarning]
    assert len(told) == 1 and told[0].startswith("training steps are not captured as CUDA graphs")
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(told[0])
    assert equal(wanted, found) and not log.kernels["graph"]


def test_arguments_are_copied_in_and_results_out() -> None:
    with pretended():
        x, y = torch.ones(3, device="cuda"), torch.arange(3, device="cuda")
        held = Captured(lambda given: [given[0] * 2, given[1] + 1], [x, y])
        first = held([x, y])
        x.fill_(5.0)
        second = held([x, y + 1])
        assert [plain(r).tolist() for r in (*first, *second)] == [[2.0] * 3, [1, 2, 3], [10.0] * 3, [2, 3, 4]]


def test_numbers_of_a_graph_follow_from_the_keys() -> None:
    from gradtune.nets import draws

    def drawn(given: list[Tensor]) -> list[Tensor]:
        return [given[0] + torch.rand(3, generator=draws.generator(given[0].device, 0, 0), device=given[0].device)]

    with pretended():
        held = Captured(drawn, [torch.zeros(3, device="cuda")], 1)
        for key in ((3, 1), (3, 2), (3, 1)):
            wanted = torch.rand(3, generator=draws.generator(torch.device("cpu"), *key))
            assert torch.equal(plain(held([torch.zeros(3, device="cuda")], [key])[0]), wanted)


def test_a_wait_in_a_capture_is_refused() -> None:
    with pretended():
        x = torch.ones(3, device="cuda")
        with pytest.raises(Refused, match="not permitted when stream is capturing"):
            Captured(lambda given: [given[0] * float(given[0][0])], [x])
        assert plain(x + 1).tolist() == [2.0] * 3  # the device goes on
