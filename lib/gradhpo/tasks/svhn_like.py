"""`svhn_like`: a stand-in for SVHN (Netzer et al. 2011) from what scikit-learn carries, the same on every machine.

House numbers are digits in some colour on some wall, cropped so that neighbouring digits stick in at the sides. Here a
digit of `load_digits`, enlarged by bilinear interpolation, is painted in a random colour over a random patch of the two
photographs of `load_sample_images`, often with pieces of other digits beside it. It is no model of SVHN: it shares that
colour and background say nothing about the class, which makes it slower to learn than plain digits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradhpo.errors import unknown

SIZE = 32
COUNTS = {"train": 12_000, "test": 2_000}
_DIGITS = {"train": slice(0, 1400), "test": slice(1400, None)}  # no digit is in both parts
_HEIGHTS = (20, 22, 24, 26)
_CONTRAST = 0.25  # least distance of the digit's colour from the patch's mean, in each image's grey value
_NEIGHBOURS = 0.6  # share of images with a piece of another digit at the left, and at the right

Array = NDArray[np.float64]


@lru_cache(maxsize=2)
def images(part: str) -> tuple[Tensor, Tensor]:
    """Images `[N, 3, 32, 32]`, uint8, and classes `[N]` of the part "train" (12,000) or "test" (2,000)."""
    if part not in COUNTS:
        raise unknown("part of svhn_like", part, COUNTS)
    from sklearn.datasets import load_digits, load_sample_images

    rng = np.random.RandomState(("train", "test").index(part))  # a stream that NumPy never changes
    pixels, labels = load_digits(return_X_y=True)
    shapes, labels = pixels[_DIGITS[part]].reshape(-1, 8, 8) / 16, labels[_DIGITS[part]]
    chosen = rng.randint(len(labels), size=COUNTS[part])
    photographs = [photo / 255 for photo in load_sample_images().images]
    made = np.stack([_image(rng, shapes, k, photographs) for k in chosen])
    whole = np.round(255 * made).astype(np.uint8)
    return torch.from_numpy(whole).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels[chosen]).long()


def _image(rng: np.random.RandomState, shapes: Array, digit: int, photographs: list[Array]) -> Array:
    """One image `[32, 32, 3]` in [0, 1]."""
    patch = _patch(rng, photographs)
    mask = np.zeros((SIZE, SIZE))
    for side in (-1, 1):
        if rng.uniform() < _NEIGHBOURS:
            _paint(rng, mask, shapes[rng.randint(len(shapes))], side * rng.randint(15, 20))
    _paint(rng, mask, shapes[digit], rng.randint(-2, 3))
    return patch + mask[:, :, None] * (_colour(rng, patch) - patch)


def _patch(rng: np.random.RandomState, photographs: list[Array]) -> Array:
    """A random square of a photograph, 32 or 64 pixels wide, the larger one averaged down."""
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
    """Adds an enlarged digit to the mask, `shift` pixels right of the middle, what lies outside cut off."""
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
