"""Many runs at once on an accelerator, in wall time: OnePass on UCI Energy, and WRN-16-1 run by run against `vmap`."""

from __future__ import annotations

import torch

from benchmarks.rows import _schedule, _three
from benchmarks.subjects import Subject, classifier, looped, regression
from benchmarks.timing import Work, seconds
from gradtune import methods
from gradtune.nets.plain import mlp
from gradtune.nets.wide_resnet import wrn
from gradtune.recursion.rules import sgd


def energy(runs: int, device: torch.device, steps: int = 200) -> Work:
    """Prepare R runs of OnePass WD+LR+M on UCI Energy side by side, recorded once and replayed.

    Args:
        runs: R, the number of runs.
        device: Where they are computed.
        steps: Training steps of one call.
    """
    net = regression(mlp([8, 50, 1]), (614, 78), 8, device)
    return looped(net, steps, sgd(), net.hypers(_three()), methods.onepass(), trace=True, runs=runs)


def wide(runs: int, device: torch.device, batch: int = 256) -> Work:
    """Prepare one step of R runs of WRN-16-1 with one learning rate, momentum and weight decay, in forward mode.

    Args:
        runs: R, the number of runs; more than one are computed under `vmap`.
        device: Where they are computed.
        batch: Number of images of a batch.
    """
    net: Subject = classifier(wrn(), [3, 32, 32], batch, device)
    return looped(net, 1, sgd(), net.hypers(_schedule(1, True)), methods.fds(10**9), runs=runs)


GOAL = 20.0
"""Seconds in which 200 runs of OnePass on UCI Energy shall take 4000 steps side by side on a GPU."""


def runs_at_once(device: torch.device, quick: bool = False) -> None:
    """Time and print OnePass on UCI Energy, 1, 10 and 200 runs side by side, against the goal.

    Args:
        device: Where they are computed.
        quick: Take few steps of few runs.
    """
    for runs in (1, 3) if quick else (1, 10, 200):
        work = energy(runs, device, 20 if quick else 200)
        work.call()
        took = 4000 * seconds(work, device)
        judged = f" ({'within' if took < GOAL else 'beyond'} the goal of {GOAL:.0f} s)" if runs == 200 else ""
        each = f"{took / 4:.3g} ms a step, 4000 steps in {took:.1f} s{judged}"
        print(f"OnePass, UCI Energy, {runs} runs at once: {each}", flush=True)


def main(device: torch.device) -> None:
    """Time and print both comparisons."""
    runs_at_once(device)
    for runs in (1, 4):
        work = wide(runs, device)
        work.call()
        took = seconds(work, device)
        print(f"WRN-16-1, {runs} at once: {1e3 * took:.4g} ms a step, {1e3 * took / runs:.4g} ms a run")
