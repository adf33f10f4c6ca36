"""Toys behind the pictures of the chapter on the recursion: small enough to see what each shortcut does.

All run on the library's own loop and estimators, in float64, from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from gradtune.estimators import Estimator
from gradtune.estimators.forward import Forward
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.methods import fixed
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import Rule, sgd
from gradtune.training.loop import Loop, Method, Run
from gradtune_book.notebooks import stats
from gradtune_book.tasks.quadratic import Quadratic

_PLAIN = sgd(momentum=False, weight_decay=False)


@dataclass(frozen=True)
class Bowl:
    """A bowl whose bottom differs from batch to batch; another one validates.

    The losses are::

        L_t(w) = 1/2 (w - c_t)' diag(h) (w - c_t),     L_V(w) = 1/2 |w - target|^2

    Attributes:
        h: Diagonal of the Hessian, `[D]`.
        centres: The bottoms `c_t`, `[steps, D]`; a single row stands for all steps.
        target: Minimiser of the validation loss, `[D]`.
    """

    h: Tensor
    centres: Tensor
    target: Tensor

    @property
    def stationary(self) -> bool:
        """Whether all steps have the same loss."""
        return len(self.centres) == 1

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        d = w - self.centres[t % len(self.centres)]
        return 0.5 * (self.h * d * d).sum(-1)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        d = w - self.target
        return 0.5 * (d * d).sum(-1)


def bowl(steps: int = 1, noise: float = 0.0, dim: int = 20, seed: int = 0) -> Bowl:
    """Make a bowl with curvatures from 0.02 to 1 and bottoms scattered around 1.

    Args:
        steps: Number of different batches.
        noise: Standard deviation of their bottoms.
        dim: Number of weights D.
        seed: Seed of the bottoms and of the target.
    """
    rng = torch.Generator().manual_seed(seed)
    centres = 1 + noise * torch.randn(steps, dim, generator=rng, dtype=torch.float64)
    target = 0.8 + 0.1 * torch.randn(dim, generator=rng, dtype=torch.float64)
    return Bowl(torch.logspace(-1.7, 0, dim, dtype=torch.float64), centres, target)


def _hypergradient(problem: Bowl, rule: Rule, hypers: Hypers, w: Tensor, estimator: Estimator, steps: int) -> Tensor:
    """Return what an estimator hands to the outer rule after `steps` steps, `[P]`."""
    loop = Loop(problem, rule, hypers, Method(estimator, SGD(1.0), every=steps))
    start = loop.start(w)
    return (start.raw - loop.advance(start, steps).raw)[0]


# -- the ball ----------------------------------------------------------------------------------------------------------

BALL = Quadratic(*(torch.tensor([x], dtype=torch.float64) for x in ([1.0, 6.0], [-5.85, -3.375], [-4.0, -3.0])))
"""A bowl of two weights with the penalty of the Clip paper; at the penalty 0.5 its `|y*|` is 3.0."""
_PENALTY = 0.5


def ball_paths(radius: float, steps: int = 60, lr: float = 0.08) -> pd.DataFrame:
    """Follow the sensitivity of two weights that are at their best response, exact and in a ball.

    Args:
        radius: Radius of the ball.
        steps: Training steps.
        lr: Learning rate.

    Returns:
        Columns `step`, `exact 1`, `exact 2`, `ball 1` and `ball 2`, from step 0; in `attrs["fixed point"]` the limit
        `y*` of the exact one.
    """
    penalty = torch.tensor([_PENALTY], dtype=torch.float64)
    hypers = Hypers([Hyper("lr", lr, tuned=False), Hyper("penalty", _PENALTY)], (2,))
    columns: dict[str, list[float]] = {"step": list(range(steps + 1))}
    for name, estimator in (("exact", Forward()), ("ball", Forward(radius=radius))):
        seen = [torch.zeros(2, dtype=torch.float64)]

        def keep(run: Run, seen: list[Tensor] = seen) -> None:
            seen.append(run.memory.w[0, 0].clone())

        loop = Loop(BALL, _PLAIN, hypers, Method(estimator, SGD(0.0), every=steps + 1))
        loop.advance(loop.start(BALL.minimiser(penalty)), steps, keep, 1)
        columns |= {f"{name} {k + 1}": [float(y[k]) for y in seen] for k in range(2)}
    frame = pd.DataFrame(columns)
    frame.attrs["fixed point"] = BALL.sensitivity(penalty)[0].tolist()
    return frame


def before_projection(frame: pd.DataFrame, step: int, lr: float = 0.08) -> list[float]:
    """Return where the step after `step` of the path in the ball would go without the projection."""
    y = torch.tensor(frame.loc[step, ["ball 1", "ball 2"]].tolist(), dtype=torch.float64)
    at = BALL.minimiser(torch.tensor([_PENALTY], dtype=torch.float64))[0]
    moved: list[float] = (y - lr * (BALL.h[0] * (1 + _PENALTY) * y + BALL.h[0] * at)).tolist()
    return moved


def ball_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare where both paths of `ball_paths` end with `y*`: length, and angle to it in degrees."""
    target = torch.tensor(frame.attrs["fixed point"], dtype=torch.float64)
    rows = {}
    for name in ("exact", "ball"):
        y = torch.tensor(frame.loc[len(frame) - 1, [f"{name} 1", f"{name} 2"]].tolist(), dtype=torch.float64)
        cosine = float(y @ target / y.norm() / target.norm())
        rows[name] = {"length": float(y.norm()), "angle to y*": float(torch.rad2deg(torch.acos(torch.tensor(cosine))))}
    return pd.DataFrame(rows).T.round(3).rename({"exact": "without a ball", "ball": "in the ball"})


