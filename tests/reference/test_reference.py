"""Our estimators against numbers that the published programs give on small fixed problems (float64, CPU). Relative
error: max|a - b| / max|b|."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss

from gradtune.estimators.forward import Forward, Split
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.methods import clip_r, diff_through_opt, fds, lorraine, onepass, unroll_k
from gradtune.nets.layout import Layout
from gradtune.nets.modules import batched
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, Adam
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method, Run
from gradtune_book.papers.published import OhoProgram
from gradtune_book.tasks.quadratic import Quadratic
from gradtune_book.tasks.uci import Table, TableRegression
from tools import REFERENCE


def error(ours: torch.Tensor | np.ndarray, theirs: np.ndarray) -> float:
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# --- OnePass on UCI Energy ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def energy() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE / "onepass_uci_energy.npz"))


@pytest.fixture(scope="module")
def task(energy: dict[str, np.ndarray]) -> TableRegression:
    a, b, c, d, e, f = (torch.tensor(energy[f"{p}_{q}"]) for q in ("train", "val", "test") for p in "xy")
    return TableRegression(Table(a, b, c, d, e, f, y_std=float(energy["y_std"])))


def onepass_hypers(raw: torch.Tensor, tuned: tuple[str, ...], layout: Layout) -> Hypers:
    """Hyperparameters of R runs from their raw coordinates (log10 lr, log10 weight decay, logit momentum) `[R, 3]`."""
    return Hypers(
        [
            Hyper("lr", 10.0 ** raw[:, 0], "log10", bounds=(1e-10, 1.0), tuned="lr" in tuned),
            Hyper("weight_decay", 10.0 ** raw[:, 1], "log10", tuned="weight_decay" in tuned),
            Hyper("momentum", torch.sigmoid(raw[:, 2]), "sigmoid", tuned="momentum" in tuned),
        ],
        layout.sizes,
    )


ALL = ("lr", "weight_decay", "momentum")
ESTIMATORS: dict[str, Any] = {f"ours_i{i}": Neumann(i) for i in (1, 2, 5, 10)}
ESTIMATORS |= {
    f"exact_w{k}": Reverse(k, store) for k, store in ((1, "state"), (2, "graph"), (5, "state"), (10, "graph"))
}
ESTIMATORS |= {"exact_w10 forward": Forward()}


TRACED = ("ours_i5", "exact_w5", "exact_w10", "exact_w10 forward")


@pytest.mark.parametrize(
    ("name", "trace"),
    [(name, False) for name in ESTIMATORS] + [(name, True) for name in TRACED],
    ids=[f"{name}-eager" for name in ESTIMATORS] + [f"{name}-traced" for name in TRACED],
)
def test_onepass_hypergradients(name: str, trace: bool, energy: dict[str, np.ndarray], task: TableRegression) -> None:
    """All eight cases at once, after ten weight steps; the raw step of an outer SGD with rate 1 is the
    hypergradient."""
    init = torch.cat([torch.tensor(energy[f"hg_init_{p}"]).reshape(8, -1) for p in ("W1", "b1", "W2", "b2")], dim=1)
    loop = Loop(
        task,
        sgd(),
        onepass_hypers(torch.tensor(energy["hg_hyper_raw"]), ALL, task.layout),
        Method(ESTIMATORS[name], SGD(1.0), every=10),
        trace=trace,
    )
    loop.hypers.clamp = lambda raw: raw  # type: ignore[method-assign]  # the whole step, not the part inside the bounds
    run = loop.start(init)
    before = run.raw
    after = loop.advance(run, 10)
    assert error(after.state.w, energy["hg_w_at_hyper_update"]) < 1e-12
    hypergradient = before - after.raw
    theirs = energy["hg_" + name.split()[0]]
    for case in range(8):
        assert error(hypergradient[case], theirs[case]) < 1e-10


def test_onepass_learning_rate_per_weight(energy: dict[str, np.ndarray], task: TableRegression) -> None:
    """OnePass WD+HDLR+M: 501 learning rates, a weight decay and a momentum."""
    raw = torch.tensor(energy["hg_hyper_raw"])
    ours = first_hypergradient(energy, task, Neumann(5), per_weight(raw, task.layout))
    for case in range(8):
        assert error(ours[case], energy["hg_hdlr_i5"][case]) < 1e-10


def test_lorraine_hypergradient(energy: dict[str, np.ndarray], task: TableRegression) -> None:
    """Weight decay alone. Relative to the largest of the eight: the smallest, at weight decay 1e-7, carry the
    reference's own rounding."""
    hypers = onepass_hypers(torch.tensor(energy["hg_hyper_raw"]), ("weight_decay",), task.layout)
    assert error(first_hypergradient(energy, task, Neumann(5), hypers), energy["hg_lorraine_i5"]) < 1e-10


