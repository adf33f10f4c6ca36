"""One training of the FDS paper's CIFAR-10 experiments: net, images, hyperparameters, and what an answer is worth.

The parts of the study `fds_cifar_regret` share it. A recipe is what every method answers with: learning rates over
time, a momentum and a weight decay. It is worth the test accuracy of a net trained with it from new weights for the
full length, whoever found it and in whatever way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from gradtune.errors import unknown
from gradtune.nets.draws import number
from gradtune.nets.wide_resnet import residual, wrn
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import sgd
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Method
from gradtune_book.papers.fds.common import pictures
from gradtune_book.records import sittings
from gradtune_book.tasks.images import Images
from gradtune_book.tasks.per_run import PerRun, split

LR, MOMENTUM, DECAY = "lr", "momentum", "weight_decay"
NAMES = (LR, MOMENTUM, DECAY)
GAMMA = {LR: 0.1, MOMENTUM: 0.15, DECAY: 4e-4}
"""First steps of the sign rule (Appendix C). Ten of them span the search range."""
RANGES = {name: (-10 * gamma, 10 * gamma) for name, gamma in GAMMA.items()}
"""Range of every search in natural units (Section 5.4).

Learning rates lie in `[-1, 1]`, the momentum in `[-1.5, 1.5]`, the weight decay in `[-4e-3, 4e-3]`.
"""
_EVALUATION = 10**6  # number of the training that evaluates: other weights and rows than in any outer step or trial


@dataclass(frozen=True)
class Config:
    """One run of one method, or one training of the grid."""

    method: str  # one of `cifar_regret.METHODS`
    seed: int  # draws everything: weights, rows, batches, the search's own decisions
    data: str = "cifar10"  # cifar10, digits or another set of images
    images: int | None = None  # training images, equally many of a class; None: all
    test_images: int | None = None  # the same for test images
    pool: int = 1  # images are averaged over squares of this many pixels, to save time
    net: str = "wrn-16-1"  # or "small", a residual net with three blocks of 8, 16 and 32 channels
    augment: bool = True  # random crop and flip
    batch: int = 256  # images of a training batch
    validation: int = 2500  # images, redrawn at every outer step and for every trial
    steps: int = 9250  # training steps of the full length (paper: 50 epochs)
    first_steps: int = 185  # of FDS's first outer step (paper: 1 epoch); the shortest trial of Hyperband and BOHB
    outer_step_steps: int = 1850  # of FDS's other outer steps (paper: 10 epochs)
    outer_steps: int = 10  # of FDS
    lr_windows: int = 7  # learning rates over time (Figure 1: 7, Figure 4: 5)
    product_limit: float = 10.0  # Hessian products are clipped here
    budget_steps: int = 0  # training steps of a black-box search or of HD's restarts
    grid_lr: float = 0.0  # first learning rate of a setting of the grid
    grid_factor: float = 0.0  # its factor after 30, 60 and 80 % of the steps
    grid_momentum: float = 0.0  # momentum of the setting
    grid_decay: float = 0.0  # weight decay of the setting
    version: int = 1


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters in natural units.

    Attributes:
        lr: learning rates `[N]` over N windows of equal length.
        momentum: the momentum.
        weight_decay: the weight decay.
    """

    lr: tuple[float, ...]
    momentum: float
    weight_decay: float

    @property
    def values(self) -> tuple[float, ...]:
        """All values: the learning rates, the momentum, the weight decay."""
        return (*self.lr, self.momentum, self.weight_decay)

    @classmethod
    def of(cls, values: Sequence[float]) -> Recipe:
        """Return the recipe that has these `values`."""
        *lr, momentum, decay = values
        return cls(tuple(lr), momentum, decay)

    def hypers(self) -> list[Hyper]:
        """Return the hyperparameters of a training with this recipe, none of them tuned."""
        rates = torch.tensor(self.lr, dtype=torch.float64)
        lr = Hyper(LR, rates[None, None], windows=len(rates), tuned=False)
        return [lr, Hyper(MOMENTUM, self.momentum, tuned=False), Hyper(DECAY, self.weight_decay, tuned=False)]


