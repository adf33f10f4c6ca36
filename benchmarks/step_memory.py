"""Peak memory of training with each method, Hessian products in either mode, beside plain training.

Five nets are trained for `STEPS` steps on one batch, after as many steps that are not measured, by a bare loop of torch
(SGD with momentum and weight decay) and by `gradtune.Tuner` with each method, which tunes the three hyperparameters::

    python benchmarks/step_memory.py [--nets NAME ...] [--rows NAME ...] [--record] [--quick]

Each measurement has a process of its own, with one thread. torch's profiler reports every allocation and release of
tensor memory; the peak is the largest sum of them above what lies there when the steps begin: weights, buffers, batch,
and what the method keeps from step to step are not in it, but as "held". CPU time is measured over the same steps once
more, without the profiler. `--record` keeps all in `data/records/step_memory`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradtune
from benchmarks import alone
from benchmarks.timing import one_thread
from gradtune.errors import GradtuneError, unknown
from gradtune.nets.plain import LanguageModel, lenet, mlp
from gradtune.nets.wide_resnet import wrn
from gradtune_book.records import jsonl, store
from gradtune_book.tasks.decoder import Decoder, Shape

STUDY, SCALE, STEPS = "step_memory", "paper", 5
HYPERS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}


@dataclass(frozen=True)
class StepMemory:
    """Identity of one measurement.

    Attributes:
        method: Name of the method.
        net: Name of the net.
        mode: Mode of the Hessian products; empty for plain training.
        seed: Number of the measurement, counted from 0.
        version: Raised by a change of the code that changes the numbers.
    """

    method: str
    net: str = "MLP"
    mode: str = ""
    seed: int = 0
    version: int = 1


PLAIN = "plain training"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "OHO": ("oho", {}),
    "OnePass": ("onepass", {"every": STEPS}),
    "Diff-through-Opt, states": ("diff_through_opt", {"horizon": STEPS, "every": STEPS, "store": "state"}),
    "Diff-through-Opt, graphs": ("diff_through_opt", {"horizon": STEPS, "every": STEPS, "store": "graph"}),
}
"""Title of a method, with its name and options in the library."""

Batch = tuple[Tensor, Tensor]


def _tokens(output: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(output.flatten(0, 1), y.flatten())


def _pictures(rows: int, channels: int, size: int) -> Batch:
    return torch.randn(rows, channels, size, size), torch.randint(10, (rows,))


def _words(shape: tuple[int, int]) -> Batch:
    return torch.randint(1000, shape), torch.randint(1000, shape)


NETS: dict[str, Callable[[], tuple[nn.Module, Callable[..., Tensor], Batch]]] = {
    "MLP": lambda: (mlp([784, 128, 10]), cross_entropy, (torch.randn(128, 784), torch.randint(10, (128,)))),
    "LeNet": lambda: (lenet(), cross_entropy, _pictures(128, 1, 28)),
    "WRN-16-1": lambda: (wrn(), cross_entropy, _pictures(32, 3, 32)),
    "LSTM": lambda: (LanguageModel(1000, 128), _tokens, _words((35, 20))),
    "decoder": lambda: (
        Decoder(Shape(vocabulary=1000, width=64, layers=2, heads=4, context=64)),
        _tokens,
        _words((8, 64)),
    ),
}
"""Name of a net, with what makes it, its loss and a batch."""

ROWS = tuple(
    StepMemory(method, net, mode)
    for net in NETS
    for method, modes in ((PLAIN, ("",)), *((m, ("reverse", "forward")) for m in METHODS))
    for mode in modes
)


def _steps(row: StepMemory) -> tuple[Callable[[], None], int]:
    """Return what takes `STEPS` training steps, and how many weights the net has."""
    torch.manual_seed(0)
    net, loss, (x, y) = NETS[row.net]()
    count = sum(p.numel() for p in net.parameters())
    if row.method == PLAIN:
        optimiser = torch.optim.SGD(net.parameters(), HYPERS["lr"], HYPERS["momentum"], weight_decay=1e-4)

        def plain() -> None:
            for _ in range(STEPS):
                optimiser.zero_grad()
                loss(net(x), y).backward()
                optimiser.step()

        return plain, count
    name, options = METHODS[row.method]
    tuner = gradtune.Tuner(net, loss, hypers=HYPERS, method=name, options={**options, "mode": row.mode}, replay=False)

    def tuned() -> None:
        for _ in range(STEPS):
            tuner.step((x, y), (x, y) if tuner.needs_val else None)

    return tuned, count


def peak_bytes(work: Callable[[], None]) -> tuple[int, int]:
    """Return the largest sum of allocations in a piece of work above what there was, and what is left of it."""
    with torch.autograd.profiler.profile(use_device=None, profile_memory=True) as profile:
        work()
    results = profile.kineto_results
    assert results is not None
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return most, now


def measured(row: StepMemory) -> dict[str, float]:
    """Measure a row in this process; see the head of the module."""
    with one_thread():
        held, steps, count = 0, None, 0

        def made() -> None:
            nonlocal steps, count
            steps, count = _steps(row)
            steps()

        _, held = peak_bytes(made)
        assert steps is not None
        most, _ = peak_bytes(steps)
        begun = time.process_time()
        steps()
        spent = time.process_time() - begun
    return {"step_mb": most / 2**20, "held_mb": held / 2**20, "step_ms": spent / STEPS * 1e3, "parameters": count}


def keep(row: StepMemory, metrics: dict[str, float], root: Path | None = None) -> Path:
    """Append a measurement to the records and return their file."""
    file = store.path(STUDY, SCALE, row.method, root)
    number = sum((line["config"]["net"], line["config"]["mode"]) == (row.net, row.mode) for line in jsonl.read(file))
    result = store.Result({**metrics}, {}, wall_s=STEPS * metrics["step_ms"] / 1e3, dataset="generated")
    return alone.append(file, STUDY, SCALE, row, number, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and return the exit status.

    Args:
        argv: Arguments of the command line. None takes them from `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = [PLAIN, *METHODS]
    parser.add_argument("--nets", nargs="+", metavar="NAME", default=list(NETS), help=f"among {', '.join(NETS)}")
    parser.add_argument("--rows", nargs="+", metavar="NAME", default=names, help=f"among {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="the MLP alone")
    parser.add_argument("--record", action="store_true", help=f"keep the measurements in data/records/{STUDY}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.quick and given.record:
        parser.error("--quick is no measurement to keep; leave out --quick or --record")
    if given.one:
        print(json.dumps(measured(StepMemory(**json.loads(given.one)))))
        return 0
    lines = []
    try:
        for kind, chosen, known in (("net", given.nets, NETS), ("row", given.rows, names)):
            if wrong := [n for n in chosen if n not in known]:
                raise unknown(kind, wrong[0], list(known))
        nets = ["MLP"] if given.quick else given.nets
        for row in (r for r in ROWS if r.net in nets and r.method in given.rows):
            metrics = alone.measured(__file__, row, f"{row.method} on {row.net}")
            if given.record:
                keep(row, metrics)
            lines.append({"net": row.net, "method": row.method, "mode": row.mode, **metrics})
            print(f"{row.net}, {row.method} {row.mode}: {metrics['step_mb']:.1f} MB", file=sys.stderr)
    except GradtuneError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    with pd.option_context("display.width", 240, "display.max_columns", None):
        print(pd.DataFrame(lines).round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
