"""The OHO studies: schedules against torch's, perturbations, norms and correlations, sets of hyperparameters."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hypers
from gradtune.training.loop import Run
from gradtune_book import papers
from gradtune_book.papers.oho import dynamics, layerwise, measures, performance, schedules, training
from gradtune_book.papers.oho.training import DECAY, LR, OHO, Bench, frozen, placed, train
from gradtune_book.tasks.images import Images

CPU = torch.device("cpu")
SMALL = training.Config(
    OHO, 0, data="digits", validation=280, batch=56, outer_batch=56, width=8, epochs=2, lr=0.1, decay=1e-3,
    meta_rate=1e-3,
)  # fmt: skip


def _bench(**changes: Any) -> Bench:
    return Bench(replace(SMALL, **changes), CPU)


def _started(bench: Bench, runs: int = 2, steps: int = 5) -> tuple[Any, Run]:
    loop = bench.loop(bench.hypers(tuned=True))
    return loop, loop.advance(loop.start(bench.task.init(range(runs))), steps)


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", schedules.WAYS)
def test_schedules_are_those_of_torch(way: str) -> None:
    """Each way against torch's scheduler of the same name, stepped once an epoch."""
    epochs, period, gamma, lr = 7, 3, 0.8, 0.2
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    of_torch = torch.optim.lr_scheduler
    scheduler: Any = {
        "Step": lambda: of_torch.StepLR(optimiser, period, schedules.STEP_FACTOR),
        "Exp": lambda: of_torch.ExponentialLR(optimiser, gamma),
        "Cosine": lambda: of_torch.CosineAnnealingLR(optimiser, epochs),
    }.get(way, lambda: of_torch.LambdaLR(optimiser, lambda epoch: 1.0))()
    for epoch in range(epochs):
        ours = schedules.factor(way, epoch, epochs, torch.tensor([float(period)]), torch.tensor([gamma]))
        assert float(lr * ours) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-5, abs=1e-9)
        optimiser.step()
        scheduler.step()


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(GradtuneError, match="Cosine"):
        schedules.factor("cosine", 0, 1, torch.ones(1), torch.ones(1))


