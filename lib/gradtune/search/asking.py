"""Configurations drawn by optuna.

The package optuna is imported when a search starts, never before: the library works without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gradtune.errors import GradtuneError
from gradtune.search.space import Configuration, Space

if TYPE_CHECKING:
    import optuna


def import_optuna() -> ModuleType:
    """Return the module optuna.

    Raises:
        GradtuneError: optuna is not installed; says how to get it.
    """
    try:
        with warnings.catch_warnings():  # it imports a progress bar that warns where a notebook lacks widgets
            warnings.filterwarnings("ignore", message="IProgress not found")
            import optuna
    except ImportError:
        raise GradtuneError(
            "this search draws its configurations through optuna, which is not installed; "
            "install it with `pip install 'gradtune[search]'`, or use the method pbt, which does without"
        ) from None
    return optuna


class Asker:
    """An optuna study in raw coordinates that is asked for configurations in natural units.

    Args:
        study: the study.
        space: the search space.
        distribution: optuna's distribution of a dimension, made from the ends of its raw range.
    """

    def __init__(self, study: optuna.Study, space: Space, distribution: Callable[[float, float], Any]) -> None:
        self.study, self.space = study, space
        self._distributions = {n: distribution(*d.raw_range) for n, d in space.items()}

    def ask(self) -> tuple[optuna.Trial, Configuration]:
        """Return the next trial and its configuration."""
        trial = self.study.ask(self._distributions)
        return trial, self.space.natural(trial.params)

    def complete(self, trial: optuna.Trial, loss: float) -> None:
        """Tell the sampler the loss of a trial of full length."""
        self.study.tell(trial, loss)

    def pruned(self, trial: optuna.Trial) -> None:
        """Tell the sampler that a trial was stopped at the last age that it reported."""
        from optuna.trial import TrialState

        self.study.tell(trial, state=TrialState.PRUNED)


Builder = Callable[[ModuleType], Any]
"""Makes a sampler or a pruner from the module optuna."""


@contextmanager
def asking(space: Space, seed: int, sampler: Builder, pruner: Builder | None = None) -> Iterator[Asker]:
    """Open a study that asks a sampler; meanwhile optuna's message about every trial is off.

    Args:
        space: the search space.
        seed: seed of the search, from which the study has its name.
        sampler: makes the sampler from the module optuna.
        pruner: makes the pruner from the module optuna; None for optuna's default, which is asked only where a trial
            reports losses.

    Yields:
        The study, to be asked for configurations.

    Raises:
        GradtuneError: optuna is not installed.
    """
    optuna = import_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        # optuna's Hyperband assigns brackets by a hash of the study's name: a fixed one keeps a search reproducible
        study = optuna.create_study(
            study_name=f"search-{seed}", sampler=sampler(optuna), pruner=pruner(optuna) if pruner else None
        )
        yield Asker(study, space, optuna.distributions.FloatDistribution)
    finally:
        optuna.logging.set_verbosity(before)
