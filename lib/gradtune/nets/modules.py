"""From an ordinary single-run `torch.nn.Module` to losses of R runs on flat weights `w [R, D]`.

`batched(module, loss)` gives what a `core.Problem` needs from the user's module, which stays unchanged and runs under
`torch.func.vmap` when R > 1. What is not a weight is handled so that every derivative stays exact and a step can be
recomputed:

    buffers            each call works on copies, a set a run, so a loss leaves the module's own as they are
    batch norm         mode "train": the batch's statistics, differentiated; mode "eval": running statistics, constants,
                       one set a run, estimated outside of any derivative by `batch_statistics`
    dropout            a mask is a function of (seed of the run, t): see `draws`
    hyperparameters    those that the forward pass or the loss reads are handed over by name, a value a run

Every layer must have a second derivative. cuDNN's LSTM and GRU have none (on the CPU the same `nn.LSTM` has one, so a
test there does not show it): use `nets.LSTM`. Of `scaled_dot_product_attention` only the math backend has one, flash
and memory-efficient attention do not: `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from gradtune.errors import GradtuneError, unknown
from gradtune.nets.draws import Draws
from gradtune.nets.plain import Dropout
from gradtune.nets.second_order import granted, layers_in
from gradtune.nets.swapped import Places

Named = Mapping[str, Tensor]
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Layout:
    """Where each trained parameter tensor of a module lies in the flat weight vector of D entries. Parameters that are
    frozen (`requires_grad=False`) have no place in it: the module's own values are used."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        named = [(n, p.shape) for n, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise GradtuneError(
                f"the module {type(module).__name__} has no parameters to train; expected at least one with "
                "requires_grad=True"
            )
        return cls(tuple(n for n, _ in named), tuple(s for _, s in named))

    @cached_property
    def sizes(self) -> list[int]:
        return [s.numel() for s in self.shapes]

    def split(self, w: Tensor) -> dict[str, Tensor]:
        """Views of `w [..., D]` as named tensors `[..., *shape]`."""
        parts = torch.split(w, self.sizes, dim=-1)
        return {n: _shaped(p, s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def flatten(self, named: Named) -> Tensor:
        """One vector `[D]` from a module's `named_parameters()` or an equal mapping."""
        return torch.cat([named[n].detach().reshape(-1) for n in self.names])


def _shaped(p: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 1:
        return p  # one node less in the graph, at each of its derivatives
    return p.unflatten(-1, shape) if shape else p.squeeze(-1)


class Batched:
    """`f(w [R, D], x, y) -> [R]`, the loss of R copies of a module; made by `batched`."""

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor], shared_batch: bool = True) -> None:
        self.module, self.loss, self.shared_batch = module, loss, shared_batch
        self.layout = Layout.of(module)
        self._parts, self._places, self._lean = list(module.modules()), Places(module), layers_in(module)

    def __call__(
        self,
        w: Tensor,
        x: Tensor,
        y: Tensor,
        *,
        mode: str = "train",
        buffers: Named | None = None,
        net_lam: Named | None = None,
        loss_lam: Named | None = None,
        seeds: Sequence[int] | None = None,
        t: int = 0,
        updated: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Losses `[R]` at weights `w [R, D]` on inputs x and targets y.

        mode: "train" or "eval", as `module.train()` and `module.eval()`, or "own", each part as its flag says (such
            as a frozen batch norm in a net in training); the module's own flags are left as they are.
        buffers: values `[R, *shape]` that replace the module's own, by name (running statistics of the runs).
        net_lam, loss_lam: keyword arguments of the module's forward and of the loss, `[R]` or `[R, 1]` (each run sees
            a tensor without dimensions) or `[R, ...]`.
        seeds, t: whole numbers >= 0, one seed a run, and the step; needed where the module draws random numbers in
            mode "train" or "own".
        updated: takes the buffers `[R, *shape]` as the forward pass leaves them, outside of any derivative: running
            statistics for the next step without a second pass.
        Raises GradtuneError for an unknown mode or buffer, a wrong shape, missing seeds, and a module that works for
        one run but not under `vmap`. Cost: R forward passes; memory: one set of buffers a run beside the graph.
        """
        if mode not in ("train", "eval", "own"):
            raise unknown("mode", mode, ["train", "eval", "own"])
        draws = self._draws(w, net_lam, seeds, t) if mode != "eval" else None
        own = self.buffers(w, buffers)
        flags = nullcontext() if mode == "own" else _flags(self._parts, mode == "train")
        with flags, _momentum(_averaging(self._parts) if updated is None else [], 0.0):
            losses = self.evaluate(w, x, y, own, _per_run(w, net_lam), _per_run(w, loss_lam), draws)
        if updated is not None:
            updated.update(own)
        return losses

    def buffers(self, w: Tensor, given: Named | None = None) -> dict[str, Tensor]:
        """Copies `[R, *shape]` of the module's buffers on the device of `w`, floating ones in its type, or of those
        that are given."""
        own = self._places.own_buffers()
        for name, b in (given or {}).items():
            if name not in own:
                raise unknown(f"buffer of {type(self.module).__name__}", name, own)
            if b.shape != (len(w), *own[name].shape):
                raise GradtuneError(
                    f"buffer {name} has shape {list(b.shape)}; expected {[len(w), *own[name].shape]}: one set a run"
                )
        wide = {n: self._wide(b, w) for n, b in own.items() if n not in (given or {})}
        return {n: b.detach().clone() for n, b in {**wide, **(given or {})}.items()}

    @staticmethod
    def _wide(b: Tensor, w: Tensor) -> Tensor:
        return b.to(w.device, w.dtype if b.is_floating_point() else None).expand(len(w), *b.shape)

    def evaluate(
        self, w: Tensor, x: Tensor, y: Tensor | None, own: Named, net_lam: Named, loss_lam: Named, draws: Draws | None
    ) -> Tensor:
        """The call itself, with the module's flags as they are; what the forward pass writes to buffers lands in
        `own`."""
        data = None if self.shared_batch else 0
        mapped = (w, own, torch.arange(len(w), device=w.device), x, y, net_lam, loss_lam)
        dims = (0, 0, 0, data, None if y is None else data, 0, 0)
        single = partial(self._single, draws)
        alone = partial(single, *(a if d is None else _row(a, 0) for a, d in zip(mapped, dims, strict=True)))
        with draws.elsewhere(w.device) if draws else nullcontext():
            if len(w) == 1:
                return self._checked(alone()[None], w)
            try:
                many = vmap(single, in_dims=dims, randomness="different" if draws else "error")
                return self._checked(many(*mapped), w)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                alone()  # a fault of the module's own shows itself here, in its own words
                raise self._not_mapped(error) from error

    def _single(
        self,
        draws: Draws | None,
        w: Tensor,
        own: Named,
        run: Tensor,
        x: Tensor,
        y: Tensor | None,
        net_lam: Named,
        loss_lam: Named,
    ) -> Tensor:
        """The loss of one run: what `vmap` maps over the runs."""
        with (
            draws.inside(run) if draws else nullcontext(),
            self._places.swapped(self.layout.split(w), own),
            granted(self._lean),
        ):
            output = self.module(x, **net_lam)
        return self.loss(output, y, **loss_lam)

    def _checked(self, losses: Tensor, w: Tensor) -> Tensor:
        if losses.shape != (len(w),):
            raise GradtuneError(
                f"the loss of a run has shape {list(losses.shape[1:])}; expected one number: reduce it over the batch"
            )
        return losses

    def _draws(self, w: Tensor, net_lam: Named | None, seeds: Sequence[int] | None, t: int) -> Draws | None:
        if seeds is None:
            names = {type(m).__name__ for m in self._parts if draws_numbers(m, bool(net_lam))}
            if names:
                raise self._no_seeds(", ".join(sorted(names)))
            return None
        if len(seeds) != len(w):
            raise GradtuneError(f"{len(seeds)} seeds for {len(w)} runs; give one whole number a run")
        return Draws(seeds, t)

    def _no_seeds(self, what: str) -> GradtuneError:
        return GradtuneError(
            f"{type(self.module).__name__} draws random numbers ({what}); hand over seeds=[...], one whole number "
            "a run, and t, so that a step can be computed again"
        )

    def _not_mapped(self, error: RuntimeError) -> GradtuneError:
        if "random" in str(error):
            return self._no_seeds("a random call in its forward pass")
        reason = str(error).strip().split("\n")[0][:200]
        return GradtuneError(
            f"{type(self.module).__name__} works for one run but not for several side by side "
            f"(torch.func.vmap: {reason}); avoid .item(), branches on values and writes into shared tensors, "
            "or train one run at a time"
        )


def batched(module: nn.Module, loss: Callable[..., Tensor], *, shared_batch: bool = True) -> Batched:
    """`f(w [R, D], x, y) -> [R]`: the loss of R copies of an ordinary module, under `vmap` when R > 1.

    loss(output, y, **loss_lam) gives one number for one run. Options of a call: see `Batched.__call__`.

    shared_batch: all runs see the same x and y; with False x and y have a leading dimension R.

    Raises GradtuneError for a module without parameters. It differs from `torch.func.stack_module_state` + `vmap` in
    that the weights are one flat tensor, buffers are never written back, and random numbers depend on (seed, t) alone.
    """
    return Batched(module, loss, shared_batch)


@torch.no_grad()
def batch_statistics(
    module: nn.Module,
    w: Tensor,
    batches: Iterable[Tensor],
    start: Named | None = None,
    *,
    net_lam: Named | None = None,
    seeds: Sequence[int] | None = None,
    shared_batch: bool = True,
) -> dict[str, Tensor]:
    """Buffers `[R, *shape]` of R runs after forward passes over `batches` in mode "train", weights `w [R, D]` fixed.

    start None: running statistics from nothing, the plain mean over the batches of their means and unbiased variances
    (as `torch.optim.swa_utils.update_bn`, which handles one run and writes into the module). start given, such as
    the result of an earlier call: they go on with the momentum of each layer, as in training; hand over one batch
    after each step. Outside of any derivative: hand the result to `batched(...)(..., mode="eval", buffers=...)`, where
    it is a constant. Number k of the batches draws its dropout masks from (seed, k).
    Raises GradtuneError as `Batched.__call__` does, and when there is no batch. Cost: a forward pass a batch and run.
    """
    runs = Batched(module, _nothing, shared_batch)
    own, seen = runs.buffers(w, start), 0
    with _flags(runs._parts, True):
        for seen, x in enumerate(batches, start=1):
            layers = [m for m in runs._parts if _has_statistics(m)] if start is None else []
            with _momentum(layers, 1 / seen):
                runs.evaluate(w, x, None, own, _per_run(w, net_lam), {}, runs._draws(w, net_lam, seeds, seen - 1))
    if not seen:
        raise GradtuneError("batches holds no batch; give at least one to estimate running statistics from")
    return own


def draws_numbers(m: nn.Module, keep_given: bool) -> bool:
    """Whether a layer draws random numbers in training; `nets.Dropout` does where a keep probability is given."""
    return (isinstance(m, _RANDOM) and m.p > 0) or (isinstance(m, Dropout) and keep_given)


def _nothing(output: object, target: None) -> Tensor:
    return torch.zeros(())


def _row(x: Tensor | Named | None, r: int) -> Any:
    """Row r of a tensor or of every tensor in a mapping, as views: writes reach the original."""
    if isinstance(x, Tensor):
        return x.squeeze(0) if len(x) == 1 else x[r]  # the derivative of x[r] is a copy into zeros, of this a view
    return {n: _row(v, r) for n, v in (x or {}).items()}


def _per_run(w: Tensor, lam: Named | None) -> dict[str, Tensor]:
    for name, v in (lam or {}).items():
        if v.dim() == 0 or len(v) != len(w):
            raise GradtuneError(f"{name} has shape {list(v.shape)}; expected [{len(w)}, ...]: a value for each run")
    return {n: v.reshape(len(w)) if v.numel() == len(w) else v for n, v in (lam or {}).items()}


@contextmanager
def _flags(parts: Sequence[nn.Module], training: bool) -> Iterator[None]:
    """The parts of a module in training or evaluation mode, and afterwards as each was."""
    wrong = [m for m in parts if m.training != training]
    for m in wrong:
        m.training = training
    try:
        yield
    finally:
        for m in wrong:
            m.training = not training


def _has_statistics(m: nn.Module) -> bool:
    return isinstance(getattr(m, "running_mean", None), Tensor) and hasattr(m, "momentum")


def _averaging(parts: Sequence[nn.Module]) -> list[nn.Module]:
    """Layers with `momentum=None`: they read their step counter as a Python number, which `vmap` forbids."""
    return [m for m in parts if _has_statistics(m) and m.momentum is None]


@contextmanager
def _momentum(layers: Sequence[nn.Module], value: float) -> Iterator[None]:
    """Layers with another momentum of their running statistics, for a while."""
    before = [m.momentum for m in layers]
    for m in layers:
        m.momentum = value  # type: ignore[assignment]
    try:
        yield
    finally:
        for m, momentum in zip(layers, before, strict=True):
            m.momentum = momentum