# -- time windows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Hypergradients of a learning-rate schedule on a noisy bowl.

    Attributes:
        per_step: The hypergradient of each step's own learning rate, `[T]`, by reverse mode.
        columns: That of each window's learning rate, `[N]`, by forward mode.
        lengths: `|Z_n|` of each window's column after every step, `[T, N]`.
    """

    per_step: Tensor
    columns: Tensor
    lengths: Tensor

    @property
    def width(self) -> int:
        """Steps in a window."""
        return len(self.per_step) // len(self.columns)

    def table(self) -> pd.DataFrame:
        """Return a row for each window: the sum over its steps, its column, how far these are apart, and the mean."""
        sums = self.per_step.reshape(len(self.columns), -1).sum(-1)
        first = [1 + n * self.width for n in range(len(sums))]
        index = pd.Index([f"{n + 1} (steps {a} to {a + self.width - 1})" for n, a in enumerate(first)], name="window")
        return pd.DataFrame(
            {
                "sum over its steps, reverse mode": sums.tolist(),
                "its column, forward mode": self.columns.tolist(),
                "difference": [stats.bound(abs(float(d))) for d in sums - self.columns],
                "mean over its steps": (self.columns / self.width).tolist(),
            },
            index,
        )


def windows(steps: int = 48, count: int = 4, lr: float = 0.3, noise: float = 0.3) -> Windows:
    """Train on a noisy bowl and take the hypergradient of every step's learning rate, and of every window's.

    Args:
        steps: Training steps T.
        count: Windows N; N divides T.
        lr: The learning rate of all steps.
        noise: Spread of the batches' bottoms.
    """
    problem, w = bowl(steps, noise), torch.zeros(1, 20, dtype=torch.float64)
    own, shared = (Hypers([Hyper("lr", lr, windows=n)], (20,), steps) for n in (steps, count))
    lengths: list[Tensor] = []
    watching = Loop(problem, _PLAIN, shared, Method(Forward(), SGD(0.0), every=steps + 1))
    watching.advance(watching.start(w), steps, lambda run: lengths.append(run.memory.w[0].norm(dim=-1)), 1)
    return Windows(
        _hypergradient(problem, _PLAIN, own, w, Reverse(steps), steps),
        _hypergradient(problem, _PLAIN, shared, w, Forward(), steps),
        torch.stack(lengths),
    )


# -- the Neumann series ------------------------------------------------------------------------------------------------


def neumann(look_backs: Sequence[int] = (1, 2, 3, 5, 8, 12, 20, 30, 40), settled: int = 800) -> pd.DataFrame:
    """Compare the Neumann series with the exact derivative through as many steps, on a bowl without noise.

    Plain SGD with weight decay trains on the bowl. The hypergradients of log10 learning rate and log10 weight decay are
    taken twice: after as many steps as the longest look-back, when training is under way, and after `settled` steps.

    Args:
        look_backs: Numbers of terms i.
        settled: Steps after which training has come to rest.

    Returns:
        Columns `training` ("under way", "settled"), `tuned`, `look-back`, `exact window`, `Neumann series` and `all
        steps`, the exact derivative through the whole training.
    """
    problem, rule, longest = bowl(), sgd(momentum=False), max(look_backs)
    hypers = Hypers([Hyper("lr", 0.9, "log10"), Hyper("weight_decay", 0.01, "log10")], (20,))
    start = torch.zeros(1, 20, dtype=torch.float64)
    rest = Loop(problem, rule, hypers, fixed())
    late = rest.advance(rest.start(start), settled).state.w
    rows = []
    for name, w, whole in (("under way", start, longest), ("settled", late, settled)):
        full = _hypergradient(problem, rule, hypers, w, Forward(), whole)
        for i in look_backs:
            exact, series = (_hypergradient(problem, rule, hypers, w, e, longest) for e in (Reverse(i), Neumann(i)))
            for k, tuned in enumerate(hypers.tuned):
                rows.append((name, tuned, i, float(exact[k]), float(series[k]), float(full[k])))
    return pd.DataFrame(rows, columns=["training", "tuned", "look-back", "exact window", "Neumann series", "all steps"])
