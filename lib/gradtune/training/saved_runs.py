"""The state of a training as plain data that a checkpoint holds, and the training it belongs to again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from gradtune.errors import GradtuneError
from gradtune.training.loop import Loop, Run


def state(run: Run) -> dict[str, Any]:
    """Return a run as lists of tensors and numbers, without copying any: they hold until the run's next step."""
    return {
        "t": run.t,
        "tensors": tree_flatten(run._replace(t=0, past=()))[0][1:],
        "past": [tree_flatten(each)[0] for each in run.past],
    }


def restored(loop: Loop, like: Run, saved: dict[str, Any], where: str = "the checkpoint") -> Run:
    """Return the run whose `state` this is; going on from it gives the same bits as never having stopped.

    Args:
        loop: the training.
        like: a run of it at any step, whose form, types and device the run takes.
        saved: what `state` gave.
        where: what holds it, named in errors.

    Raises:
        GradtuneError: it belongs to another net, method or number of runs.
    """
    run: Run = _filled(like._replace(t=0, past=()), [0, *saved["tensors"]], where)
    form = loop.form_of_past(run)
    past = tuple(_filled(form, leaves, where) for leaves in saved["past"])
    return run._replace(t=saved["t"], past=past)


def _filled(like: Any, leaves: Sequence[Any], where: str) -> Any:
    """Return the leaves in the structure of `like`.

    Raises:
        GradtuneError: the leaves have other shapes.
    """
    own, structure = tree_flatten(like)
    if [getattr(x, "shape", None) for x in own] != [getattr(x, "shape", None) for x in leaves]:
        raise GradtuneError(f"{where} holds a search of another net, method or number of runs; remove it to start anew")
    return tree_unflatten(
        [x.to(y.device, y.dtype) if torch.is_tensor(y) else x for x, y in zip(leaves, own)], structure
    )
