"""Images: the embedded sets, and CIFAR-10, MNIST and SVHN in their own formats from small files written here."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SVHN

from gradtune.errors import GradtuneError
from gradtune_book.data import datasets, svhn_like
from gradtune_book.tasks import images


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
    return tmp_path


def test_the_digits_are_the_same_everywhere(root: Path) -> None:
    found = images.load("auto", torch.float64)
    assert [tuple(x.shape) for x, _ in (found.train, found.val, found.test)] == [
        (1120, 1, 8, 8),
        (280, 1, 8, 8),
        (397, 1, 8, 8),
    ]
    assert found.x_train.mean() == pytest.approx(0, abs=1e-12) and found.x_train.std() == pytest.approx(1, rel=1e-3)
    assert torch.equal(found.y_val, images.load("embedded").y_val)
    rows = torch.cat([found.x_train, found.x_val, found.x_test]).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)  # no image on two sides
    assert "embedded" in found.caption


def test_a_name_that_is_none_and_a_set_that_is_absent(root: Path) -> None:
    with pytest.raises(GradtuneError, match=r"unknown set of images 'cifar'; did you mean 'cifar10'\?"):
        images.load("cifar")
    with pytest.raises(GradtuneError, match=r"CIFAR-10 is not in .*download=True.*data='embedded'"):
        images.load("cifar10")


def test_image_files_by_class(root: Path) -> None:
    for k in range(12):
        path = root / "cifar10" / ("test" if k < 2 else "train") / ("cat", "dog")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * k, 0, 255 - 20 * k)).save(path)
    found = images.load("auto")
    assert found.x_train.shape == (8, 3, 32, 32) and found.x_val.shape == (2, 3, 32, 32)
    assert found.y_test.tolist() == [0, 1] and found.caption == "CIFAR-10 from image files, 12 images"
    part = images.load("cifar10", validation=0, rows=4, test_rows=2)
    assert sorted(part.y_train.tolist()) == [0, 0, 1, 1] and torch.equal(part.y_test, found.y_test)
    assert part.caption == "CIFAR-10 from image files, 12 images, of which 4 train or validate and 2 test"
    (root / "cifar10" / "test" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(GradtuneError, match="test is no folder of equally large images"):
        images.load("cifar10")


def idx(values: torch.Tensor) -> bytes:
    """Compressed bytes in MNIST's format: a header with the sizes, and the numbers."""
    header = (0x800 + values.dim()).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return gzip.compress(header + values.to(torch.uint8).numpy().tobytes())


@pytest.fixture
def mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve training and four test images in MNIST's files, with the checksums that belong to them."""
    raw, digests = root / "MNIST" / "raw", {}
    raw.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 4)):
        pixels = torch.arange(count)[:, None, None].expand(count, 28, 28) * 20
        for name, values in (
            (f"{part}-images-idx3-ubyte.gz", pixels),
            (f"{part}-labels-idx1-ubyte.gz", pixels[:, 0, 0] % 7),
        ):
            (raw / name).write_bytes(idx(values))
            digests[f"MNIST/raw/{name}"] = hashlib.sha256((raw / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets, "checksums", lambda: digests)
    return raw


def test_mnist_from_the_files_that_torchvision_downloads(mnist: Path) -> None:
    found = images.load("mnist", torch.float64, validation=0.25)
    assert [len(x) for x, _ in (found.train, found.val, found.test)] == [9, 3, 4]
    assert (found.caption, found.name, len(found.sha256)) == ("MNIST, 16 images", "mnist", 64)
    assert found.y_test.tolist() == [0, 6, 5, 4] and found.x_test.shape == (4, 1, 28, 28)
    assert found.x_train.mean() == pytest.approx(0, abs=1e-6)
    assert images.resolve("auto", "mnist") == "mnist" and images.resolve("auto") == "digits"
    with pytest.raises(GradtuneError, match="validation = 12 of 12 images of mnist"):
        images.load("mnist", validation=12)


def test_a_damaged_file_of_mnist_is_named(mnist: Path) -> None:
    path = mnist / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(GradtuneError, match=r"t10k-labels-idx1-ubyte\.gz is truncated.*gradtune data fetch mnist"):
        images.load("mnist")
    path.unlink()
    with pytest.raises(GradtuneError, match=r"t10k-labels-idx1-ubyte is missing in .*gradtune data fetch mnist"):
        images.load("mnist")


def test_mnist_asked_for_by_name_and_absent(root: Path) -> None:
    assert images.resolve("auto", "mnist") == "digits"
    with pytest.raises(GradtuneError, match=r"MNIST is not in .*gradtune data fetch mnist"):
        images.load("mnist")


def test_damaged_files_of_torchvision_are_named(root: Path) -> None:
    (root / "cifar-10-batches-py").mkdir()
    with pytest.raises(GradtuneError, match="cifar-10-batches-py are damaged or incomplete"):
        images.load("cifar10")


def test_svhn_is_read_by_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files in SVHN's own format, their checksums in place of the real ones."""
    parts = {}
    for part, n in (("train", 20), ("test", 10)):
        x = np.random.RandomState(n).randint(256, size=(32, 32, 3, n)).astype(np.uint8)
        file = root / "SVHN" / f"{part}_32x32.mat"
        file.parent.mkdir(exist_ok=True)
        savemat(file, {"X": x, "y": np.array([[k % 10 or 10] for k in range(n)], dtype=np.uint8)})
        parts[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", parts)
    found = images.load(images.resolve("auto", "svhn", "svhn_like"), validation=0)
    assert found.x_train.shape == (20, 3, 32, 32) and set(found.y_train.tolist()) == set(range(10))
    assert found.caption == "SVHN, 30 images"
    file.write_bytes(b"broken")
    with pytest.raises(GradtuneError, match="SVHN are damaged or incomplete"):
        images.load("svhn")


def test_svhn_like_needs_no_file_and_makes_what_is_asked_for(root: Path) -> None:
    assert images.resolve("auto", "svhn", "svhn_like") == "svhn_like"
    found = images.load("svhn_like", validation=20, rows=100, test_rows=20)
    assert found.x_train.shape == (80, 3, 32, 32) and torch.bincount(found.y_test).tolist() == [2] * 10
    some = torch.tensor([3, 70, 11_999])
    assert torch.equal(svhn_like.images("train", some)[1:2], svhn_like.images("train", some[1:2]))
    assert torch.bincount(svhn_like.labels("train")).min() > 1000
    with pytest.raises(GradtuneError, match="unknown part of svhn_like 'tests'; did you mean 'test'"):
        svhn_like.labels("tests")


def test_numbers_of_images_that_a_set_cannot_give(root: Path) -> None:
    with pytest.raises(GradtuneError, match=r"105 images of scikit-learn's digits .*; expected a multiple of its 10"):
        images.load("digits", rows=105)
    with pytest.raises(GradtuneError, match="validation = 100 of 100 images of digits"):
        images.load("digits", rows=100, validation=100)
    with pytest.raises(GradtuneError, match=r"SVHN is not in .*for the splits train and test once with .*'embedded'"):
        images.resolve("svhn")
