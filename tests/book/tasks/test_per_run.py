"""Batches, rows and augmentation as functions of (seed, t); runs side by side; accuracy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune.nets.plain import lenet
from gradtune.nets.wide_resnet import residual, wrn
from gradtune_book.tasks.per_run import PerRun, moved, split
from gradtune_book.tasks.resnet18 import resnet18
from pictures import training_images


def images(n: int = 40) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, 5, 5, generator=rng, dtype=torch.float64), torch.arange(n) % 4


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(50, 4))


def task(seeds: list[int], **options: object) -> PerRun:
    return PerRun(linear, training_images(*images()), split(40, 10, torch.device("cpu")), seeds, 7, **options)  # type: ignore[arg-type]


def test_a_run_does_not_depend_on_the_runs_beside_it() -> None:
    together, alone = task([3, 4], augment=True), task([4], augment=True)
    w = together.init()
    assert torch.equal(w[1:], alone.init()) and not torch.equal(w[0], w[1])
    for t in (0, 3, 4, 11):  # 30 training rows in batches of 7: four a epoch
        torch.testing.assert_close(together.train_loss(w, {}, t)[1:], alone.train_loss(w[1:], {}, t))
    torch.testing.assert_close(together.val_loss(w, {}, 0)[1:], alone.val_loss(w[1:], {}, 0))


def test_an_epoch_sees_every_batch_once_and_another_order_follows() -> None:
    problem = task([3])
    epochs = [torch.cat([problem._own.rows(0, t) for t in range(4 * e, 4 * e + 4)]) for e in range(2)]
    for rows in epochs:
        assert len(rows.unique()) == 28 and set(rows.tolist()) <= set(problem.train_rows[0].tolist())
    assert not torch.equal(*epochs)
    assert torch.equal(task([3])._own.rows(0, 6), problem._own.rows(0, 6))  # whatever was asked for before


def test_rows_are_split_by_seed_or_fixed() -> None:
    rows = split(40, 10, torch.device("cpu"))
    train, val = rows(1)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(40)) and len(val) == 10
    assert not torch.equal(val, rows(2)[1])
    fixed = split(40, 10, torch.device("cpu"), fixed=True)
    assert torch.equal(fixed(1)[1], fixed(2)[1])


def test_the_validation_loss_is_the_mean_over_its_batches() -> None:
    whole, parts, one = task([3]), task([3], val_batch=4), task([3], val_batch=4, one_batch=True)
    w = whole.init()
    torch.testing.assert_close(whole.val_loss(w, {}, 0), parts.val_loss(w, {}, 0))
    single = torch.stack([one.val_loss(w, {}, t) for t in range(3)])[:, 0]
    torch.testing.assert_close((single * torch.tensor([4, 4, 2])).sum() / 10, whole.val_loss(w, {}, 0)[0])
    assert one.val_loss(w, {}, 4) == one.val_loss(w, {}, 1)


def test_augmentation_moves_and_mirrors() -> None:
    """Every image is one of the 5 x 5 shifts of it or of its mirror image, and both occur."""
    x = torch.arange(1.0, 17).reshape(1, 1, 4, 4).expand(60, 1, 4, 4)
    found = moved(x, 3, reach=2)
    assert torch.equal(found, moved(x, 3, reach=2)) and not torch.equal(found, moved(x, 4, reach=2))
    large = nn.functional.pad(x[:1], (2,) * 4)
    windows = [large[..., a : a + 4, b : b + 4] for a in range(5) for b in range(5)]
    kinds = [
        k
        for image in found
        for k, w in enumerate([*windows, *(w.flip(-1) for w in windows)])
        if torch.equal(image, w[0])
    ]
    assert len(kinds) == 60 and {k >= 25 for k in kinds} == {True, False} and len(set(kinds)) > 20


def test_accuracy_counts_and_chunks() -> None:
    problem = task([3, 4])
    x, y = images()
    w = problem.init()
    by_hand = [(linear_of(row, x).argmax(1) == y).double().mean() for row in w]
    torch.testing.assert_close(problem.accuracies(w, x, y, chunk=9), torch.stack(by_hand))


def linear_of(w: Tensor, x: Tensor) -> Tensor:
    return x.flatten(1) @ w[:200].view(4, 50).T + w[200:]


def test_evaluation_with_batch_norm_uses_training_statistics() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(50, 4))

    problem = PerRun(net, training_images(*images()), split(40, 10, torch.device("cpu")), [3], 30)
    x, y = images()
    w = problem.init()
    # one training batch holds all training rows, so its statistics are those of the rows
    rows = x[problem.train_rows[0]]
    normal = (x - rows.mean((0, 2, 3), keepdim=True)) / (rows.var((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    expected = (linear_of(w[0, 4:], normal).argmax(1) == y).double().mean()
    assert float(problem.accuracies(w, x, y)) == pytest.approx(float(expected))


def test_bad_input_is_named() -> None:
    with pytest.raises(GradtuneError, match="30 training and 10 validation images; expected at least a batch of 31"):
        PerRun(linear, training_images(*images()), split(40, 10, torch.device("cpu")), [1], 31)
    with pytest.raises(GradtuneError, match="batch_size = 0"):
        PerRun(linear, training_images(*images()), split(40, 10, torch.device("cpu")), [1], 0)


def test_the_sizes_of_the_residual_nets() -> None:
    counts = {"small": residual(), "wrn": wrn(16), "wide": wrn(16, 2), "resnet18": resnet18()}
    found = {n: sum(p.numel() for p in net.parameters()) for n, net in counts.items()}
    assert found["small"] == 19_858 and found["wrn"] == 175_066 and found["resnet18"] == 11_173_962
    assert residual()(torch.zeros(2, 3, 16, 16)).shape == (2, 10) and resnet18(7)(torch.zeros(2, 3, 32, 32)).shape == (
        2,
        7,
    )
    assert [sum(p.numel() for p in lenet(*shape).parameters()) for shape in ((28, 1), (32, 3))] == [44_426, 62_006]
    with pytest.raises(GradtuneError, match="blocks = 0"):
        residual(blocks=0)
