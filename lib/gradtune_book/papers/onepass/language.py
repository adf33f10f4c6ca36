"""The columns on Penn Treebank of Table 2 of the OnePass paper: an LSTM tuned in one pass (Section 4.2, Figure 12b).

Two layers of 650 units and an embedding, without dropout, read 40 streams in pieces of 70 words for 72 epochs. The loss
is an average over words, its gradients are shortened to 0.25, and initial weights are PyTorch's own. Runs side by side
read the same text in the same order and differ in their initial weights and hyperparameters. Methods without validation
train on the training text and then on the validation text, for as many steps.

The method "times" is no training of the paper: it takes steps of all one-pass methods in turns, one net at a time, so
that their seconds can be compared whatever else the machine does (Figure 14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradtune.errors import unknown
from gradtune.recursion.rules import norm_clipped, sgd
from gradtune_book.data.text import load, unigram
from gradtune_book.papers.onepass import one_pass
from gradtune_book.papers.onepass.image_training import lowest
from gradtune_book.papers.onepass.one_pass import TIMES, Plan, Trainer
from gradtune_book.papers.onepass.uci_onepass import ONE_PASS, THREE
from gradtune_book.papers.onepass.uci_training import setting
from gradtune_book.papers.series import finite, short
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.language import AveragedLanguageModelling, LanguageModelling

_CHUNK = 5  # trainings side by side


@dataclass(frozen=True)
class Config:
    """One training of an LSTM from random initial hyperparameters."""

    method: str  # one of uci_onepass.ONE_PASS, or times
    seed: int  # draws the initial weights and hyperparameters
    data: str = "ptb"  # or markov
    tokens: int | None = None  # training words; None: all
    val_tokens: int | None = None  # validation words, and as many test words; None: all
    vocabulary: int | None = None  # words that are told apart; None: all
    hidden: int = 650  # units of a layer, and of the embedding
    layers: int = 2  # LSTM layers
    unrolled: int = 70  # words of a piece
    batch_size: int = 40  # streams
    max_norm: float = 0.25  # longer gradients are shortened to this
    steps: int = 23_832  # 72 epochs of 331 pieces
    every: int = 10  # training steps between two hyperparameter updates
    look_back: int = 5  # steps looked back on
    trials: int = 1  # trainings of a run: 3 of a 3-batched one
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and which runs there are."""

    runs: int  # initialisations of each method
    timings: int  # repetitions of "times"
    timed_steps: int  # steps of each method in one of them
    data: str = "ptb"
    tokens: int | None = None
    val_tokens: int | None = None
    vocabulary: int | None = None
    hidden: int = 650
    layers: int = 2
    unrolled: int = 70
    batch_size: int = 40
    steps: int = 23_832


