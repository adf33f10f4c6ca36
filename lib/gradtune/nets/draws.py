"""Random numbers inside a module as a function of (seed of the run, step): dropout that can be computed again.

A hypergradient needs the same dropout mask in a step's gradient, in all its Hessian products and in a recomputation of
the step, and other masks in other runs and at other steps. So nothing in a step may draw from a generator that moves
on. `Draws(seeds, t)` stands for the numbers of one step of R runs: it has one `torch.Generator` a run, seeded from
(seed, t). Inside `with draws.inside(run):` these random calls of a module's forward pass draw from the run's generator:

* `torch.rand_like(x)` and `torch.randn_like(x)`, for a module of one's own;
* `nn.Dropout`, `nn.Dropout1d`, `nn.Dropout2d`, `nn.Dropout3d` and their functional forms, for an unmodified module.

The numbers of run r depend on `(seeds[r], t)`, the order of the calls, their shapes and types, never on the runs beside
it or on a keep probability. Two evaluations with the same (seed, t) and different keep probabilities see the same
uniforms, which couples their masks (Clip paper, Section 3.5.2, eq. 10). The exception is `nn.Dropout` and its relatives
with `p = 0`: they draw nothing, so the calls after them see other uniforms than with `p > 0`.

Every other random call (`nn.AlphaDropout`, `torch.bernoulli`, dropout inside attention or `nn.LSTM`) goes to torch's
global generator, which `Draws.elsewhere` seeds for the duration of the call. The same seeds and t give the same numbers
again, but there a run's numbers do depend on the runs beside it.

Generators live on the device of the tensors; a CPU and a GPU give different masks for the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gradtune.errors import GradtuneError


class Draws:
    """The random numbers of one step in R runs.

    An object serves one pass. A second pass needs a new one; equal seeds and t give equal numbers.

    Args:
        seeds: one whole number >= 0 for each run.
        t: the number of the step, >= 0.

    Raises:
        GradtuneError: a seed or t is negative.
    """

    def __init__(self, seeds: Sequence[int], t: int) -> None:
        if t < 0 or any(s < 0 for s in seeds):
            raise GradtuneError(f"seeds = {list(seeds)}, t = {t}; expected whole numbers >= 0")
        self.seeds, self.t = tuple(seeds), t
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    def generators(self, device: torch.device) -> list[torch.Generator]:
        """Return one generator a run on `device`, each as its last draw left it."""
        if device not in self._generators:
            self._generators[device] = [generator(device, seed, self.t) for seed in self.seeds]
        return self._generators[device]

    def again(self) -> Draws:
        """Return the numbers that are still to come, once more: what it draws is what this object would draw next.

        The two go on independently. It serves a part of the forward pass that is computed a second time.
        """
        copy = Draws(self.seeds, self.t)
        copy._generators = {device: [_copied(g) for g in own] for device, own in self._generators.items()}
        return copy

    def inside(self, run: Tensor) -> TorchFunctionMode:
        """Return a context in which the random calls of one run draw from here.

        Args:
            run: the number of the run, a tensor without dimensions that `vmap` may map over.
        """
        return _Redirect(self, run)

    @contextmanager
    def elsewhere(self, device: torch.device) -> Iterator[None]:
        """Seed torch's global generator from all seeds and t for a while, for what `inside` does not reach.

        Afterwards the generator is as it was.

        Args:
            device: where the tensors are; on a GPU its generator is seeded as well as the CPU's.
        """
        if _handed.get() is not None:  # a graph is made of the step, which no number of torch's own can be part of
            yield
            return
        seed = number(*self.seeds, self.t)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield


def number(*key: int) -> int:
    """Return a whole number below 2^63 made of several, with no visible relation between neighbouring keys."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor that was drawn on the CPU on a device, without waiting for the device."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def generator(device: torch.device, *key: int) -> torch.Generator:
    """Return the generator of a key such as (seed, t), at its beginning."""
    hand = _handed.get()
    if hand is not None:
        return hand(device, key)
    made = torch.Generator(device=device)
    made.manual_seed(number(*key))
    tell = _told.get()
    if tell is not None:
        tell(made, device, key)
    return made


