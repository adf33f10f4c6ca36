"""Table 1 of the MetaOptimize paper: time and memory of an iteration beside AdamW.

All optimisers of a net take turns, a few iterations each, so that whatever slows the machine slows all of them. AdamW
is torch's, in its fastest form ("fused"), and in the form that torch takes by itself on a GPU ("foreach"). Comparisons
with the optimisers of other packages are runs of their own, in which ours and torch's take turns with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradtune.errors import unknown
from gradtune_book import config
from gradtune_book.papers.metaoptimize import others, training
from gradtune_book.papers.metaoptimize.others import OF_PACKAGES, Steps
from gradtune_book.papers.packages import installed, needed
from gradtune_book.records import store
from gradtune_book.records.environment import Stopwatch, busy_seconds
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import continual, residual
from gradtune_book.tasks.decoder import Decoder, Shape

METHOD, OTHERS = "in turns", "in turns, packages"
METHODS = (METHOD, OTHERS)
"""Torch's optimisers and ours; these and those of `others.OF_PACKAGES`."""

FUSED, FOREACH, SCALAR, BLOCKS = "AdamW, fused", "AdamW, foreach", "MetaOptimize, scalar", "MetaOptimize, blocks"
NETS = {
    "ResNet-18": "ResNet-18",
    "decoder": "decoder, 15 million weights",
    "residual": "small residual net",
    "words": "small decoder",
    "convolutions": "two convolutions, an image a step",
}
"""The nets and what captions call them."""


@dataclass(frozen=True)
class Config:
    """One comparison on one net."""

    method: str  # one of METHODS
    seed: int  # draws weights and inputs
    net: str  # a key of NETS
    batch: int  # images, or texts
    words: int = 256  # words of a text
    rounds: int = 5  # turns of each optimiser
    each: int = 2  # iterations of a turn
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    repeats: int  # seeds of each net
    nets: tuple[str, ...]
    batches: tuple[int, ...]  # of each net
    words: int
    rounds: int


SIZES = {
    "smoke": Sizes(1, ("convolutions", "words"), (1, 2), 8, 2),
    "laptop": Sizes(3, tuple(NETS), (2, 1, 32, 8, 1), 64, 5),
    "paper": Sizes(3, tuple(NETS), (256, 128, 100, 128, 1), 256, 20),
}

