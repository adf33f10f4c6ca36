"""What a training was like: losses and hyperparameters over the steps, as a table and as a figure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gradtune import extras
from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Block, Hypers
from gradtune.tuning.events import Candidate, Event, Race

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

    A global hyperparameter without windows has its name as its column. Otherwise there is a column for each tuned
    group, such as `lr[0.weight]`, `lr[backbone]` or `lr[0]`, or each entry, such as `class_weight[2]`; for each time
    window, such as `lr[window 0]`; or for each pair of them, such as `lr[0, window 0]`. Values per weight, or of more
    than 64 groups or entries, are summarised in the columns `lr[min]`, `lr[median]` and `lr[max]`.

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
        if block.hyper.granularity == "weight" or block.columns > _MOST_GROUPS * block.hyper.windows:
            columns[f"{name}[min]"] = values.min(1).values
            columns[f"{name}[median]"] = values.median(1).values
            columns[f"{name}[max]"] = values.max(1).values
            continue
        columns |= dict(zip(labels(block, names), values.T, strict=True))
    return columns


def labels(block: Block, names: Sequence[str]) -> list[str]:
    """Return the column names of a hyperparameter's coordinates, in their order; see `read_out`.

    Args:
        block: where the coordinates lie.
        names: names of the parameter tensors.
    """
    name, windows = block.hyper.name, block.hyper.windows
    by_window = [""] if windows == 1 else [f"window {k}" for k in range(windows)]
    inner = [", ".join(part for part in (g, k) if part) for g in _groups(block, names) for k in by_window]
    return [f"{name}[{label}]" if label else name for label in inner]


def _groups(block: Block, names: Sequence[str]) -> list[str]:
    """The labels of the tuned groups or entries."""
    if block.hyper.shape:
        each = [", ".join(map(str, place)) for place in itertools.product(*map(range, block.hyper.shape))]
    elif block.groups == 1:
        each = [""]
    elif block.labels or block.hyper.granularity == "tensor":
        each = list(block.labels or names)
    else:
        each = [str(g) for g in range(block.groups)]
    return each if block.free is None else [each[g] for g in block.free.tolist()]


class History:
    """Rows of a training in the order in which they were taken, as `gradtune.tune` makes them.

    A history can be pickled, and read where there is neither the model nor its device.

    Args:
        hypers: the hyperparameters.
        names: names of the parameter tensors.
        tuned_on_val: whether the hyperparameters were tuned on the validation data; the figure then says so.

    Attributes:
        test: loss of the trained model on test data, which neither training nor tuning has seen; None where there are
            none.
        val: validation loss of the trained model over all validation data; None where there are none.
        skipped: number of outer updates that were left out because their hypergradient was not finite.
        events: what else happened: a training that was brought back because it had diverged, and the weights that were
            kept at the end, see `events.Event`.
        race: the race between learning rates before the training, see `events.Race`; None where there was none.
    """

    def __init__(self, hypers: Hypers, names: Sequence[str], tuned_on_val: bool = False) -> None:
        self._hypers, self._names, self._tuned_on_val = hypers, list(names), tuned_on_val
        self._rows: list[Row] = []
        self.test: float | None = None
        self.val: float | None = None
        self.skipped = 0
        self.events: list[Event] = []
        self.race: Race | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": {n: x.cpu() for n, x in self.state().items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.load(state["_rows"])

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Append a row."""
        self._rows.append(row)

    def amend(self, row: Row) -> None:
        """Put a row in the place of the last one."""
        self._rows[-1] = row

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a table; needs pandas.

        The columns are `step`, `train_loss`, `val_loss` (NaN where no validation data were given) and one for each
        tuned hyperparameter in natural units. For groups and windows see `read_out`.

        Where the hyperparameters were tuned on the validation data, `val_loss` is optimistic: it is lower than the loss
        on data that had no part in the training, such as that of `test`.
        """
        pandas = extras.needed("pandas", "plot", "the table of a history")
        stacked = self.state()
        columns = {"step": stacked["step"], "train_loss": stacked["train"], "val_loss": stacked["val"]}
        columns |= read_out(self._hypers, self._names, stacked["raw"])
        wide = {n: v.double() if v.is_floating_point() else v for n, v in columns.items()}
        frame: pd.DataFrame = pandas.DataFrame({n: v.cpu().numpy() for n, v in wide.items()})
        return frame

    @property
    def rewinds(self) -> int:
        """How often the training was brought back because it had diverged."""
        return sum(event.kind == "rewound" for event in self.events)

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

    def happenings(self) -> dict[str, Any]:
        """Return events and race as lists of numbers and text, which `load_happenings` takes back."""
        race = [] if self.race is None else [[list(c) for c in self.race.candidates], *self.race[1:]]
        return {"events": [list(e) for e in self.events], "race": race}

    def load_happenings(self, state: dict[str, Any]) -> None:
        """Take over what `happenings` gave."""
        self.events = [Event(*e) for e in state.get("events", [])]
        found, *rest = state.get("race") or [None]
        self.race = None if found is None else Race(tuple(Candidate(*c) for c in found), *rest)

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
            validation = "validation (tuned on)" if self._tuned_on_val else "validation"
            for column, label in (("train_loss", "training batch"), ("val_loss", validation)):
                if frame[column].notna().any():
                    axes[0].plot(frame["step"], frame[column], label=label)
            losses = frame[["train_loss", "val_loss"]].to_numpy()
            for event in self.events:
                style = {"rewound": ":", "bad batch": ":", "kept": "--"}[event.kind]
                axes[0].axvline(event.since if event.kind == "kept" else event.step, color="0.4", linestyle=style)
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
            axis.plot(frame["step"], frame[column], label=column[len(name) + 1 : -1])
        _label(axis, name, self._hypers.blocks[name].hyper.transform in ("log", "log10"))
        if 1 < len(columns) <= 8:
            axis.legend()


def _label(axis: Any, name: str, logarithmic: bool) -> None:
    axis.set_ylabel(f"{name} (log scale)" if logarithmic else name)
    axis.set_yscale("log" if logarithmic else "linear")
