"""Pictures that explain the recursion: what methods see, the ball, time windows, the Neumann series, shortcuts' errors.

`toys` computes what is drawn, but for `timeline`, which is a sketch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle

from gradtune_book.notebooks import plots
from gradtune_book.papers.together import toys

STEPS, NOW, PERIOD = 24, 18, 6
"""Steps of the training in `timeline`, the step after which one-pass methods are asked, and steps between updates."""
_INK, _GREY = "#333333", "#8a8a8a"


# -- what each method sees ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lane:
    """A method's line in `timeline`.

    Attributes:
        label: What stands at its left.
        style: Name of the method whose colour it has, see `plots.METHODS`.
        seen: Weight in [0, 1] of each step's effect in the hypergradient, `[STEPS]`.
        asked: Number of steps taken when the hypergradient is computed.
        updates: Numbers of steps after which the hyperparameters move.
        loss: "validation" or "training".
        remark: What stands at its right.
        copies: Steps in whose place the last one is used.
        period: Steps between borders drawn across the line; 0 for none.
    """

    label: str
    style: str
    seen: tuple[float, ...]
    asked: int
    updates: tuple[int, ...]
    loss: str
    remark: str
    copies: tuple[int, ...] = ()
    period: int = 0


def _last(count: int, asked: int = NOW, fade: float = 1.0) -> tuple[float, ...]:
    """Weights of the last `count` of `asked` steps; each is `fade` times that of the step after it."""
    return tuple(fade ** (asked - 1 - t) if asked - count <= t < asked else 0.0 for t in range(STEPS))


def lanes() -> tuple[Lane, ...]:
    """Return the lines of `timeline`, from top to bottom."""
    each, some = tuple(range(1, NOW + 1)), tuple(range(PERIOD, NOW + 1, PERIOD))
    val, train, end = "validation", "training", (STEPS,)
    return (
        Lane("OHO", "OHO", _last(NOW), NOW, each, val, "every past step, exactly"),
        Lane("ClipR", "ClipR", _last(NOW, fade=0.84), NOW, each, val, "each clip shrinks all of the past"),
        Lane("UnrollK", "Unroll5", _last(PERIOD), NOW, some, val, "steps since the reset", period=PERIOD),
        Lane("greedy, Unroll1", "greedy", _last(1), NOW, each, val, "the last step"),
        Lane(
            "OnePass, Lorraine",
            "OnePass",
            _last(1),
            NOW,
            some,
            val,
            "the last step, $i$ times",
            tuple(range(NOW - 5, NOW - 1)),
        ),
        Lane("Diff-through-Opt", "Diff-through-Opt", _last(5), NOW, some, val, "the last $h$ steps, exactly"),
        Lane(
            "MetaOptimize", "MetaOptimize", _last(NOW, fade=0.9), NOW, each, train, r"the past, discounted by $\gamma$"
        ),
        Lane("IDBD", "MetaOptimize", _last(NOW), NOW, each, train, "the past; diagonal of the Hessian"),
        Lane("HD, Baydin", "HD", _last(1), NOW, each, train, "the last step"),
        Lane("FDS", "FDS", _last(STEPS, STEPS), STEPS, end, val, "every step; one value a window", period=PERIOD),
        Lane("per-step", "non-greedy", _last(STEPS, STEPS), STEPS, end, val, "every step; one value each", period=1),
        Lane("searches", "Random", _last(0, STEPS), STEPS, end, val, "nothing but the loss itself"),
    )


def timeline() -> Figure:
    """Draw which steps each method's hypergradient sees, when it is computed and on which loss. A sketch."""
    rows = lanes()
    fig, ax = plt.subplots(figsize=(10.5, 0.5 * len(rows) + 1.5), layout="constrained")
    ax.grid(False)
    online = sum(lane.asked == NOW for lane in rows)
    ax.plot([NOW, NOW], [0.55, 0.5 - online], color=_GREY, lw=0.9, ls=(0, (3, 2)), zorder=0)
    ax.plot([-5.4, STEPS + 11], [0.32 - online] * 2, color="#cccccc", lw=0.8)
    for k, lane in enumerate(rows):
        _lane(ax, lane, -k - 0.4 * (k >= online))
    ax.text(NOW, 0.62, "now", ha="center", va="bottom", color=_INK, fontsize=10)
    ax.set(xlim=(-5.6, STEPS + 11), ylim=(-len(rows) - 0.05, 1.15), yticks=[])
    ax.set_xticks([0, STEPS], ["0", "$T$"])
    ax.set_xlabel("training steps", x=(5.6 + STEPS / 2) / (STEPS + 16.6), labelpad=-8)
    ax.tick_params(axis="x", length=3, color=_GREY, bottom=True)
    for side in ax.spines.values():
        side.set_visible(False)
    _key(fig)
    return fig


