"""Images: the embedded sets, and CIFAR-10, MNIST and SVHN in their own formats from small files written here."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gradhpo.errors import GradhpoError
from gradhpo.tasks import images, svhn_like
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SVHN


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADHPO_DATA", str(tmp_path))
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
    with pytest.raises(GradhpoError, match=r"unknown set of images 'cifar'; did you mean 'cifar10'\?"):
        images.load("cifar")
    with pytest.raises(GradhpoError, match=r"CIFAR-10 is not in .*download=True.*data='embedded'"):
        images.load("cifar10")


def test_image_files_by_class(root: Path) -> None:
    for k in range(12):
        path = root / "cifar10" / ("test" if k < 2 else "train") / ("cat", "dog")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * k, 0, 255 - 20 * k)).save(path)
    found = images.load("auto")
    assert found.x_train.shape == (8, 3, 32, 32) and found.x_val.shape == (2, 3, 32, 32)
    assert found.y_test.tolist() == [0, 1] and found.caption == "CIFAR-10 from image files, 12 images"
    (root / "cifar10" / "test" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(GradhpoError, match="test is no folder of equally large images"):
        images.load("cifar10")


def test_damaged_files_of_torchvision_are_named(root: Path) -> None:
    (root / "cifar-10-batches-py").mkdir()
    with pytest.raises(GradhpoError, match="cifar-10-batches-py are damaged or incomplete"):
        images.load("cifar10")


def _idx(path: Path, values: np.ndarray) -> None:
    """An array in MNIST's format, packed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


def test_mnist_is_read_from_its_packed_files_without_unpacking_them_there(root: Path) -> None:
    raw, rng = root / "MNIST" / "raw", np.random.RandomState(0)
    for part, n in (("train", 30), ("t10k", 10)):
        _idx(raw / f"{part}-images-idx3-ubyte.gz", rng.randint(256, size=(n, 28, 28)))
        _idx(raw / f"{part}-labels-idx1-ubyte.gz", np.arange(n) % 10)
    found = images.load("auto", validation=10, rows=20)
    assert images.resolve("auto", "mnist") == "mnist" and found.caption.startswith("scikit-learn's digits")
    found = images.load("mnist", validation=10, rows=20, test_rows=10)
    assert found.x_train.shape == (10, 1, 28, 28) and found.y_test.tolist() == list(range(10))
    assert sorted([*found.y_train.tolist(), *found.y_val.tolist()]) == sorted([*range(10)] * 2)
    assert found.caption == "MNIST, 40 images, of which 20 train or validate and 10 test"
    assert len(list(raw.iterdir())) == 4
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"nothing")
    with pytest.raises(GradhpoError, match=r"raw are damaged or incomplete .*MNIST\(the data root, download=True\)"):
        images.load("mnist")


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
    with pytest.raises(GradhpoError, match="SVHN are damaged or incomplete"):
        images.load("svhn")


def test_svhn_like_needs_no_file_and_makes_what_is_asked_for(root: Path) -> None:
    assert images.resolve("auto", "svhn", "svhn_like") == "svhn_like"
    found = images.load("svhn_like", validation=20, rows=100, test_rows=20)
    assert found.x_train.shape == (80, 3, 32, 32) and torch.bincount(found.y_test).tolist() == [2] * 10
    some = torch.tensor([3, 70, 11_999])
    assert torch.equal(svhn_like.images("train", some)[1:2], svhn_like.images("train", some[1:2]))
    assert torch.bincount(svhn_like.labels("train")).min() > 1000
    with pytest.raises(GradhpoError, match="unknown part of svhn_like 'tests'; did you mean 'test'"):
        svhn_like.labels("tests")


def test_numbers_of_images_that_a_set_cannot_give(root: Path) -> None:
    with pytest.raises(GradhpoError, match="105 images of the digits were asked for; expected a multiple of its 10"):
        images.load("digits", rows=105)
    with pytest.raises(GradhpoError, match="validation = 100 of 100 images of digits"):
        images.load("digits", rows=100, validation=100)
    with pytest.raises(GradhpoError, match=r"SVHN is not in .*splits train and test once, or ask for data='embedded'"):
        images.resolve("svhn")
