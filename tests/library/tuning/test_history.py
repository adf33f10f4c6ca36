"""Histories: columns by group and entry, what is fixed left out, and pickles that need no model."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.tuning.history import History, Row, labels, read_out

NAMES = ("body.weight", "body.bias", "head.weight")
W = torch.zeros(1, 9, dtype=torch.float64)
BY_NAME = {"body": "body.*", "head": "*"}


def hypers(*given: Hyper) -> Hypers:
    return Hypers(given, [6, 2, 1], 10, names=NAMES, shapes=((2, 3), (2,), (1,)))


def columns(h: Hyper) -> dict[str, float]:
    made = hypers(h)
    found = read_out(made, NAMES, made.init(W)[0])
    if not any(n.endswith("[median]") for n in found):
        assert list(found) == labels(made.blocks[h.name], NAMES)
    return {n: round(float(v), 6) for n, v in found.items()}


@pytest.mark.parametrize(
    ("h", "expected"),
    [
        (Hyper("lr", [0.1, 0.2], granularity=BY_NAME), {"lr[body]": 0.1, "lr[head]": 0.2}),
        (Hyper("lr", [0.1, 0.2], granularity=BY_NAME, tuned=["head"]), {"lr[head]": 0.2}),
        (Hyper("lr", 0.1, granularity={"all": "*"}), {"lr": 0.1}),
        (Hyper("lr", 0.1, granularity={"[bh]*": "[bh]*"}), {"lr": 0.1}),
        (
            Hyper("lr", 0.1, granularity="tensor", tuned=(0, "head.weight")),
            {"lr[body.weight]": 0.1, "lr[head.weight]": 0.1},
        ),
        (Hyper("lr", 0.1, granularity=(0, 1, 2), tuned=(2, 1)), {"lr[1]": 0.1, "lr[2]": 0.1}),
        (
            Hyper("lr", [0.1, 0.2], granularity=BY_NAME, windows=2, tuned=["body"]),
            {"lr[body, window 0]": 0.1, "lr[body, window 1]": 0.1},
        ),
        (Hyper("cw", torch.tensor([0.1, 0.2]), shape=(2,)), {"cw[0]": 0.1, "cw[1]": 0.2}),
        (Hyper("cw", 0.1, shape=(1,)), {"cw[0]": 0.1}),
        (Hyper("cw", 0.1, shape=(2, 1), windows=2), {f"cw[{i}, 0, window {k}]": 0.1 for i in (0, 1) for k in (0, 1)}),
        (Hyper("cw", torch.linspace(0.1, 0.9, 65), shape=(65,)), {"cw[min]": 0.1, "cw[median]": 0.5, "cw[max]": 0.9}),
        (Hyper("lr", 0.1, granularity="weight", tuned=(3, 4)), {"lr[min]": 0.1, "lr[median]": 0.1, "lr[max]": 0.1}),
    ],
)  # fmt: skip
def test_columns(h: Hyper, expected: dict[str, float]) -> None:
    found = columns(h)
    assert list(found) == list(expected) and found == pytest.approx(expected, rel=1e-5)


def history(rows: int = 4, **options: Any) -> History:
    made = hypers(Hyper("lr", [0.1, 0.2], "log10", BY_NAME, tuned=["head"]), Hyper("cw", 0.5, shape=(2,)))
    out = History(made, NAMES, **options)
    for k in range(rows):
        x = torch.tensor(float(k) + 1, dtype=torch.float64)
        out.add(Row(10 * k, x, 2 * x, made.init(W)[0][0] + 0.1 * k))
    return out


def test_a_history_goes_through_pickle() -> None:
    given = history()
    given.test, given.skipped = 0.25, 3
    copy = pickle.loads(pickle.dumps(given))
    assert copy.to_frame().equals(given.to_frame()) and len(copy) == 4
    assert (copy.test, copy.skipped) == (0.25, 3)
    x = torch.ones((), dtype=torch.float64)
    copy.add(Row(40, x, x, torch.zeros(3, dtype=torch.float64)))
    assert len(copy.to_frame()) == 5 and len(given) == 4
    empty = pickle.loads(pickle.dumps(history(0)))
    assert len(empty) == 0 and (empty.test, empty.skipped) == (None, 0)
    assert list(empty.to_frame()) == ["step", "train_loss", "val_loss", "lr[head]", "cw[0]", "cw[1]"]


def test_a_pickle_is_read_where_there_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "history.pickle"
    file.write_bytes(pickle.dumps(history()))
    code = f"import pickle; h = pickle.load(open({str(file)!r}, 'rb')); print(list(h.to_frame()), len(h))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['step', 'train_loss', 'val_loss', 'lr[head]', 'cw[0]', 'cw[1]'] 4"


def test_the_rows_of_a_pickle_lie_on_the_cpu_alone() -> None:
    """A view of a large tensor does not drag it along."""
    made = hypers(Hyper("lr", 0.1))
    out = History(made, NAMES)
    x = torch.zeros(100_000, dtype=torch.float64)
    out.add(Row(0, x[0], x[1], x[:1]))
    assert len(pickle.dumps(out)) < 10_000


@pytest.mark.parametrize(("tuned", "label"), [(False, "validation"), (True, "validation (tuned on)")])
def test_the_figure_says_what_was_tuned_on(tuned: bool, label: str) -> None:
    import matplotlib.pyplot as plt

    figure = history(tuned_on_val=tuned).plot()
    legend = figure.axes[0].get_legend()
    assert legend is not None and [t.get_text() for t in legend.get_texts()] == ["training batch", label]
    entries = figure.axes[2].get_legend()
    assert entries is not None and [t.get_text() for t in entries.get_texts()] == ["0", "1"]
    plt.close(figure)
    again = pickle.loads(pickle.dumps(history(tuned_on_val=tuned))).plot()
    assert again.axes[0].get_legend().get_texts()[1].get_text() == label
    plt.close(again)
