"""The methods as functions that return a `loop.Method`: an estimator, an outer rule and a cadence."""

from __future__ import annotations

from gradtune.errors import unknown
from gradtune.estimators.forward import FirstOrder, Forward, Split
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.estimators.trace import IDBD, Trace
from gradtune.recursion.outer import SGD, Adam, Lion, Multiplicative, Outer
from gradtune.recursion.products import Mode
from gradtune.training.loop import Method


def fixed() -> Method:
    """Hyperparameters that stay as they are: one run of a random or grid search.

    Cost: plain training.
    """
    return Method()


def oho(
    lr: float = 5e-6,
    reset_every: int | None = None,
    layerwise: str = "exact",
    product: float | None = None,
    mode: Mode = "reverse",
) -> Method:
    """Exact forward mode, an SGD step on the hyperparameters after every training step (OHO, Section 4, eq. 6 and 9).

    Global, per layer or k groups of neighbouring layers is declared by `Hyper(granularity=...)`, see
    `hypers.neighbours`.

    `clip_r` differs by the projection of the sensitivity and by an outer rate that follows the learning rate.

    Cost per step: a gradient with its graph, one Hessian product per hyperparameter and a validation gradient.

    Memory: P D more.

    Args:
        lr: the rate of the outer SGD.
        reset_every: training steps after which the sensitivity starts from 0 again; None for never.
        layerwise: "exact", the recursion for each group, or "split", one sensitivity whose product with the validation
            gradient is shared out by group, as the published program does.
        product: the relative width of differences of gradients in place of exact Hessian products (the program: 0.01);
            None for exact products.
        mode: in which mode Hessian products are taken, see `estimators.reverse.Reverse`.

    Raises:
        GradtuneError: `layerwise` or `mode` is unknown.
    """
    if layerwise not in ("exact", "split"):
        raise unknown("layerwise form", layerwise, ["exact", "split"])
    estimator = Forward if layerwise == "exact" else Split
    return Method(estimator(reset_every=reset_every, product=product, mode=mode), SGD(lr))


def unroll_k(k: int = 5, scale: float = 0.1) -> Method:
    """UnrollK: exact over K steps, then one outer step and a sensitivity of 0 again.

    Sources: Franceschi et al. 2017; Clip paper, Section 3.2.

    Cost per K steps: K - 1 Hessian products per hyperparameter (K where the loss has tuned ones), and a validation
    gradient.

    Args:
        k: K.
        scale: the outer rate is `scale` times the learning rate.
    """
    return Method(Forward(reset_every=k), SGD(scale, "lr"), every=k)


def unroll1_gtgv(scale: float = 0.1) -> Method:
    """Unroll1-gTgV (Luketina et al. 2016; Clip paper, Section 3.3), for hyperparameters of the loss only.

    The hypergradient is minus the inner product `<gV, dgT/dlam>`, without the step size of `unroll_k(1)`.

    Args:
        scale: the outer rate is `scale` times the learning rate.
    """
    return Method(FirstOrder(), SGD(scale, "lr"))


def clip_r(radius: float = 5.0, scale: float = 0.1, warm_up: int = 0) -> Method:
    """ClipR (Clip paper, Algorithm 1): the sensitivity is kept for ever, projected on a ball after every step.

    Args:
        radius: the radius of the ball.
        scale: the outer rate is `scale` times the learning rate.
        warm_up: training steps before outer updates begin.
    """
    return Method(Forward(radius=radius), SGD(scale, "lr"), warm_up=warm_up)


def fds(horizon: int, outer: Outer | None = None, product_limit: float | None = None, mode: Mode = "reverse") -> Method:
    """FDS (Algorithm 1): exact forward mode over the whole training, one outer step at its end.

    A hyperparameter has one column per time window, declared by `Hyper(windows=...)`. `restarts.Restarts` trains again
    and again.

    Memory: (1 + buffers) P D, whatever the horizon.

    Args:
        horizon: training steps.
        outer: the outer rule; `SGD(0.1)` by default. Algorithm 1 divides the hypergradient by the window's length W and
            steps by SGD, which is `SGD(rate / W)`. Algorithm 2 is `outer.SignHalving`.
        product_limit: limit to which the entries of `H Z + dg/draw` are clamped before they enter the sensitivity Z
            (paper: 10); None for no limit.
        mode: in which mode Hessian products are taken, see `estimators.reverse.Reverse`.
    """
    return Method(Forward(product_limit=product_limit, mode=mode), outer or SGD(0.1), every=horizon)


