"""The table of methods: which sensitivity, which outer loss, how often, by which rule, at which cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradtune import extras, search
from gradtune.errors import unknown
from gradtune.methods import making
from gradtune.training.metaoptimize import MetaOptimize

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Row:
    """A line of the method table.

    Attributes:
        name: what `get` calls the method.
        title: its name in the table.
        paper: the papers in which it occurs.
        sensitivity: which sensitivity it uses.
        outer_loss: the loss that the hyperparameters minimise.
        every: training steps between two outer steps.
        rule: the outer rule.
        cost: what it costs, in words.
        memory: memory beyond plain training.
        make: builds what runs: a `loop.Method`, the framework `gradtune.training.metaoptimize.MetaOptimize`, or a
            search's options for `search.search`.
    """

    name: str
    title: str
    paper: str
    sensitivity: str
    outer_loss: str
    every: str
    rule: str
    cost: str
    memory: str
    make: Callable[..., Any]


_VAL, _HVP = "validation", "1 Hessian product a hyperparameter a step"
METHODS = (
    Row(
        "oho",
        "OHO (global, layerwise, k groups)",
        "OHO",
        "exact forward mode; optional reset every K",
        _VAL,
        "1",
        "SGD, tiny rate",
        _HVP,
        "P D",
        making.oho,
    ),
    Row(
        "unroll1_gtgv",
        "Unroll1-gTgV",
        "Clip",
        "-dgT/dlam, no step size",
        _VAL,
        "1",
        "SGD",
        "1 mixed derivative a step",
        "P D",
        making.unroll1_gtgv,
    ),
    Row(
        "unroll_k",
        "UnrollK",
        "Clip",
        "exact forward, 0 again after every K steps",
        _VAL,
        "K",
        "SGD, c x lr",
        _HVP,
        "P D",
        making.unroll_k,
    ),
    Row(
        "clip_r",
        "ClipR",
        "Clip",
        "exact forward, projected on a ball at every step",
        _VAL,
        "1, after a warm-up",
        "SGD, c x lr",
        _HVP,
        "P D",
        making.clip_r,
    ),
    Row(
        "fds",
        "FDS",
        "FDS",
        "exact forward, a column per window of W steps",
        "validation at the end",
        "T (restarts)",
        "SGD or sign rule with halving",
        _HVP,
        "2 P D",
        making.fds,
    ),
    Row(
        "per_step",
        "per-step, non-greedy",
        "FDS",
        "reverse mode over stored states, N = T",
        "validation at T",
        "T",
        "SGD",
        "1 gradient, 1 Hessian product a step",
        "2 D T, or 2 D k log_k T in a tree",
        making.per_step,
    ),
    Row("greedy", "greedy, H = 1", "FDS", "one step", _VAL, "1", "SGD", "no Hessian product", "P D", making.greedy),
    Row(
        "hd",
        "HD / Baydin",
        "FDS, OnePass",
        "previous step only",
        "next training loss",
        "1",
        "SGD",
        "1 dot product a step",
        "D",
        making.hd,
    ),
    Row(
        "baydin",
        "Baydin, as OnePass compares it",
        "OnePass",
        "previous gradient, no chain factor",
        "next training loss",
        "1",
        "SGD 0.001 on log10 lr",
        "1 dot product a step",
        "D",
        making.baydin,
    ),
    Row(
        "onepass",
        "OnePass WD+LR, WD+LR+M",
        "OnePass",
        "Neumann series of the last update, look-back i",
        _VAL,
        "T = 10",
        "Adam 0.05",
        "i - 1 Hessian products an update",
        "1 graph",
        making.onepass,
    ),
    Row(
        "onepass_hdlr",
        "OnePass WD+HDLR+M",
        "OnePass",
        "the same, a learning rate per weight",
        _VAL,
        "T = 10",
        "Adam 0.05",
        "i - 1 Hessian products an update",
        "1 graph + 3 D",
        making.onepass,
    ),
    Row(
        "lorraine",
        "Lorraine",
        "OnePass",
        "the same, loss hyperparameters only",
        _VAL,
        "T",
        "Adam",
        "i - 1 Hessian products an update, i for a penalty in the loss",
        "1 graph",
        making.lorraine,
    ),
    Row(
        "diff_through_opt",
        "Diff-through-Opt",
        "OnePass",
        "reverse mode through the last h steps",
        _VAL,
        "T or restart",
        "Adam",
        "h - 1 Hessian products an update",
        "h graphs, 2 D h, or 2 D k log_k h in a tree",
        making.diff_through_opt,
    ),
    Row(
        "metaoptimize",
        "MetaOptimize full / 2x2 / L-approximation",
        "MetaOptimize",
        "forward with discount gamma, meta dynamics Y, Q",
        "discounted future training loss",
        "1",
        "SGD, Adam, Lion",
        _HVP,
        "P D; full P^2 D",
        MetaOptimize,
    ),
    Row(
        "metaoptimize_hf",
        "MetaOptimize, Hessian-free",
        "MetaOptimize",
        "closed-form trace h, no curvature",
        "training loss",
        "1",
        "Lion or Adam",
        "1 dot product a step",
        "D",
        making.metaoptimize_hf,
    ),
    Row(
        "idbd",
        "IDBD",
        "MetaOptimize",
        "L-approximation, per weight, linear model",
        "training loss",
        "1",
        "SGD",
        "elementwise",
        "D",
        making.idbd,
    ),
    Row(
        "fixed",
        "Fixed hyperparameters (one trial of a search)",
        "all",
        "none",
        _VAL,
        "n/a",
        "none",
        "plain training",
        "0",
        making.fixed,
    ),
    *(
        Row(
            s.name,
            s.title,
            s.source,
            "none",
            _VAL,
            "n/a",
            f"search: {s.draws}",
            f"plain training: {s.currency}",
            "0",
            s.make,
        )
        for s in search.METHODS
    ),
)


def get(name: str) -> Row:
    """Return a line of the table by name.

    Raises:
        GradtuneError: there is no such name; says the nearest one.
    """
    for row in METHODS:
        if row.name == name:
            return row
    raise unknown("method", name, [r.name for r in METHODS])


def table() -> pd.DataFrame:
    """Return `rows` as a data frame.

    Raises:
        GradtuneError: pandas is not installed.
    """
    frame: pd.DataFrame = extras.needed("pandas", "plot", "the method table").DataFrame(rows())
    return frame


def rows() -> list[dict[str, str]]:
    """Return the method table as rows of text, column -> text; `name` is what `get` calls a method."""
    columns = {
        "method": "title",
        "paper": "paper",
        "sensitivity": "sensitivity",
        "outer loss": "outer_loss",
        "outer step every": "every",
        "outer rule": "rule",
    }
    return [
        {k: getattr(r, v) for k, v in columns.items()} | {"cost": r.cost, "memory": r.memory, "name": r.name}
        for r in METHODS
    ]