def test_a_scheduled_training_is_the_one_of_torch() -> None:
    """Adam with decay and the step schedule, net for net, against a plain loop of torch on the same batches."""
    bench = _bench()
    for way, make in (("Adam", torch.optim.Adam), ("Step", torch.optim.SGD)):
        recipe = {LR: 0.01, DECAY: 1e-2, "beta1": 0.8, "beta2": 0.95, "period": 1.0}
        w = bench.task.init([3])
        loop, fall = performance.loop_of(bench, way, [recipe], w)
        ours = train(bench, loop, w, fall).w[0]
        net = bench.task.nets.fresh()
        torch.nn.utils.vector_to_parameters(w[0], net.parameters())
        betas: dict[str, Any] = {"betas": (0.8, 0.95)} if way == "Adam" else {}
        optimiser = make(net.parameters(), lr=0.01, weight_decay=1e-2, **betas)
        for t in range(bench.steps):
            if way == "Step":
                optimiser.param_groups[0]["lr"] = 0.01 * schedules.STEP_FACTOR ** (t // bench.per_epoch)
            x, y = bench.task.train.at(t)
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
        theirs = torch.nn.utils.parameters_to_vector(net.parameters())
        assert torch.allclose(ours, theirs, atol=2e-5)


# --- perturbations ----------------------------------------------------------------------------------------------------


def test_a_hyperparameter_is_set_and_the_influence_stays() -> None:
    bench = _bench(sets=3)
    loop, run = _started(bench)
    after = placed(loop, run, LR, 0.2)
    natural = loop.hypers.natural(after.raw)
    assert torch.allclose(natural[LR], torch.tensor(0.2))
    assert torch.equal(natural[DECAY], loop.hypers.natural(run.raw)[DECAY])
    assert torch.equal(after.memory.w, run.memory.w)
    assert not torch.equal(run.raw, after.raw)


def test_fixed_from_there_on() -> None:
    bench = _bench()
    loop, run = _started(bench)
    still, run = frozen(loop, placed(loop, run, DECAY, 0.0))
    end = still.advance(run, 10)
    assert torch.equal(end.raw, run.raw)
    assert not torch.equal(end.state.w, run.state.w)


def test_a_perturbed_training_differs_from_its_epoch_on() -> None:
    """Before the reset nothing differs; at its epoch the rate is the new one and moves on, or stays."""
    base = dynamics.Config(OHO, 0, **{k: v for k, v in vars(SMALL).items() if k not in ("method", "seed")})
    base = replace(base, epochs=4, readings=1)
    kinds = [base, *(replace(base, at=2, to=0.2, after=after) for after in ("OHO", "fixed"))]
    alone, moving, fixed = (dynamics.run([c], CPU)[0].series["lr_0"] for c in kinds)
    assert alone[:3] == moving[:3] == fixed[:3]
    assert fixed[3:] == pytest.approx([0.2, 0.2])
    assert moving[3] != fixed[3] and abs(moving[3] - 0.2) < 0.05  # type: ignore[operator]


# --- norms and correlations -------------------------------------------------------------------------------------------


def test_influence_is_the_derivative_of_the_weights() -> None:
    """The norms of Figure 9 against automatic differentiation of the whole training, meta rate 0."""
    bench, steps = _bench(meta_rate=0.0, width=3), 12
    loop, run = _started(bench, 1, steps)
    found = measures.influence(loop.hypers, run.memory.w)

    def trained(lr: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        w = bench.task.init([0]).requires_grad_()
        for t in range(steps):
            (g,) = torch.autograd.grad(bench.task.train_loss(w, {}, t).sum(), w, create_graph=True)
            w = w - lr * (g + decay * w)
        return w[0]

    by_rate, by_decay = torch.autograd.functional.jacobian(trained, (torch.tensor(0.1), torch.tensor(1e-3)))
    assert float(found[LR]) == pytest.approx(float(by_rate.square().sum()), rel=1e-3)
    assert float(found[DECAY]) == pytest.approx(float(by_decay.square().sum()), rel=1e-3)


def test_jacobian_norm_is_the_spectral_norm() -> None:
    bench = _bench(width=3, layers=3)
    w, t = bench.task.init([0]), 2

    def loss(row: torch.Tensor) -> torch.Tensor:
        module = bench.task.nets.fresh()
        x, y = bench.task.train.at(t)
        parts = {n: v[0] for n, v in bench.task.layout.split(row[None]).items()}
        return nn.functional.cross_entropy(torch.func.functional_call(module, parts, (x,)), y)

    hessian = torch.autograd.functional.hessian(loss, w[0])
    lr, decay = torch.tensor([[3.0]]), torch.tensor([[0.1]])
    step = torch.eye(w.shape[1]) - 3.0 * (hessian + 0.1 * torch.eye(w.shape[1]))
    exact = float(torch.linalg.matrix_norm(step, 2) ** 2)
    assert float(measures.jacobian_norm(bench.task, w, t, lr, decay, 200)) == pytest.approx(exact, rel=1e-3)


def test_correlations_are_cosines_of_successive_gradients() -> None:
    bench = _bench()
    loop = bench.loop(bench.hypers(tuned=False))
    run, seen = loop.start(bench.task.init([0, 1])), measures.Correlations(bench.task, 4)
    gradients = []
    for _ in range(9):
        seen(run)
        before = run
        run = loop.advance(run, 1)
        gradients.append((before.state.w - run.state.w) / 0.1 - 1e-3 * before.state.w)  # what the step went along
    cosines = torch.stack([nn.functional.cosine_similarity(a, b) for a, b in pairwise(gradients)], 1)
    windows = cosines.unflatten(1, (2, 4))
    assert torch.allclose(seen.windows()["mean"], windows.mean(2), atol=1e-4)
    assert torch.allclose(seen.windows()["deviation"], windows.std(2), atol=1e-4)


# --- sets of hyperparameters ------------------------------------------------------------------------------------------


def test_groups_are_neighbouring_tensors_of_equal_number() -> None:
    assert _bench(sets=2).groups() == (0, 0, 0, 1, 1, 1)
    assert _bench(sets=3).groups() == (0, 0, 1, 1, 2, 2)
    assert _bench(sets=6).groups() == (0, 1, 2, 3, 4, 5)
    assert _bench(sets=1).groups() == "global"


def test_layerwise_is_global_when_all_rates_move_together() -> None:
    """The influence is linear in its source: at equal rates the columns of the layers add up to the global one."""
    together, apart = _bench(meta_rate=0.0), _bench(meta_rate=0.0, sets=6)
    (_, one), (_, many) = _started(together, 2, 12), _started(apart, 2, 12)
    assert torch.allclose(one.state.w, many.state.w, atol=1e-6)
    columns = many.memory.w.unflatten(1, (2, 6)).sum(2)
    assert torch.allclose(columns, one.memory.w, rtol=1e-3, atol=1e-4)
    assert float((many.memory.w[:, :6].norm(dim=-1) > 0).float().mean()) == 1


def test_a_set_moves_with_its_own_share_of_the_hypergradient() -> None:
    """After one outer step the moves of the layers' rates add up to that of the global rate."""
    bench = {k: _bench(sets=k) for k in (1, 6)}
    moves = {}
    for k, each in bench.items():
        loop, run = _started(each, 1, 1)
        hypers: Hypers = loop.hypers
        moves[k] = hypers.natural(run.raw)[LR] - 0.1
    assert float(moves[6].sum()) == pytest.approx(float(moves[1].sum()), rel=1e-3)
    assert len(moves[6][0].unique()) == 6


# --- the studies ------------------------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_rates_for_every_way() -> None:
    one = performance.Config("Fixed", 3)
    found = [performance.drawn(replace(one, method=m)) for m in (OHO, *schedules.WAYS)]
    assert len({(d[LR], d[DECAY]) for d in found}) == 1
    assert performance.drawn(replace(one, seed=4))[LR] != found[0][LR]
    assert {*performance.drawn(replace(one, method="Adam"))} == {LR, DECAY, "beta1", "beta2"}


def test_performance_at_a_tiny_size() -> None:
    sizes = performance.SIZES["smoke"]
    sizes = replace(sizes, base=replace(sizes.base, epochs=2), draws=2, layerwise_draws=1)
    frame = papers.run_now(papers.get("oho_performance"), performance.configs(sizes))
    trainings = frame[frame["search"] == "random"]
    assert len(trainings) == 2 * 6 + 1
    assert np.isfinite(trainings["test"]).all()
    bayes = frame[frame["search"] == "bayes"]
    for _, row in bayes.iterrows():
        assert row["test"] == pytest.approx(row["trial_test"][int(row["best"])], rel=1e-3)
        assert row["val"] == pytest.approx(min(row["trial_val"]), rel=1e-3)
        assert row["trial_s"] == sorted(row["trial_s"])


def test_a_run_does_not_depend_on_those_beside_it() -> None:
    pair = [replace(SMALL, seed=s) for s in (0, 1)]
    both, alone = layerwise.run(pair, CPU), layerwise.run(pair[1:], CPU)
    assert both[1].series["lr_0"] == pytest.approx(alone[0].series["lr_0"], rel=1e-3)
    assert both[1].metrics["test"] == pytest.approx(alone[0].metrics["test"], rel=1e-3)


def test_outer_images_are_those_of_the_training_where_asked() -> None:
    bench = _bench(outer="training")
    x, _ = bench.task.val.at(0)
    rows = bench.task.images.x_train
    assert all((rows == one).all(1).any() for one in x)
    x, _ = _bench().task.val.at(0)
    assert not all((rows == one).all(1).any() for one in x)


def test_a_capped_decay_stays_below_its_cap() -> None:
    c = dynamics.Config(dynamics.CAPPED, 0, data="digits", validation=280, batch=56, outer_batch=56, width=8, epochs=8)
    c = replace(c, lr=0.3, meta_rate=1e-2, part=dynamics.PROGRAM_PART)
    free, capped = (dynamics.run([replace(c, method=m)], CPU)[0].series["decay_0"] for m in (OHO, dynamics.CAPPED))
    assert max(v for v in free if v is not None) > dynamics.CAP
    assert max(v for v in capped if v is not None) <= dynamics.CAP * 1.001


def test_the_program_is_the_class_of_published_programs() -> None:
    """One step by hand: at step 0 the influence is `-(g + 2 l2 w)`, so the rate moves along `gV . g`."""
    c = dynamics.Config(dynamics.PROGRAM, 0, data="digits", validation=280, batch=56, outer_batch=56, width=8, epochs=1)
    c = replace(c, lr=0.1, meta_rate=1e-3, part=dynamics.PROGRAM_PART)
    found = dynamics.run([c], CPU)[0]
    assert found.series["lr_0"][0] == pytest.approx(0.1)
    assert found.series["lr_0"][-1] != found.series["lr_0"][0]
    assert len(found.series["test_curve"]) == len(found.series["steps"])


def test_the_papers_convolutional_nets_take_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-18 and the net of 128 kernels, on a few images: hyperparameters move and stay finite."""

    def drawn(channels: int, size: int) -> Images:
        rng = torch.Generator().manual_seed(0)
        parts = [torch.randn(n, channels, size, size, generator=rng) for n in (4, 4, 4)]
        labels = [torch.randint(0, 10, (4,), generator=rng) for _ in parts]
        train, val, test = zip(parts, labels)
        return Images(*train, *val, *test, "drawn", "drawn", "")

    for config, images in ((performance.CNN, drawn(1, 28)), (layerwise.RESNET, drawn(3, 32))):
        monkeypatch.setattr(training, "_images", lambda *_, images=images: images)
        bench = Bench(replace(config, method=OHO, batch=2, outer_batch=2, lr=0.01, meta_rate=1e-3), CPU)
        assert len(bench.task.layout.sizes) == {"cnn": 6, "resnet18": 62}[config.net]
        loop, run = _started(bench, 1, 2)
        rate = loop.hypers.natural(run.raw)[LR]
        assert rate.isfinite().all() and (rate != 0.01).all()
        assert bench.read(loop, run)["test_curve"].isfinite().all()


@pytest.mark.parametrize("name", ["oho_performance", "oho_layerwise", "oho_dynamics"])
@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_no_run_is_listed_twice(name: str, scale: str) -> None:
    runs = papers.get(name).runs(scale)
    assert len(runs) == len(set(runs))
