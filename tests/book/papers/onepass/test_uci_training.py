"""What the studies `uci_*` share: the stacked loss, initial values, trainings that match the published program's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.nets import compiled
from gradtune.recursion.rules import sgd
from gradtune.search import Bayes, Training
from gradtune.search import search as black_box
from gradtune_book.papers.onepass import uci_bayes, uci_training
from gradtune_book.papers.onepass.uci_training import RANGES, SETTINGS, Config, Start, declared, draw, regression, train
from gradtune_book.records import environment
from gradtune_book.tasks import relu_nets
from gradtune_book.tasks.uci import Table, TableRegression, load
from tools import REFERENCE

FILE = REFERENCE / "onepass_uci_energy.npz"
CPU = torch.device("cpu")
THEIRS = {
    "Random": "Random",
    "Random-xLR": "Random_SteppedLR",
    "Lorraine": "Lorraine",
    "Baydin": "Baydin",
    "WD+LR": "Ours_LR",
    "WD+LR+M": "Ours_LR_Momentum",
    "WD+HDLR+M": "Ours_HDLR_Momentum",
    "Diff-through-Opt": "DiffThroughOpt",
}


@pytest.fixture(params=["compiled", "one block", "many blocks"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms of the loss on tables."""
    if request.param == "compiled":
        if compiled.compiler() is None:
            pytest.skip("no C++ compiler")
        assert compiled.load(relu_nets._SOURCE) is not None
        return
    monkeypatch.setattr(compiled, "load", lambda source: None)
    monkeypatch.setattr(relu_nets, "_CACHED", 2**20 if request.param == "one block" else 2**12)


@pytest.mark.parametrize("runs", [1, 3])
def test_stacked_loss_is_the_modules(runs: int, form: None) -> None:
    """Loss, gradient and Hessian product in float64, on rows where the gradient is not small."""
    table = load("diabetes")
    tasks = [TableRegression(table, 7, stacked) for stacked in (False, True)]
    w = tasks[0].init(range(runs))
    v = torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(0))
    found = []
    for task in tasks:
        leaf = w.clone().requires_grad_()
        losses = task.train_loss(leaf, {})
        (g,) = torch.autograd.grad(losses @ torch.arange(1.0, runs + 1).to(w), leaf, create_graph=True)
        (product,) = torch.autograd.grad(g, leaf, v)
        found.append((losses.detach(), g.detach(), product))
    for module, stacked in zip(*found, strict=True):
        assert module.abs().max() > 1e-3
        assert torch.allclose(module, stacked, rtol=1e-12, atol=1e-13)


def test_rows_are_cut_into_blocks_that_fit() -> None:
    first = torch.zeros(10, 50, 9)
    blocks = list(relu_nets._blocks(first, torch.zeros(9, 7373)))
    assert [b.start for b in blocks[1:]] == [b.stop for b in blocks[:-1]]
    assert blocks[0].start == 0 and blocks[-1].stop == 7373
    assert len(blocks) == 15 and max(b.stop - b.start for b in blocks) * 10 * 50 * 4 <= relu_nets._CACHED


def test_stacked_loss_keeps_a_diverged_run_to_itself(form: None) -> None:
    task = TableRegression(load("diabetes"), 7, stacked=True)
    w = task.init([0, 1])
    alone = task.train_loss(w[:1], {})
    w[1] = torch.nan
    leaf = w.clone().requires_grad_()
    losses = task.train_loss(leaf, {})
    (g,) = torch.autograd.grad(losses.sum(), leaf)
    assert torch.isclose(losses[0], alone[0], rtol=1e-14) and losses[1].isnan()
    assert g[0].isfinite().all() and g[1].isnan().all()


def test_initial_values_lie_in_table_5_and_belong_to_their_seed() -> None:
    many, few = draw(range(400)), draw([7, 3])
    assert torch.equal(few.lr, many.lr[[7, 3]]) and torch.equal(few.multiplier, many.multiplier[[7, 3]])
    for values, name in ((many.lr.log10(), "lr"), (many.weight_decay.log10(), "weight_decay"), (many.momentum, None)):
        low, high = RANGES[name or "momentum"]
        assert low <= values.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < values.max() <= high
    both = torch.stack([many.lr.log10(), many.weight_decay.log10(), many.momentum, many.multiplier])
    assert (torch.corrcoef(both) - torch.eye(4)).abs().max() < 0.2
    w = TableRegression(load("diabetes"), 7).init(range(400))
    assert np.abs(np.corrcoef(w[:, 0].numpy(), many.lr.log10().numpy())[0, 1]) < 0.2


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, np.ndarray]]:
    """The studies' training on the published program's rows and initialisations."""
    z = dict(np.load(FILE))

    def table(self: Config, device: torch.device) -> Table:
        a, b, c, d, e, f = (torch.tensor(z[f"{p}_{q}"]) for q in ("train", "val", "test") for p in "xy")
        return Table(a, b, c, d, e, f, y_std=float(z["y_std"]))

    def start(seeds: list[int]) -> Start:
        raw = torch.tensor(np.stack([z[f"traj_Random_SteppedLR_{k}_init_raw"] for k in seeds]))
        return Start(10 ** raw[:, 0], 10 ** raw[:, 1], torch.sigmoid(raw[:, 2]), raw[:, 3])

    def init(self: TableRegression, seeds: list[int]) -> Tensor:
        return torch.tensor(np.stack([z[f"traj_Random_{k}_init_weights"] for k in seeds]))

    monkeypatch.setattr(Config, "table", table)
    monkeypatch.setattr(uci_training, "draw", start)
    monkeypatch.setattr(TableRegression, "init", init)
    uci_training._trainer.cache_clear()
    yield z
    uci_training._trainer.cache_clear()


