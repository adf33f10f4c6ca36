"""Figures 6 and 11 of the MetaOptimize paper: a decoder in the style of Llama learns to predict words.

The paper has TinyStories and 15 million weights, and so has the scale `paper`. At reduced size the words are those of
Penn Treebank, of which the commonest are known, and the decoder is small. Each batch is drawn from all places of the
training text. Methods of packages that are not installed are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradtune_book.data import text, tinystories
from gradtune_book.data.text import Text
from gradtune_book.papers.metaoptimize import others, training
from gradtune_book.papers.metaoptimize.others import Steps
from gradtune_book.papers.metaoptimize.training import COSINE, FIXED, SCALAR, with_packages
from gradtune_book.papers.packages import needed
from gradtune_book.papers.series import short
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.decoder import Decoder, Shape

GRID = (1e-4, 1e-3, 1e-2, 1e-1)
"""Fixed step sizes; the paper's grid but for its smallest, 1e-5."""

PEAKS = (1e-3, 1e-2, 1e-1)
"""Highest step sizes of the schedule."""

PAIRS = (("AdamW", "Adam"), ("Lion", "Lion"))
"""The paper's two combinations of base update and meta rule (Table 5)."""

LION_START = 1e-5
"""Step size at the start of (Lion, Lion); that of (AdamW, Adam) is of the scale."""

TEST_TOKENS = {"markov": 1500, "ptb": 6000, "tinystories": 1_000_000}
"""Words of the test text, the first ones, on which a decoder is evaluated."""


@dataclass(frozen=True)
class Config:
    """One training."""

    method: str  # fixed, warm-up and cosine, MetaOptimize, scalar, or a method of a package
    seed: int  # draws the weights and the batches
    base: str = "AdamW"  # AdamW or Lion
    meta: str = "none"  # Adam or Lion where the step size is adapted
    lr: float = 1e-3  # step size: fixed, at the start, or the highest of the schedule
    meta_step: float = 0.0
    data: str = "ptb"  # ptb, markov or tinystories
    vocabulary: int = 500
    tokens: int | None = 200_000  # words of the training text; None: all
    width: int = 32
    layers: int = 2
    heads: int = 4
    context: int = 32
    batch: int = 8
    steps: int = 1000
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, seeds, and the meta step."""

    data: str  # ptb, markov or tinystories
    seeds: int
    vocabulary: int
    tokens: int | None
    width: int
    layers: int
    heads: int
    context: int
    batch: int
    steps: int
    meta_step: float  # 1e-3 in the paper, which takes 30,000 steps
    grid: tuple[float, ...] = GRID
    peaks: tuple[float, ...] = PEAKS
    start: float = 1e-5  # step size at the start of (AdamW, Adam)


SIZES = {
    "smoke": Sizes("markov", 1, 200, 6000, 8, 1, 2, 8, 4, 20, 0.05, (1e-3, 1e-2), (1e-2,)),
    "laptop": Sizes("ptb", 3, 500, 200_000, 32, 2, 4, 32, 8, 1000, 0.02),
    "paper": Sizes(
        *("tinystories", 3, 32_000, None, 288, 6, 6, 256, 128, 30_000, 1e-3),
        grid=(1e-5, *GRID),
        peaks=(1e-5, 1e-4, 1e-3),
        start=1e-6,
    ),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale that need no package of others.

    Args:
        sizes: what the scale sets.
        seed: first seed; the others follow on.
    """
    names = ("vocabulary", "tokens", "width", "layers", "heads", "context", "batch", "steps")
    size = {n: getattr(sizes, n) for n in names} | {"data": sizes.data}
    seeds, out = range(seed, seed + sizes.seeds), []
    for base, meta in PAIRS:
        start = sizes.start if base == "AdamW" else LION_START
        out += [Config(SCALAR, s, base, meta, start, sizes.meta_step, **size) for s in seeds]
    for base, _ in PAIRS:
        out += [Config(FIXED, s, base, lr=lr, **size) for lr in sizes.grid for s in seeds]
    return out + [Config(COSINE, s, lr=lr, **size) for lr in sizes.peaks for s in seeds]


