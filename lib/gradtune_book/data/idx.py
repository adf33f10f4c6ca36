"""MNIST and Fashion-MNIST: IDX files, plain or compressed, held to the digest of what they hold."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.data import download, manifest

FOLDERS = {"mnist": "MNIST/raw", "fashion": "FashionMNIST/raw"}
"""Folder of each set below the data root, as torchvision lays it out."""

_PARTS = {"train": "train", "test": "t10k"}
_LARGEST = 2**26  # bytes of a plain file; the largest real one has 47,040,016


def find(name: str, stem: str = "train-images-idx3-ubyte") -> Path | None:
    """Return one file of a set, plain or else compressed, None where there is neither."""
    folder = paths.data_root() / FOLDERS[name]
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def read(name: str, again: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], str]:
    """Read a set.

    Args:
        name: "mnist" or "fashion".
        again: How to get the set, for errors.

    Returns:
        Pixels `[N, 1, 28, 28]` and classes `[N]` of the training and of the test images, and one digest over what the
        four files hold.

    Raises:
        GradtuneError: A file is missing, cannot be read, or holds anything but what it should.
    """
    parts, digests = [], []
    for part in _PARTS.values():
        images, labels = (_content(name, f"{part}-{what}-ubyte", again) for what in ("images-idx3", "labels-idx1"))
        parts.append((_numbers(images, 3)[:, None], _numbers(labels, 1).long()))
        digests += [download.digest(images), download.digest(labels)]
    return parts[0], parts[1], download.digest("\n".join(digests).encode())


def _content(name: str, stem: str, again: str) -> bytes:
    """What one file holds, verified; whether it lies there plain or compressed makes no difference."""
    path = find(name, stem)
    if path is None:
        raise GradtuneError(f"{stem} is missing in {paths.data_root() / FOLDERS[name]}; {again} to get it again")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            found: bytes = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise GradtuneError(f"{path} is truncated or no gzip file ({error}); {again} to get it again") from error
    digest, expected = download.digest(found), manifest.plain()[f"{FOLDERS[name]}/{stem}"]
    if digest != expected:
        holds = f"more than {_LARGEST}" if len(found) > _LARGEST else str(len(found))
        raise GradtuneError(
            f"{path} is altered: it holds {holds} bytes with checksum {digest[:12]}, expected {expected[:12]}; remove "
            f"it and {again} to get it again"
        )
    return found


def _numbers(content: bytes, axes: int) -> Tensor:
    """The array of an IDX file of unsigned bytes, whose digest is right."""
    shape = np.frombuffer(content, ">u4", axes, offset=4).astype(int).tolist()
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
