"""Functions of tensors as CUDA graphs: one launch in place of as many as there are operations.

Training small nets on a GPU is bound by launches: a step has hundreds of operations of some microseconds, and each
costs as long again in Python and in the driver. A graph holds the operations of one call with the memory that they read
and write. To take them again, the arguments are copied into that memory, the graph is launched, and the results are
copied out.

While a function is captured nothing may wait for the device, branch on numbers in tensors, or draw random numbers from
torch's own generator. What cannot be captured is noticed and stays as it was (`Refused`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from gradtune.nets import draws

Key = tuple[int, ...]
Flat = Callable[[list[Tensor]], list[Tensor]]

_EAGER = 1  # times that a block is taken eagerly first: torch's kernels set themselves up, and a rare one stays so
_MOST = 64  # graphs of a loop


class Refused(Exception):
    """A function cannot be captured; the message says why."""


class Captured:
    """A function of tensors as a CUDA graph.

    It has to have run before, so that nothing is set up for the first time in the capture.

    Cost: capturing takes as long as an eager call. A call is a launch for the graph, and one or two for each type of
    arguments and results. Memory: that of an eager call, kept, and arguments and results once more.

    Args:
        function: takes and returns tensors. What it writes to in place is its own or an argument.
        inputs: the arguments, on one GPU.
        draws_of: number of random generators that it asks `nets.draws` for, in a fixed order.
        pool: memory that graphs share which never run at the same time (`torch.cuda.graph_pool_handle()`).
        left: number of arguments, the last ones, that are read where they lie, such as what another graph has kept.

    Attributes:
        results: what the capture gave: the memory that the results are copied from.
        kept: number of results, the last ones, that are not copied: another graph reads them before the next call.

    Raises:
        Refused: the function cannot be captured.
    """

    def __init__(
        self,
        function: Flat,
        inputs: Sequence[Tensor],
        draws_of: int = 0,
        pool: Any = None,
        left: int = 0,
    ) -> None:
        self.kept, self._copied = 0, len(inputs) - left
        self._inputs = [x.detach().clone() if k < self._copied else x for k, x in enumerate(inputs)]
        device = inputs[0].device
        self._generators = [torch.Generator(device=device) for _ in range(draws_of)]
        self._graph = torch.cuda.CUDAGraph()
        for each in self._generators:
            self._graph.register_generator_state(each)
        own = iter(self._generators)
        try:
            capture = torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local")
            with draws.handed(lambda device, key: next(own)), capture:
                self.results = function(self._inputs)
        except Exception as error:
            raise Refused(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}") from error

    def __call__(self, inputs: Sequence[Tensor], keys: Sequence[Key] = ()) -> list[Tensor]:
        """Call the function.

        Args:
            inputs: arguments with the shapes and types of those at the capture.
            keys: what the numbers of each generator follow from (`nets.draws.number`).

        Returns:
            The results: tensors of the caller's own, but for the last `kept`.
        """
        _copy(list(zip(self._inputs[: self._copied], inputs[: self._copied], strict=True)))
        for generator, key in zip(self._generators, keys, strict=True):
            generator.manual_seed(draws.number(*key))
        self._graph.replay()
        own = len(self.results) - self.kept
        found = [torch.empty_like(x) for x in self.results[:own]]
        _copy(list(zip(found, self.results[:own], strict=True)))
        return [*found, *self.results[own:]]


@torch.no_grad()
def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy each second tensor into the first, with one launch for up to a hundred of one type."""
    by_type: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for to, what in pairs:
        by_type.setdefault(to.dtype, []).append((to, what))
    for same in by_type.values():
        torch._foreach_copy_([to for to, _ in same], [what.detach() for _, what in same])


@contextmanager
def noted(device: torch.device) -> Iterator[list[Key]]:
    """Context of an eager call: yields the keys of its generators, in their order.

    Raises:
        Refused: it has drawn numbers from torch's own generator, which follow from no key.
    """
    keys: list[Key] = []

    def hand(where: torch.device, key: Key) -> torch.Generator:
        keys.append(key)
        made = torch.Generator(device=where)
        made.manual_seed(draws.number(*key))
        return made

    before = torch.cuda.get_rng_state(device)
    with draws.handed(hand):
        yield keys
    if not torch.equal(before, torch.cuda.get_rng_state(device)):
        raise Refused("it draws random numbers that follow from no seed")


class Blocks:
    """Blocks of training steps as CUDA graphs, one for each kind of block.

    A kind is taken eagerly a few times first.

    Attributes:
        refused: why blocks are not captured any more; empty while they are.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[Captured, TreeSpec, list[Key]]] = {}
        self._pool: Any = None
        self.refused = ""

    def wants(self, kind: Hashable) -> bool:
        """Count a block, and return whether it is to be taken by `take`; if not, it is to be taken eagerly."""
        self._seen[kind] = self._seen.get(kind, 0) + 1
        there = kind in self._graphs or len(self._graphs) < _MOST
        return not self.refused and there and self._seen[kind] > _EAGER

    def take(self, kind: Hashable, function: Callable[..., Any], args: tuple[Any, ...], t: int) -> Any:
        """Return `function(*args)`, by a graph; captured at the first call of a kind.

        Args:
            kind: what decides which operations the function makes.
            function: pure, of tensors in any nesting. The keys of its generators end in the number of a step.
            args: its arguments.
            t: number of the first step.

        Raises:
            Refused: the block cannot be captured. It was not taken.
        """
        leaves, spec = tree_flatten(args)
        if kind not in self._graphs:
            try:
                self._graphs[kind] = self._captured(function, leaves, spec, t)
            except Refused as refused:
                self.refused = str(refused)
                raise
        graph, out, keys = self._graphs[kind]
        return tree_unflatten(graph(leaves, [(*key[:-1], key[-1] + t) for key in keys]), out)

    def _captured(
        self, function: Callable[..., Any], leaves: list[Tensor], spec: TreeSpec, t: int
    ) -> tuple[Captured, TreeSpec, list[Key]]:
        specs: list[TreeSpec] = []

        def flat(xs: list[Tensor]) -> list[Tensor]:
            found, out = tree_flatten(function(*tree_unflatten(xs, spec)))
            specs.append(out)
            return [x.detach() for x in found]

        device = leaves[0].device
        if not all(isinstance(x, Tensor) and x.device == device for x in leaves):
            raise Refused("its arguments are not all tensors on one device")
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with noted(device) as keys:
            flat([x.detach().clone() for x in leaves])
        graph = Captured(flat, leaves, len(keys), self._pool)
        return graph, specs[0], [(*key[:-1], key[-1] - t) for key in keys]
