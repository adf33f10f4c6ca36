"""What a training was like: losses and hyperparameters over the steps, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gradtune import extras
from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hypers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MOST_GROUPS = 64
_LOOK = {"axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.4, "lines.linewidth": 1.8}


class Row(NamedTuple):
    """A row of a history.

    Tensors stay on their device, so that keeping a row never waits for it.

    Attributes:
        step: steps taken.
        train: training loss, a scalar tensor.
        val: validation loss, a scalar tensor; NaN where there is none.
        raw: raw coordinates `[P]` of the tuned hyperparameters.
    """

    step: int
    train: Tensor
    val: Tensor
    raw: Tensor


def read_out(hypers: Hypers, names: Sequence[str], raw: Tensor) -> dict[str, Tensor]:
    """Return the natural values of the tuned hyperparameters by column.

    A global hyperparameter without windows has its name as its column. Otherwise there is a column for each group, such
    as `lr[0.weight]` or `lr[0]`, for each time window, such as `lr[window 0]`, or for each pair of them, such as
    `lr[0, window 0]`. Values per weight, or of more than 64 groups, are summarised in the columns `lr[min]`,
    `lr[median]` and `lr[max]`.

    Args:
        hypers: the hyperparameters.
        names: names of the parameter tensors, for groups of the granularity "tensor".
        raw: raw coordinates `[n, P]`.

    Returns:
        Natural values `[n]` by column name.
    """
    columns: dict[str, Tensor] = {}
    for name, values in hypers.natural(raw).items():
        block = hypers.blocks[name]
        if block.hyper.granularity == "weight" or block.groups > _MOST_GROUPS:
            columns[f"{name}[min]"] = values.min(1).values
            columns[f"{name}[median]"] = values.median(1).values
            columns[f"{name}[max]"] = values.max(1).values
            continue
        labels = _labels(name, block.hyper.granularity, block.groups, block.hyper.windows, names)
        columns |= dict(zip(labels, values.T, strict=True))
    return columns


def _labels(name: str, granularity: Any, groups: int, windows: int, names: Sequence[str]) -> list[str]:
    by_group = [""] if groups == 1 else list(names) if granularity == "tensor" else [str(g) for g in range(groups)]
    by_window = [""] if windows == 1 else [f"window {k}" for k in range(windows)]
    inner = [", ".join(part for part in (g, k) if part) for g in by_group for k in by_window]
    return [f"{name}[{label}]" if label else name for label in inner]


class History:
    """Rows of a training in the order in which they were taken, as `gradtune.tune` makes them.

    Args:
        hypers: the hyperparameters.
        names: names of the parameter tensors.
    """

    def __init__(self, hypers: Hypers, names: Sequence[str]) -> None:
        self._hypers, self._names = hypers, names
        self._rows: list[Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Append a row."""
        self._rows.append(row)

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a table; needs pandas.

        The columns are `step`, `train_loss`, `val_loss` (NaN where no validation data were given) and one for each
        tuned hyperparameter in natural units. For groups and windows see `read_out`.
        """
        pandas = extras.needed("pandas", "plot", "the table of a history")
        stacked = self.state()
        columns = {"step": stacked["step"], "train_loss": stacked["train"], "val_loss": stacked["val"]}
        columns |= read_out(self._hypers, self._names, stacked["raw"])
        wide = {n: v.double() if v.is_floating_point() else v for n, v in columns.items()}
        frame: pd.DataFrame = pandas.DataFrame({n: v.cpu().numpy() for n, v in wide.items()})
        return frame

    def state(self) -> dict[str, Tensor]:
        """Return all rows as four tensors, which `load` takes back."""
        rows = self._rows
        if not rows:
            raw = torch.empty(0, self._hypers.columns)
            return {
                "step": torch.empty(0, dtype=torch.int64),
                "train": raw[:, :0].sum(1),
                "val": raw.sum(1),
                "raw": raw,
            }
        steps = torch.tensor([r.step for r in rows])
        return {"step": steps} | {n: torch.stack([getattr(r, n) for r in rows]) for n in ("train", "val", "raw")}

    def load(self, state: dict[str, Tensor]) -> None:
        """Replace the rows by those that `state` gave."""
        parts = (state["train"], state["val"], state["raw"])
        self._rows = [Row(int(s), *each) for s, *each in zip(state["step"], *parts, strict=True)]

    def plot(self) -> Figure:
        """Draw losses, and each tuned hyperparameter in natural units, over the steps, a panel each.

        Axes are logarithmic where the hyperparameter's coordinate is. Needs matplotlib and pandas.

        Returns:
            The figure, also known to pyplot.

        Raises:
            GradtuneError: there is no row yet, or a package is missing.
        """
        if not self._rows:
            raise GradtuneError("the history has no row; train for some steps first")
        pyplot = extras.needed("matplotlib.pyplot", "plot", "History.plot")
        frame, tuned = self.to_frame(), self._hypers.tuned
        with pyplot.rc_context(_LOOK):
            width = 3.6 * (1 + len(tuned))
            figure: Figure = pyplot.figure(figsize=(width, 3.2), layout="constrained")
            axes = figure.subplots(1, 1 + len(tuned), squeeze=False)[0]
            for column, label in (("train_loss", "training batch"), ("val_loss", "validation")):
                if frame[column].notna().any():
                    axes[0].plot(frame["step"], frame[column], label=label)
            losses = frame[["train_loss", "val_loss"]].to_numpy()
            _label(axes[0], "loss", bool((losses[losses == losses] > 0).all()))
            axes[0].legend()
            for axis, name in zip(axes[1:], tuned, strict=True):
                self._panel(axis, frame, name)
            for axis in axes:
                axis.set_xlabel("step")
        return figure

    def _panel(self, axis: Any, frame: pd.DataFrame, name: str) -> None:
        columns = [c for c in frame if c == name or c.startswith(f"{name}[")]
        for column in columns:
            axis.plot(frame["step"], frame[column], label=column.removeprefix(name).strip("[]"))
        _label(axis, name, self._hypers.blocks[name].hyper.transform in ("log", "log10"))
        if 1 < len(columns) <= 8:
            axis.legend()


def _label(axis: Any, name: str, logarithmic: bool) -> None:
    axis.set_ylabel(f"{name} (log scale)" if logarithmic else name)
    axis.set_yscale("log" if logarithmic else "linear")
