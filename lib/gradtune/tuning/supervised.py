"""A user's module and loss as a `step.Problem`.

Batches are handed over step by step, and those that an estimator may look back to are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gradtune.errors import GradtuneError
from gradtune.nets.modules import batched, draws_numbers
from gradtune.tuning.streams import Batch

Loss = Callable[..., Tensor]


class Held(NamedTuple):
    """What a step saw.

    Attributes:
        batch: the batch of the step.
        buffers: the module's buffers `[1, *shape]` before the step, by name.
    """

    batch: Batch
    buffers: dict[str, Tensor]


class Supervised:
    """Losses of one run of a module on batches that `give` hands over.

    Buffers are those that the last training step left; a step that is computed again sees its own. Dropout and other
    random numbers are functions of (seed, t).

    Args:
        module: the model.
        loss: training loss, `loss(output, y)` and its hyperparameters by name.
        val_loss: validation loss, `val_loss(output, y)` in evaluation mode. The training loss's own hyperparameters are
            not part of it.
        of_model: names of hyperparameters that the forward pass takes.
        of_loss: names of hyperparameters that the training loss takes.
        keep: how many steps an estimator looks back.
        seed: seed of the random numbers in the forward pass.

    Attributes:
        stationary: False, as the losses depend on the step's batch.
        layout: where each parameter tensor lies in the flat weights.
        buffers: the module's buffers `[1, *shape]`, by name.
        held: what the steps that can be computed again saw, by step.
        seen: training losses `[1]` of the last step; None before the first.
        seen_val: validation losses `[1]` of the last outer update; None before the first.
    """

    stationary = False

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        val_loss: Loss,
        of_model: tuple[str, ...],
        of_loss: tuple[str, ...],
        keep: int,
        seed: int,
    ) -> None:
        self.module, self.of_model, self.of_loss, self.keep, self.seed = module, of_model, of_loss, keep, seed
        self._train, self._val = batched(module, _one_number(loss)), batched(module, _one_number(val_loss))
        self.layout = self._train.layout
        self.buffers: dict[str, Tensor] = {}
        self.held: dict[int, Held] = {}
        self._pending = -1
        self._random: bool | None = None
        self._val_batch: Batch | None = None
        self.seen: Tensor | None = None
        self.seen_val: Tensor | None = None

    def read(self, w: Tensor) -> None:
        """Take the module's buffers as the ones that training starts from."""
        self.buffers = self._train.buffers(w)

    def give(self, t: int, batch: Batch, val_batch: Batch | None) -> None:
        """Hand over the batches of step `t`, before it is taken."""
        self.held = {k: v for k, v in self.held.items() if k > t - self.keep} | {t: Held(batch, self.buffers)}
        self._pending, self._val_batch = t, val_batch

    def load(self, t: int, buffers: dict[str, Tensor], held: list[dict[str, Any]], device: torch.device) -> None:
        """Take over the buffers, and what the last steps before step `t` saw.

        Args:
            t: the step that is next.
            buffers: buffers `[1, *shape]`, by name.
            held: a dict with `batch` and `buffers` for each of the last steps, the oldest first.
            device: where the tensors are moved.
        """
        self.buffers = {n: b.to(device) for n, b in buffers.items()}
        seen = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, held)
        self.held = {t - len(held) + k: Held((h["batch"][0], h["batch"][1]), h["buffers"]) for k, h in enumerate(seen)}

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Return the loss `[1]` on the batch of step `t`; the first time, take over the buffers that it leaves."""
        (x, y), before = self.held[t]
        options: dict[str, Any] = {"net_lam": self._part(lam, self.of_model), "loss_lam": self._part(lam, self.of_loss)}
        if self._random is None:
            self._random = self._draws(w, x, y, options)
        options |= {"seeds": [self.seed] if self._random else None, "t": t, "mode": "own", "buffers": before}
        if t != self._pending:
            return self._train(w, x, y, **options)
        after: dict[str, Tensor] = {}
        losses = _with_gradient(self._train(w, x, y, updated=after, **options))
        self._pending, self.buffers, self.seen = -1, after, losses.detach()
        return losses

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Return the validation loss `[1]` on the validation batch of the step."""
        if self._val_batch is None:
            raise GradtuneError("this step needs a validation batch and has none; hand one over when needs_val is true")
        losses = _with_gradient(self.evaluate(w, lam, self._val_batch))
        self.seen_val = losses.detach()
        return losses

    def evaluate(self, w: Tensor, lam: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the validation loss `[1]` on any batch."""
        net_lam = self._part(lam, self.of_model)
        return self._val(w, *batch, mode="eval", buffers=self.buffers, net_lam=net_lam)

    @staticmethod
    def _part(lam: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
        return {n: lam[n] for n in names if n in lam}

    def _draws(self, w: Tensor, x: Any, y: Any, options: dict[str, Any]) -> bool:
        """Return whether the module or the loss draws random numbers: by its layers, else by trying."""
        if any(draws_numbers(m, True) for m in self.module.modules()):
            return True
        cuda = [w.device] if w.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            before = torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in cuda)
            self._train(w, x, y, mode="own", buffers=self.buffers, updated={}, **options)
            after = torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in cuda)
        return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _one_number(loss: Loss) -> Loss:
    def checked(output: Any, y: Any, **lam: Tensor) -> Tensor:
        value = loss(output, y, **lam)
        if not isinstance(value, Tensor):
            raise GradtuneError(
                f"the loss is a {type(value).__name__}; expected a tensor of one number, with its gradient: leave out "
                ".item() and float()"
            )
        return value

    return checked


def _with_gradient(losses: Tensor) -> Tensor:
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise GradtuneError(
            "the loss has no gradient with respect to the weights; look for .detach(), .data, torch.no_grad() or an "
            "argmax between the model's weights and the loss"
        )
    return losses
