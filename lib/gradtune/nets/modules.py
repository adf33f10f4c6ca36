"""From an ordinary single-run `torch.nn.Module` to losses of R runs on flat weights `w [R, D]`.

`batched(module, loss)` gives what a `step.Problem` needs from the user's module, which stays unchanged and runs under
`torch.func.vmap` when R > 1. What is not a weight is handled so that every derivative stays exact and a step can be
recomputed:

* Buffers: each call works on copies, a set a run, so a loss leaves the module's own as they are.
* Batch norm: in mode "train" it has the batch's statistics, which are differentiated. In mode "eval" it has running
  statistics, which are constants: one set a run, estimated outside of any derivative by `batch_statistics`.
* Dropout: a mask is a function of (seed of the run, t); see `Draws`.
* Hyperparameters: those that the forward pass or the loss reads are handed over by name, a value a run.

Every layer must have a second derivative. cuDNN's LSTM and GRU have none: use `plain.LSTM`. On the CPU the same
`nn.LSTM` has one, so a test there does not show it. Of `scaled_dot_product_attention` only the math backend has one,
chosen by `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`; flash and memory-efficient attention have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import vmap

from gradtune.errors import GradtuneError, unknown
from gradtune.nets import attention
from gradtune.nets.draws import Draws
from gradtune.nets.layout import Layout
from gradtune.nets.plain import Dropout
from gradtune.nets.second_order import granted, layers_in
from gradtune.nets.swapped import Places

Named = Mapping[str, Tensor]
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Batched:
    """The loss of R copies of a module, to be called as `f(w [R, D], x, y) -> [R]`; made by `batched`.

    Args:
        module: the module of one run.
        loss: `loss(output, y, **loss_lam)`, one number for one run.
        shared_batch: whether all runs see the same x and y; if not, x and y have a leading dimension R.

    Attributes:
        layout: where the module's parameters lie in a row of `w`.

    Raises:
        GradtuneError: the module has no parameters to train.
    """

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
        """Compute the losses `[R]` of R runs.

        Cost: R forward passes. Memory: one set of buffers a run beside the graph.

        Args:
            w: weights `[R, D]`.
            x: inputs of the module, with a leading dimension R unless the runs share the batch.
            y: targets, handed to the loss; the same holds for their dimensions.
            mode: "train" or "eval", as `module.train()` and `module.eval()`, or "own", each part as its flag says (such
                as a frozen batch norm in a net in training). The module's own flags are left as they are.
            buffers: values `[R, *shape]` that replace the module's own, by name (running statistics of the runs).
            net_lam: keyword arguments of the module's forward pass, `[R]` or `[R, 1]` (each run sees a tensor without
                dimensions) or `[R, ...]`.
            loss_lam: keyword arguments of the loss, of the same shapes.
            seeds: whole numbers >= 0, one a run; needed in modes "train" and "own" where the module can draw random
                numbers.
            t: the number of the step, a whole number >= 0; random numbers depend on the seeds and t.
            updated: takes the buffers `[R, *shape]` as the forward pass leaves them, outside of any derivative: running
                statistics for the next step without a second pass. With several runs no layer in training may then have
                `momentum=None`.

        Returns:
            The losses `[R]`, differentiable.

        Raises:
            GradtuneError: an unknown mode or buffer, a wrong shape, a wrong number of seeds, a module that works for
                one run but not under `vmap`, or missing seeds. Where R = 1, missing seeds are noticed for dropout
                layers alone, not for other random calls of the forward pass.
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
        """Copy the module's buffers, one set a run.

        Args:
            w: weights `[R, D]`; the copies are on their device, floating ones in their type.
            given: values `[R, *shape]`, by name, to copy in place of the module's own, on their own device and in their
                own type.

        Returns:
            Copies `[R, *shape]` of all buffers by name, without a graph.

        Raises:
            GradtuneError: a given name is no buffer of the module, or its value has a wrong shape.
        """
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
        """Compute the losses `[R]` with the module's flags as they are: the call itself.

        Args:
            w: weights `[R, D]`.
            x: inputs of the module.
            y: targets, None for a loss that needs none.
            own: buffers `[R, *shape]` by name; what the forward pass writes to buffers lands in them.
            net_lam: keyword arguments of the module's forward pass, `[R, ...]`.
            loss_lam: keyword arguments of the loss, `[R, ...]`.
            draws: the random numbers of the step, None where none are drawn.

        Returns:
            The losses `[R]`.

        Raises:
            GradtuneError: the loss of a run is not one number, or the module works for one run but not under `vmap`.
        """
        data = None if self.shared_batch else 0
        mapped = (w, own, torch.arange(len(w)), x, y, net_lam, loss_lam)
        dims = (0, 0, 0, data, None if y is None else data, 0, 0)
        single = partial(self._single, draws)
        alone = partial(single, *(a if d is None else _row(a, 0) for a, d in zip(mapped, dims, strict=True)))
        with draws.elsewhere(w.device) if draws else nullcontext():
            if len(w) == 1:
                loss, assigned = alone()
                _take_over(own, {n: b[None] for n, b in assigned.items()})
                return self._checked(loss[None], w)
            try:
                many = vmap(single, in_dims=dims, randomness="different" if draws else "error")
                losses, assigned = many(*mapped)
                _take_over(own, assigned)
                return self._checked(losses, w)
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
    ) -> tuple[Tensor, Named]:
        """Compute the loss of one run, and the buffers that it has assigned anew: what `vmap` maps over the runs."""
        with (
            draws.inside(run) if draws else nullcontext(),
            self._places.swapped(self.layout.split(w), own),
            attention.differentiable(),
            granted(self._lean),
        ):
            loss = self.loss(self.module(x, **net_lam), y, **loss_lam)
            after = self._places.own_buffers() if own else {}
        return loss, {n: b.detach() for n, b in after.items() if b is not own[n]}

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
    """Make the loss of R copies of an ordinary module, `f(w [R, D], x, y) -> [R]`, under `vmap` when R > 1.

    The options of a call are described at `Batched.__call__`. It differs from `torch.func.stack_module_state` and
    `vmap` in that the weights are one flat tensor, buffers are never written back, and random numbers depend on the
    seeds and t alone.

    Args:
        module: the module of one run; it stays unchanged.
        loss: `loss(output, y, **loss_lam)`, one number for one run.
        shared_batch: whether all runs see the same x and y; if not, x and y have a leading dimension R.

    Raises:
        GradtuneError: the module has no parameters to train.
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
    """Estimate the buffers of R runs by forward passes over `batches` in mode "train", with the weights fixed.

    Without `start`, running statistics start from nothing and become the plain mean over the batches of their means and
    unbiased variances. So does `torch.optim.swa_utils.update_bn`, which handles one run and writes into the module.
    With `start`, such as the result of an earlier call, they go on with the momentum of each layer, as in training:
    hand over one batch after each step. With several runs no layer may then have `momentum=None`.

    All is outside of any derivative: hand the result to `batched(...)(..., mode="eval", buffers=...)`, where it is a
    constant. Batch k, counted from 0, draws its dropout masks from (seed, k).

    Cost: a forward pass a batch and run.

    Args:
        module: the module of one run; it stays unchanged.
        w: weights `[R, D]`.
        batches: inputs of the module, with a leading dimension R unless the runs share the batches.
        start: buffers `[R, *shape]` by name to go on from, None for a fresh estimate.
        net_lam: keyword arguments of the module's forward pass, as in `Batched.__call__`.
        seeds: whole numbers >= 0, one a run; needed where the module draws random numbers.
        shared_batch: whether all runs see the same batches.

    Returns:
        All buffers of the module by name, `[R, *shape]` each.

    Raises:
        GradtuneError: there is no batch, or what `Batched.__call__` raises it for.
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
    """Return whether a layer is a dropout layer that draws random numbers in training.

    Args:
        m: the layer.
        keep_given: whether the forward pass gets a keep probability; `plain.Dropout` draws only then.
    """
    return (isinstance(m, _RANDOM) and m.p > 0) or (isinstance(m, Dropout) and keep_given)


def _take_over(own: Named, assigned: Named) -> None:
    """Put buffers that a forward pass has assigned anew among those of the runs."""
    if assigned:
        cast("dict[str, Tensor]", own).update(assigned)


def _nothing(output: object, target: None) -> Tensor:
    return torch.zeros(())


def _row(x: Tensor | Named | None, r: int) -> Any:
    """Return row r of a tensor or of every tensor in a mapping, as views: writes reach the original."""
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
    """Put the parts of a module in training or evaluation mode, and afterwards leave each as it was."""
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
    """Return the layers with `momentum=None`: they read their step counter as a Python number, which `vmap` forbids."""
    return [m for m in parts if _has_statistics(m) and m.momentum is None]


@contextmanager
def _momentum(layers: Sequence[nn.Module], value: float) -> Iterator[None]:
    """Give layers another momentum of their running statistics, for a while."""
    before = [m.momentum for m in layers]
    for m in layers:
        m.momentum = value  # type: ignore[assignment]
    try:
        yield
    finally:
        for m, momentum in zip(layers, before, strict=True):
            m.momentum = momentum
