"""Table 3 and Appendix B.2 of the Clip paper: the keep probability of a language model, tuned while it trains.

It is the keep probability of dropout. Runs side by side are one method from one keep probability with several seeds.
They read the same text and differ in their initial weights and dropout masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, Outer
from gradtune.recursion.rules import norm_clipped, sgd
from gradtune.training.loop import Loop, Run
from gradtune_book.data.text import load
from gradtune_book.papers.clip import training as clip_training
from gradtune_book.papers.clip.training import FIXED, GTGV, METHODS, Schedule, Trained, in_force
from gradtune_book.papers.series import short
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.language import LanguageModelling

PANELS = (4, 8, 15, 30, 60, 90, 120, 180, 250)
"""The dynamics are drawn after these numbers of 250ths of the training (Appendix B.2: thousands of 250K steps)."""

_FALLS, _SAMPLE = 50, 10  # falls of the learning rate (250K steps / 5K), steps between samples of |y|


@dataclass(frozen=True)
class Config:
    """One training of an LSTM with dropout from one keep probability."""

    method: str  # one of METHODS
    seed: int  # draws the initial weights and the dropout masks; the same for all methods
    keep: float  # keep probability at the start; the only one of "Fixed"
    outer_scale: float = 1.0  # multiplies the outer rate (Table 3, "LR scale")
    steps: int = 250_000  # training steps
    data: str = "ptb"  # or markov
    tokens: int | None = None  # training words; None: all
    val_tokens: int | None = None  # validation words, and as many test words; None: all
    vocabulary: int | None = None  # words that are told apart; None: all
    hidden: int = 650  # units of a layer
    layers: int = 2  # LSTM layers
    unrolled: int = 35  # words of a piece
    batch_size: int = 20  # streams
    init: float = 0.05  # initial weights are U(-init, init)
    lr: float = 1.0  # learning rate at the start
    lr_decay: float = 0.95  # its factor after every 50th of the training
    max_norm: float = 5.0  # longer gradients are shortened to this
    outer_rate: float = 0.05  # c: a step of the keep probability is c times the learning rate times the hypergradient
    warm_up: int = 0  # training steps before the first step of the keep probability
    difference: float = 0.05  # half-width of the difference in the keep probability
    low: float = 0.1  # bounds of the keep probability
    high: float = 0.95
    product: Literal["exact", "joint"] = "exact"  # Hessian products, or one difference in weights and keep probability
    dtype: Literal["float32", "float64"] = "float32"
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and which runs there are."""

    data: str
    steps: int
    seeds: int  # number of seeds
    tokens: int | None = None
    val_tokens: int | None = None
    vocabulary: int | None = None
    hidden: int = 650
    unrolled: int = 35
    batch_size: int = 20
    fixed: tuple[float, ...] = (0.35, 0.40, 0.45)  # keep probabilities of the fixed runs
    start: float = 0.5  # initial keep probability of the others
    layers: int = 2
    lr: float = 1.0
    warm_up: int = 0  # steps before the net knows more than the frequencies of words
    init: float = 0.05  # larger where there are too few steps to leave the frequencies of words


