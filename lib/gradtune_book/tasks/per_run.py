"""Classification of images by R nets, each with its own training and validation rows and its own order of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gradtune.errors import GradtuneError, at_least
from gradtune.nets.draws import number, sent
from gradtune.nets.losses import accuracy
from gradtune.nets.modules import batch_statistics, batched
from gradtune.tuning.streams import Batch
from gradtune_book.tasks.classification import Classification, Modules
from gradtune_book.tasks.images import Images

Rows = Callable[[int], tuple[Tensor, Tensor]]

_ORDER, _SHIFT, _WEIGHTS, _SPLIT = range(4)  # what a seed is used for, so that no two uses share their numbers


class PerRun(Classification):
    """Cross entropies `[R]` of R copies of a net on images in classes, the set's training images shared out anew.

    Batch norm takes the batch's own statistics in both losses, so that no statistic lies outside of the derivative.
    `PerRun` differs from `Classification`, whose runs share their batches, and from `supervised.Supervised`, which is
    handed its batches, in that every batch is a function of (seed of the run, t).

    Cost: R forward passes. Memory: one batch a run beside the images.

    Args:
        net: Gives one net with newly drawn weights.
        images: The set. Its training images are shared out.
        rows: For a seed, the numbers of its training and of its validation rows among `images.train`, as `split` gives
            them.
        seeds: One a run. A run's rows, weights, batches and augmentation depend on its own seed alone.
        batch_size: Number of images of a training batch. Each epoch has a new order, and what does not fill a batch is
            left out.
        val_batch: Number of images of a validation batch.
        one_batch: Take the validation loss on batch t alone (for methods that ask at every step), in place of the mean
            over all batches.
        augment: Move training images by up to 4 pixels and mirror them with probability 1/2, on their device.

    Attributes:
        train_rows: Numbers of each run's training rows.
        val_rows: Numbers of each run's validation rows.
        module: The net that all runs share.

    Raises:
        GradtuneError: A batch size is below 1, there are fewer training rows than a batch, or there is no validation
            row.
    """

    def __init__(
        self,
        net: Callable[[], nn.Module],
        images: Images,
        rows: Rows,
        seeds: Sequence[int],
        batch_size: int,
        val_batch: int = 1000,
        one_batch: bool = False,
        augment: bool = False,
    ) -> None:
        at_least(1, batch_size=batch_size, val_batch=val_batch)
        self.seeds, self.one_batch = list(seeds), one_batch
        self.train_rows, self.val_rows = zip(*(rows(seed) for seed in seeds), strict=True)
        if len(self.train_rows[0]) < batch_size or not len(self.val_rows[0]):
            raise GradtuneError(
                f"{len(self.train_rows[0])} training and {len(self.val_rows[0])} validation images; expected at least "
                f"a batch of {batch_size} to train on, and one image to validate on"
            )
        nets = Modules(net, images.x_train, shared_batch=len(seeds) == 1)
        self._own = Shuffled(images.train, self.train_rows, self.seeds, batch_size, augment)
        self._val = InOrder(images.train, self.val_rows, val_batch)
        super().__init__(images, nets, self._own, self._val)
        self.module = nets.module
        self._accuracy = batched(self.module, accuracy)

    def init(self, seeds: Sequence[int] | None = None) -> Tensor:
        """Initial weights `[R, D]`, drawn from the runs' seeds (or others).

        They are drawn on the CPU in float32, so that they are the same on every device and in every dtype.
        """
        return super().init([number(seed, _WEIGHTS) for seed in seeds or self.seeds])

    def batch(self, t: int) -> tuple[Tensor, ...]:
        return super().batch(t) if self.one_batch else self._own.at(t)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """The validation loss `[R]`."""
        if self.one_batch:
            return super().val_loss(w, lam, t)
        sizes = self._val.sizes
        losses = [self.nets(w, *self._val.at(k)) * size for k, size in enumerate(sizes)]
        return sum(losses[1:], losses[0]) / sum(sizes)

    @torch.no_grad()
    def accuracies(self, w: Tensor, x: Tensor, y: Tensor, chunk: int = 1000) -> Tensor:
        """Share `[R]` of the images that each run classifies right, in evaluation mode.

        Running statistics of batch norm are estimated afresh on up to 20 training batches (at most an epoch) of the
        first run's order.

        Args:
            w: Weights `[R, D]`.
            x: Images `[N, channels, size, size]`.
            y: Their classes `[N]`.
            chunk: Number of images that are classified at once.
        """
        buffers = None
        if next(self.module.buffers(), None) is not None:
            count = min(20, self._own.per_epoch)
            buffers = batch_statistics(
                self.module, w, [self.images.x_train[self._own.rows(0, t)] for t in range(count)]
            )
        parts = zip(x.split(chunk), y.split(chunk), strict=True)
        right = [self._accuracy(w, a, b, mode="eval", buffers=buffers) * len(a) for a, b in parts]
        return torch.stack(right).sum(0) / len(x)

    def val_accuracies(self, w: Tensor) -> Tensor:
        """The same on the validation rows, `[R]`, each run on its own."""
        x, y = self.images.train
        return torch.cat([self.accuracies(w[k : k + 1], x[rows], y[rows]) for k, rows in enumerate(self.val_rows)])


class Shuffled:
    """Training batches, each run's rows in an order of its own that is a function of (seed, epoch).

    `at(t)` gives x `[R, B, ...]` and y `[R, B]`, for a single run without the leading dimension.

    Args:
        images: Images and classes that the rows are taken from.
        rows: Numbers of each run's rows.
        seeds: One a run.
        batch_size: Number of images of a batch.
        augment: Move and mirror each image by `moved`.

    Attributes:
        train_rows: The argument `rows`.
        size: The argument `batch_size`.
        per_epoch: Number of batches in an epoch.
    """

    def __init__(
        self, images: Batch, rows: Sequence[Tensor], seeds: Sequence[int], batch_size: int, augment: bool
    ) -> None:
        self.images, self.train_rows, self.seeds, self.size, self.augment = images, rows, seeds, batch_size, augment
        self.per_epoch = len(rows[0]) // batch_size
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def at(self, k: int) -> Batch:
        return _joined([self._of_run(run, k) for run in range(len(self.seeds))])

    def rows(self, run: int, t: int) -> Tensor:
        """Rows `[B]` of a run's batch of step t."""
        epoch, place = divmod(t, self.per_epoch)
        if self._orders.get(run, (-1,))[0] != epoch:
            rng = torch.Generator().manual_seed(number(self.seeds[run], _ORDER, epoch))
            order = torch.randperm(len(self.train_rows[run]), generator=rng)
            order = sent(order, self.train_rows[run].device)
            self._orders[run] = epoch, self.train_rows[run][order]
        return self._orders[run][1][place * self.size : (place + 1) * self.size]

    def _of_run(self, run: int, t: int) -> Batch:
        rows = self.rows(run, t)
        x, y = self.images[0][rows], self.images[1][rows]
        return (moved(x, number(self.seeds[run], _SHIFT, t)) if self.augment else x), y


