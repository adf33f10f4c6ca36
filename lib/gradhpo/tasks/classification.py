"""Classification of images by R nets, each with its own training and validation rows and its own order of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from gradhpo.draws import number
from gradhpo.errors import GradhpoError, at_least
from gradhpo.losses import accuracy
from gradhpo.modules import batch_statistics, batched

Rows = Callable[[int], tuple[Tensor, Tensor]]

_ORDER, _SHIFT, _WEIGHTS, _SPLIT = range(4)  # what a seed is used for, so that no two uses share their numbers


class Classification:
    """Cross entropies `[R]` of R copies of a net on images `x [N, channels, s, s]` with classes `y [N]`.

    rows: for a seed, the numbers of its training and of its validation rows, as `split` gives them. seeds: one a run;
    a run's rows, weights, batches and augmentation depend on its own seed alone. batch_size: of training, each epoch in
    a new order, what does not fill a batch left out. val_batch: images of a validation batch; the validation loss is
    the mean over all batches, or with one_batch=True that of batch t alone (for methods that ask at every step).
    augment: training images are moved by up to 4 pixels and mirrored with probability 1/2, on their device.

    Batch norm takes the batch's own statistics in both losses, so that no statistic lies outside of the derivative.
    Cost: R forward passes; memory: one batch a run beside the images. It differs from `supervised.Supervised`, which
    is handed its batches, in that every batch is a function of (seed, t): nothing is kept.
    """

    stationary = False

    def __init__(
        self,
        net: Callable[[], nn.Module],
        images: tuple[Tensor, Tensor],
        rows: Rows,
        seeds: Sequence[int],
        batch_size: int,
        val_batch: int = 1000,
        one_batch: bool = False,
        augment: bool = False,
    ) -> None:
        at_least(1, batch_size=batch_size, val_batch=val_batch)
        self.net, self.seeds, self.batch_size, self.val_batch = net, list(seeds), batch_size, val_batch
        self.x, self.y = images
        self.one_batch, self.augment = one_batch, augment
        self.train_rows, self.val_rows = zip(*(rows(seed) for seed in seeds), strict=True)
        self.batches_per_epoch = len(self.train_rows[0]) // batch_size
        if not self.batches_per_epoch or not len(self.val_rows[0]):
            raise GradhpoError(
                f"{len(self.train_rows[0])} training and {len(self.val_rows[0])} validation images; expected at least "
                f"a batch of {batch_size} to train on, and one image to validate on"
            )
        self.module = net().to(self.x)
        self._loss = batched(self.module, cross_entropy, shared_batch=len(seeds) == 1)
        self._accuracy = batched(self.module, accuracy)
        self.layout = self._loss.layout
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def init(self) -> Tensor:
        """Initial weights `[R, D]`, drawn on the CPU in float32: the same on every device and in every dtype."""
        rows = []
        for seed in self.seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number(seed, _WEIGHTS))
                rows.append(self.layout.flatten(dict(self.net().named_parameters())))
        return torch.stack(rows).to(self.x)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """The loss `[R]` of each run on its batch of step t."""
        return self._loss(w, *self._joined([self._train_batch(k, t) for k in range(len(self.seeds))]))

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """The validation loss `[R]`."""
        parts = [rows.split(self.val_batch) for rows in self.val_rows]
        count = len(parts[0])
        chosen = [t % count] if self.one_batch else range(count)
        losses = [self._loss(w, *self._joined([self._at(p[k]) for p in parts])) * len(parts[0][k]) for k in chosen]
        return sum(losses[1:], losses[0]) / sum(len(parts[0][k]) for k in chosen)

    @torch.no_grad()
    def accuracies(self, w: Tensor, x: Tensor, y: Tensor, chunk: int = 1000) -> Tensor:
        """Share `[R]` of the images that each run classifies right, in evaluation mode. Running statistics of batch
        norm are estimated afresh on 20 training batches of the first run's order."""
        buffers = None
        if next(self.module.buffers(), None) is not None:
            batches = [self._at(self._rows(0, t))[0] for t in range(min(20, self.batches_per_epoch))]
            buffers = batch_statistics(self.module, w, batches)
        parts = zip(x.split(chunk), y.split(chunk), strict=True)
        right = [self._accuracy(w, a, b, mode="eval", buffers=buffers) * len(a) for a, b in parts]
        return torch.stack(right).sum(0) / len(x)

    def val_accuracies(self, w: Tensor) -> Tensor:
        """The same on the validation rows, `[R]`, each run on its own."""
        return torch.cat([self.accuracies(w[k : k + 1], *self._at(rows)) for k, rows in enumerate(self.val_rows)])

    def _at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[rows], self.y[rows]

    def _joined(self, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if len(batches) == 1:
            return batches[0]
        x, y = zip(*batches, strict=True)
        return torch.stack(x), torch.stack(y)

    def _rows(self, k: int, t: int) -> Tensor:
        """Rows of the batch of step t of run k: the order of an epoch is a function of (seed, epoch)."""
        epoch, place = divmod(t, self.batches_per_epoch)
        if self._orders.get(k, (-1,))[0] != epoch:
            rng = torch.Generator().manual_seed(number(self.seeds[k], _ORDER, epoch))
            order = torch.randperm(len(self.train_rows[k]), generator=rng).to(self.x.device)
            self._orders[k] = epoch, self.train_rows[k][order]
        return self._orders[k][1][place * self.batch_size : (place + 1) * self.batch_size]

    def _train_batch(self, k: int, t: int) -> tuple[Tensor, Tensor]:
        x, y = self._at(self._rows(k, t))
        return (moved(x, number(self.seeds[k], _SHIFT, t)) if self.augment else x), y


def moved(x: Tensor, seed: int, reach: int = 4) -> Tensor:
    """Images `[B, channels, s, s]`, each moved by up to `reach` pixels (zeros come in) and mirrored with probability
    1/2: random crop and flip on the images' device. A function of `seed`, the same on every device."""
    rng = torch.Generator().manual_seed(seed)
    n, size = len(x), x.shape[-1]
    shift = torch.randint(0, 2 * reach + 1, (2, n, 1), generator=rng)
    flip = torch.rand(n, 1, generator=rng) < 0.5
    places = torch.arange(size)[None]
    columns = torch.where(flip, size - 1 - places, places) + shift[1]
    rows, columns = (places + shift[0]).to(x.device), columns.to(x.device)
    large = pad(x, (reach,) * 4)
    return large[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(
        0, 3, 1, 2
    )


def split(images: int, validation: int, device: torch.device, fixed: bool = False) -> Rows:
    """What `Classification` takes as `rows`: for a seed, a random `validation` of all `images` rows to validate on and
    the others to train on; with fixed=True the same for every seed (FDS, Figure 2), else redrawn."""

    def rows(seed: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(0 if fixed else number(seed, _SPLIT))
        order = torch.randperm(images, generator=rng).to(device)
        return order[validation:], order[:validation]

    return rows
