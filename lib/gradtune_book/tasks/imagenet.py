"""ImageNet as a folder of images by class, for MetaOptimize's Section 7.3.

The folders are those of the public archive: `imagenet/train/<class>/*.JPEG` and `imagenet/val/<class>/*.JPEG` below the
data root, as `torchvision.datasets.ImageFolder` reads them. Images are cut and standardised as torchvision's reference
program does. They are read when they are needed: the set does not fit a memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradtune.errors import GradtuneError, unknown
from gradtune_book import paths

PARTS = ("train", "val")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageNet:
    """One part of the set.

    Args:
        part: "train" or "val".
        size: Pixels of a side of an image as given out, 224 in the paper.
        root: Folder that holds the parts; by default `imagenet` below the data root.

    Attributes:
        classes: Names of the classes, in the order of their numbers.

    Raises:
        GradtuneError: The part is unknown, or its folder is absent or has no images.
    """

    def __init__(self, part: str, size: int = 224, root: Path | None = None) -> None:
        from torchvision.datasets import ImageFolder

        if part not in PARTS:
            raise unknown("part of ImageNet", part, PARTS)
        folder = (root or paths.data_root() / "imagenet") / part
        try:
            self._found = ImageFolder(str(folder))
        except (FileNotFoundError, OSError) as error:
            raise GradtuneError(
                f"{folder} has no images by class; put ImageNet's images there as {part}/<class>/<name>.JPEG"
            ) from error
        self.part, self.size, self.classes = part, size, tuple(self._found.classes)

    def __len__(self) -> int:
        return len(self._found)

    def image(self, number: int, seed: int = 0) -> Tensor:
        """Return an image `[3, size, size]`.

        For training it is a random part of random shape, mirrored at random, all drawn from the seed and the number;
        else the middle of the image.
        """
        from torchvision.transforms import v2

        standard = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
        if self.part == "train":
            cut = v2.Compose([v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip(), *standard])
        else:
            cut = v2.Compose([v2.Resize(self.size * 256 // 224, antialias=True), v2.CenterCrop(self.size), *standard])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
            out: Tensor = cut(self._found[number][0]).as_subclass(Tensor)
        return out

    def target(self, number: int) -> int:
        """Return the class of an image."""
        return int(self._found.targets[number])

    def sha256(self) -> str:
        """Return a digest of the names and sizes of the images; none is read."""
        root = Path(self._found.root)
        files = (Path(name) for name, _ in self._found.samples)
        lines = "\n".join(f"{file.relative_to(root)} {file.stat().st_size}" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()

    def batches(self, batch: int, seed: int = 0, workers: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images once, `batch` at a time, with their classes; training images in an order of the seed.

        The last images that fill no batch are left out in training, and are a smaller batch else.

        Args:
            batch: Images of a batch.
            seed: Draws the order of the training images, and what is cut out of each.
            workers: Processes that read and cut images; the batches do not depend on it. 0 reads in this process.
            first: Number of the first batch; those before it are left out, and not read.

        Raises:
            GradtuneError: There are fewer training images than a batch has.
        """
        count = len(self)
        order = np.random.default_rng(seed).permutation(count) if self.part == "train" else np.arange(count)
        end = count - count % batch if self.part == "train" else count
        if end == 0:
            raise GradtuneError(f"a batch of {batch} images was asked of {count}; expected at most as many")
        rows = [order[start : min(start + batch, end)].tolist() for start in range(first * batch, end, batch)]
        own = torch.Generator()  # else the loader draws from torch's own random state
        yield from DataLoader(_Drawn(self, seed), batch_sampler=rows, num_workers=workers, generator=own)


class _Drawn(Dataset[tuple[Tensor, int]]):
    """Images of a part as a seed draws them."""

    def __init__(self, part: ImageNet, seed: int) -> None:
        self._part, self._seed = part, seed

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self._part.image(number, self._seed), self._part.target(number)
