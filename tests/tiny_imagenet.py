"""ImageNet's folder in small: what tests of its loader and of its study read."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def write(root: Path) -> None:
    """Write two classes of five images each, one dark and one bright, as large as they come, below a data root."""
    for part in ("train", "val"):
        for k, name in enumerate(("n01440764", "n01443537")):
            folder = root / "imagenet" / part / name
            folder.mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (40 + number, 30), (200 * k, 100, 50)).save(folder / f"{name}_{number}.JPEG")