def _lane(ax: Axes, lane: Lane, y: float) -> None:
    """Draw a line of `timeline` at height y."""
    colour = np.array(to_rgb(plots.method_style(lane.style)["color"]))
    ax.text(-0.5, y, lane.label, ha="right", va="center", color=_INK, fontsize=10.5)
    ax.text(STEPS + 1.4, y, lane.remark, ha="left", va="center", color=_INK, fontsize=10)
    for t, weight in enumerate(lane.seen):
        copied = t in lane.copies
        face = "white" if not weight else tuple(1 - weight * (1 - colour))
        edge = 0.8 * colour if weight or copied else "#d5d5d5"
        box = Rectangle((t + 0.07, y - 0.28), 0.86, 0.56, facecolor=face, edgecolor=edge, lw=0.8)
        if copied:
            box.set_hatch("//////")
        ax.add_patch(box)
    if lane.period > 1:
        for t in range(lane.period, lane.asked, lane.period):
            ax.plot([t, t], [y - 0.42, y + 0.42], color=_INK, lw=1.6, solid_capstyle="butt")
    ax.plot(lane.updates, [y - 0.4] * len(lane.updates), ls="", marker="^", ms=3.6, color=_INK, clip_on=False)
    filled = lane.loss == "validation"
    ax.plot(lane.asked + 0.5, y, marker="D" if filled else "o", ms=7, color=_INK, mfc=_INK if filled else "white")


