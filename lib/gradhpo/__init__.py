"""Hyperparameters tuned by gradients while a model trains: the library under the book.

What a user's own training needs stands here by name; everything else is in the modules. Names are loaded when they are
first used, so that `import gradhpo` and the command line stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradhpo import optim
    from gradhpo.history import History
    from gradhpo.hypers import Hyper
    from gradhpo.tuner import Info, Tuner
    from gradhpo.tuning import tune

_NAMES = {
    "History": "gradhpo.history",
    "Hyper": "gradhpo.hypers",
    "Info": "gradhpo.tuner",
    "Tuner": "gradhpo.tuner",
    "tune": "gradhpo.tuning",
}
_MODULES = ("optim",)

__all__ = ["History", "Hyper", "Info", "Tuner", "optim", "tune"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"gradhpo.{name}")
    raise AttributeError(f"module 'gradhpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
