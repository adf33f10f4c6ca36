"""Short-horizon bias on Fashion-MNIST (OnePass, Appendices B.7.1 and B.7.2): Tables 11 and 12, Figures 16 and 17.

* Truncated problem: 1000 steps. "Long-Diff-through-Opt" differentiates through all of them and trains again from the
  start after each update, 50 times in all.
* Medium horizon: 10,000 steps. "Medium-Diff-through-Opt" differentiates through the last 200 steps at each of 50
  updates.

Where Fashion-MNIST is absent, MNIST takes its place, and where that is absent too, scikit-learn's digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from gradtune import methods
from gradtune.errors import unknown
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.rules import sgd
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Method, Run
from gradtune_book.papers.onepass import uci_figures, uci_tables
from gradtune_book.papers.onepass.image_training import Config, Reading, problem, results
from gradtune_book.papers.onepass.uci_training import SETTINGS, declared, draw
from gradtune_book.papers.restarts import restarted
from gradtune_book.records import sittings
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import fashion
from gradtune_book.tasks.classification import Classification

LONG, MEDIUM = "Long-Diff-through-Opt", "Medium-Diff-through-Opt"
SHORT = ("Random", "WD+LR+M", "Diff-through-Opt")


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    dataset: str  # as `fashion.resolve` takes it
    runs: int  # initialisations of the truncated problem
    steps: int  # training steps of the truncated problem
    trainings: int  # of the restarted method
    medium_runs: int  # initialisations of the medium horizon
    medium_steps: int  # its training steps
    horizon: int  # its look-back and update interval


SIZES = {
    "smoke": Sizes("digits", 4, 40, 3, 4, 80, 20),
    "laptop": Sizes("auto", 10, 1000, 5, 10, 2000, 200),
    "paper": Sizes("auto", 60, 1000, 50, 100, 10_000, 200),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Configurations of the truncated problem, then of the medium horizon."""
    name = fashion.resolve(sizes.dataset)
    out = [Config(m, seed + k, name, sizes.steps) for m in SHORT for k in range(sizes.runs)]
    whole: dict[str, Any] = {"every": sizes.steps, "look_back": sizes.steps, "trainings": sizes.trainings}
    out += [Config(LONG, seed + k, name, sizes.steps, **whole) for k in range(sizes.runs)]
    medium = range(seed, seed + sizes.medium_runs)
    out += [Config(m, s, name, sizes.medium_steps) for m in SHORT for s in medium]
    longer: dict[str, Any] = {"every": sizes.horizon, "look_back": sizes.horizon}
    return out + [Config(MEDIUM, s, name, sizes.medium_steps, **longer) for s in medium]


def _method(c: Config) -> tuple[str, Method]:
    """The name of the setting (what is tuned) and the method of a configuration."""
    if c.method in (LONG, MEDIUM):
        return "Diff-through-Opt", methods.diff_through_opt(c.look_back, c.every)
    if c.method not in SHORT:
        raise unknown("method", c.method, [*SHORT, LONG, MEDIUM])
    return c.method, SETTINGS[c.method].make(c.look_back, c.every)


def run(
    batch: Sequence[Config],
    device: torch.device,
    make: Callable[[Any, torch.device, bool], Classification] = problem,
) -> list[Result]:
    """Compute a batch of runs that agree in all but their seeds.

    Metrics and series are those of `image_training.results`. Of one training the series are read before the first step
    and some 20 times after it, whole update intervals apart; of several, at the end of each.

    Args:
        batch: The configurations.
        device: Where to compute.
        make: Makes the problem of a configuration, as `image_training.problem` does.

    Raises:
        GradtuneError: The method or the data set is unknown, or the data set is absent.
    """
    c, seeds = batch[0], [b.seed for b in batch]
    name, method = _method(c)
    task = make(c, device, SETTINGS[name].merged)
    start, w = draw(seeds), task.init(seeds)
    hypers = Hypers(declared(SETTINGS[name], start, w), task.layout.sizes)
    reading = Reading(task, device)
    end = _trained(c, Loop(task, sgd(), hypers, method), w, reading)
    return results(task, end.state.w, start, reading.curves(), reading.spent.share(len(seeds)))