def _key(fig: Figure) -> None:
    """Explain the signs of `timeline` below it."""

    def box(face: str, edge: str, hatch: str = "") -> Rectangle:
        return Rectangle((0, 0), 1, 1, facecolor=face, edgecolor=edge, hatch=hatch)

    def sign(marker: str, size: float, **style: Any) -> Line2D:
        return Line2D([], [], ls="", color=_INK, marker=marker, ms=size, **style)

    fig.legend(
        [
            box("#777777", "#555555"),
            box("white", "#d5d5d5"),
            box("white", "#777777", "//////"),
            sign("|", 9, mew=1.6),
            sign("^", 5),
            sign("D", 7),
            sign("o", 7, mfc="white"),
        ],
        [
            "seen (paler: for less than it should)",
            "forgotten, or never seen",
            "last step in its place",
            "reset, or new window",
            "hyperparameters move",
            "validation loss read",
            "training loss read",
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=10,
        handlelength=1.3,
    )


# -- the ball ----------------------------------------------------------------------------------------------------------


def draw_ball(frame: pd.DataFrame, radius: float, step: int) -> Figure:
    """Draw the sensitivity of two weights with and without the ball, and one projection enlarged.

    Args:
        frame: The paths, from `toys.ball_paths`.
        radius: The ball's radius.
        step: Step whose projection is enlarged.
    """
    fig, (whole, near) = plots.panels(2, width=4.6, height=4.5)
    exact, ball = (frame[[f"{name} 1", f"{name} 2"]].to_numpy() for name in ("exact", "ball"))
    limit = np.array(frame.attrs["fixed point"])
    for ax in (whole, near):
        ax.add_patch(Circle((0, 0), radius, facecolor="#f1f1f1", edgecolor=_GREY, lw=1.2))
        ax.set(aspect="equal", xlabel=r"$y_1$, of the first weight", ylabel=r"$y_2$, of the second weight")
        ax.grid(False)
    _paths(whole, exact, ball, limit)
    _step(near, ball[step], np.array(toys.before_projection(frame, step)), ball[step + 1])
    return fig


def _paths(ax: Axes, exact: np.ndarray, ball: np.ndarray, limit: np.ndarray) -> None:
    """Draw both paths from 0, the limit of the exact one, and the ray to it."""
    small: dict[str, object] = {"ms": 5, "lw": 1.3, "markevery": 1}
    ax.plot([0, limit[0]], [0, limit[1]], color=_GREY, lw=1.0, ls=(0, (1, 2)))
    ax.plot(*exact.T, **{**plots.method_style("Forward"), **small, "mfc": "white"}, label="exact")
    ax.plot(*ball.T, **{**plots.method_style("ClipR"), **small}, label="in the ball")
    ax.plot(*limit, marker="*", ms=15, color=_INK, ls="", zorder=5)
    ax.annotate(r"$y^*$", _pair(limit), (8, 6), textcoords="offset points", fontsize=13)
    ax.annotate(
        "where the path\nin the ball ends",
        _pair(ball[-1]),
        (1.6, 0.45),
        ha="left",
        arrowprops={"arrowstyle": "->", "color": _INK},
    )
    ax.text(-0.05, -0.12, "0", ha="right", va="top")
    ax.set(xlim=(-0.4, 3.2), ylim=(-0.4, 3.2), title="the whole path")
    ax.legend(loc="upper right", fontsize=10)


def _step(ax: Axes, start: np.ndarray, moved: np.ndarray, end: np.ndarray) -> None:
    """Draw one step of the recursion and the projection after it."""
    arrow = {"arrowstyle": "-|>", "lw": 1.8, "shrinkA": 4, "shrinkB": 4, "mutation_scale": 14}
    for tip, tail, method in ((moved, start, "Forward"), (end, moved, "ClipR")):
        ax.annotate("", _pair(tip), _pair(tail), arrowprops={**arrow, "color": plots.method_style(method)["color"]})
    ax.plot([0, moved[0]], [0, moved[1]], color=_GREY, lw=1.0, ls=(0, (1, 2)))
    step, back = _pair((start + moved) / 2 + (-0.035, 0.021)), _pair((end + moved) / 2 + (0.018, -0.012))
    ax.text(*step, "1  a step", ha="center", fontsize=11, color=_INK)
    ax.text(*back, "2  back along\n    the ray", va="center", fontsize=11, color=_INK)
    points = (
        (start, r"$y_t$", (-10, -4), "right"),
        (moved, r"$y_t-\eta\,(A y_t+B)$", (20, 12), "center"),
        (end, r"$y_{t+1}$", (12, -4), "left"),
    )
    for point, text, at, side in points:
        ax.plot(*point, marker="o", ms=6, color=_INK, ls="", mfc="white" if point is moved else _INK)
        ax.annotate(text, _pair(point), at, textcoords="offset points", ha=side, fontsize=12)
    x, y = _pair((start + moved + end) / 3)
    ax.set(xlim=(x - 0.2, x + 0.2), ylim=(y - 0.19, y + 0.19), title="one step, enlarged")


def _pair(point: np.ndarray) -> tuple[float, float]:
    return float(point[0]), float(point[1])


# -- time windows ------------------------------------------------------------------------------------------------------


def draw_windows(found: toys.Windows) -> Figure:
    """Draw the columns' lengths over the training, and the hypergradients of steps and windows.

    Args:
        found: What `toys.windows` returns.
    """
    fig, (left, right) = plots.panels(2, width=5.2, height=3.9)
    steps, count = found.lengths.shape
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.8, count))
    t, top = np.arange(1, steps + 1), 1.17 * float(found.lengths.max())
    for ax in (left, right):
        ax.grid(False)
        for n in range(0, count, 2):
            ax.axvspan(n * found.width + 0.5, (n + 1) * found.width + 0.5, color="#f1f1f1", zorder=0)
        ax.set(xlim=(0.5, steps + 0.5), xlabel="training step", xticks=[found.width * n for n in range(1, count + 1)])
    for n in range(count):
        length, born = found.lengths[:, n].numpy(), n * found.width
        own = slice(born, born + found.width)
        left.plot(t[born:], length[born:], color=colours[n], lw=1.3, ls=(0, (2, 1.5)))
        left.plot(t[own], length[own], color=colours[n], lw=3.2, solid_capstyle="butt")
        left.text(
            born + 0.5 + found.width / 2, top, f"$Z_{n + 1}$", color=colours[n], ha="center", va="top", fontsize=13
        )
        mean = float(found.columns[n]) / found.width
        right.plot([born + 0.5, born + found.width + 0.5], [mean, mean], color=colours[n], lw=3.2)
    right.bar(t, found.per_step.numpy(), width=0.7, color="#b0b0b0", zorder=1, label="of a step")
    right.plot([], [], color=_INK, lw=3.2, label="mean of a window")
    right.legend(loc="best", fontsize=10)
    right.axhline(0, color=_INK, lw=0.8)
    left.set(ylabel=r"length of the column, $|Z_n|$", title="what is carried", ylim=(0, 1.02 * top))
    right.set(ylabel=r"$dL_V/d\eta$", title="what comes out")
    return fig


