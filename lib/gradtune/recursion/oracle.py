"""The hypergradient by brute force: autograd through the whole training, or training again at perturbed values.

Both forms are slow, simple, and independent of `step.Step` and of all estimators, which are tested against them. Memory
of `unrolled`: the graphs of all steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradtune.recursion.hypers import Hypers, Values
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import Problem, initial_state


def final_loss(
    problem: Problem, rule: Rule, hypers: Hypers, w: Tensor, raw: Tensor, fixed: Mapping[str, Tensor], steps: int
) -> Tensor:
    """Validation loss `[R]` after a training, with a graph back to `raw` where that requires one.

    Args:
        problem: the task with its losses.
        rule: the update rule.
        hypers: the hyperparameters of the R runs.
        w: initial weights `[R, D]`.
        raw: raw coordinates `[R, P]`.
        fixed: natural values of the hyperparameters that are not tuned, by name.
        steps: number of training steps.
    """
    w, buf = initial_state(w, rule)
    w = w.requires_grad_()
    lam: Mapping[str, Tensor] = {}
    for t in range(steps):
        lam = Values(hypers, raw, fixed, t).lam
        loss = problem.train_loss(w, {n: v for n, v in lam.items() if n not in rule.hypers}, t)
        (g,) = torch.autograd.grad(loss.sum(), w, create_graph=True)
        w, buf = rule.update(w, buf, g, lam)
    return problem.val_loss(w, {n: v for n, v in lam.items() if n not in rule.hypers}, steps - 1)


def unrolled(problem: Problem, rule: Rule, hypers: Hypers, w: Tensor, steps: int) -> Tensor:
    """Hypergradient `[R, P]` by autograd through all of training, at the hyperparameters' initial values.

    It is d(validation loss)/d(raw). Memory: the graphs of all steps.
    """
    raw, fixed = hypers.init(w)
    raw.requires_grad_()
    return torch.autograd.grad(final_loss(problem, rule, hypers, w, raw, fixed, steps).sum(), raw)[0]


def central_differences(
    problem: Problem, rule: Rule, hypers: Hypers, w: Tensor, steps: int, width: float = 1e-5
) -> Tensor:
    """Hypergradient `[R, P]` by central differences, at the hyperparameters' initial values.

    It takes `(L(raw + width) - L(raw - width)) / (2 width)` for one coordinate at a time. Cost: two trainings for each.
    """
    raw, fixed = hypers.init(w)
    columns = []
    for p in range(raw.shape[1]):
        e = torch.zeros_like(raw)
        e[:, p] = width
        ends = [final_loss(problem, rule, hypers, w, raw + sign * e, fixed, steps).detach() for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * width))
    return torch.stack(columns, dim=1)
