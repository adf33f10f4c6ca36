"""A study: which runs make which figure or table, at which scale, and how a batch of them is computed.

A study is data: a type of configuration, the sizes of each scale, a function from sizes to the list of runs, and a
function that computes one batch of them. `recorder` computes the runs of a study and keeps them; `run_now` computes
small ones live.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from gradtune_book import config
from gradtune_book.records import environment
from gradtune_book.records.store import Result


def _equal(config: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class Study:
    """One study: a configuration, its sizes, what is run at each of them, and how a batch of runs is computed.

    Its functions must stand at the top of a module and cannot be lambdas, because a study travels to worker processes.

    Attributes:
        name: Name by which the records know the study. It never changes.
        config: Type of a run's configuration, a frozen dataclass with at least the fields `method`, `seed` and
            `version`.
        sizes: What each scale sets, by scale.
        configs: Function from the sizes of a scale to its configurations, in a fixed order.
        run: Function that computes one batch on a device: configurations that agree in all but the field `varied`. It
            returns their results in the same order.
        chunk: Largest number of runs in a batch, or a function from a configuration to that number.
        cost: Function from a configuration to how long its run takes compared with others, where they differ much. By
            default all runs cost the same.
        varied: Field in which the runs of a batch may differ.
        arranged: Function from a scale and what `configs` gives for it to the runs of that scale, where these are
            others. None for no such function.
    """

    name: str
    config: type
    sizes: Mapping[str, Any]
    configs: Callable[[Any], list[Any]]
    run: Callable[[Sequence[Any], torch.device], list[Result]]
    chunk: int | Callable[[Any], int]
    cost: Callable[[Any], float] = _equal
    varied: str = "seed"
    arranged: Callable[[str, list[Any]], list[Any]] | None = None

    def runs(self, scale: str) -> list[Any]:
        """Return the configurations of a scale, in a fixed order.

        Raises:
            GradtuneError: The scale is unknown.
        """
        chosen = self.configs(self.sizes[config.check_scale(scale)])
        return chosen if self.arranged is None else self.arranged(scale, chosen)

    def sized(self, scale: str, **given: Any) -> Any:
        """Return a scale's sizes, with those replaced that are given.

        Args:
            scale: One of `config.SCALES`.
            **given: New values by name; None leaves a size as it is.

        Raises:
            GradtuneError: The scale or a name is unknown, or a value has the wrong type.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        return config.replace(self.sizes[config.check_scale(scale)], **chosen)


def run_now(study: Study, configs: Sequence[Any], jobs: int = 1, device: str = "cpu") -> pd.DataFrame:
    """Compute runs without recording them.

    Runs that agree in all but `study.varied` are computed in batches of at most `study.chunk`, each on one thread. The
    costliest batches come first.

    Args:
        study: The study.
        configs: Configurations of the runs.
        jobs: Number of processes that share the batches; 1 computes in this process.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        One row per run, in the order of `configs`. The columns are dataset, the configuration's fields, metrics, series
        and wall_s, with the names that `store.load` gives them. Metrics and series are as computed: a series has all
        its points.
    """
    work = [(study, batch, device) for batch in batches(study, configs)]
    work.sort(key=lambda w: -len(w[1]) * study.cost(w[1][0]))
    bar = {"total": len(work), "disable": None, "desc": study.name, "unit": "batch"}
    if jobs == 1 or len(work) == 1:
        done = [_compute(w) for w in tqdm(work, **bar)]
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            done = list(tqdm(pool.map(_compute, work), **bar))
    pairs = [pair for (_, batch, _), results in zip(work, done) for pair in zip(batch, results)]
    rows = {c: {"dataset": r.dataset} | asdict(c) | r.metrics | r.series | {"wall_s": r.wall_s} for c, r in pairs}
    return pd.DataFrame([rows[c] for c in configs])


def batches(study: Study, configs: Sequence[Any]) -> list[list[Any]]:
    """Divide configurations into batches: neighbours that agree in all but `study.varied`, at most `study.chunk`."""
    out = []
    for _, group in itertools.groupby(configs, key=lambda c: {k: v for k, v in asdict(c).items() if k != study.varied}):
        together = list(group)
        size = study.chunk if isinstance(study.chunk, int) else study.chunk(together[0])
        out += [together[i : i + size] for i in range(0, len(together), size)]
    return out


def _compute(work: tuple[Study, Sequence[Any], str]) -> list[Result]:
    study, batch, name = work
    device = environment.device(name)
    with environment.as_recorded(device):
        return study.run(batch, device)