def _trained(c: Config, loop: Loop, w: Tensor, reading: Reading) -> Run:
    """Train once, or again and again from the start; return the last training at its end."""
    done, run, spent, sitting = 0, loop.start(w), reading.spent, sittings.current()

    def watch(now: Run) -> None:
        nonlocal run
        reading.watch(now)
        run = now
        sitting.tick(spent)

    def after(number: int, now: Run) -> None:
        nonlocal done, run
        done, run = number, now
        sitting.tick(spent)

    def state() -> dict[str, Any]:
        return {"done": done, "run": saved_runs.state(run), "reading": reading.state()}

    with sitting.part("training", state) as earlier:
        if earlier is not None:
            done, run = earlier["done"], saved_runs.restored(loop, run, earlier["run"])
            reading.go_on(earlier["reading"])
        elif c.trainings == 1:
            reading.read(run)
        with spent:
            if c.trainings == 1:
                return loop.advance(run, c.steps - run.t, watch, c.between)
            values = loop.hypers.init(w)
            return restarted(loop, w, *values, c.steps, c.trainings, reading.watch, (done, run), after)


def _cost(c: Config) -> float:
    factor = {"Random": 1.0, "WD+LR+M": 2.0, "Diff-through-Opt": 2.5}.get(c.method, 3.0)
    return c.steps * c.trainings * factor / 1000


def _chunk(c: Config) -> int:
    """Number of runs side by side: six of the restarted method take 5 GB, copies of the weights for every step."""
    return 6 if c.method == LONG else 10


STUDY = Study("image_horizon", Config, SIZES, configs, run, chunk=_chunk, cost=_cost)


# --- what the notebook reads off the runs -----------------------------------------------------------------------------

MEASURES = {"cross-entropy": "ce", "error": "error"}
"""Measures as the published tables call them, and the endings of their columns."""


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """`uci_tables.summary` of cross-entropies and errors, with the measure in place of the data set in the index."""
    parts = [uci_tables.summary(frame.assign(dataset=name), loss=f"test_{column}") for name, column in MEASURES.items()]
    return pd.concat(parts)


def on(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The runs on one set of images."""
    return frame[frame["dataset"] == dataset] if len(frame) else frame


def beside(frame: pd.DataFrame) -> pd.DataFrame:
    """`uci_tables.beside` of runs on one set and of one length, a row for each measure and method.

    The paper's numbers, of Table 11 or 12, stand beside those on Fashion-MNIST.
    """
    ours, theirs = summary(frame), uci_tables.published(f"onepass_table{_table(frame)}.csv")
    against = theirs if frame["dataset"].iloc[0] == "fashion" else theirs.iloc[:0]
    rows = {measure: uci_tables.beside(ours, against, measure).reset_index() for measure in MEASURES}
    return pd.concat(rows).droplevel(1)


def caption(frame: pd.DataFrame) -> str:
    """What the table of `beside` shows, in words; "" without runs."""
    if frame.empty:
        return ""
    first = frame.iloc[0]
    against = f", beside the paper's Table {_table(frame)}" if first["dataset"] == "fashion" else ""
    return (
        f"Final test cross-entropy and share of errors on {uci_tables.NAMES[first['dataset']]} after "
        f"{first['steps']:,} steps{against}; ± bootstrap standard errors. Recorded runs, "
        f"{int(frame.groupby('method').size().min())} initialisations of each method."
    )


def _table(frame: pd.DataFrame) -> int:
    """Number of the paper's table of runs of this length."""
    return 11 if frame["steps"].iloc[0] == SIZES["paper"].steps else 12


def of_length(frame: pd.DataFrame, steps: int) -> pd.DataFrame:
    """The runs of so many steps: those of the truncated problem (1000) or of the medium horizon (10,000)."""
    return frame[frame["steps"] == steps] if len(frame) else frame


def draw_pair(axes: Sequence[Axes], frame: pd.DataFrame, dataset: str) -> None:
    """Draw Figures 16 and 17: the distribution of final cross-entropies (left), the evolution of the median (right)."""
    uci_figures.draw_cdf(axes[0], frame, dataset, "test_ce", "test cross-entropy")
    uci_figures.draw_evolution(axes[1], frame, dataset, "ce_curve", "test cross-entropy")
    axes[1].set(xscale="log", xlabel="training step, restarts included")