def greedy(lr: float) -> Method:
    """Horizon 1: only the last step's effect counts (FDS, Section 3.2).

    It is the same as `unroll_k(1)` with a constant outer rate.

    Cost per step: no Hessian product, as Z starts from 0; a mixed derivative per hyperparameter where the loss has
    tuned ones; and a validation gradient.

    Args:
        lr: the rate of the outer SGD.
    """
    return Method(Forward(reset_every=1), SGD(lr))


def onepass(
    look_back: int = 5, every: int = 10, lr: float = 0.05, fresh: bool = False, mode: Mode = "reverse"
) -> Method:
    """OnePass (Algorithm 1): Neumann series of the last update, Adam on the raw coordinates.

    What is tuned (WD+LR, WD+LR+M) is declared by `Hyper(tuned=...)`.

    Cost per outer update: a gradient with its graph, `look_back - 1` Hessian products (`look_back` where the loss has
    tuned hyperparameters) and a validation gradient.

    Memory: one graph, independent of P.

    Args:
        look_back: number of terms of the Neumann series.
        every: training steps between two outer updates.
        lr: the rate of the outer Adam.
        fresh: take the derivatives at the weights after the update's last step, as the text reads, in place of those
            before it, as the published program does.
        mode: in which mode Hessian products are taken, see `estimators.reverse.Reverse`.
    """
    return Method(Neumann(look_back, fresh, mode=mode), Adam(lr), every=every)


def lorraine(look_back: int = 5, every: int = 10, lr: float = 0.05) -> Method:
    """Lorraine et al. (2020) as OnePass compares it (Section 4.1): `onepass` with the weight decay tuned alone.

    The other hyperparameters are declared with `Hyper(tuned=False)`. Cost and memory are those of `onepass`; where the
    weight decay is a penalty in the loss, an update costs one Hessian product more.

    Args:
        look_back: number of terms of the Neumann series.
        every: training steps between two outer updates.
        lr: the rate of the outer Adam.
    """
    return onepass(look_back, every, lr)


def per_step(
    horizon: int,
    lr: float,
    store: str = "state",
    branching: int = 8,
    on: str = "memory",
    mode: Mode = "reverse",
) -> Method:
    """Non-greedy and unshared (FDS, Figures 2 and 3): a value of each hyperparameter for every step.

    The values are declared by `Hyper(windows=horizon)`. The hypergradient is exact, by reverse mode over stored states,
    with one SGD step at the end of training. `fds` gives the same numbers at a cost that grows with the number of
    windows and a memory that does not grow with the horizon.

    Cost per step: one more gradient and a Hessian product; with a tree about log_k(horizon) gradients more.

    Memory: (1 + buffers) D per step; with a tree about k log_k(horizon) times as much, whatever the horizon.

    Args:
        horizon: training steps.
        lr: the rate of the outer SGD.
        store: "state", or "tree" for trainings whose states do not fit into memory, see `estimators.reverse.Reverse`.
        branching: k of the tree.
        on: where the tree's states lie, "memory" or "disk".
        mode: in which mode Hessian products are taken, see `estimators.reverse.Reverse`.
    """
    return Method(Reverse(horizon, store, branching, on, mode=mode), SGD(lr), every=horizon)