@pytest.mark.parametrize("method", SETTINGS)
def test_every_setting_is_the_published_programs(method: str, reference: dict[str, np.ndarray]) -> None:
    """Both published runs, the first 20 updates: test losses and hyperparameters, float64."""
    trained = train(Config(method, 0, steps=200, dtype="float64"), [0, 1], CPU, 10)
    for k in (0, 1):
        prefix = f"traj_{THEIRS[method]}_{k}_"
        assert np.abs(trained.test[k] / reference[prefix + "test_mse"][:21] - 1).max() < 1e-9
        for name, values in trained.tuned.items():
            if prefix + name in reference and method != "Baydin":  # whose rates are read at other steps there
                assert np.abs(values[k] / reference[prefix + name][:21] - 1).max() < 1e-9
    names = {"Random": set(), "Random-xLR": {"lr"}}.get(method, set(SETTINGS[method].tuned))
    assert names <= set(trained.tuned)


def test_traced_training_in_batches_is_the_eager_one() -> None:
    """A trainer that is used again, with other seeds, gives what a fresh one gives."""
    c = Config("WD+LR+M", 0, "diabetes", steps=1000, hidden=8, dtype="float64")
    first = uci_training.trainer(c, 2, CPU)
    for seeds in ([0, 1], [5, 6]):
        start, members = first.start(seeds)
        first.warm_up(members, 10)
        traced = first.advance(members, 40).run
        eager = uci_training.Trainer(replace(c, steps=40), CPU)
        plain = eager.advance(eager.start(seeds)[1], 40).run
        assert torch.allclose(traced.state.w, plain.state.w, rtol=1e-12) and torch.allclose(traced.raw, plain.raw)
        assert torch.equal(start.lr, draw(seeds).lr)


def test_side_by_side_searches_are_the_single_ones() -> None:
    c = Config("Bayes", 0, "diabetes", steps=30, hidden=8, dtype="float64")
    found = uci_bayes.search(c, [0, 1], 7, CPU, Bayes(startup=3))
    task = regression(c, CPU, merged=False)
    training = Training(task, sgd(), declared(SETTINGS["Random"]), task.layout.sizes, task.init, 30)
    for seed, ours in enumerate(found.repetitions):
        alone = black_box("bayes", training, uci_bayes.SPACE, 7 * 30, seed, startup=3).to_frame()
        for name in ("lr", "weight_decay", "momentum"):
            assert np.allclose([config[name] for config in ours.configs], alone[name], rtol=1e-6)
        assert np.allclose(ours.val, alone["val_loss"] * task.table.y_std**2, rtol=1e-6)


def test_a_diverged_run_is_nan_and_its_neighbour_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(seeds: list[int]) -> Start:
        half = torch.full((2,), 0.5, dtype=torch.float64)
        return Start(torch.tensor([1.0, 1e-3]).double(), 1e-3 * half, torch.tensor([0.99, 0.5]).double(), half + 0.5)

    monkeypatch.setattr(uci_training, "draw", start)
    trained = train(Config("Random", 0, "diabetes", steps=400), [0, 1], CPU, 10)
    assert np.isnan(trained.test[0, -1]) and np.isnan(trained.val[0]) and np.isfinite(trained.test[0, 0])
    assert np.isfinite(trained.test[1]).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Config("WD-LR", 0, "diabetes", 10), r"did you mean 'WD\+LR'"),
        (Config("Random", 0, "diabetes", 10, form="stack"), "did you mean 'stacked'"),
        (Config("Random", 0, "diabetes", 10, dtype="float16"), "known: float32, float64"),
    ],
)
def test_a_wrong_field_is_named(wrong: Config, message: str) -> None:
    with pytest.raises(GradtuneError, match=message):
        train(wrong, [0], CPU, 10)


def test_the_share_of_training_rows() -> None:
    usual, half = load("diabetes"), load("diabetes", train_share=0.45)
    assert len(usual.x_train) == int(0.8 * 442) and len(half.x_train) == int(0.45 * 442)
    assert torch.equal(usual.x_test, half.x_test)
    assert torch.equal(torch.cat([half.x_train, half.x_val]), torch.cat([usual.x_train, usual.x_val]))
    for share in (0.0, 0.95):
        with pytest.raises(GradtuneError, match="train_share"):
            load("diabetes", train_share=share)


def test_seconds_of_the_processor_grow_with_work() -> None:
    environment.keep_freed_memory()
    before = environment.busy_seconds(CPU)
    x = torch.randn(200, 200)
    for _ in range(50):
        x = (x @ x).tanh()
    assert 0 < environment.busy_seconds(CPU) - before < 60
