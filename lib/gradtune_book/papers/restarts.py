"""Training that starts again after every hyperparameter update: differentiation through the whole of it (OnePass,
Appendix B.7)."""

from __future__ import annotations

from collections.abc import Callable

from gradtune.training.loop import Loop, Run
from torch import Tensor


def restarted(
    loop: Loop,
    w: Tensor,
    raw: Tensor,
    fixed: dict[str, Tensor],
    steps: int,
    trainings: int,
    read: Callable[[Run], None],
) -> Run:
    """`trainings` trainings of `steps` steps from the same weights `w [R, D]`, each with the hyperparameters that the
    update at the end of the one before it gave.

    loop: its method updates once, after `steps` steps (`every=steps`). The outer rule's state goes on; weights and
    buffers start again. read(run) sees the end of each training with the hyperparameters it was trained with. The
    update after the last training is made and not used. Returns that last run.
    """
    outer = loop.start(w).outer
    for _ in range(trainings):
        run = loop.advance(loop.start(w)._replace(raw=raw, fixed=fixed, outer=outer), steps)
        read(run._replace(raw=raw))
        raw, outer = run.raw, run.outer
    return run