def diff_through_opt(
    horizon: int = 5,
    every: int = 10,
    lr: float = 0.05,
    store: str | None = None,
    branching: int = 8,
    on: str = "memory",
    mode: Mode = "reverse",
) -> Method:
    """Diff-through-Opt (Domke 2012; OnePass, Section 4): `onepass` with the exact derivative through the last steps.

    Args:
        horizon: number of steps, counted back from an outer update and not beyond the one before.
        every: training steps between two outer updates.
        lr: the rate of the outer Adam.
        store: "graph", "state" or "tree", see `estimators.reverse.Reverse`; None for graphs up to a horizon of 20, and
            states from 21 on.
        branching: k of the tree.
        on: where the tree's states lie, "memory" or "disk".
        mode: in which mode Hessian products are taken, see `estimators.reverse.Reverse`.
    """
    chosen = store or ("graph" if horizon <= 20 else "state")
    return Method(Reverse(horizon, chosen, branching, on, mode=mode), Adam(lr), every=every)


def hd(lr: float, multiplicative: bool = False) -> Method:
    """HD, hypergradient descent (Baydin et al. 2018; MetaOptimize, Appendix B.2).

    Before the next step is taken, an outer step follows the derivative of the training loss: the inner product of `g_t`
    and the previous step's `dw_t/draw`. The additive rule is `metaoptimize_hf` with `gamma=0`, SGD as the meta rule and
    the update one step earlier.

    Cost per step: a dot product.

    Memory: D.

    Args:
        lr: the rate of the outer rule.
        multiplicative: with this rate, use the rule `lr <- lr (1 - rate cos(g_t, w_t - w_{t-1}))` on the coordinate
            itself (transform "identity"), instead of the additive rule in any coordinate.
    """
    outer: Outer = Multiplicative(lr) if multiplicative else SGD(lr)
    return Method(Trace(0.0, normalised=multiplicative), outer, outer_loss="training", immediate=True)


def baydin(lr: float = 0.001) -> Method:
    """The baseline "Baydin" of OnePass (Section 4.1): SGD on log10 lr without the chain factor of log10.

    The hypergradient is minus the inner product `<g_t, g_{t-1}>` of gradients of the loss alone. For this baseline the
    validation rows are training rows (in the book, `uci.Table.merged`). `hd` differs by the chain factor and by the
    whole last step, with momentum and weight decay, in place of `g_{t-1}`.

    Cost per step: a dot product.

    Memory: D.

    Args:
        lr: the rate of the outer SGD.
    """
    return Method(Trace(0.0, direction="gradient", chain=False), SGD(lr), outer_loss="training", immediate=True)


def metaoptimize_hf(meta: Outer | None = None, gamma: float = 1.0, form: str = "ours") -> Method:
    """Hessian-free MetaOptimize (Algorithm 3): a discounted trace h of the steps taken.

    The hypergradient is `<h, g>` of the training loss, for each group of a learning rate in the coordinate "log". `hd`
    is the case `gamma=0` with SGD and the update one step earlier. `gradtune.training.metaoptimize.MetaOptimize` has
    the Hessians and the meta dynamics.

    Cost per step: a dot product.

    Memory: D, whatever the number of learning rates.

    Args:
        meta: the outer rule; by default Lion with meta step size 1e-3. The paper's experiments use Lion and Adam
            (Algorithm 3, Appendix C).
        gamma: discount of past steps, in [0, 1].
        form: "ours" is Algorithm 3; "package" follows the published package: normalised gradients without momentum and
            weight decay in h, and by default the new momentum inside Lion's sign.

    Raises:
        GradtuneError: `form` is unknown.
    """
    if form not in ("ours", "package"):
        raise unknown("form of Hessian-free MetaOptimize", form, ["ours", "package"])
    package = form == "package"
    trace = Trace(gamma, direction="gradient" if package else "step")
    return Method(trace, meta or Lion(1e-3, new_momentum=package), outer_loss="training")


def idbd(lr: float) -> Method:
    """IDBD (Sutton 1992; MetaOptimize, eq. 83 to 87): a learning rate per weight.

    It is for plain SGD and problems with `curvature_diagonal`. The update of the learning rates comes before the step.
    `metaoptimize_hf(SGD(lr))` per weight leaves out the curvature.

    Cost: elementwise.

    Memory: D.

    Args:
        lr: the meta step size, of SGD on log lr.
    """
    return Method(IDBD(), SGD(lr), outer_loss="training", immediate=True)
