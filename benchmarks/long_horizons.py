"""Time and memory of an exact hypergradient through a whole training, by store: graphs, states, a tree of states.

An MLP 64-32-10 (2,410 weights) is trained on scikit-learn's digits by SGD with momentum, in batches of 32 that are
drawn again when they are asked for. `gradtune.hypergradient` differentiates the validation loss after T steps by
learning rate, momentum and weight decay, and is compared with a bare loop of torch over the same steps::

    python benchmarks/long_horizons.py [--steps 100 1000 10000] [--rows NAME ...] [--repeats 3] [--record] [--quick]

Each measurement has a process of its own: CPU time with one thread, both sides in turns; the largest resident memory
above that of a call of three steps; and the largest number of bytes in tensors at 64 moments, which the machine's
allocator does not blur. Steps taken again and states kept stand beside the formulas of `estimators.tree` and the fewest
steps that are possible with as many states (Revolve). `--record` keeps all in `data/records/horizon_cost`.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import alone
from benchmarks.timing import one_thread
from gradtune.errors import GradtuneError, at_least, unknown
from gradtune.estimators.tree import revolve_cost, tree_cost
from gradtune.tuning.once import hypergradient
from gradtune_book.records import jsonl, store

STUDY, SCALE = "horizon_cost", "paper"
SIZES, BATCH, START = (64, 32, 10), 32, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
_MOMENTS, _LEAST = 64, 3


@dataclass(frozen=True)
class LongHorizon:
    """Identity of one measurement.

    Attributes:
        method: Name of the row.
        steps: T, training steps.
        seed: Number of the measurement, counted from 0.
        store: Store of reverse mode.
        branching: k of the tree; 0 for other stores.
        on: Where the tree's states lie; empty for other stores.
        repeats: How often both sides are timed.
        version: Raised by a change of the code that changes the numbers.
    """

    method: str
    steps: int = 100
    seed: int = 0
    store: str = "state"
    branching: int = 0
    on: str = ""
    repeats: int = 3
    version: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """Options of reverse mode."""
        return {"store": self.store} | ({"branching": self.branching, "on": self.on} if self.branching else {})


ROWS = (
    LongHorizon("graph", store="graph"),
    LongHorizon("state"),
    LongHorizon("tree-2", store="tree", branching=2, on="memory"),
    LongHorizon("tree-8", store="tree", branching=8, on="memory"),
    LongHorizon("tree-8-disk", store="tree", branching=8, on="disk"),
)


class Drawn(Sequence[Any]):
    """Batches of digits by number, drawn when they are asked for; notes the bytes of all tensors at some moments.

    Args:
        steps: Number of batches.
        every: Batches between two notes; 0 notes nothing.

    Attributes:
        most: The largest number of bytes noted.
        noting: CPU seconds that the notes have taken.
    """

    def __init__(self, steps: int, every: int = 0) -> None:
        self.x, self.y = _digits()
        self.steps, self._every, self._asked, self.most, self.noting = steps, every, 0, 0, 0.0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, k: Any) -> tuple[Tensor, Tensor]:
        if not 0 <= k < self.steps:
            raise IndexError(k)
        self._asked += 1
        if self._every and self._asked % self._every == 0:
            begun = time.process_time()
            self.most = max(self.most, bytes_alive())
            self.noting += time.process_time() - begun
        rows = torch.randint(1500, (BATCH,), generator=torch.Generator().manual_seed(int(k)))
        return self.x[rows], self.y[rows]

    @property
    def val(self) -> tuple[Tensor, Tensor]:
        """The validation batch."""
        return self.x[1500:], self.y[1500:]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)


def bytes_alive() -> int:
    """Return the bytes of the memory behind all tensors that Python knows of, each counted once."""
    found = (x.untyped_storage() for x in gc.get_objects() if isinstance(x, Tensor))
    return sum({s.data_ptr(): s.nbytes() for s in found}.values())


def model() -> nn.Module:
    """Return the net from its start."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZES[0], SIZES[1]), nn.Tanh(), nn.Linear(SIZES[1], SIZES[2]))


