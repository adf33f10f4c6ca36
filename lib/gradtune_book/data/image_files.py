"""CIFAR-10 as image files in folders by class: `cifar10/{train,test}/<class>/<file>`.

Image files have no known checksum, since they may be encoded in any way. What can be held to a rule is: the ten
classes, the size, one level of folders, whole files.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradtune.errors import GradtuneError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The classes of CIFAR-10, by number."""

SIZE = 32
"""Height and width of an image."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def listed(place: Path) -> tuple[list[Path], Tensor]:
    """Return the image files of one part, by class and name, and their classes `[N]`.

    Args:
        place: Folder of the part, which holds the folders of the classes.

    Raises:
        GradtuneError: The folders are not those of the ten classes, one holds a folder, what is no file, or no image,
            or cannot be read.
    """
    try:
        there = {each.name for each in place.iterdir() if each.is_dir()}
        if there != {*CLASSES}:
            raise GradtuneError(f"{place} must hold the ten classes of CIFAR-10: {_difference(there)}")
        files = [_in_class(place / name) for name in CLASSES]
    except OSError as error:
        raise GradtuneError(f"{error.filename or place} cannot be read ({error.strerror})") from error
    labels = [torch.full((len(each),), k) for k, each in enumerate(files)]
    return [file for each in files for file in each], torch.cat(labels)


def read(file: Path) -> Tensor:
    """Return the pixels `[3, 32, 32]` of an image file, as bytes.

    Raises:
        GradtuneError: The file is no image, is damaged, or is of another size, which is looked at before it is decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is judged here
            with Image.open(file) as image:
                if image.size != (SIZE, SIZE):
                    width, height = image.size
                    raise GradtuneError(f"{file} has {width} x {height} pixels; expected {SIZE} x {SIZE}")
                pixels = np.array(image.convert("RGB"))
                if image.format == "PNG":
                    _verify(file)
                return torch.from_numpy(pixels).permute(2, 0, 1)
    except GradtuneError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise GradtuneError(f"{file} is no whole image ({reason}); replace or remove it") from error


def _verify(file: Path) -> None:
    """Check the checksums and the end of a file, which decoding does not look at."""
    with Image.open(file) as image:
        image.verify()


def _in_class(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir())
    if nested := next((each for each in inside if each.is_dir()), None):
        raise GradtuneError(f"{nested} is a folder; a class of CIFAR-10 holds image files alone")
    files = [each for each in inside if each.suffix.lower() in _SUFFIXES]
    if other := next((each for each in files if not each.is_file()), None):
        raise GradtuneError(f"{other} is no file, or a link to nothing; remove it")
    if not files:
        raise GradtuneError(f"{folder} holds no image; every class of CIFAR-10 needs some")
    return files


def _difference(there: set[str]) -> str:
    absent, other = sorted({*CLASSES} - there), sorted(there - {*CLASSES})
    said = [f"{' and '.join(names)} {word}" for names, word in ((absent, "missing"), (other, "unknown")) if names]
    return ", ".join(said)
