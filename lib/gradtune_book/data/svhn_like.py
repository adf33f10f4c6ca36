"""`svhn_like`: a stand-in for SVHN (Netzer et al. 2011) from what scikit-learn carries.

It is the same on every machine, but for the last bit of the photographs' decoding.

House numbers are digits in some colour on some wall, cropped so that neighbouring digits stick in at the sides. Here a
digit of `load_digits`, enlarged by bilinear interpolation, is painted in a random colour over a random patch of the two
photographs of `load_sample_images`, often with pieces of other digits beside it. It is no model of SVHN. It shares that
colour and background say nothing about the class, which makes it slower to learn than plain digits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradtune.errors import unknown

SIZE = 32
COUNTS = {"train": 12_000, "test": 2_000}
_PARTS = tuple(COUNTS)
_DIGITS = {"train": slice(0, 1400), "test": slice(1400, None)}  # no digit is in both parts
_HEIGHTS = (20, 22, 24, 26)
_CONTRAST = 0.25  # least distance between the grey value of a digit and the mean grey value of its patch
_NEIGHBOURS = 0.6  # share of images with a piece of another digit at the left, and at the right

Array = NDArray[np.float64]


def labels(part: str) -> Tensor:
    """Classes `[N]` of the part "train" (12,000) or "test" (2,000)."""
    return torch.from_numpy(_digits(part)[1][_chosen(part)]).long()


def images(part: str, wanted: Tensor) -> Tensor:
    """Make the images of some numbers, each on its own, from its number.

    Cost: about half a millisecond an image.

    Args:
        part: "train" or "test".
        wanted: Numbers of the images `[n]`, as they stand in `labels`.

    Returns:
        Images `[n, 3, 32, 32]`, uint8.

    Raises:
        GradtuneError: There is no such part.
    """
    from sklearn.datasets import load_sample_images

    shapes, chosen = _digits(part)[0], _chosen(part)
    photographs = [photo / 255 for photo in load_sample_images().images]
    made = np.empty((len(wanted), 3, SIZE, SIZE), dtype=np.uint8)
    for row, k in enumerate(wanted.tolist()):
        rng = np.random.RandomState([_PARTS.index(part), k])  # a stream that NumPy never changes
        made[row] = np.round(255 * _image(rng, shapes, chosen[k], photographs)).astype(np.uint8).transpose(2, 0, 1)
    return torch.from_numpy(made)


@lru_cache(maxsize=2)
def _digits(part: str) -> tuple[Array, NDArray[np.int64]]:
    """Shapes `[n, 8, 8]` in `[0, 1]` and classes of the digits of a part."""
    if part not in COUNTS:
        raise unknown("part of svhn_like", part, COUNTS)
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return pixels[_DIGITS[part]].reshape(-1, 8, 8) / 16, classes[_DIGITS[part]]


def _chosen(part: str) -> NDArray[np.int64]:
    """Number, among the part's digits, of the digit in the middle of each image, `[N]`."""
    rng = np.random.RandomState(_PARTS.index(part))
    return rng.randint(len(_digits(part)[0]), size=COUNTS[part])


def _image(rng: np.random.RandomState, shapes: Array, digit: int, photographs: list[Array]) -> Array:
    """One image `[32, 32, 3]` in `[0, 1]`."""
    patch = _patch(rng, photographs)
    mask = np.zeros((SIZE, SIZE))
    for side in (-1, 1):
        if rng.uniform() < _NEIGHBOURS:
            _paint(rng, mask, shapes[rng.randint(len(shapes))], side * rng.randint(15, 20))
    _paint(rng, mask, shapes[digit], rng.randint(-2, 3))
    return patch + mask[:, :, None] * (_colour(rng, patch) - patch)


def _patch(rng: np.random.RandomState, photographs: list[Array]) -> Array:
    """A random square of a photograph, 32 or 64 pixels wide, the larger one averaged down to 32."""
    photo, factor = photographs[rng.randint(len(photographs))], rng.randint(1, 3)
    top, left = (rng.randint(n - factor * SIZE) for n in photo.shape[:2])
    square = photo[top : top + factor * SIZE, left : left + factor * SIZE]
    return square.reshape(SIZE, factor, SIZE, factor, 3).mean(axis=(1, 3))


def _colour(rng: np.random.RandomState, patch: Array) -> Array:
    """A colour whose grey value is not close to the patch's."""
    grey = patch.mean()
    while True:
        colour = rng.uniform(size=3)
        if abs(colour.mean() - grey) >= _CONTRAST:
            return colour


def _paint(rng: np.random.RandomState, mask: Array, shape: Array, shift: int) -> None:
    """Add an enlarged digit to the mask, `shift` pixels right of the middle; what lies outside is cut off."""
    height = _HEIGHTS[rng.randint(len(_HEIGHTS))]
    large = _enlarging(height) @ shape @ _enlarging(height).T
    top = (SIZE - height) // 2 + rng.randint(-2, 3)
    left = (SIZE - height) // 2 + shift
    first, last = max(0, left), min(SIZE, left + height)
    columns = large[:, first - left : last - left]
    mask[top : top + height, first:last] = np.maximum(mask[top : top + height, first:last], columns)


@lru_cache(maxsize=8)
def _enlarging(height: int) -> Array:
    """The matrix `[height, 8]` of bilinear interpolation with aligned pixel edges."""
    centres = ((np.arange(height) + 0.5) * 8 / height - 0.5).clip(0, 7)
    low = np.floor(centres).astype(int)
    share = centres - low
    matrix = np.zeros((height, 8))
    matrix[np.arange(height), low] += 1 - share
    matrix[np.arange(height), np.minimum(low + 1, 7)] += share
    return matrix