class InOrder:
    """Validation batches, each run's rows in their order; after the last comes the first.

    The last batch is smaller where the batches do not divide the rows.

    Args:
        images: Images and classes that the rows are taken from.
        rows: Numbers of each run's rows.
        batch_size: Number of images of a batch.

    Attributes:
        parts: Numbers of the rows of each batch, a list for each run.
        sizes: Number of images of each batch.
    """

    def __init__(self, images: Batch, rows: Sequence[Tensor], batch_size: int) -> None:
        self.images, self.parts = images, [each.split(batch_size) for each in rows]
        self.sizes = [len(part) for part in self.parts[0]]

    def at(self, k: int) -> Batch:
        rows = [parts[k % len(parts)] for parts in self.parts]
        return _joined([(self.images[0][each], self.images[1][each]) for each in rows])


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    x, y = zip(*batches, strict=True)
    return torch.stack(x), torch.stack(y)


def moved(x: Tensor, seed: int, reach: int = 4) -> Tensor:
    """Images, each moved by up to `reach` pixels and mirrored with probability 1/2: random crop and flip.

    It works on the images' device. The moves are a function of `seed`, the same on every device. Zeros come in at the
    sides.

    Args:
        x: Images `[B, channels, s, s]`.
        seed: Seed of the moves.
        reach: Largest move along either axis, in pixels.

    Returns:
        The images, in the shape of `x`.
    """
    rng = torch.Generator().manual_seed(seed)
    n, size = len(x), x.shape[-1]
    shift = torch.randint(0, 2 * reach + 1, (2, n, 1), generator=rng)
    flip = torch.rand(n, 1, generator=rng) < 0.5
    places = torch.arange(size)[None]
    columns = torch.where(flip, size - 1 - places, places) + shift[1]
    rows, columns = sent(torch.stack((places + shift[0], columns)), x.device)
    large = pad(x, (reach,) * 4)
    return large[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(
        0, 3, 1, 2
    )


def split(images: int, validation: int, device: torch.device, fixed: bool = False) -> Rows:
    """Return what `PerRun` takes as `rows`: for a seed, a random draw of rows to validate on, the others to train on.

    Args:
        images: Number of all rows.
        validation: Number of rows to validate on.
        device: Device of the row numbers.
        fixed: Give the same rows for every seed (FDS, Figure 2). With False they are redrawn.
    """

    def rows(seed: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(0 if fixed else number(seed, _SPLIT))
        order = torch.randperm(images, generator=rng).to(device)
        return order[validation:], order[:validation]

    return rows