def first_hypergradient(energy: dict[str, np.ndarray], task: TableRegression, estimator: Any, hypers: Hypers) -> Any:
    init = torch.cat([torch.tensor(energy[f"hg_init_{p}"]).reshape(8, -1) for p in ("W1", "b1", "W2", "b2")], dim=1)
    loop = Loop(task, sgd(), hypers, Method(estimator, SGD(1.0), every=10))
    loop.hypers.clamp = lambda raw: raw  # type: ignore[method-assign]
    run = loop.start(init)
    return run.raw - loop.advance(run, 10).raw


def per_weight(raw: torch.Tensor, layout: Layout) -> Hypers:
    """As `onepass_hypers`, all tuned, with a learning rate for each weight."""
    return Hypers(
        [
            Hyper("lr", 10.0 ** raw[:, 0], "log10", "weight", bounds=(1e-10, 1.0)),
            Hyper("weight_decay", 10.0 ** raw[:, 1], "log10"),
            Hyper("momentum", torch.sigmoid(raw[:, 2]), "sigmoid"),
        ],
        layout.sizes,
    )


@pytest.mark.parametrize("name", ["Ours_LR", "Ours_LR_Momentum", "Ours_HDLR_Momentum", "Lorraine", "DiffThroughOpt"])
def test_onepass_trajectories(name: str, energy: dict[str, np.ndarray], task: TableRegression) -> None:
    """Both published runs side by side: the first 20 updates of test error and hyperparameters, then all 4000 steps.
    A learning rate per weight makes training chaotic: its first 20 updates only."""

    def theirs(what: str) -> torch.Tensor:
        return torch.tensor(np.stack([energy[f"traj_{name}_{k}_{what}"] for k in (0, 1)]))

    raw = theirs("init_raw")[:, :3]
    hypers, method = {
        "Ours_LR": (onepass_hypers(raw, ("lr", "weight_decay"), task.layout), onepass()),
        "Ours_LR_Momentum": (onepass_hypers(raw, ALL, task.layout), onepass()),
        "Ours_HDLR_Momentum": (per_weight(raw, task.layout), onepass()),
        "Lorraine": (onepass_hypers(raw, ("weight_decay",), task.layout), lorraine()),
        "DiffThroughOpt": (onepass_hypers(raw, ALL, task.layout), diff_through_opt(5)),
    }[name]
    seen: list[dict[str, torch.Tensor]] = []

    def watch(run: Run) -> None:
        natural = hypers.natural(run.raw)
        if name == "Ours_HDLR_Momentum":
            rates = natural.pop("lr")
            natural["lr_min_mean_max"] = torch.stack([rates.amin(1), rates.mean(1), rates.amax(1)], dim=1)
        seen.append(natural | {"test_mse": task.test_mse(run.state.w)})

    loop = Loop(task, sgd(), hypers, method, trace=True)
    run = loop.start(theirs("init_weights"))
    watch(run)
    run = loop.advance(run, 200, watch, watch_every=10)
    for what in seen[0]:
        ours = torch.stack([s[what] for s in seen], dim=1)
        assert (ours.reshape(theirs(what)[:, :21].shape) / theirs(what)[:, :21] - 1).abs().max() < 1e-9
    if name != "Ours_HDLR_Momentum":
        run = loop.advance(run, 3800)
        assert (task.test_mse(run.state.w) / theirs("final_test_mse") - 1).abs().max() < 1e-6


