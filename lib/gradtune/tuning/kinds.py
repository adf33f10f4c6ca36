"""Arguments of another kind than `tune` takes: one sentence in place of what would go wrong somewhere inside."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hyper


def check(model: Any, hypers: Any, fixed: Any, options: Any, callbacks: Any, checkpoint: Any) -> None:
    """Check the kinds of arguments of `tune`, which have the same names there.

    Raises:
        GradtuneError: one is of another kind; says which, and what is expected.
    """
    several = not isinstance(hypers, (str, Mapping)) and isinstance(hypers, Sequence)
    known = hypers is None or isinstance(hypers, Mapping) or (several and all(isinstance(h, Hyper) for h in hypers))
    _expect(isinstance(model, nn.Module), "model", model, "a torch.nn.Module")
    _expect(known, "hypers", hypers, "a dict from names to values, such as {'lr': 0.1}, or a list of Hyper")
    _expect(fixed is None or isinstance(fixed, Mapping), "fixed", fixed, "a dict from names to values, or None")
    _expect(options is None or isinstance(options, Mapping), "options", options, "a dict from names to values, or None")
    called = callable(callbacks) or (isinstance(callbacks, Sequence) and all(map(callable, callbacks)))
    _expect(called, "callbacks", callbacks, "a function of an Info, or a list of them")
    _expect(
        checkpoint is None or isinstance(checkpoint, (str, os.PathLike)), "checkpoint", checkpoint, "a path, or None"
    )


def _expect(right: bool, name: str, value: Any, expected: str) -> None:
    if not right:
        raise GradtuneError(f"{name} is a {type(value).__name__}; expected {expected}")