def arranged(scale: str, chosen: list[Config]) -> list[Config]:
    """Return the runs of a scale: those chosen, then those of packages that are installed, or that are recorded."""
    return with_packages(STUDY.name, scale, chosen)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute trainings one after another.

    Metrics: `late_loss`, the mean training loss of the last tenth of the steps, each before its step, in nats a word;
    `test_loss`, that on the test text; `final_lr`, the step size at the end. Series: `loss_curve`, the training loss,
    in 50 means; `test_curve`, the test loss after each tenth of the steps; `lr_curve`, the step size at 50 moments.

    Args:
        batch: configurations.
        device: where to compute.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: a name is unknown, the text is absent, or a package is not installed.
    """
    return [_one(c, device) for c in batch]


def resolve(scale: str, data: str) -> str:
    """Return the name of the text of a scale.

    Args:
        scale: one of `config.SCALES`.
        data: "auto" is TinyStories at the scale `paper`, Penn Treebank at the scale `laptop` where it is present, and
            else the generated language; otherwise "embedded" or a name.

    Raises:
        GradtuneError: the name is unknown, or the text is absent.
    """
    if scale == "smoke":
        return text.resolve("embedded")
    if data == "tinystories" or (scale == "paper" and data == "auto"):
        return tinystories.need()
    return text.resolve(data)


@lru_cache(maxsize=1)
def _text(data: str, vocabulary: int, tokens: int | None) -> Text:
    if data == "tinystories":
        return tinystories.load(vocabulary, tokens)
    most = TEST_TOKENS.get(data, 0)
    return text.load(data, vocabulary, tokens, most if tokens is None or data == "markov" else min(tokens, most))


def _loss(out: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(out.flatten(0, 1), y.flatten())


def net(c: Config) -> Decoder:
    """Return the decoder of a configuration; torch's own random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.seed)
        return Decoder(Shape(c.vocabulary, c.width, c.layers, c.heads, c.context))


def optimiser(c: Config, decoder: Decoder) -> tuple[Steps, Callable[[], None] | None]:
    """Return the optimiser of a configuration, and what else is to be called after each step.

    Raises:
        GradtuneError: a name is unknown, or a package is not installed.
    """
    if c.method in (FIXED, COSINE, SCALAR):
        parameters = list(decoder.parameters())
        if c.method == COSINE:
            return training.scheduled(parameters, c.lr, c.steps)
        return training.adapted([parameters], c.base, c.meta, c.lr, c.meta_step), None
    return others.of_a_package(c.method, decoder), None


def _one(c: Config, device: torch.device) -> Result:
    found, decoder = _text(c.data, c.vocabulary, c.tokens), net(c).to(device)
    optimizer, after = optimiser(c, decoder)
    random, places = np.random.default_rng([c.seed, 1]), torch.arange(c.context + 1)
    whole = min(len(found.test), TEST_TOKENS[c.data]) // (c.context + 1) * (c.context + 1)
    test_rows = found.test[:whole].view(-1, c.context + 1).to(device, torch.long)
    losses, rates, tests, spent = torch.zeros(c.steps), [], [], Stopwatch(device)
    with spent:
        for t in range(c.steps):
            starts = torch.from_numpy(random.integers(len(found.train) - c.context, size=c.batch))
            rows = found.train[starts[:, None] + places].to(device, torch.long)
            rates.append(training.geometric_mean(optimizer))
            optimizer.zero_grad()
            loss = _loss(decoder(rows[:, :-1]), rows[:, 1:])
            others.backward(loss, optimizer)
            optimizer.step()
            if after is not None:
                after()
            losses[t] = loss.detach()
            if (t + 1) % max(1, c.steps // 10) == 0:
                with spent.paused(), others.at_rest(optimizer):
                    tests.append(training.mean_loss(decoder, _loss, test_rows[:, :-1], test_rows[:, 1:], 50))
    optimizer.zero_grad()  # a graph that gdtuo's gradients hold would outlive them
    return _result(c, found, losses.double().numpy(), rates, tests, spent)


def _result(
    c: Config, found: Text, losses: np.ndarray, rates: list[float], tests: list[float], spent: Stopwatch
) -> Result:
    losses = np.where(np.isfinite(losses), losses, np.nan)
    metrics: dict[str, float | int | None] = {"late_loss": float(losses[-max(1, c.steps // 10) :].mean())}
    metrics |= {"test_loss": tests[-1], "final_lr": rates[-1]}
    curve = np.array([part.mean() for part in np.array_split(losses, min(50, c.steps))])
    at = np.linspace(0, c.steps - 1, min(50, c.steps)).round().astype(int)
    series = {
        "loss_curve": short(curve),
        "lr_curve": short(np.array(rates)[at], 3),
        "test_curve": short(np.array(tests)),
    }
    return Result(
        metrics, series, dataset=found.caption, dataset_sha256=found.sha256, packages=needed(c.method), **spent.share(1)
    )


STUDY = Study("metaoptimize_language", Config, SIZES, configs, run, chunk=1, arranged=arranged)
