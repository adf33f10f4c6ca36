"""Packages of others that some studies compare with: optional, imported only by the runs that need them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from gradtune.errors import GradtuneError

PACKAGES = {
    "ScheduleFree": ("schedulefree", "schedulefree"),
    "Prodigy": ("prodigyopt", "prodigyopt"),
    "D-Adaptation": ("dadaptation", "dadaptation"),
    "DoG": ("dog", "dog-optimizer"),
    "mechanic": ("mechanic_pytorch", "mechanic-pytorch"),
    "gdtuo": ("gradient_descent_the_ultimate_optimizer", "gradient-descent-the-ultimate-optimizer"),
    "Bayes": ("optuna", "optuna"),
}
"""Methods that need a package: its module, and its name on PyPI."""


def installed(method: str) -> bool:
    """Return whether a method can run here: whether the package that it needs, if any, is installed."""
    return method not in PACKAGES or find_spec(PACKAGES[method][0]) is not None


def needed(method: str) -> tuple[str, ...]:
    """Return the packages that a method needs, by their names on PyPI: one or none."""
    return (PACKAGES[method][1],) if method in PACKAGES else ()


def imported(method: str) -> Any:
    """Return the module that a method of `PACKAGES` needs.

    Raises:
        GradtuneError: The package is not installed.
    """
    module, package = PACKAGES[method]
    if not installed(method):
        raise GradtuneError(f"{method} needs the package {package}, which is not installed; pip install {package}")
    return import_module(module)
