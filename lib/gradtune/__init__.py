"""Hyperparameters tuned by gradients while a model trains: the library under the book.

What a user's own training needs stands here by name; everything else is in the rooms. Names are loaded when they are
first used, so that `import gradtune` and the command line stay light. Studies, records and pages do not belong here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradtune import optim
    from gradtune.recursion.hypers import Hyper
    from gradtune.tuning.by_search import tune_by_search
    from gradtune.tuning.history import History
    from gradtune.tuning.info import Info
    from gradtune.tuning.once import hypergradient
    from gradtune.tuning.tune import tune
    from gradtune.tuning.tuner import Tuner

_NAMES = {
    "History": "gradtune.tuning.history",
    "hypergradient": "gradtune.tuning.once",
    "Hyper": "gradtune.recursion.hypers",
    "Info": "gradtune.tuning.info",
    "Tuner": "gradtune.tuning.tuner",
    "tune": "gradtune.tuning.tune",
    "tune_by_search": "gradtune.tuning.by_search",
}
_MODULES = ("optim",)

__version__ = "0.1.0"

__all__ = ["History", "Hyper", "Info", "Tuner", "hypergradient", "optim", "tune", "tune_by_search"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"gradtune.{name}")
    raise AttributeError(f"module 'gradtune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
