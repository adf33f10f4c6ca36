"""Regression on small tables with a ReLU net of one hidden layer, full batch (OnePass, Section 4.1).

The tables are the eight UCI sets of Gal & Ghahramani.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from gradtune.errors import GradtuneError, unknown
from gradtune.nets.layout import Layout
from gradtune.nets.modules import batched
from gradtune.nets.plain import mlp
from gradtune_book.data import datasets
from gradtune_book.tasks.relu_nets import relu_loss


@dataclass(frozen=True)
class Table:
    """Standardised rows of one table.

    Attributes:
        x_train: Features of the training rows, `[N, F]`.
        y_train: Targets of the training rows, `[N, 1]`.
        x_val: Features of the validation rows.
        y_val: Targets of the validation rows.
        x_test: Features of the test rows.
        y_test: Targets of the test rows.
        y_std: Standard deviation of the target. It turns a standardised error back into the target's unit.
        name: Name of the set.
        sha256: Digest of what was read, as in `datasets.Regression`.
    """

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
    scale_target: bool = True,
) -> Table:
    """Load a set by name, split and standardised by mean and unbiased standard deviation.

    Test rows are those of the split (`index_test_<split>.txt`). Of its other rows (`index_train_<split>.txt`), in their
    order, the first floor(train_share N) train and the rest validate; N counts all rows of the set.

    Args:
        name: Name of the set (`gradtune data` lists them).
        split: Number of the split.
        dtype: Type of the rows.
        device: Device of the rows.
        train_share: Share of all rows that trains.
        scaled_by: Rows that mean and standard deviation are taken from: "train_val", training and validation rows, or
            "train", the training rows alone.
        scale_target: False leaves the target in its own unit, so that `Table.y_std` is 1.

    Raises:
        GradtuneError: The set cannot be read (`datasets.regression`), the share leaves training or validation without
            rows, or `scaled_by` is unknown.
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
    x, y = scaled(raw.x), scaled(columns) if scale_target else columns
    parts = (
        (x, train_val[:n_train]),
        (y, train_val[:n_train]),
        (x, train_val[n_train:]),
        (y, train_val[n_train:]),
        (x, test),
        (y, test),
    )
    a, b, c, d, e, f = (torch.as_tensor(values[rows], dtype=dtype, device=device) for values, rows in parts)
    y_std = float(columns[known].std(ddof=1)) if scale_target else 1.0
    return Table(a, b, c, d, e, f, y_std=y_std, name=name, sha256=raw.sha256)


class StackedLoss:
    """`f(w [R, D], x, y) -> [R]`: mean squared errors of R nets F - hidden - 1 with ReLU.

    The weights are laid out as those of `plain.mlp`. The runs share their matrix products, and activations stay in the
    processor's cache (`relu_nets`). It differs from `modules.batched` by rounding alone.

    Args:
        layout: Where each parameter lies in the weights of a net.
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
    """Mean squared error of R nets on one table; full batch, so the losses do not depend on t.

    The net is F - hidden - 1 with ReLU and torch's default initialisation.

    Args:
        table: The table.
        hidden: Width of the hidden layer.
        stacked: Compute the same losses by `StackedLoss`, up to 5 times as fast on a CPU and equal to rounding, in
            place of the module under `vmap`.

    Attributes:
        module: The net that all runs share.
        layout: Where each parameter lies in the weights of a net.
        stationary: True, as the losses do not depend on t.
    """

    stationary = True

    def __init__(self, table: Table, hidden: int = 50, stacked: bool = False) -> None:
        self.table, self._sizes = table, [table.x_train.shape[1], hidden, 1]
        self.module = mlp(self._sizes).to(table.x_train)
        self.layout = Layout.of(self.module)
        self._loss = StackedLoss(self.layout) if stacked else batched(self.module, mse_loss)

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Initial weights `[R, D]`, one row a seed.

        They are drawn on the CPU in float32 and then cast, so that they are the same on every device and in every
        dtype.
        """
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
