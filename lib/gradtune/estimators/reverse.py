"""Reverse mode: the validation gradient pulled back through the last steps (Diff-through-Opt, per-step hypergradients).

It is exact for the steps it covers: state and buffers before the first of them count as constants (OnePass, Section 4;
Domke 2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, at_least, unknown
from gradtune.recursion.products import Mode, check_mode
from gradtune.recursion.step import State, Step, Values, cotangent

STORES = ("state", "graph", "tree")


@runtime_checkable
class Resumable(Protocol):
    """Steps whose visit may have begun earlier; see `training.replayed.Trail`."""

    final: State

    def progress(self) -> tuple[State, Tensor] | None:
        """Return cotangent and sum so far; None at the beginning."""
        ...

    def note(self, cot: State, total: Tensor) -> None:
        """Note the two after a step."""
        ...


@dataclass(frozen=True, repr=False)
class Reverse:
    """Reverse mode: dL_V/draw through the last `horizon` steps since the last outer update.

    It gives the same numbers as `Forward()` started at the first of these steps, at a cost that does not grow with the
    number of hyperparameters.

    Attributes:
        horizon: number of steps, >= 1.
        store: "state" keeps (w, buffers) a step and takes each gradient again on the way back: memory (1 + buffers) D a
            step and what the step has computed from them, cost one gradient and one Hessian product a step at the
            update. "graph" keeps each step's graph: no second gradient, memory of `horizon` graphs; for short horizons.
            "tree" keeps the states of a few steps in a tree (Engstrom et al. 2025) and takes the steps between them
            again: memory of about k log_k(horizon) states, and cost of "state" and about log_k(horizon) more gradients
            a step (`tree.tree_cost`). It gives the bits of "state", which is checked (at no cost, or that of a gradient
            more every k steps where a gradient with its graph has other bits than one without): the training has to be
            deterministic, and nobody may change weights or hyperparameters between two of its steps.
        branching: k of the tree, >= 2.
        on: where the tree's states lie, "memory" or "disk".
        folder: folder on disk; None for a temporary one. From a folder of one's own, `gradtune.hypergradient` goes on
            after an interruption.
        mode: in which mode Hessian products are taken (`recursion.products`). "reverse" differentiates a graph over a
            gradient: fast on a CPU. "forward" takes tangents of gradients and keeps no such graph: less memory, and a
            step's graph is not kept with "graph" either. A number is a limit in MB of 2^20 bytes: "reverse" where the
            graphs that are kept at once fit in, else "forward"; the first step finds that out, at the cost of a
            gradient. The two differ by rounding.

    Raises:
        GradtuneError: `horizon` is below 1, `store`, `mode` or `on` is unknown, `branching` is below 2, or a folder is
            given and nothing lies on disk.
    """

    horizon: int
    store: str = "state"
    branching: int = 8
    on: str = "memory"
    folder: str | Path | None = None
    mode: Mode = "reverse"

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise GradtuneError(f"horizon is {self.horizon}; expected a number of steps >= 1")
        if self.store not in STORES:
            raise GradtuneError(f"store is {self.store!r}; expected 'state', 'graph' or 'tree'")
        if self.on not in ("memory", "disk"):
            raise unknown("place of a tree's states", self.on, ["memory", "disk"])
        at_least(2, branching=self.branching)
        check_mode(self.mode)
        if self.on == "disk" and not self.replayed:
            raise GradtuneError(f"on='disk' goes with store='tree', and store is {self.store!r}; give store='tree'")
        if self.folder is not None and self.on != "disk":
            raise GradtuneError("a folder was given and the states stay in memory; give on='disk' too")

    def __repr__(self) -> str:
        of_tree = f", branching={self.branching}, on={self.on!r}" if self.replayed else ""
        return f"Reverse(horizon={self.horizon}, store={self.store!r}{of_tree})"

    @property
    def keep(self) -> int:
        return self.horizon

    @property
    def replayed(self) -> bool:
        """Whether steps are taken again from a tree of checkpoints."""
        return self.store == "tree"

    def init(self, state: State, values: Values) -> tuple[()]:
        return ()

    def curvature(self, ahead: int) -> bool:
        return self.store == "graph" and ahead < self.horizon

    def observe(self, memory: tuple[()], step: Step) -> tuple[()]:
        return memory

    def hypergradient(self, memory: tuple[()], recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        if isinstance(recent, Resumable):
            return pulled(recent, cotangent(gv, recent.final), torch.zeros_like(values.raw))[1]
        steps = list(recent)[-self.horizon :]
        return pulled(steps, cotangent(gv, steps[-1].next), torch.zeros_like(values.raw))[1]


def pulled(steps: Sequence[Step], cot: State, total: Tensor, to_start: bool = False) -> tuple[State, Tensor]:
    """Pull a cotangent back through some steps, from the last to the first.

    Cost: a Hessian product a step, and a gradient with its graph where the step has none.

    Args:
        steps: the steps.
        cot: cotangent of the state after the last one.
        total: what the steps' shares of `dL/draw` are added to, `[R, P]`.
        to_start: whether the cotangent of the state before the first step is wanted.

    Returns:
        The cotangent of the state before the first step (without the path through its gradient, unless `to_start`),
        and the sum.
    """
    left, resumable = len(steps), steps if isinstance(steps, Resumable) else None
    if resumable is not None and (found := resumable.progress()) is not None:
        cot, total = found
        left = len(steps)
    for step in reversed(steps):
        left -= 1
        to_state = to_start or left > 0
        cot, share = step.with_curvature(to_state).pull(cot, to_state=to_state)
        total = total + share
        if resumable is not None:
            resumable.note(cot, total)
    return cot, total
