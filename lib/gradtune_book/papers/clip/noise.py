"""Noise and bias of the derivative in a keep probability, computed in three ways (Clip paper, Section 3.5.2)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from gradtune.estimators.forward import Forward, joint_product
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import norm_clipped, sgd
from gradtune.recursion.step import State, Step
from gradtune.training.loop import Loop, Method
from gradtune_book.data.text import Text
from gradtune_book.tasks.language import LanguageModelling


def products(
    text: Text,
    w: Tensor,
    z: Tensor,
    keep: float,
    differences: Sequence[float],
    draws: int = 200,
    batch: int = 25,
    **sizes: int,
) -> pd.DataFrame:
    """Return mean and standard deviation of `<gV, H z + dg/dp>` over dropout masks, computed in three ways.

    Here p is the keep probability and z a sensitivity dw/dp. `H z + dg/dp` is the derivative of the training gradient
    along it, and gV is the validation gradient. Both losses are those of the first piece of the text. With e the
    half-width of the difference in p, the ways are:

    * "exact, coupled masks": the exact product, and a difference with the same masks at p + e and p - e;
    * "exact, independent masks": the exact product, and a difference with independent masks at p + e and p - e;
    * "joint": one difference of the gradients at `(w + e z, p + e)` and `(w - e z, p - e)`.

    Cost: about 12 gradients for each draw and half-width.

    Args:
        text: the text.
        w: weights `[1, D]`.
        z: sensitivity `[1, D]`.
        keep: value of p.
        differences: half-widths e.
        draws: number of draws of the masks, made up to a multiple of `batch`.
        batch: number of draws side by side.
        **sizes: sizes of the net and of the pieces, as `LanguageModelling` takes them.

    Returns:
        A row per half-width and way, indexed by `difference` and `product`. The columns are `mean`,
        `standard deviation` and `variance / coupled`, the variance relative to that of "exact, coupled masks" at the
        same half-width.
    """
    gv = _validation_gradient(text, w, sizes)
    rows = []
    for e in differences:
        found: dict[str, list[Tensor]] = {"exact, coupled masks": [], "exact, independent masks": [], "joint": []}
        for first in range(0, draws, batch):
            for name, value in _drawn(text, w, z, keep, e, first, batch, sizes).items():
                found[name].append((value * gv).sum(-1))
        together = {n: torch.cat(parts).double() for n, parts in found.items()}
        least = together["exact, coupled masks"].var()
        for name, x in together.items():
            rows.append((name, e, float(x.mean()), float(x.std()), float(x.var() / least)))
    heads = ["product", "difference", "mean", "standard deviation", "variance / coupled"]
    return pd.DataFrame(rows, columns=heads).set_index(["difference", "product"])


def example(text: Text, steps: int, length: float, **sizes: int) -> tuple[Tensor, Tensor]:
    """Return weights after some training, and the sensitivity that ClipR has there.

    The learning rate is 1, the keep probability 0.5. Gradients longer than 5 are shortened to this length.

    Args:
        text: the text.
        steps: number of training steps.
        length: radius of ClipR.
        **sizes: sizes of the net and of the pieces, as `LanguageModelling` takes them.

    Returns:
        Weights and sensitivity, `[1, D]` each.
    """
    task = LanguageModelling(text, [0], dtype=torch.float64, **sizes)
    hypers = Hypers([Hyper("lr", 1.0, tuned=False), Hyper("keep", 0.5, difference=0.05)], task.layout.sizes)
    rule = norm_clipped(sgd(momentum=False, weight_decay=False), 5.0)
    loop = Loop(task, rule, hypers, Method(Forward(radius=length), SGD(0.0)))
    run = loop.advance(loop.start(task.init(0.4)), steps)
    return run.state.w, run.memory.w[:, 0]


def _validation_gradient(text: Text, w: Tensor, sizes: dict[str, int]) -> Tensor:
    leaf = w.detach().requires_grad_()
    task = LanguageModelling(text, [0], dtype=w.dtype, **sizes)
    return torch.autograd.grad(task.val_loss(leaf, {}, 0).sum(), leaf)[0]


def _drawn(
    text: Text, w: Tensor, z: Tensor, keep: float, e: float, first: int, batch: int, sizes: dict[str, int]
) -> dict[str, Tensor]:
    """Return `H z + dg/dp [batch, D]` by each way; every run has masks of its own."""
    steps = [_step(text, w, keep, e, range(start, start + batch), sizes) for start in (first, 10**6 + first)]
    step, other = steps
    along = z.expand(batch, -1)[:, None]
    slope = step.values.tangents()
    exact = step.gradient_tangent(along, slope)[:, 0]
    low, high = step.values.neighbours()["keep"]
    ends = step.gradient_at(step.state.w, {"keep": high}), other.gradient_at(step.state.w, {"keep": low})
    independent = exact - step.coupled["keep"] + (ends[0] - ends[1]) / (high - low)
    joint = joint_product(step, along, slope)[:, 0]
    return {"exact, coupled masks": exact, "exact, independent masks": independent, "joint": joint}


def _step(text: Text, w: Tensor, keep: float, e: float, seeds: range, sizes: dict[str, int]) -> Step:
    task = LanguageModelling(text, seeds, dtype=w.dtype, **sizes)
    hypers = Hypers([Hyper("lr", 1.0, tuned=False), Hyper("keep", keep, difference=e)], task.layout.sizes)
    state = State(w.detach().expand(len(seeds), -1).contiguous(), {})
    values = hypers.at(*hypers.init(state.w))
    return Step(task, sgd(momentum=False, weight_decay=False), values, state, 0, curvature=True)