# --- The quadratic toy ----------------------------------------------------------------------------------------------

CLIP = {
    "Unroll1": unroll_k(1),
    "Unroll5": unroll_k(5),
    "Unroll10": unroll_k(10),
    "Clip2": clip_r(2.0),
    "Clip5": clip_r(5.0),
}


@pytest.mark.parametrize("name", CLIP)
def test_clip_quadratic(name: str) -> None:
    z = np.load(REFERENCE / "clip_quadratic.npz")
    h, theta_hat, theta_bar = (torch.tensor(z[n])[None] for n in ("H", "theta_hat", "theta_bar"))
    toy = Quadratic(h, theta_hat, theta_bar)
    assert abs(float(toy.optimal_penalty()) - z["lambda_star"]) < 1e-12
    assert abs(float(toy.best_val_loss()) / z["LV_star"] - 1) < 1e-12
    loop = Loop(
        toy,
        sgd(momentum=False, weight_decay=False),
        Hypers([Hyper("lr", 1e-3, tuned=False), Hyper("penalty", 0.0)], [20]),
        CLIP[name],
        trace=True,
    )
    run, penalties = loop.start(torch.zeros(1, 20, dtype=torch.float64)), []
    for phase, rate in ((1, 1e-3), (2, 1e-4)):
        run = run._replace(fixed={"lr": torch.full_like(run.fixed["lr"], rate)})
        run = loop.advance(run, 20_000, lambda r: penalties.append(float(r.raw)), watch_every=200)
        assert error(run.state.w[0], z[f"{name}__phase{phase}_theta"]) < 1e-9
        assert abs(float(run.raw) / z[f"{name}__phase{phase}_lambda"] - 1) < 1e-9
        assert abs(float(toy.val_loss(run.state.w)) / z[f"{name}__phase{phase}_LV"] - 1) < 1e-9
    assert error(np.array(penalties), z[f"{name}__lambda_every200"]) < 1e-9


# --- FDS on a small net ---------------------------------------------------------------------------------------------


class FixedBatches:
    """A net on the reference's stored batches: batch t mod 10 of 16 rows, mean loss of three validation batches of
    20."""

    stationary = False

    def __init__(self, z: dict[str, np.ndarray]) -> None:
        self.x, self.y = torch.tensor(z["X_train"]).view(10, 16, 6), torch.tensor(z["Y_train"]).view(10, 16)
        self.val = torch.tensor(z["X_val"]), torch.tensor(z["Y_val"])
        self.module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.layout = Layout.of(self.module)
        self.loss = batched(self.module, cross_entropy)

    def train_loss(self, w, lam, t):  # type: ignore[no-untyped-def]
        return self.loss(w, self.x[t % 10], self.y[t % 10])

    def val_loss(self, w, lam, t):  # type: ignore[no-untyped-def]
        return self.loss(w, *self.val)


