"""The black-box searches as data, and the one function that runs any of them in one currency: training steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from gradtune.errors import GradtuneError, at_least, unknown
from gradtune.search.asking import import_optuna
from gradtune.search.full_length import Bayes, Grid, Random, RandomXLR, ThreeBatched
from gradtune.search.halving import Asha, Bohb, Hyperband
from gradtune.search.ledger import COLUMNS, Ledger, Result
from gradtune.search.population import Population
from gradtune.search.space import Space
from gradtune.search.trainable import Trainable


class Strategy(Protocol):
    """A search method with its options: spends a ledger's budget and says how it ended.

    Attributes:
        group: number of full-length trials of which one is kept.
    """

    group: ClassVar[int]

    def run(self, ledger: Ledger, space: Space) -> str: ...


@dataclass(frozen=True)
class SearchMethod:
    """A search by name, with its line for the table of methods (`gradtune.methods.table`).

    Attributes:
        name: what `get` and `search` call the method.
        title: its name in the table.
        source: the papers that it is from, with section.
        draws: how it draws configurations.
        currency: what the training steps are spent on.
        make: class of the method, which takes the options.
    """

    name: str
    title: str
    source: str
    draws: str
    currency: str
    make: type[Any]


_FULL, _RUNGS = "full trials", "full trials and trials stopped at r, r eta, r eta^2, ... steps"
METHODS = (
    SearchMethod("random", "Random", "OnePass, Section 4; Bergstra & Bengio 2012", "uniform", _FULL, Random),
    SearchMethod(
        "random_xlr", "Random (x LR)", "OnePass, Section 4", "uniform, and a factor of the lr", _FULL, RandomXLR
    ),
    SearchMethod(
        "random_3batched", "Random (3-batched)", "OnePass, Section 4", "uniform, best of 3", _FULL, ThreeBatched
    ),
    SearchMethod("grid", "Grid", "OnePass, Section 3", "evenly spaced", _FULL, Grid),
    SearchMethod(
        "bayes", "Bayesian optimisation", "OnePass, Appendix B.5; Snoek et al. 2012", "Gaussian process", _FULL, Bayes
    ),
    SearchMethod("hyperband", "Hyperband", "OnePass, Section 3; Li et al. 2018", "uniform", _RUNGS, Hyperband),
    SearchMethod("bohb", "BOHB-style", "OnePass, Section 3; Falkner et al. 2018", "Parzen estimator", _RUNGS, Bohb),
    SearchMethod("asha", "ASHA", "OnePass, Appendix B.8.2; Li et al. 2020", "uniform", _RUNGS, Asha),
    SearchMethod(
        "pbt",
        "PBT",
        "OnePass, Appendix B.8.2; Jaderberg et al. 2017",
        "uniform, then copies of the best times 1.2 or 0.8",
        "full trials, R side by side",
        Population,
    ),
)


def get(name: str) -> SearchMethod:
    """Return a search by name.

    Raises:
        GradtuneError: there is no such name; says the nearest one.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise unknown("search method", name, [m.name for m in METHODS])


def prepare(
    method: str, trainable: Trainable, space: Space, budget_steps: int, seed: int, options: Mapping[str, Any]
) -> tuple[Strategy, Ledger]:
    """Return a method with its options, and the accounts that it is to spend; arguments and errors are `search`'s."""
    make = get(method).make
    known = [f.name for f in fields(make)]
    wrong = [n for n in options if n not in known]
    if wrong:
        raise unknown(f"option of {method}", wrong[0], known)
    strategy: Strategy = make(**options)
    at_least(1, budget_steps=budget_steps)
    at_least(0, seed=seed)
    if taken := {*COLUMNS, "kept"} & {*space}:
        raise GradtuneError(f"the dimension {min(taken)} has the name of a column of the result; rename it")
    if make is not Population:
        import_optuna()  # beforehand, so that its import does not count as the sampler's work
    trainable.start(space.corners(), [0, 0])
    return strategy, Ledger(trainable, budget_steps, seed)


def search(method: str, trainable: Trainable, space: Space, budget_steps: int, seed: int = 0, **options: Any) -> Result:
    """Search `space` for the configuration of lowest validation loss on a budget of training steps.

    The steps are summed over all trials. The search goes on until they are spent, to the step: the last trial is cut
    where the budget ends. Only a grid may end before. The same seed draws the same configurations, weights and
    decisions; every trial's own seed depends only on `seed` and its number. A trial of NaN or infinite loss is charged
    and listed, and never chosen.

    Nothing but training steps is counted: validation losses and the sampler's own work appear as wall seconds
    (`Result.to_frame`).

    Args:
        method: a name of `METHODS`.
        trainable: what is trained, such as a `Training`.
        space: the search space.
        budget_steps: training steps of all trials together.
        seed: seed of the search, at least 0.
        **options: options of the method, which its class (`Random`, `Bayes`, `Asha`, ...) documents.

    Returns:
        What the search did, with its best configuration.

    Raises:
        GradtuneError: a method, option or dimension is unknown; a dimension has the name of a column of the result; an
            option, the budget or the seed is out of range; a value is outside a hyperparameter's bounds (the two
            corners of the space are started, untrained, beforehand); optuna is missing (needed by all methods but
            "pbt").
    """
    strategy, ledger = prepare(method, trainable, space, budget_steps, seed, options)
    with ledger:
        how = strategy.run(ledger, space)
    return ledger.result(method, how, strategy.group)
