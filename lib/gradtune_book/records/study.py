"""A study: which runs make which figure or table, at which scale, and how a batch of them is computed.

A study is data: a configuration type, a function from a scale to the list of runs, and a function that computes one
batch of them. `recorder` computes and keeps them; `run_now` computes small ones live.
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

    Its functions belong to a module, lambdas do not: a study travels to worker processes.

    Attributes:
        name: as the records know it; never changes.
        config: type of a run's configuration, a frozen dataclass with at least the fields `method`, `seed` and
            `version`.
        sizes: scale -> what that scale sets.
        configs: sizes -> configurations in a fixed order.
        run: configurations that agree in all but the field `varied`, computed as one batch on a device.
        chunk: most runs in a batch, or a function of a configuration that says so.
        cost: how long a run takes compared with others, where they differ much.
        varied: the field in which the runs of a batch may differ.
        arranged: scale and configurations -> the runs of that scale, where it has others than `configs` gives.
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
        """Return the configurations of a scale in a fixed order."""
        chosen = self.configs(self.sizes[config.check_scale(scale)])
        return chosen if self.arranged is None else self.arranged(scale, chosen)

    def sized(self, scale: str, **given: Any) -> Any:
        """Return a scale's sizes with those replaced that are given, that is, not None."""
        chosen = {name: value for name, value in given.items() if value is not None}
        return config.replace(self.sizes[config.check_scale(scale)], **chosen)


def run_now(study: Study, configs: Sequence[Any], jobs: int = 1, device: str = "cpu") -> pd.DataFrame:
    """Compute runs without recording them: a frame with the columns that `records.load` gives (configuration,
    metrics, series, wall_s).

    Runs that agree in all but `study.varied` are computed in batches of at most `study.chunk`, each on one thread;
    `jobs` processes share the batches, the costliest first.
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
    """Neighbours that agree in all but the field `study.varied`, at most `study.chunk` together."""
    out = []
    for _, group in itertools.groupby(configs, key=lambda c: {k: v for k, v in asdict(c).items() if k != study.varied}):
        together = list(group)
        size = study.chunk if isinstance(study.chunk, int) else study.chunk(together[0])
        out += [together[i : i + size] for i in range(0, len(together), size)]
    return out


def _compute(work: tuple[Study, Sequence[Any], str]) -> list[Result]:
    study, batch, device = work
    with environment.as_recorded():
        return study.run(batch, torch.device(device))