@contextmanager
def told(tell: Callable[[torch.Generator, torch.device, tuple[int, ...]], None]) -> Iterator[None]:
    """Context: call `tell` with every generator that is made, its device and its key."""
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)


Hand = Callable[[torch.device, tuple[int, ...]], torch.Generator]


@contextmanager
def handed(hand: Hand) -> Iterator[None]:
    """Context: generators are those that `hand` returns for their device and key; torch's own is left as it is."""
    token = _handed.set(hand)
    try:
        yield
    finally:
        _handed.reset(token)


_handed: ContextVar[Hand | None] = ContextVar("handed", default=None)
_told: ContextVar[Callable[[torch.Generator, torch.device, tuple[int, ...]], None] | None] = ContextVar(
    "told", default=None
)


def _copied(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator(device=generator.device)
    copy.set_state(generator.get_state())
    return copy


Draw = Callable[..., Tensor]


class _PerRun(torch.autograd.Function):
    """`draw(shape, generator=...)` of every run's own generator: one tensor alone, a stack `[R, ...]` under `vmap`.

    `run` takes part only so that `vmap` maps over the call even where the shape comes from data that all runs share.
    """

    @staticmethod
    def forward(run: Tensor, draw: Draw, shape: torch.Size, options: dict[str, Any], draws: Draws) -> Tensor:
        generator = draws.generators(options["device"])[int(run)]
        return draw(shape, generator=generator, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, run: Tensor, draw: Draw, shape: torch.Size, options: dict[str, Any], draws: Draws
    ) -> tuple[Tensor, int]:
        generators = draws.generators(options["device"])
        return torch.stack([draw(shape, generator=g, **options) for g in generators]), 0


class _Redirect(TorchFunctionMode):
    """Context that answers the random calls that it knows; everything else passes through."""

    def __init__(self, draws: Draws, run: Tensor) -> None:
        super().__init__()
        self._draws, self._run = draws, run
        self._answers: dict[Any, Callable[..., Tensor]] = {
            torch.rand_like: self._like(torch.rand),
            torch.randn_like: self._like(torch.randn),
            functional.dropout: self._dropout(functional.dropout, 0),
            functional.dropout1d: self._dropout(functional.dropout1d, 1),
            functional.dropout2d: self._dropout(functional.dropout2d, 2),
            functional.dropout3d: self._dropout(functional.dropout3d, 3),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._answers.get(func, func)(*args, **(kwargs or {}))

    def _draw(self, draw: Draw, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        return _PerRun.apply(self._run, draw, shape, {"dtype": dtype, "device": device}, self._draws)

    def _like(self, draw: Draw) -> Callable[..., Tensor]:
        def answer(x: Tensor, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
            return self._draw(draw, x.shape, dtype or x.dtype, torch.device(device or x.device))

        return answer

    def _dropout(self, func: Draw, spatial: int) -> Draw:
        """Return dropout of single entries, or of whole maps over the last `spatial` dimensions."""

        def answer(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            apart = _apart(x.dim(), spatial)
            if apart is None or not 0 <= p <= 1:
                return func(x, p, training, inplace)  # torch says what is wrong
            if not training or p == 0:
                return x
            shape = torch.Size((*x.shape[:apart], *(1,) * (x.dim() - apart)))
            u = self._draw(torch.rand, shape, x.dtype, x.device)
            mask = (u < 1 - p).to(x.dtype) / (1 - p) if p < 1 else torch.zeros_like(u)
            return x.mul_(mask) if inplace else x * mask

        return answer


def _apart(dims: int, spatial: int) -> int | None:
    """Return how many leading dimensions of an input of `dims` dimensions have masks of their own, as in torch.

    torch reads an input of `dropout2d` as (sample, channel, ...) whatever its dimensions. None where it raises an
    error.
    """
    if spatial == 0:
        return dims
    if spatial == 1:
        return {2: 1, 3: 2}.get(dims)
    if spatial == 2:
        return 2 if dims > 1 else None
    return (2 if dims == 5 else 1) if dims > 0 else None
