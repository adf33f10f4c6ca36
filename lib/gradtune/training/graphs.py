"""The steps of a program as CUDA graphs, one a step; what a step needs of the one before stays where it lies."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradtune.errors import GradtuneWarning
from gradtune.nets import draws
from gradtune.training.captured import Captured, Key, Refused
from gradtune.training.programs import Carried, Program


class Graphs:
    """The steps of a program on a GPU. Each has to have run eagerly before.

    Args:
        program: the program.

    Attributes:
        carried: what the step before has left for the next one; empty before the first.
    """

    def __init__(self, program: Program) -> None:
        self._program, self._pool = program, torch.cuda.graph_pool_handle()
        self._graphs: dict[int, Captured] = {}
        self._places: list[int] = []
        self._refused = False
        self.carried: Carried = []

    def step(self, k: int, inputs: Sequence[Tensor], keys: Sequence[Key]) -> list[Tensor] | None:
        """Take step number `k`; it is captured at its first call.

        Args:
            k: number of the step in the program.
            inputs: tensors for `program.inputs[k]`.
            keys: what the numbers of each generator of the step follow from.

        Returns:
            What the step leaves, in the order in which it was declared; None where it cannot be captured, which is said
            once. It was not taken then.
        """
        if k == 0:
            self._look()
            self.carried = []
        if self._refused:
            return None
        try:
            graph = self._graphs.get(k) or self._captured(k, inputs, keys)
        except Refused as refused:
            self._refused = True
            warnings.warn(
                f"replayed steps are not captured as a CUDA graph ({refused}); each operation is launched alone",
                GradtuneWarning,
                stacklevel=2,
            )
            return None
        found = graph([*inputs, *self.carried], keys)
        own = len(found) - graph.kept
        self.carried = found[own:]
        return found[:own]

    def _captured(self, k: int, inputs: Sequence[Tensor], keys: Sequence[Key]) -> Captured:
        program, count, kept = self._program, len(inputs), list[int]()

        def function(given: list[Tensor]) -> list[Tensor]:
            made = [draws.generator(source[0], *key) for source, key in zip(program.sources[k], keys, strict=True)]
            found, carried = program.step(k, given[:count], made, given[count:])
            kept.append(len(carried))
            return [*found, *carried]

        graph = self._graphs[k] = Captured(
            function, [*inputs, *self.carried], len(keys), self._pool, left=len(self.carried)
        )
        graph.kept = kept[-1]
        return graph

    def _look(self) -> None:
        """Drop the graphs where a tensor that the program reads as it is has been given other memory."""
        places: list[Any] = [x.data_ptr() for x in self._program.outside]
        if places != self._places:
            self._graphs.clear()
            self._places = places
