"""The learning rate of a run as a whole: its level, and a factor on all its groups, windows and weights at once."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtune.recursion.hypers import Block, Hypers
from gradtune.training.loop import Run

NAME = "lr"


def level(hypers: Hypers, run: Run) -> float:
    """Return the geometric mean of the learning rates in force, tuned or not; 0 where one of them is 0."""
    values = torch.cat([v.double().flatten() for v in _values(hypers, run)])
    return float(values.log().mean().exp())


def scaled(hypers: Hypers, run: Run, factor: float) -> Run:
    """Return the run with all learning rates, tuned or not, multiplied by a factor; bounds hold."""
    raw, fixed = run.raw, dict(run.fixed)
    if NAME in fixed:
        fixed[NAME] = fixed[NAME] * factor
    if NAME in hypers.tuned:
        block = hypers.blocks[NAME]
        raw = raw.clone()
        raw[:, _columns(block)] = block.transform.inverse(_natural(block, raw) * factor)
        raw = hypers.clamp(raw)
    return run._replace(raw=raw, fixed=fixed)


def at(hypers: Hypers, run: Run, lr: float) -> Run:
    """Return the run with its learning rates multiplied so that their geometric mean is `lr`; bounds hold.

    A single rate is `lr` itself, whatever it was.
    """
    moved = scaled(hypers, run, lr / level(hypers, run))
    if NAME in hypers.tuned and hypers.blocks[NAME].columns == 1 and NAME not in run.fixed:
        block = hypers.blocks[NAME]
        raw = moved.raw.clone()
        raw[:, _columns(block)] = block.transform.inverse(raw.new_full((len(raw), 1), lr))
        moved = moved._replace(raw=hypers.clamp(raw))
    return moved


def _values(hypers: Hypers, run: Run) -> list[Tensor]:
    block = hypers.blocks[NAME]
    tuned = [_natural(block, run.raw)] if NAME in hypers.tuned else []
    if NAME not in run.fixed:
        return tuned
    rest = run.fixed[NAME]
    if block.free is not None:  # the values of all groups, some of which are tuned
        held = torch.ones(rest.shape[1], dtype=torch.bool, device=rest.device)
        held[block.free.to(rest.device)] = False
        rest = rest[:, held]
    return [*tuned, rest]


def _natural(block: Block, raw: Tensor) -> Tensor:
    return block.transform.forward(raw[:, _columns(block)])


def _columns(block: Block) -> slice:
    return slice(block.offset, block.offset + block.columns)
