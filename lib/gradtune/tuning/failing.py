"""What the user's model or loss raises on a batch, as one sentence that says what it was called with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from gradtune.errors import GradtuneError
from gradtune.nets.explained import in_our_words

_KINDS = (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError, NotImplementedError)
_NOTE = "gradtune_called_with"


@contextmanager
def noted(inputs: Any, target: Any) -> Iterator[None]:
    """Context around a call of the model and the loss: an error that comes out of it is marked with what was given.

    Args:
        inputs: what the model is called with.
        target: what the loss gets beside the output; None where there is no loss.
    """
    try:
        yield
    except _KINDS as error:
        if type(error) in _KINDS and not hasattr(error, _NOTE):
            setattr(error, _NOTE, (inputs, target))
        raise


@contextmanager
def in_words() -> Iterator[None]:
    """Context around a step or an evaluation: a marked error becomes a `GradtuneError`, with the former as its cause.

    An error of a kind of the user's own goes through, and so does one that comes from elsewhere.

    Raises:
        GradtuneError: the model or the loss failed, or torch cannot differentiate a gradient.
    """
    try:
        with in_our_words():
            yield
    except _KINDS as error:
        if not hasattr(error, _NOTE):
            raise
        inputs, target = getattr(error, _NOTE)
        of = "" if target is None else f" and the target {_described(target)}"
        raise GradtuneError(
            f"the model or the loss fails on a batch with the inputs {_described(inputs)}{of} ("
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}); give batches that both take, or mend them"
        ) from error


def _described(value: Any) -> str:
    parts = [x for x in tree_leaves(value) if x is not None]
    found = [
        f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        for x in parts[:4]
    ]
    return ", ".join(found + ["..."] * (len(parts) > 4)) or "none"
