"""Images in classes by a fully connected ReLU net on minibatches (Clip paper, Section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradhpo.draws import number
from gradhpo.modules import batched
from gradhpo.nets import mlp
from gradhpo.stacked import StackedMLP
from gradhpo.streams import Resident
from gradhpo.tasks.images import Images

_ROWS = 2500  # evaluated at once: activations that fit into the cache


class Classification:
    """Cross entropy (nats) of R nets pixels - hidden - classes on minibatches, the same for all runs; torch's default
    initialisation.

    Batch t of the training images, and of the validation images, is a function of (seed, t): each epoch goes through
    a new order of its rows. The losses have no penalty; weight decay belongs to the update rule, which for plain
    gradient descent is the same. stacked: by `StackedMLP`, in place of the module under `vmap`; they differ by
    rounding.
    """

    stationary = False

    def __init__(
        self,
        images: Images,
        hidden: Sequence[int] = (100, 100, 100),
        batch_size: int = 100,
        val_batch_size: int = 100,
        seed: int = 0,
        stacked: bool = True,
    ) -> None:
        self.images = images
        self._sizes = [images.x_train[0].numel(), *hidden, int(images.y_train.max()) + 1]
        self.net = StackedMLP(self._sizes)
        self.layout = self.net.layout
        self._loss = self.net if stacked else batched(self.net.module.to(images.x_train), cross_entropy)
        train, val = (x.flatten(1) for x in (images.x_train, images.x_val))
        self._train = Resident(train, images.y_train, batch_size, number(seed, 1), "the training images")
        self._val = Resident(val, images.y_val, val_batch_size, number(seed, 2), "the validation images")

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Initial weights `[R, D]`, one row a seed; drawn on the CPU in float32 and then cast."""
        rows = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = mlp(self._sizes)
            rows.append(self.layout.flatten(dict(net.named_parameters())))
        return torch.stack(rows).to(self.images.x_train)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self._loss(w, *self._train.at(t))

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self._loss(w, *self._val.at(t))

    @torch.no_grad()
    def evaluate(self, w: Tensor, part: str) -> tuple[Tensor, Tensor]:
        """Mean cross entropy and share of errors, `[R]` each, on all images of a part: "train", "val" or "test"."""
        x, y = getattr(self.images, part)
        loss, wrong = w.new_zeros(len(w)), w.new_zeros(len(w))
        for rows, classes in zip(x.flatten(1).split(_ROWS), y.split(_ROWS)):
            log_p = self.net.outputs(w, rows)[-1].log_softmax(1)
            loss -= log_p.gather(1, classes.expand(len(w), 1, -1)).sum((1, 2))
            wrong += (log_p.argmax(1) != classes).sum(-1)
        return loss / len(y), wrong / len(y)
