"""Images: the embedded sets, and CIFAR-10, MNIST and SVHN in their own formats from small files written here."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SVHN

from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.data import datasets, image_files, image_sets, manifest, svhn_like
from gradtune_book.data import idx as idx_files
from gradtune_book.tasks import images

REAL_ROOT = paths.data_root()  # before any test moves it


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


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar10/train", "cifar-100-python", "SVHN", "MNIST/raw"])
def test_an_empty_folder_is_no_set(folder: str, root: Path) -> None:
    (root / folder).mkdir(parents=True)
    assert image_sets.chosen("auto", "cifar10", "cifar100", "svhn", "mnist") == "digits"


def test_the_surface_covers_every_set(root: Path) -> None:
    """What a cache key is made of: a file that appears for any set is noticed."""
    places = [*idx_files.FOLDERS.values(), "SVHN", "cifar10/train/cat", "cifar-10-batches-py", "cifar-100-python"]
    places += [str(Path(datasets.files(name)[0]).parent) for name in datasets.DATASETS if datasets.files(name)]
    for k, place in enumerate(places):
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / f"new-{k}").write_text("")
    assert len(manifest.surface()) == len(places)


def test_a_name_that_is_none_and_a_set_that_is_absent(root: Path) -> None:
    with pytest.raises(GradtuneError, match=r"unknown set of images 'cifar'; did you mean 'cifar10'\?"):
        images.load("cifar")
    with pytest.raises(GradtuneError, match=r"CIFAR-10 is not in .*download=True.*data='embedded'"):
        images.load("cifar10")


@pytest.fixture
def cifar(root: Path) -> Path:
    """A folder of image files: two training images and one test image of each class."""
    for k in range(30):
        path = root / "cifar10" / ("test" if k < 10 else "train") / image_files.CLASSES[k % 10] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (8 * k, 0, 255 - 8 * k)).save(path)
    return root / "cifar10"


def test_image_files_by_class(cifar: Path) -> None:
    found = images.load("auto")
    assert found.x_train.shape == (16, 3, 32, 32) and found.x_val.shape == (4, 3, 32, 32)
    assert found.y_test.tolist() == [*range(10)] and found.caption == "CIFAR-10 from image files, 30 images"
    part = images.load("cifar10", validation=0, rows=10, test_rows=10)
    assert sorted(part.y_train.tolist()) == [*range(10)] and torch.equal(part.y_test, found.y_test)
    assert part.caption == "CIFAR-10 from image files, 30 images, of which 10 train or validate and 10 test"
    assert len({part.sha256, found.sha256, ""}) == 3  # what was read, and not what lies there
    (cifar.parent / "cifar-10-batches-py").mkdir()  # empty: it hides nothing
    assert images.load("auto").sha256 == found.sha256


def _other_classes(place: Path) -> str:
    (place / "test" / "airplane").rename(place / "test" / "aeroplane")
    return "test must hold the ten classes of CIFAR-10: airplane missing, aeroplane unknown"


def _absent_class(place: Path) -> str:
    shutil.rmtree(place / "test" / "airplane")
    return "test must hold the ten classes of CIFAR-10: airplane missing$"


def _one_more_class(place: Path) -> str:
    (place / "train" / "zebra").mkdir()
    return "train must hold the ten classes of CIFAR-10: zebra unknown"


def _loop(place: Path) -> str:
    (place / "train" / "cat" / "loop").symlink_to("..")
    return "cat/loop is a folder; a class of CIFAR-10 holds image files alone"


def _empty_class(place: Path) -> str:
    (place / "test" / "dog" / "5.png").unlink()
    return "dog holds no image"


def _large(place: Path) -> str:
    Image.new("RGB", (64, 64)).save(place / "test" / "dog" / "5.png")
    return r"dog/5\.png has 64 x 64 pixels; expected 32 x 32"


def _bomb(place: Path) -> str:
    """A header that promises 60,000 by 60,000 pixels; nothing of them is decoded."""
    size = (60_000).to_bytes(4, "big")
    head = b"IHDR" + size + size + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    (place / "train" / "ship" / "18.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    return r"ship/18\.png (has 60000 x 60000 pixels|is no whole image)"


def _no_picture(place: Path) -> str:
    (place / "test" / "cat" / "3.png").write_bytes(b"no picture")
    return r"cat/3\.png is no whole image"


def _cut(place: Path) -> str:
    path = place / "test" / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:-20])
    return r"cat/3\.png is no whole image"


def _pipe(place: Path) -> str:
    os.mkfifo(place / "train" / "cat" / "waits-for-ever.png")
    return r"waits-for-ever\.png is no file, or a link to nothing"


def _dangling(place: Path) -> str:
    (place / "test" / "cat" / "gone.png").symlink_to("nowhere.png")
    return r"gone\.png is no file, or a link to nothing"


DAMAGES = [_other_classes, _absent_class, _one_more_class, _loop, _empty_class, _large, _bomb, _no_picture, _cut]


@pytest.mark.parametrize("damage", [*DAMAGES, _pipe, _dangling])
def test_a_folder_of_images_that_is_not_cifar10_is_refused(cifar: Path, damage: Callable[[Path], str]) -> None:
    with pytest.raises(GradtuneError, match=damage(cifar)) as caught:
        images.load("cifar10")
    assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["PNG", "JPEG"]), st.data())
def test_a_damaged_image_is_read_or_refused_by_name(kind: str, data: st.DataObject) -> None:
    """Whatever is done to its bytes: 32 x 32 pixels, or one sentence that names the file."""
    stream = io.BytesIO()
    noise = np.random.RandomState(0).randint(256, size=(32, 32, 3)).astype(np.uint8)
    Image.fromarray(noise).save(stream, kind)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "one.png"
        file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            assert image_files.read(file).shape == (3, 32, 32)
        except GradtuneError as error:
            assert str(file) in str(error) and "\n" not in str(error)


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
            digests[f"MNIST/raw/{name[:-3]}"] = hashlib.sha256(gzip.decompress(idx(values))).hexdigest()
    monkeypatch.setattr(manifest, "plain", lambda: digests)
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


def test_a_plain_file_beside_the_compressed_one_is_verified_too(mnist: Path) -> None:
    archive, plain = mnist / "train-labels-idx1-ubyte.gz", mnist / "train-labels-idx1-ubyte"
    content = gzip.decompress(archive.read_bytes())
    plain.write_bytes(content)
    before = image_sets.read("mnist")
    plain.write_bytes(content[:8] + bytes(len(content) - 8))  # every label 0
    with pytest.raises(GradtuneError, match=r"train-labels-idx1-ubyte is altered.*gradtune data fetch mnist"):
        image_sets.read("mnist")
    plain.unlink()
    assert image_sets.read("mnist").sha256 == before.sha256  # either form gives the same
    archive.write_bytes(gzip.compress(content, 1))
    assert torch.equal(image_sets.read("mnist").train[1], before.train[1])  # compressed anew: the same content


def test_what_unpacks_to_more_than_it_should_is_not_unpacked(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradtune_book.data.idx._LARGEST", 2**20)
    (mnist / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(2**24)))
    tracemalloc.start()
    with pytest.raises(GradtuneError, match=r"t10k-images-idx3-ubyte\.gz is altered: it holds more than 1048576 bytes"):
        image_sets.read("mnist")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["t10k-labels-idx1-ubyte", "train-images-idx3-ubyte"]), st.booleans(), st.data())
def test_a_damaged_file_of_mnist_gives_its_content_or_none(
    mnist: Path, stem: str, packed: bool, data: st.DataObject
) -> None:
    """A few bits of a compressed file mean nothing; what it holds is compared, whatever they are."""
    archive, before = mnist / f"{stem}.gz", image_sets.read("mnist").sha256
    whole = archive.read_bytes()
    path = archive if packed else mnist / stem
    content = bytearray(whole if packed else gzip.decompress(whole))
    at = data.draw(st.integers(10 if packed else 0, len(content) - 1))  # the first 10 bytes of gzip hold a date
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(content)
        assert image_sets.read("mnist").sha256 == before and packed
    except GradtuneError as error:
        assert stem in str(error) and "\n" not in str(error)
    finally:
        (mnist / stem).unlink(missing_ok=True)
        archive.write_bytes(whole)


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_the_real_set_is_what_its_manifest_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_DATA", str(REAL_ROOT))
    if not image_sets.present(name):
        pytest.skip(f"{name} is not on this machine")
    found = image_sets.read(name)
    assert found.train[0].shape == (60_000, 1, 28, 28) and found.test[0].shape == (10_000, 1, 28, 28)
    assert torch.bincount(found.test[1]).sum() == 10_000 and found.train[1].unique().tolist() == [*range(10)]


def test_mnist_asked_for_by_name_and_absent(root: Path) -> None:
    assert images.resolve("auto", "mnist") == "digits"
    with pytest.raises(GradtuneError, match=r"MNIST is not in .*gradtune data fetch mnist"):
        images.load("mnist")


def test_damaged_files_of_torchvision_are_named(root: Path) -> None:
    (root / "cifar-10-batches-py").mkdir()
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cut")
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