SIZES = {
    "smoke": Sizes(
        *("markov", 100, 1, 4_000, 400, 40),
        hidden=48,
        unrolled=5,
        batch_size=40,
        layers=1,
        lr=2.0,
        init=0.3,
        warm_up=20,
    ),
    "laptop": Sizes(
        *("ptb", 2_000, 3, 10_000, 4_000, 1_000),
        hidden=128,
        unrolled=20,
        batch_size=10,
        warm_up=300,
        fixed=(0.35, 0.40, 0.45, 0.60, 0.80),
    ),
    "paper": Sizes("ptb", 250_000, 1, warm_up=5_000),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: seed by seed the rows of Table 3 in its order.

    So the first seed is complete early.

    Args:
        sizes: what the scale sets.
        seed: first seed.
    """
    common = {n: v for n, v in asdict(sizes).items() if n not in ("seeds", "fixed", "start")}
    rows = [(FIXED, keep, 1.0) for keep in sizes.fixed]
    rows += [(m, sizes.start, 1.0) for m in METHODS if m != FIXED] + [("Clip5", sizes.start, 0.1)]
    seeds = range(seed, seed + sizes.seeds)
    return [Config(m, s, keep, scale, **common) for s in seeds for m, keep, scale in rows]


def outer(c: Config, scaled: bool) -> Outer:
    """Return the outer rule: gradient descent on the keep probability.

    Its rate is c times the learning rate. For Unroll1-gTgV, whose hypergradient lacks the learning rate, it is c times
    the initial one, so that the method starts with the steps of Unroll1. Here c is `outer_rate` times `outer_scale`.

    Args:
        c: configuration.
        scaled: whether the rate follows the learning rate. False is for Unroll1-gTgV.
    """
    rate = c.outer_rate * c.outer_scale
    return SGD(rate, "lr") if scaled else SGD(rate * c.lr)


def schedule(c: Config) -> Schedule:
    """Return the learning rates and the readings of a configuration."""
    panels = [round(p * c.steps / PANELS[-1]) for p in PANELS]
    return Schedule(c.steps, c.lr, c.lr_decay, max(1, c.steps // _FALLS), panels)


def loop(c: Config, problem: LanguageModelling) -> Loop:
    """Return the training of R runs.

    The derivative in the keep probability is a difference with coupled masks (eq. 10).

    Args:
        c: configuration of the runs, whatever its seed.
        problem: losses of the net.
    """
    keep = Hyper("keep", c.keep, bounds=(c.low, c.high), tuned=c.method != FIXED, difference=c.difference)
    hypers = Hypers([Hyper("lr", c.lr, tuned=False), keep], problem.layout.sizes)
    product = "joint" if c.product == "joint" else None
    method = clip_training.method(c.method, lambda scaled: outer(c, scaled), c.warm_up, product)
    rule = norm_clipped(sgd(momentum=False, weight_decay=False), c.max_norm)
    return Loop(problem, rule, hypers, method)


def problem(c: Config, seeds: Sequence[int], device: torch.device) -> LanguageModelling:
    """Return the language modelling problem of a configuration.

    Args:
        c: configuration of the runs, whatever its seed.
        seeds: seed of each run.
        device: where to compute.
    """
    text = load(c.data, c.vocabulary, c.tokens, c.val_tokens, device)
    return LanguageModelling(text, seeds, c.hidden, c.layers, c.unrolled, c.batch_size, getattr(torch, c.dtype))


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs of one method from one keep probability.

    The metrics are, with cross entropies in nats a word without dropout:

    * `train`, `val` and `test`: cross entropies at the end, `train` on as many words as are validated;
    * `best_val`: lowest reading of the validation cross entropy, and `best_step`, the step after which it was taken;
    * `best_test`: test cross entropy at that step;
    * `keep_end` and `keep_best`: keep probabilities in force at the end and at that step;
    * `clipped`: share of the sampled steps at which the sensitivity was clipped (ClipR only);
    * `diverged`: 1 where the validation cross entropy at the end is not finite, else 0.

    The series are:

    * `val_curve`, `train_curve` and `keep_path`: values at the 50 falls of the learning rate, the last of them at the
      end;
    * `length` and `clip_share`: `|y|` and the share of clipped steps, means over a fortieth of the training;
    * `panel_train`, `panel_val` and `panel_keep`: values after the steps of `PANELS`.

    Args:
        batch: configurations that differ in `seed` only.
        device: where to compute.

    Returns:
        A result per configuration, in order.
    """
    c = batch[0]
    task = problem(c, [b.seed for b in batch], device)
    training, plan = loop(c, task), schedule(c)
    most = len(task.text.val)

    def read(now: Run) -> dict[str, Tensor]:
        losses = {part: task.evaluate(now.state.w, part, most) for part in ("train", "val", "test")}
        return losses | {"keep": in_force(training, now, "keep")}

    trained = clip_training.train(training, task.init(c.init), plan, read, _SAMPLE)
    return [_result(trained, plan, k, task) for k in range(len(batch))]


def _result(t: Trained, plan: Schedule, k: int, task: LanguageModelling) -> Result:
    rows, best = {n: v[k] for n, v in t.table.items()}, t.best()[k]
    metrics = {n: rows[n][-1] for n in ("val", "test", "train")}
    metrics |= {"best_val": rows["val"][best], "best_test": rows["test"][best], "best_step": int(t.ends[best])}
    metrics |= {"keep_end": rows["keep"][-1], "keep_best": rows["keep"][best]}
    metrics |= {"clipped": t.clipped(k), "diverged": int(np.isnan(rows["val"][-1]))}
    falls = [i for i, end in enumerate(t.ends) if end % plan.every == 0]
    panels = [i for i, end in enumerate(t.ends) if end in {*plan.panels}]
    series = t.sensitivity(k)
    series |= {"val_curve": rows["val"][falls], "train_curve": rows["train"][falls], "keep_path": rows["keep"][falls]}
    series |= {f"panel_{n}": rows[n][panels] for n in ("train", "val", "keep")}
    lists = {n: short(v, 5) for n, v in series.items()}
    return Result(metrics, lists, t.wall_s, task.text.name, task.text.sha256, t.cpu_s)


# Seconds of a step relative to plain training, measured on a CPU.
_WEIGHTS = {FIXED: 1.0, GTGV: 3.0, "Unroll1": 3.0}


def _cost(c: Config) -> float:
    return _WEIGHTS.get(c.method, 4.0) * c.steps / 250_000


STUDY = Study("clip_ptb", Config, SIZES, configs, run, chunk=1, cost=_cost)
