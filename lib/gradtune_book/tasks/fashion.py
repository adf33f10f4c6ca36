"""Small grey images as OnePass splits them (Section 4.2), and its net with one hidden layer on them.

The images are Fashion-MNIST, MNIST in its place, or scikit-learn's digits, which need no file.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.nets.stacked import StackedMLP
from gradtune.tuning.streams import Resident
from gradtune_book.data import image_sets
from gradtune_book.tasks.classification import Classification
from gradtune_book.tasks.images import Images

CAPTIONS = {
    "fashion": "Fashion-MNIST, 70000 images",
    "mnist": "MNIST in place of Fashion-MNIST, 70000 images",
    "digits": "scikit-learn's digits in place of Fashion-MNIST, 1797 images",
}
SHARES = (0.6, 0.2)
"""Shares of all images that train and that validate, in the "standard" split that the text names."""
_VALIDATION = {"fashion": 10_000, "mnist": 10_000, "digits": 300}
_TEST_DIGITS = 300


def resolve(data: str) -> str:
    """Return the name of the set that is used.

    Args:
        data: "auto" is Fashion-MNIST where it is, else MNIST, else the digits. "real" is Fashion-MNIST whether it is
            here or not, so that runs recorded on it are found everywhere. "embedded" is the digits. Anything else is
            the name of one of the three.

    Raises:
        GradtuneError: `data` is an unknown name, or names a set that is absent.
    """
    return image_sets.chosen(data, "fashion", "mnist", sets=tuple(CAPTIONS))


def load(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    standardised: bool = True,
    shares: tuple[float, float] | None = None,
) -> Images:
    """Load a set, split and standardised, as images `[N, 1, size, size]`.

    The test images are the set's own (of the digits: the last 300). The last 10,000 (of the digits: 300) of the others
    validate. Pixels are standardised by mean and standard deviation of all training and validation pixels.

    Args:
        name: Name of the set, as `resolve` takes it.
        dtype: Type of the images.
        device: Device of images and classes.
        standardised: False gives pixels from 0 to 1 instead.
        shares: Shares of all images, the set's own test images last, of which the first train and the next validate;
            the rest tests. None: the sizes above.

    Raises:
        GradtuneError: The set is unknown or absent, or its files are damaged; or the shares leave no image to train,
            validate or test.
    """
    name = resolve(name)
    found = image_sets.read(name, _TEST_DIGITS)
    (x, y), (x_test, y_test) = ((_numbers(pixels), classes.to(device)) for pixels, classes in (found.train, found.test))
    if shares is not None:
        x, y = np.concatenate([x, x_test]), torch.cat([y, y_test])
        cut, rest = _ends(len(x), shares)
        x, y, x_test, y_test = x[:rest], y[:rest], x[rest:], y[rest:]
    else:
        cut = len(x) - _VALIDATION[name]
    mean, std = (x.mean(dtype=np.float64), x.std(dtype=np.float64)) if standardised else (0.0, x.max())

    def ready(pixels: np.ndarray) -> Tensor:
        return torch.as_tensor((pixels - mean) / std, dtype=dtype, device=device)

    parts = ready(x[:cut]), y[:cut], ready(x[cut:]), y[cut:], ready(x_test), y_test
    return Images(*parts, CAPTIONS[name], name, found.sha256)


def _ends(images: int, shares: tuple[float, float]) -> tuple[int, int]:
    """Where the training images end, and where the validation images do."""
    cut, rest = round(shares[0] * images), round(sum(shares) * images)
    if not 0 < cut < rest < images:
        raise GradtuneError(
            f"the shares {shares} of {images} images make {cut} training and {rest - cut} validation images; "
            "expected two shares above 0 with a sum below 1"
        )
    return cut, rest


def _numbers(pixels: Tensor) -> np.ndarray:
    return pixels.numpy() if pixels.is_floating_point() else pixels.float().numpy()


def problem(
    images: Images, hidden: int = 50, batch: int = 50, order_seed: int = 0, val_batch: int | None = None
) -> Classification:
    """Cross entropy of R nets pixels - hidden - 10 on minibatches, the same for all runs.

    Training batches go through an order that is drawn anew for every epoch from `order_seed`. Validation batches go
    through the validation images in order. Both have the same size where nothing else is said, so that an update sees
    as many images of either kind.

    Args:
        images: The set.
        hidden: Width of the hidden layer.
        batch: Number of images of a batch, of training and of validation.
        order_seed: Seed of the order of the training images.
        val_batch: Number of images of a validation batch; None stands for `batch`.
    """
    images = images.flat()
    sizes = [images.x_train.shape[1], hidden, 10]

    def drawn(epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([order_seed, epoch]).permutation(len(images.y_train)))

    def in_turn(epoch: int) -> Tensor:
        return torch.arange(len(images.y_val))

    train = Resident(*images.train, batch, order_seed, "the training images", drawn)
    val = Resident(*images.val, val_batch or batch, order_seed, "the validation images", in_turn)
    rows = max(len(images.y_test), len(images.y_val))
    return Classification(images, StackedMLP(sizes), train, val, rows)
