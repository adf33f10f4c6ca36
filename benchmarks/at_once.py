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


def main(device: torch.device) -> None:
    """Time and print both comparisons."""
    for runs in (1, 10, 200):
        work = energy(runs, device)
        work.call()
        took = seconds(work, device)
        print(
            f"OnePass, UCI Energy, {runs} runs at once: {1e3 * took:.3g} ms a step, 4000 steps in {4000 * took:.1f} s"
        )
    for runs in (1, 4):
        work = wide(runs, device)
        work.call()
        took = seconds(work, device)
        print(f"WRN-16-1, {runs} at once: {1e3 * took:.4g} ms a step, {1e3 * took / runs:.4g} ms a run")