_FAST = {"convolutions": 50, "words": 10, "residual": 10}
"""Iterations of a turn on nets whose iterations are short."""


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the comparisons of a scale, net by net."""
    return [
        Config(METHOD, seed + k, net, batch, sizes.words, sizes.rounds, _FAST.get(net, 2))
        for net, batch in zip(sizes.nets, sizes.batches, strict=True)
        for k in range(sizes.repeats)
    ]


def made(c: Config) -> tuple[nn.Module, list[list[nn.Parameter]], Tensor, Tensor]:
    """Return the net of a configuration, its blocks, and random inputs and targets.

    Raises:
        GradtuneError: the net is unknown.
    """
    if c.net not in NETS:
        raise unknown("net", c.net, NETS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.seed)
        if c.net in ("decoder", "words"):
            shape = Shape(32_000) if c.net == "decoder" else Shape(500, 32, 2, 4, max(32, c.words))
            words = torch.randint(shape.vocabulary, (c.batch, c.words + 1))
            net = Decoder(shape)
            ends = [p for n, p in net.named_parameters() if n.startswith(("words", "norm"))]
            return net, [ends, list(net.layers.parameters())], words[:, :-1], words[:, 1:]
        size = 16 if c.net == "convolutions" else 32
        x, y = torch.randn(c.batch, 3, size, size), torch.randint(10, (c.batch,))
        if c.net == "convolutions":
            small = continual.net(3, size, 8, c.seed)
            return small, continual.blocks(small), x, y
        other = residual.net(64 if c.net == "ResNet-18" else 4, 3, c.seed)
        return other, residual.six_blocks(other), x, y


def arranged(scale: str, chosen: list[Config]) -> list[Config]:
    """Return the runs of a scale: those chosen, then the same with packages of others, where all are installed.

    Where one is not, those that are recorded.
    """
    every = [config.replace(c, method=OTHERS) for c in chosen]
    if not all(map(installed, OF_PACKAGES)):
        every = store.among(STUDY.name, scale, OTHERS, every)
    return [*chosen, *every]


Made = Callable[[nn.Module, list[list[nn.Parameter]]], Steps]
"""Makes an optimiser of a net and its blocks."""


def optimisers(method: str) -> dict[str, Made]:
    """Return how each optimiser of a comparison is made.

    Args:
        method: One of `METHODS`.

    Raises:
        GradtuneError: The method is unknown.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    decay = training.BASES["AdamW"][1]

    def flat(blocks: list[list[nn.Parameter]]) -> list[nn.Parameter]:
        return [p for block in blocks for p in block]

    found: dict[str, Made] = {
        FUSED: lambda net, blocks: torch.optim.AdamW(flat(blocks), 1e-5, fused=True, **decay),
        FOREACH: lambda net, blocks: torch.optim.AdamW(flat(blocks), 1e-5, foreach=True, **decay),
        SCALAR: lambda net, blocks: training.adapted([flat(blocks)], "AdamW", "Lion", 1e-5, 1e-6),
        BLOCKS: lambda net, blocks: training.adapted(blocks, "AdamW", "Lion", 1e-5, 1e-6),
    }
    if method == OTHERS:
        for name in OF_PACKAGES:
            found[name] = lambda net, blocks, name=name: others.of_a_package(name, net)  # type: ignore[misc]
    return found


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute comparisons one after another.

    Metrics, for each optimiser by its name: `seconds NAME`, the median over the turns of the seconds of one iteration
    (on a CPU: seconds that the process computed); `time NAME`, by how many per cent that exceeds AdamW, fused; `memory
    NAME`, the numbers that the optimiser keeps for each weight; `space NAME`, by how many per cent weights, gradients
    and these exceed those of AdamW. Activations are not counted: they are the same, and depend on the batch.

    Args:
        batch: configurations.
        device: where to compute.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: a method or a net is unknown, or a package is not installed.
    """
    return [_one(c, device) for c in batch]


def _one(c: Config, device: torch.device) -> Result:
    turns = {name: _Turn(c, make, device) for name, make in optimisers(c.method).items()}
    with Stopwatch(device) as spent:
        for _ in range(c.rounds):
            for turn in turns.values():
                turn.take(c.each)
    metrics: dict[str, float | int | None] = {}
    for name, turn in turns.items():
        seconds, numbers = (float(np.median(t.seconds)) for t in (turn, turns[FUSED])), turn.numbers()
        mine, plain = seconds
        metrics |= {f"seconds {name}": mine, f"time {name}": 100 * (mine / plain - 1), f"memory {name}": numbers}
        metrics[f"space {name}"] = 100 * ((2 + numbers) / (2 + turns[FUSED].numbers()) - 1)
    used = tuple(name for method in OF_PACKAGES for name in needed(method)) if c.method == OTHERS else ()
    return Result(metrics, dataset="random inputs", packages=used, **spent.share(1))


class _Turn:
    """A net with an optimiser of its own, and the seconds of an iteration in each turn after the first iteration."""

    def __init__(self, c: Config, make: Made, device: torch.device) -> None:
        net, blocks, x, y = made(c)
        self.net, self.x, self.y, self.device = net.to(device), x.to(device), y.to(device), device
        self.optimizer = make(self.net, blocks)
        self.seconds: list[float] = []
        self.weights = sum(p.numel() for block in blocks for p in block)
        self._iterate()

    def _iterate(self) -> None:
        self.optimizer.zero_grad()
        out = self.net(self.x)
        others.backward(cross_entropy(out.flatten(0, -2), self.y.flatten()), self.optimizer)
        self.optimizer.step()

    def take(self, count: int) -> None:
        """Take some iterations and note their mean seconds."""
        since = busy_seconds(self.device)
        for _ in range(count):
            self._iterate()
        self.seconds.append((busy_seconds(self.device) - since) / count)
        self.optimizer.zero_grad()  # a graph that gdtuo's gradients hold would outlive them

    def numbers(self) -> float:
        """Return how many numbers the optimiser keeps for each weight."""
        return others.kept(self.optimizer) / self.weights


def _cost(c: Config) -> float:
    return {"ResNet-18": 30.0, "decoder": 60.0}.get(c.net, 1.0)


STUDY = Study("metaoptimize_overhead", Config, SIZES, configs, run, chunk=1, cost=_cost, arranged=arranged)