@pytest.mark.parametrize("estimator", [Forward(), Reverse(50)], ids=["forward", "reverse"])
@pytest.mark.parametrize("case", ["A_mlp_5lr_noclip", "D_mlp_7lr2mom3wd_noclip", "G_mlp_neglr_negmom"])
def test_fds_small_net(case: str, estimator: Forward | Reverse) -> None:
    z, numbers = (
        dict(np.load(REFERENCE / "fds_small_net.npz")),
        json.loads((REFERENCE / "fds_small_net.json").read_text())[case],
    )
    task = FixedBatches(z)
    values = {"lr": numbers["lrs"], "momentum": numbers["moms"], "weight_decay": numbers["wds"]}
    hypers = Hypers(
        [Hyper(n, torch.tensor(v, dtype=torch.float64)[None, None], windows=len(v)) for n, v in values.items()],
        task.layout.sizes,
        horizon=50,
    )
    loop = Loop(
        task,
        sgd(),
        hypers,
        fds(50, outer=SGD(1.0)) if estimator == Forward() else Method(estimator, SGD(1.0), every=50),
    )
    start = loop.start(torch.tensor(z["w0_mlp"])[None])
    run = loop.advance(start, 50)
    assert error(run.state.w[0], z[f"{case}__w_final"]) < 1e-12
    parts = torch.split((start.raw - run.raw)[0], [len(v) for v in values.values()])
    for short, part in zip(("lr", "mom", "wd"), parts, strict=True):
        assert error(part, np.array(numbers[f"autograd_dLval_d{short}"])) < 1e-12
        assert error(part, np.array(numbers[f"finitediff_dLval_d{short}"])) < 1e-6
    if isinstance(estimator, Forward):
        for short, z_part in zip(
            ("lr", "mom", "wd"), torch.split(run.memory.w[0], [len(v) for v in values.values()]), strict=True
        ):
            assert error(z_part.mT, z[f"{case}__Z_{short}"]) < 1e-12


# --- OHO on MNIST ---------------------------------------------------------------------------------------------------


class OhoBatches:
    """784-32-32-10 tanh net with an l2 penalty l2/2 |w|^2 in the training loss; batch t mod 20, validation batch t mod
    10."""

    stationary = False

    def __init__(self, z: dict[str, np.ndarray]) -> None:
        scaled = {n: torch.tensor(z[n]).double() / 255 for n in ("X_train_uint8", "X_val_uint8")}
        self.train = scaled["X_train_uint8"], torch.tensor(z["Y_train"])
        self.val = scaled["X_val_uint8"], torch.tensor(z["Y_val"])
        self.module = nn.Sequential(
            nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10), nn.LogSoftmax(dim=1)
        ).double()
        self.layout = Layout.of(self.module)
        self.loss = batched(self.module, nll_loss)

    def train_loss(self, w, lam, t):  # type: ignore[no-untyped-def]
        penalty = 0.5 * lam["l2"][:, 0] * (w * w).sum(-1) if "l2" in lam else 0.0
        return self.loss(w, self.train[0][t % 20], self.train[1][t % 20]) + penalty

    def val_loss(self, w, lam, t):  # type: ignore[no-untyped-def]
        return self.loss(w, self.val[0][t % 10], self.val[1][t % 10])


@pytest.mark.parametrize("where", ["loss", "rule"])
def test_oho_frozen_sensitivity(where: str) -> None:
    """The exact hypergradient at every step; the penalty as a hyperparameter of the loss and as the rule's weight decay
    give the same."""
    z = dict(np.load(REFERENCE / "oho_mnist_mlp.npz"))
    task, name = OhoBatches(z), "l2" if where == "loss" else "weight_decay"
    hypers = Hypers([Hyper("lr", 0.1), Hyper(name, 1e-4)], task.layout.sizes)
    # an outer rate of 2^-1074 freezes the hyperparameters; the hypergradients are read off the outer rule's input
    seen: list[torch.Tensor] = []

    class Frozen(SGD):
        def update(self, raw, hypergradient, state, lam):  # type: ignore[no-untyped-def]
            seen.append(hypergradient[0])
            return raw, state

    loop = Loop(task, sgd(momentum=False, weight_decay=where == "rule"), hypers, Method(Forward(), Frozen(0.0)))
    run = loop.advance(loop.start(torch.cat([torch.tensor(z[f"W0_{i}"]).reshape(-1) for i in range(6)])[None]), 100)
    assert error(torch.stack(seen)[:, 0], z["F_frozen__true_sensitivity_hg"][:, 0]) < 1e-12
    assert error(torch.stack(seen)[:, 1], z["F_frozen__true_sensitivity_hg"][:, 1]) < 1e-12
    assert error(run.memory.w[0, 0], z["F_frozen__true_dtheta_dlr"]) < 1e-12
    assert error(run.memory.w[0, 1], z["F_frozen__true_dtheta_dl2"]) < 1e-12