# -- the Neumann series and the shortcuts ------------------------------------------------------------------------------


def draw_neumann(frame: pd.DataFrame) -> Figure:
    """Draw the Neumann series beside the exact derivative through as many steps.

    Args:
        frame: What `toys.neumann` returns.
    """
    shown = (("under way", "lr"), ("under way", "weight_decay"), ("settled", "weight_decay"))
    names = {"lr": "learning rate", "weight_decay": "weight decay"}
    fig, axes = plots.panels(3, width=3.6, height=3.7)
    for ax, (training, tuned) in zip(axes, shown):
        part = frame[(frame["training"] == training) & (frame["tuned"] == tuned)]
        ax.axhline(part["all steps"].iloc[0], color=_GREY, lw=1.4, ls=(0, (1, 1.5)), label="all steps")
        for column, method in (("exact window", "Reverse"), ("Neumann series", "Neumann")):
            ax.plot(part["look-back"], part[column], **plots.method_style(method), ms=5, label=column)
        ax.set(xlabel="steps or terms, $i$", title=f"{names[tuned]}, training {training}")
    axes[0].set_ylabel(r"hypergradient, per factor of 10")
    axes[0].legend(fontsize=10)
    return fig


def draw_departures(frame: pd.DataFrame, families: Sequence[str]) -> Figure:
    """Draw how far shortcuts are from the exact hypergradient: relative error, and 1 - cosine.

    Args:
        frame: Columns `method`, `parameter`, `value`, `relative error` and `cosine`.
        families: The parameters, a panel each.
    """
    fig, axes = plots.panels(len(families), width=3.4, height=3.5, sharey=True)
    for ax, parameter in zip(axes, families):
        part = frame[frame["parameter"] == parameter]
        ax.plot(part["value"], part["relative error"], **plots.method_style("Forward"), label="relative error")
        ax.plot(part["value"], 1 - part["cosine"], **plots.method_style("Neumann"), label="1 − cosine")
        ax.set(xscale="log", title=part["method"].iloc[0], xlabel=f"{parameter} (log scale)")
        plots.label_logarithms(ax)
    axes[0].set_ylabel("departure from the exact one")
    axes[0].legend(fontsize=10)
    return fig
