"""Black-box searches, the baselines of hypergradient methods, in one currency: training steps, and wall seconds.

For example::

    result = search("asha", Training(problem, rule, hypers, sizes, init, steps=4000), space, budget_steps=120_000)
    result.best, result.best_loss, result.to_frame()

May import `training` and what is below it. Hypergradients, and searches that only one study needs, do not belong here.
"""

from gradtune.search.full_length import Bayes, Grid, Random, RandomXLR, ThreeBatched
from gradtune.search.halving import Asha, Bohb, Hyperband
from gradtune.search.ledger import Result
from gradtune.search.methods import METHODS, SearchMethod, get, prepare, search
from gradtune.search.population import Population
from gradtune.search.space import Configuration, Dimension, Space
from gradtune.search.trainable import MULTIPLIER, Copyable, Trainable, Training

__all__ = [
    "METHODS",
    "MULTIPLIER",
    "Asha",
    "Bayes",
    "Bohb",
    "Configuration",
    "Copyable",
    "Dimension",
    "Grid",
    "Hyperband",
    "Population",
    "Random",
    "RandomXLR",
    "Result",
    "SearchMethod",
    "Space",
    "ThreeBatched",
    "Trainable",
    "Training",
    "get",
    "prepare",
    "search",
]
