"""The stream of ten-class tasks: the same on every call, no image twice, classes renumbered, CIFAR-100 as it lies."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from gradtune.errors import GradtuneError
from gradtune_book.data import image_sets
from gradtune_book.tasks import continual


def test_the_stream_is_the_same_on_every_call() -> None:
    first = continual.load("digits", 10, 30, 390, 8)
    continual.load.cache_clear()
    again = continual.load("digits", 10, 30, 390, 8)
    for a, b in zip(first.tasks, again.tasks, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.y_test, b.y_test)
    assert torch.equal(continual.order(3, 2, 30), continual.order(3, 2, 30))
    assert not torch.equal(continual.order(3, 2, 30), continual.order(3, 1, 30))
    assert not torch.equal(continual.order(3, 2, 30), continual.order(4, 2, 30))
    assert torch.equal(continual.order(3, 2, 30).sort().values, torch.arange(30))


def test_no_image_is_in_two_tasks_and_each_has_ten_classes() -> None:
    stream = continual.load("digits", 10, 30, 390, 8)
    rows = torch.cat([task.x.flatten(1) for task in stream.tasks])
    assert len(rows.unique(dim=0)) == len(rows) == 300
    assert all(torch.bincount(task.y, minlength=10).tolist() == [3] * 10 for task in stream.tasks)
    assert float(rows.mean()) == pytest.approx(0, abs=1e-6) and float(rows.std()) == pytest.approx(1, rel=1e-5)
    assert stream.shape == (1, 8) and "10 tasks of 30 images" in stream.caption


def test_the_classes_are_renumbered_alike_in_training_and_test() -> None:
    """An image of the test set has in each task the number that its class has among those that train."""
    stream = continual.load("digits", 10, 30, 390, 8)
    plain, _ = image_sets.read("digits", rows=300).train
    first = stream.tasks[0]
    maps = []
    for task in stream.tasks:
        pairs = set(zip(first.y_test.tolist(), task.y_test.tolist(), strict=True))
        assert len(pairs) == 10  # a permutation
        maps.append(dict(pairs))
    assert maps[0] == {c: c for c in range(10)} and len({tuple(sorted(m.items())) for m in maps}) == 10
    known = {
        tuple(x.flatten().tolist()): int(y) for x, y in zip(*image_sets.read("digits", rows=300).train, strict=True)
    }
    top = image_sets.read("digits", rows=300).top
    mean, std = float(plain.double().mean()) / top, float((plain.double() / top).std())
    for task, renumbered in zip(stream.tasks, maps, strict=True):
        for x, y in zip(task.x, task.y, strict=True):
            pixels = ((x.double() * std + mean) * top).round().flatten().tolist()
            assert renumbered[known[tuple(pixels)]] == int(y)


def test_a_net_has_two_blocks_and_its_own_random_state() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    net, same = continual.net(3, 16, 8, 5), continual.net(3, 16, 8, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), same.parameters(), strict=True))
    first, last = continual.blocks(net)
    assert len(first) == 4 and [p.shape for p in last] == [(10, 16 * 16), (10,)]
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def _cifar100(root: Path, images: int, tests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a tiny set in the format of CIFAR-100, and its digests where torchvision looks for them."""
    folder = root / CIFAR100.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(raw := pickle.dumps(content))
        return hashlib.md5(raw).hexdigest()

    digests = []
    for name, each in (("train", images), ("test", tests)):
        labels = np.repeat(np.arange(100), each)
        data = random.integers(0, 256, size=(100 * each, 3072), dtype=np.uint8)
        data[:, 0] = labels  # the class can be read off the first pixel
        digests.append([name, write(name, {"data": data, "fine_labels": labels.tolist()})])
    meta = write("meta", {"fine_label_names": [str(k) for k in range(100)]})
    monkeypatch.setattr(CIFAR100, "train_list", digests[:1])
    monkeypatch.setattr(CIFAR100, "test_list", digests[1:])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": meta})


def test_cifar_100_gives_ten_tasks_of_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
    assert continual.resolve("auto") == "digits"
    with pytest.raises(GradtuneError, match="CIFAR-100 is not in"):
        continual.resolve("cifar100")
    _cifar100(tmp_path, 2, 1, monkeypatch)
    assert continual.resolve("auto") == "cifar100"
    continual.load.cache_clear()
    stream = continual.load("cifar100", 10, 20, 10, 32)
    assert stream.shape == (3, 32) and len(stream.tasks) == 10
    for k, task in enumerate(stream.tasks):
        assert task.y.tolist() == sorted([*range(10), *range(10)]) and task.y_test.tolist() == list(range(10))
        order = task.x[:, 0, 0, 0].argsort()
        assert torch.equal(task.y[order].sort().values, task.y.sort().values) and len(task.x) == 20
        assert k == 0 or float(task.x[:, 0, 0, 0].min()) > float(stream.tasks[k - 1].x[:, 0, 0, 0].max())
    with pytest.raises(GradtuneError, match="ten tasks of ten classes"):
        continual.load("cifar100", 11, 20, 10, 32)
    (tmp_path / CIFAR100.base_folder / "test").write_bytes(b"nothing")
    continual.load.cache_clear()
    with pytest.raises(GradtuneError, match="cifar-100-python are damaged or incomplete"):
        continual.load("cifar100", 10, 20, 10, 32)


@pytest.mark.parametrize("size", [16, 12])
def test_the_digits_have_eight_pixels_a_side(size: int) -> None:
    with pytest.raises(GradtuneError, match="expected 8 of the digits"):
        continual.load("digits", 10, 30, 390, size)