def plain(batches: Drawn) -> None:
    """Train in a bare loop of torch."""
    net = model()
    optimiser = torch.optim.SGD(net.parameters(), START["lr"], START["momentum"], weight_decay=START["weight_decay"])
    for k in range(len(batches)):
        x, y = batches[k]
        optimiser.zero_grad()
        cross_entropy(net(x), y).backward()
        optimiser.step()


def differentiated(row: LongHorizon, batches: Drawn) -> Any:
    """Return the hypergradient."""
    return hypergradient(
        model(), cross_entropy, batches, batches.val, hypers=START, options=row.options, seed=0, replay=False
    )


def measured(row: LongHorizon) -> dict[str, float]:
    """Measure a row in this process; see the head of the module."""
    with one_thread():
        differentiated(row, Drawn(_LEAST))
        plain(Drawn(_LEAST))
        gc.collect()
        gc.freeze()  # what there is already is not counted
        before, asked = _resident_mb(), row.steps
        if row.branching:
            asked += row.steps + tree_cost(row.steps, row.branching).replayed
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(row.repeats):
            begun = time.process_time()
            plain(Drawn(row.steps))
            times[0].append(time.process_time() - begun)
            watched, begun = Drawn(row.steps, max(1, asked // _MOMENTS)), time.process_time()
            found = differentiated(row, watched)
            times[1].append(time.process_time() - begun - watched.noting)
        after = _resident_mb()
        gc.unfreeze()
    base, method = (statistics.median(side) for side in times)
    formula = tree_cost(row.steps, row.branching) if row.branching else (0, 0)
    return {
        "ratio": statistics.median(m / b for b, m in zip(*times, strict=True)),
        "base_s": base,
        "method_s": method,
        "resident_mb": after - before,
        "tensors_mb": watched.most / 2**20,
        "replayed": found.cost.replayed,
        "states": found.cost.states,
        "formula_replayed": formula[0],
        "formula_states": formula[1],
        "revolve_replayed": revolve_cost(row.steps, formula[1]) if row.branching else 0,
        "gradients": found.cost.gradients,
        "hypergradient_lr": found.values["lr"],
    }


def _resident_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def keep(row: LongHorizon, metrics: dict[str, float], root: Path | None = None) -> Path:
    """Append a measurement to the records and return their file."""
    file = store.path(STUDY, SCALE, row.method, root)
    number = sum(line["config"]["steps"] == row.steps for line in jsonl.read(file))
    seconds = row.repeats * (metrics["base_s"] + metrics["method_s"])
    result = store.Result({**metrics}, {}, wall_s=seconds, dataset="digits")
    return alone.append(file, STUDY, SCALE, row, number, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and return the exit status.

    Args:
        argv: Arguments of the command line. None takes them from `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = [row.method for row in ROWS]
    parser.add_argument("--rows", nargs="+", metavar="NAME", default=names, help=f"among {', '.join(names)}")
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 1000, 10000])
    parser.add_argument("--repeats", type=int, default=3, help="at 10000 steps and more, one is enough")
    parser.add_argument("--quick", action="store_true", help="20 steps, once")
    parser.add_argument("--record", action="store_true", help="keep the measurements in data/records/horizon_cost")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.quick and given.record:
        parser.error("--quick is no measurement to keep; leave out --quick or --record")
    if given.one:
        print(json.dumps(measured(LongHorizon(**json.loads(given.one)))))
        return 0
    lines = []
    try:
        at_least(1, repeats=given.repeats, **{f"steps[{k}]": n for k, n in enumerate(given.steps)})
        if wrong := [n for n in given.rows if n not in names]:
            raise unknown("row", wrong[0], names)
        for steps in [20] if given.quick else given.steps:
            for row in (r for r in ROWS if r.method in given.rows):
                row = replace(row, steps=steps, repeats=1 if given.quick or steps >= 10000 else given.repeats)
                metrics = alone.measured(__file__, row, f"{row.method} at {row.steps} steps")
                if given.record:
                    keep(row, metrics)
                lines.append({"row": row.method, "T": steps, **metrics})
                print(f"{row.method}, T = {steps}: {metrics['ratio']:.2f} x plain training", file=sys.stderr)
    except GradtuneError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    with pd.option_context("display.width", 240, "display.max_columns", None):
        print(pd.DataFrame(lines).round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
