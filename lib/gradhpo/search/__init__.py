"""Black-box searches, the baselines of hypergradient methods, in one currency: training steps, and wall seconds.

result = search("asha", Training(problem, rule, hypers, sizes, init, steps=4000), space, budget_steps=120_000)
result.best, result.best_loss, result.to_frame()
"""

from gradhpo.search.full_length import Bayes, Grid, Random, RandomXLR, ThreeBatched
from gradhpo.search.halving import Asha, Bohb, Hyperband
from gradhpo.search.ledger import Result
from gradhpo.search.methods import METHODS, SearchMethod, get, search, table
from gradhpo.search.population import Population
from gradhpo.search.space import Configuration, Dimension, Space
from gradhpo.search.trainable import MULTIPLIER, Copyable, Trainable, Training

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
    "search",
    "table",
]
