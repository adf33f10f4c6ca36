"""Regression on small tables (the eight UCI sets of Gal & Ghahramani) with a one-hidden-layer ReLU net, full batch
(OnePass, Section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gradtune.errors import GradtuneError, unknown
from gradtune.nets.modules import Layout, batched
from gradtune.nets.plain import mlp
from torch import Tensor
from torch.nn.functional import mse_loss

from gradtune_book.data import datasets
from gradtune_book.tasks.relu_nets import relu_loss


@dataclass(frozen=True)
class Table:
    """Standardised rows: `x_* [N, F]`, `y_* [N, 1]`; `y_std` turns a standardised error back into the target's unit."""

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    y_std: float
    name: str = ""
    sha256: str = ""

    def merged(self) -> Table:
        """The same table with the validation rows among the training rows: what methods without validation train on."""
        x, y = torch.cat([self.x_train, self.x_val]), torch.cat([self.y_train, self.y_val])
        return Table(x, y, self.x_val, self.y_val, self.x_test, self.y_test, self.y_std, self.name, self.sha256)


def load(
    name: str,
    split: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    train_share: float = 0.8,
    scaled_by: str = "train_val",
) -> Table:
    """A set by name (`gradtune data` lists them), standardised by mean and unbiased standard deviation of training +
    validation rows (scaled_by "train": of the training rows alone).

    Test rows are those of `index_test_<split>`; of `index_train_<split>`, the first floor(train_share N) rows train
    and the rest validate. Raises GradtuneError for a share that leaves one of the two without rows.
    """
    raw = datasets.regression(name, split)
    train_val, test = np.asarray(raw.train_index), np.asarray(raw.test_index)
    n_train = int(train_share * len(raw.x))
    if not 0 < n_train < len(train_val):
        raise GradtuneError(
            f"train_share = {train_share} makes {n_train} of the {len(train_val)} rows of {name} that are no test rows "
            "training rows; expected a share that leaves rows for both training and validation"
        )

    if scaled_by not in ("train_val", "train"):
        raise unknown("set of rows to scale by", scaled_by, ["train_val", "train"])
    known = train_val if scaled_by == "train_val" else train_val[:n_train]

    def scaled(values: np.ndarray) -> np.ndarray:
        std = values[known].std(axis=0, ddof=1)
        return (values - values[known].mean(axis=0)) / np.where(std > 0, std, 1.0)

    columns = raw.y.reshape(len(raw.x), -1)
    x, y = scaled(raw.x), scaled(columns)
    parts = (
        (x, train_val[:n_train]),
        (y, train_val[:n_train]),
        (x, train_val[n_train:]),
        (y, train_val[n_train:]),
        (x, test),
        (y, test),
    )
    a, b, c, d, e, f = (torch.as_tensor(values[rows], dtype=dtype, device=device) for values, rows in parts)
    return Table(a, b, c, d, e, f, y_std=float(columns[known].std(ddof=1)), name=name, sha256=raw.sha256)


class StackedLoss:
    """`f(w [R, D], x, y) -> [R]`: mean squared errors of R nets F - hidden - 1 with ReLU, weights laid out as
    `nets.mlp`'s.

    The runs share their matrix products, and activations stay in the processor's cache (`relu_nets`). It differs from
    `modules.batched` by rounding alone.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._inputs: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        w1, b1, w2, b2 = self.layout.split(w).values()
        return relu_loss(torch.cat([w1, b1[:, :, None]], dim=-1), w2.flatten(1), b2, self._columns(x), y[:, 0])

    def _columns(self, x: Tensor) -> Tensor:
        """The rows of x as columns with a last entry of 1, made once; x is held so that its id stays its own."""
        if id(x) not in self._inputs:
            self._inputs[id(x)] = x, torch.cat([x, torch.ones_like(x[:, :1])], dim=1).T.contiguous()
        return self._inputs[id(x)][1]


class TableRegression:
    """Mean squared error of R nets on one table; full batch, so the losses do not depend on `t`. Net: F - hidden -
    1, ReLU, torch's default initialisation.

    stacked: the same losses by `StackedLoss`, up to 5 times as fast on a CPU and equal to rounding, in place of the
    module under `vmap`.
    """

    stationary = True

    def __init__(self, table: Table, hidden: int = 50, stacked: bool = False) -> None:
        self.table, self._sizes = table, [table.x_train.shape[1], hidden, 1]
        self.module = mlp(self._sizes).to(table.x_train)
        self.layout = Layout.of(self.module)
        self._loss = StackedLoss(self.layout) if stacked else batched(self.module, mse_loss)

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Initial weights `[R, D]`, one row a seed; drawn on the CPU in float32 and then cast, so that they are the
        same on every device and in every dtype."""
        rows = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = mlp(self._sizes)
            rows.append(self.layout.flatten(dict(net.named_parameters())))
        return torch.stack(rows).to(self.table.x_train)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int = 0) -> Tensor:
        return self._loss(w, self.table.x_train, self.table.y_train)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int = 0) -> Tensor:
        return self._loss(w, self.table.x_val, self.table.y_val)

    @torch.no_grad()
    def test_mse(self, w: Tensor) -> Tensor:
        """Test mean squared error in the target's own unit squared, `[R]`."""
        return self._loss(w, self.table.x_test, self.table.y_test) * self.table.y_std**2
