"""Configurations from optuna. It is imported when a search starts, never before: the library works without it."""

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
    """optuna, or the sentence that says how to get it."""
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
    """An optuna study in raw coordinates that is asked for configurations in natural units."""

    def __init__(self, study: optuna.Study, space: Space, distribution: Callable[[float, float], Any]) -> None:
        self.study, self.space = study, space
        self._distributions = {n: distribution(*d.raw_range) for n, d in space.items()}

    def ask(self) -> tuple[optuna.Trial, Configuration]:
        """The next trial and its configuration."""
        trial = self.study.ask(self._distributions)
        return trial, self.space.natural(trial.params)

    def complete(self, trial: optuna.Trial, loss: float) -> None:
        """Tells the sampler the loss of a trial of full length."""
        self.study.tell(trial, loss)

    def pruned(self, trial: optuna.Trial) -> None:
        """Tells the sampler that a trial was stopped at the last age it reported."""
        from optuna.trial import TrialState

        self.study.tell(trial, state=TrialState.PRUNED)


Builder = Callable[[ModuleType], Any]
"""Makes a sampler or a pruner from the module optuna."""


@contextmanager
def asking(space: Space, seed: int, sampler: Builder, pruner: Builder | None = None) -> Iterator[Asker]:
    """A study that asks `sampler`; meanwhile optuna's message about every trial is off."""
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