SIZES = {
    "smoke": Sizes(2, 1, 20, "markov", 4_000, 400, 40, 24, 1, 10, 20, 60),
    # 72 epochs of 28 pieces
    "laptop": Sizes(10, 5, 100, "ptb", 10_000, 4_000, 1_000, 64, 2, 35, 10, 2_016),
    "paper": Sizes(50, 3, 200),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: a few initialisations of every method after the other, then the times.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    common = {n: v for n, v in vars(sizes).items() if n not in ("runs", "timings", "timed_steps")}
    every = [Config(m, seed, trials=3 if m == THREE else 1, **common) for m in ONE_PASS]
    parts = [range(k, min(k + _CHUNK, sizes.runs)) for k in range(0, sizes.runs, _CHUNK)]
    out = [replace(c, seed=seed + k) for part in parts for c in every for k in part]
    timed = replace(every[0], method=TIMES, steps=sizes.timed_steps)
    return out + [replace(timed, seed=seed + k) for k in range(sizes.timings)]


def problem(c: Config, seeds: Sequence[int], device: torch.device, merged: bool) -> LanguageModelling:
    """Return the language modelling problem of a configuration.

    Args:
        c: Configuration of the runs, whatever its seed.
        seeds: Seed of each run.
        device: Where to compute.
        merged: Whether the training text goes on with the validation text.
    """
    text = load(c.data, c.vocabulary, c.tokens, c.val_tokens, device)
    text = text.merged() if merged else text
    return AveragedLanguageModelling(text, seeds, c.hidden, c.layers, c.unrolled, c.batch_size)


def trainer(c: Config, seeds: Sequence[int], device: torch.device) -> tuple[LanguageModelling, Trainer]:
    """Return the task of a configuration and its training from the start."""
    task = problem(c, seeds, device, setting(c.method).merged)
    rule = norm_clipped(sgd(), c.max_norm)
    return task, Trainer(Plan(c.method, c.steps, c.every, c.look_back), task, rule, task.pytorch_init(), seeds)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs of one method.

    Metrics: initial values (`uci_training.Start.metrics`); `test_loss` and `val_loss`, cross-entropies at the end in
    nats a word; `best_loss`, the lowest test loss at any reading; `diverged`, 1 where the test loss at the end is not
    finite; `unigram`, the test loss of the frequencies of the training words. Series: `loss_curve`, test losses before
    the first step and some 20 times after it. Of a 3-batched run they are those of the training of lowest validation
    loss. The metrics of "times" are `ms_<method>`, the processor's milliseconds of a step.

    Args:
        batch: Configurations that differ in `seed` only.
        device: Where to compute.

    Raises:
        GradtuneError: The method or the text is unknown, or the text is absent.
    """
    c, seeds = batch[0], [b.seed for b in batch]
    if c.method == TIMES:
        return [_times(b, device) for b in batch]
    if c.method == THREE:
        plain = replace(c, method="Random")
        thirds = [_train(plain, each, device) for each in one_pass.seeds_of_thirds(seeds, c.trials)]
        return [one_pass.best(trained, "val_loss") for trained in zip(*thirds, strict=True)]
    if c.method not in ONE_PASS:
        raise unknown("method", c.method, [*ONE_PASS, TIMES])
    return _train(c, seeds, device)


def _train(c: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    task, t = trainer(c, seeds, device)
    spent = Stopwatch(device)

    def read(w: Tensor) -> list[Any]:
        return task.evaluate(w, "test").tolist()

    curves = one_pass.train(t, f"training from seed {seeds[0]}", read, spent)
    losses = np.array(curves, dtype=float).T
    losses = np.where(np.isfinite(losses), losses, np.nan)
    val, out = finite(task.evaluate(t.run.state.w, "val")), []
    mark = unigram(task.text, "test")
    for k in range(len(seeds)):
        metrics = t.start.metrics(k) | {"test_loss": losses[k, -1], "val_loss": val[k]}
        metrics |= {"best_loss": lowest(losses[k]), "diverged": int(np.isnan(losses[k, -1])), "unigram": mark}
        series = {"loss_curve": short(losses[k])}
        text = task.text
        out.append(Result(metrics, series, dataset=text.name, dataset_sha256=text.sha256, **spent.share(len(seeds))))
    return out


def _times(c: Config, device: torch.device) -> Result:
    def make(method: str) -> Trainer:
        return trainer(replace(c, method=method), [c.seed], device)[1]

    metrics, seconds = one_pass.times(make, c.steps, c.every, device)
    text = problem(c, [c.seed], device, merged=True).text
    return Result(metrics, {}, dataset=text.name, dataset_sha256=text.sha256, **seconds)


def _cost(c: Config) -> float:
    factor = {TIMES: 20.0, "WD+HDLR+M": 2.5, "Diff-through-Opt": 2.5}.get(
        c.method, 1.0 if "Random" in c.method else 1.7
    )
    return c.steps * c.trials * factor / 1000


def _chunk(c: Config) -> int:
    return 1 if c.method == TIMES else _CHUNK


STUDY = Study("onepass_language", Config, SIZES, configs, run, chunk=_chunk, cost=_cost)