def grid_recipe(c: Config) -> Recipe:
    """Return a setting of the grid (Appendix F).

    The learning rate is multiplied by a factor after 30, 60 and 80 % of the steps.
    """
    powers = (0, 0, 0, 1, 1, 1, 2, 2, 3, 3)
    return Recipe(tuple(c.grid_lr * c.grid_factor**k for k in powers), c.grid_momentum, c.grid_decay)


class Bench:
    """The trainings of one configuration: makes tasks, and evaluates recipes.

    The arguments are attributes of the same names.

    Args:
        c: configuration.
        device: where to compute.

    Attributes:
        rule: update rule of the weights, SGD with momentum and weight decay.
        given: the images, averaged over squares of `pool` pixels.
        gamma: first steps of the sign rule by name.
        fixed_rows: whether every training validates on the same rows; else they are drawn anew for each.
    """

    gamma: Mapping[str, float] = GAMMA
    fixed_rows = False

    def __init__(self, c: Config, device: torch.device) -> None:
        self.c, self.device, self.rule = c, device, sgd()
        self.given = _pooled(pictures(c.data, device, c.images, c.test_images), c.pool)

    def net(self) -> nn.Sequential:
        channels = self.given.x_train.shape[1]
        if self.c.net not in ("wrn-16-1", "small"):
            raise unknown("net", self.c.net, ["wrn-16-1", "small"])
        return wrn(16, channels=channels) if self.c.net == "wrn-16-1" else residual(channels=channels)

    def task(self, seeds: Sequence[int], one_batch: bool = False) -> PerRun:
        """Return the training of a net for each seed: new weights, new validation rows, a new order.

        Args:
            seeds: seed of each net.
            one_batch: validate on a batch of training size, another at every step, in place of all validation rows.
        """
        c = self.c
        rows = split(len(self.given.y_train), c.validation, self.device, self.fixed_rows)
        size = c.batch if one_batch else min(c.validation, 500)
        return PerRun(self.net, self.given, rows, seeds, c.batch, size, one_batch, c.augment)

    def seed(self, *key: int) -> int:
        """Return the seed of a training, drawn from the run's own seed and a key."""
        return number(self.c.seed, *key)

    def accuracy(self, task: PerRun, w: Tensor) -> list[float]:
        """Return the test accuracies of trained nets `w [R, D]`; chance for those that diverged."""
        classes = len(self.given.y_test.unique())
        right = task.accuracies(torch.nan_to_num(w, 0.0, 0.0, 0.0), *self.given.test)
        finite = w.isfinite().all(1)
        return torch.where(finite, right, 1 / classes).tolist()

    def worth(self, recipe: Recipe, repeat: int = 0) -> float:
        """Return the test accuracy after a training of the full length with a recipe.

        Args:
            recipe: the recipe.
            repeat: number of the training: another one has other weights and rows.
        """
        task = self.task([self.seed(_EVALUATION, repeat)])
        loop = Loop(task, self.rule, Hypers(recipe.hypers(), task.layout.sizes, self.c.steps), Method())
        run, sitting = loop.start(task.init()), sittings.current()
        with sitting.part("worth", lambda: saved_runs.state(run)) as earlier:
            run = run if earlier is None else saved_runs.restored(loop, run, earlier)
            while run.t < self.c.steps and run.state.w.isfinite().all():  # a diverged training needs no more steps
                run = loop.advance(run, min(50, self.c.steps - run.t))
                sitting.tick()
        return self.accuracy(task, run.state.w)[0]


def _pooled(given: Images, pool: int) -> Images:
    if pool == 1:
        return given
    x, x_val, x_test = (avg_pool2d(x, pool) if len(x) else x for x in (given.x_train, given.x_val, given.x_test))
    caption = f"{given.caption}, averaged over {pool} x {pool} pixels"
    return replace(given, x_train=x, x_val=x_val, x_test=x_test, caption=caption)
