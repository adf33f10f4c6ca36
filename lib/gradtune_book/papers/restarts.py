"""Training that starts again after every hyperparameter update: differentiation through the whole of it.

Source: OnePass, Appendix B.7.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gradtune.training.loop import Loop, Run


def restarted(
    loop: Loop,
    w: Tensor,
    raw: Tensor,
    fixed: dict[str, Tensor],
    steps: int,
    trainings: int,
    read: Callable[[Run], None],
    last: tuple[int, Run] | None = None,
    after: Callable[[int, Run], None] | None = None,
) -> Run:
    """Train again and again from the same weights, each time with the hyperparameters of the last update.

    The update comes at the end of a training. The outer rule's state goes on; weights and buffers start again. It
    differs from `training.restarts.Restarts`, which asks for a new task, with new weights, before each training.

    Args:
        loop: the training. Its method updates once, after `steps` steps (`every=steps`).
        w: initial weights `[R, D]` of every training.
        raw: tuned hyperparameters of the first training in raw coordinates, `[R, P]`.
        fixed: natural values of the other hyperparameters by name, `[R, groups, windows]`.
        steps: number of steps of a training.
        trainings: number of trainings.
        read: sees the end of each training, with the hyperparameters that it was trained with.
        last: number of trainings that are done, and the last of them as `after` saw it; None for a new beginning.
        after: is told after each training how many are done, and sees its end with the hyperparameters of the next one.

    Returns:
        The last training at its end, with the hyperparameters of an update that is made and not used.
    """
    done, run = last or (0, loop.start(w)._replace(raw=raw))
    for number in range(done + 1, trainings + 1):
        before = run
        run = loop.advance(loop.start(w)._replace(raw=before.raw, fixed=fixed, outer=before.outer), steps)
        read(run._replace(raw=before.raw))
        if after is not None:
            after(number, run)
    return run