@pytest.mark.parametrize("run", ["B_lr.05_l2_1e-4_mlr1e-3", "F_frozen_lr.1_l2_1e-4_mlr0"])
def test_oho_as_its_program_runs_it(run: str) -> None:
    """The published program's recursion with an exact Hessian product, all 100 steps."""
    z, prefix = dict(np.load(REFERENCE / "oho_mnist_mlp.npz")), f"{run}__exactHVP_float64__"
    lr, rate = (0.05, 1e-3) if run.startswith("B") else (0.1, 0.0)
    program = OhoProgram(OhoBatches(z), lr, 1e-4, rate)
    w, seen = torch.cat([torch.tensor(z[f"W0_{i}"]).reshape(-1) for i in range(6)])[None], []
    for t in range(100):
        w, *hypergradients = program.step(w, t)
        seen.append([program.lr, program.l2, *hypergradients])
    for column, name in zip(np.array(seen).T, ("lr", "l2", "hg_lr", "hg_l2"), strict=True):
        assert error(column, z[prefix + name]) < 1e-12
    for ours, name in ((w, "w_final"), (program.to_lr, "dFdlr_final"), (program.to_l2, "dFdl2_final")):
        assert error(ours[0], z[prefix + name]) < 1e-12


def test_measured_effects_on_the_page_of_omissions() -> None:
    """The numbers the page gives for OHO: the program against the exact form, steps 11 to 100."""
    z = dict(np.load(REFERENCE / "oho_mnist_mlp.npz"))
    exact, program = z["F_frozen__true_sensitivity_hg"][10:], "F_frozen_lr.1_l2_1e-4_mlr0__exactHVP_float64__hg_"
    ratios = [np.median(z[program + n][10:] / exact[:, k]) for k, n in enumerate(("lr", "l2"))]
    assert [round(float(r), 2) for r in ratios] == [0.96, 1.98]
    layers = layer_hypergradients(z, Forward())
    for estimator, expected in ((Split(), (0.227, 0.199)), (Forward(product=0.01), (5e-6, 4e-7))):
        off = layer_hypergradients(z, estimator) - layers
        for part, number in zip((slice(0, 3), slice(3, 6)), expected, strict=True):
            error = (off[:, part].norm(dim=1) / layers[:, part].norm(dim=1)).median()
            assert float(error) == pytest.approx(number, rel=0.2)


def layer_hypergradients(z: dict[str, np.ndarray], estimator: Any) -> torch.Tensor:
    """A learning rate and a weight decay for each of three layers, frozen: hypergradients of steps 11 to 100."""
    task, seen = OhoBatches(z), []

    class Frozen(SGD):
        def update(self, raw, hypergradient, state, lam):  # type: ignore[no-untyped-def]
            seen.append(hypergradient[0])
            return raw, state

    layers = (0, 0, 1, 1, 2, 2)
    hypers = [Hyper("lr", 0.1, granularity=layers), Hyper("weight_decay", 1e-4, granularity=layers)]
    loop = Loop(task, sgd(momentum=False), Hypers(hypers, task.layout.sizes), Method(estimator, Frozen(0.0)))
    loop.advance(loop.start(torch.cat([torch.tensor(z[f"W0_{i}"]).reshape(-1) for i in range(6)])[None]), 100)
    return torch.stack(seen)[10:]


def test_adam_is_torch_adam() -> None:
    """The outer Adam against torch.optim.Adam on the same gradients."""
    raw = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(raw.clone())
    theirs, ours = torch.optim.Adam([parameter], lr=0.05), Adam(0.05)
    state = ours.init(raw)
    for k in range(30):
        g = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k + 1))
        raw, state = ours.update(raw, g, state, {})
        parameter.grad = g
        theirs.step()
    assert torch.allclose(raw, parameter.detach(), rtol=1e-13, atol=0)
