"""MetaOptimize's studies at tiny sizes: the views, special cases, the optimisers that are compared, what is read."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.estimators.trace import IDBD
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method
from gradtune.training.metaoptimize import MetaOptimize
from gradtune_book import config, papers
from gradtune_book.data import tinystories
from gradtune_book.papers import packages
from gradtune_book.papers.metaoptimize import (
    cifar,
    continual,
    framework,
    language,
    others,
    overhead,
    sensitivity,
    training,
    views,
)
from gradtune_book.records import store
from gradtune_book.tasks import residual, streams
from tools import relative

PLAIN = sgd(momentum=False, weight_decay=False)


@pytest.mark.parametrize("name", streams.NAMES)
def test_the_views_come_together_with_the_square_of_the_meta_step(name: str) -> None:
    """The footnote of Section 3: with half the meta step both views end a quarter as far apart."""
    problem, w = streams.draw(name, [3], 8, 3)
    etas = (0.004, 0.002, 0.001)
    gaps = [views.gap(problem, w, math.log(0.05), eta, 8, 0.9) for eta in etas]
    assert min(gaps) > 1e-12
    assert views.order(etas, gaps) == pytest.approx(2, abs=0.05)
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)


def test_the_views_fulfil_their_equations() -> None:
    """Equations 4 and 5 along the path that each view makes, with the derivatives by differences of losses."""
    (problem, w), steps, gamma, eta = streams.draw("stream", [1], 6, 3), 6, 0.8, 0.05
    for view, forward in ((views.forward, True), (views.backward, False)):
        path = view(problem, w, math.log(0.1), eta, steps, gamma)
        d = torch.zeros(steps, steps, dtype=torch.float64)
        for t in range(steps):
            shift = torch.where(torch.arange(steps) >= t, 1e-6, 0.0).double()
            up, down = (views.losses(problem, w, path[:-1] + sign * shift).detach() for sign in (1, -1))
            d[:, t] = (up - down) / 2e-6
        for t in range(steps):
            if forward:
                g = sum((1 - gamma) * gamma ** (tau - t - 1) * d[tau, t] for tau in range(t + 1, steps))
            else:
                g = sum((1 - gamma) * gamma ** (t - s - 1) * d[t, s] for s in range(t))
            assert float(path[t + 1] - path[t]) == pytest.approx(-eta * float(g), rel=1e-6, abs=1e-12)


def test_the_l_approximation_is_the_backward_view_after_a_rest() -> None:
    """For base and meta SGD, with beta at rest before the stream: gamma^tau D[tau, 0] is the rest's part."""
    problem, w = streams.draw("stream", [2], 7, 4)
    gamma = 0.9
    lasting = MetaOptimize(problem, PLAIN, Hypers([Hyper("lr", 0.05, "log")], [4]), SGD(0.1), gamma, "L")
    run, betas, used = lasting.start(w), [], []
    for _ in range(7):
        betas.append(float(run.meta.raw))
        used.append(float(lasting.hypergradient(run)))
        run = lasting.advance(run, 1)
    d = views.lasting(problem, w, torch.tensor(betas, dtype=torch.float64))
    expected = (views.discounts(7, gamma) * d).sum(1) + gamma ** torch.arange(7).double() * d[:, 0]
    assert np.allclose(used, expected, rtol=1e-12, atol=1e-14) and max(map(abs, used)) > 1e-3


def test_idbd_and_hd_are_special_cases_on_the_streams() -> None:
    problem, w = streams.draw("quadratic", [0, 1], 40, 5)
    by_weight = Hypers([Hyper("lr", 0.05, "log", "weight")], [5])
    idbd = Loop(problem, PLAIN, by_weight, Method(IDBD(), SGD(0.02), outer_loss="training"))
    end = idbd.advance(idbd.start(w), 40)
    framework_l = MetaOptimize(problem, PLAIN, by_weight, SGD(0.02), 1.0, "L")
    run = framework_l.advance(framework_l.start(w), 40)
    assert relative(end.raw, run.meta.raw) < 1e-12 and relative(end.state.w, run.base.w) < 1e-12
    scalar = Hypers([Hyper("lr", 0.05, "log")], [5])
    free = Loop(problem, PLAIN, scalar, methods.metaoptimize_hf(SGD(0.02), 0.0))
    end = free.advance(free.start(w), 40)
    run = (tiny := MetaOptimize(problem, PLAIN, scalar, SGD(0.02), 1e-14, "full")).advance(tiny.start(w), 40)
    assert relative(end.raw, run.meta.raw) < 1e-12


def test_a_stream_depends_on_its_own_seed_alone() -> None:
    for name in streams.NAMES:
        alone, w = streams.draw(name, [7], 30)
        both, ws = streams.draw(name, [6, 7], 30)
        assert torch.equal(w[0], ws[1])
        assert torch.equal(alone.train_loss(w, {}, 29)[0], both.train_loss(ws, {}, 29)[1])
        for t in (0, 21):
            h = torch.autograd.functional.hessian(lambda v, t=t, p=alone: p.train_loss(v, {}, t).sum(), w)[0, :, 0]
            assert torch.allclose(h.diagonal(), alone.curvature_diagonal(w, {}, t)[0])


def test_framework_runs_are_of_the_right_number_and_do_not_mix() -> None:
    sizes = framework.Sizes(2, 10, 1, 5, (0.0, 0.9, 1.0))
    chosen = framework.configs(sizes)
    assert len(set(chosen)) == len(chosen)
    frame = papers.run_now(framework.STUDY, chosen)
    alone = papers.run_now(framework.STUDY, [c for c in chosen if c.seed == 1])
    both = frame[frame["seed"] == 1].reset_index()
    assert np.allclose(both["loss"], alone["loss"], rtol=1e-12, equal_nan=True)
    assert frame.loc[frame["method"] != framework.VIEWS, "loss"].notna().all()


def test_continual_passes_are_deterministic_and_read_as_stated() -> None:
    c = continual.Config(continual.BLOCKS, 0, "digits", 3, 40, 390, 8, 4)
    one, two = (papers.run_now(continual.STUDY, [c]).iloc[0] for _ in range(2))
    assert one["cumulative"] == two["cumulative"] and one["lr_0_0"] == two["lr_0_0"]
    assert len(one["lr_0_0"]) == 40 and len(one["lr_0_1"]) == 20 and len(one["test_curve"]) == 3
    assert one["cumulative"] == pytest.approx(np.mean(one["online_curve"]), rel=1e-3)
    assert one["cumulative_curve"][-1] == pytest.approx(one["cumulative"], rel=1e-3)
    assert one["lr_0_0"][0] == 1e-4 and one["final_lr_0"] != one["final_lr_1"]
    fixed = papers.run_now(continual.STUDY, [config.replace(c, method=continual.FIXED)]).iloc[0]
    assert set(fixed["lr_0_0"]) == {1e-4}


def test_a_fixed_step_size_is_torchs_optimiser() -> None:
    """What the comparisons call fixed is MetaOptimize's base alone, with the settings of the paper's tables."""
    torch.manual_seed(0)
    for base, torchs in (
        ("AdamW", lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)),
        ("SGDm", lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1)),
    ):
        nets = [nn.Linear(4, 3).double() for _ in range(2)]
        nets[1].load_state_dict(nets[0].state_dict())
        pair = training.adapted([list(nets[0].parameters())], base, "none", 0.01), torchs(nets[1].parameters())
        for _ in range(5):
            x = torch.randn(6, 4, dtype=torch.float64)
            for net, optimizer in zip(nets, pair, strict=True):
                optimizer.zero_grad()
                net(x).square().sum().backward()
                optimizer.step()
        assert relative(nets[0].weight.detach(), nets[1].weight.detach()) < 1e-12
        assert float(pair[0].param_groups[0]["lr"]) == 0.01


def test_the_schedule_rises_and_falls() -> None:
    optimizer, after = training.scheduled([nn.Parameter(torch.zeros(1))], 0.3, 60)
    rates = []
    for _ in range(60):
        rates.append(training.geometric_mean(optimizer))
        optimizer.step()
        after.step()
    assert rates[0] == pytest.approx(0.15) and max(rates) == pytest.approx(0.3)
    assert rates.index(max(rates)) == 1 and rates[-1] < 0.003 and sorted(rates[2:], reverse=True) == rates[2:]


def test_a_package_that_is_absent_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(GradtuneError, match="DoG needs the package dog-optimizer, which is not installed"):
        others.of_a_package("DoG", nn.Linear(2, 2))
    with pytest.raises(GradtuneError, match="did you mean 'Prodigy'"):
        others.of_a_package("Prodigi", nn.Linear(2, 2))
    assert {c.method for c in language.STUDY.runs("smoke")}.isdisjoint(others.OF_PACKAGES)
    assert {c.method for c in overhead.STUDY.runs("smoke")} == {overhead.METHOD}


def test_a_package_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("prodigyopt")
    package.Prodigy = lambda parameters: torch.optim.SGD(parameters, 0.1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prodigyopt", package)
    monkeypatch.setattr(packages, "find_spec", lambda name: name == "prodigyopt")
    runs = [c for c in language.STUDY.runs("smoke") if c.method == "Prodigy"]
    frame = papers.run_now(language.STUDY, runs)
    assert len(frame) == 1 and frame["final_lr"].tolist() == pytest.approx([0.1])


def test_paper_scale_trains_on_tinystories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of the paper's size, but for bytes in the place of words, for two steps on a tiny folder."""
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
    with pytest.raises(GradtuneError, match="TinyStories is not in"):
        language.resolve("paper", "auto")
    folder = tmp_path / "tinystories"
    folder.mkdir()
    for name in tinystories.FILES.values():
        (folder / name).write_text("Once upon a time.\n<|endoftext|>\nThe cat sat.\n<|endoftext|>\n" * 30)
    assert language.resolve("paper", "auto") == "tinystories" and language.resolve("smoke", "auto") == "markov"
    runs = {c.method: c for c in language.configs(language.SIZES["paper"])}
    assert {(c.lr, c.meta_step, c.steps, c.tokens) for c in (runs[training.SCALAR],)} == {(1e-5, 1e-3, 30_000, None)}
    assert next(c for c in language.configs(language.SIZES["paper"]) if c.meta == "Adam").lr == 1e-6
    with torch.device("meta"):
        assert sum(p.numel() for p in language.net(runs[training.FIXED]).parameters()) == 15_191_712
    small = {"vocabulary": 257, "steps": 2, "batch": 2}
    frame = papers.run_now(language.STUDY, [config.replace(c, **small) for c in runs.values()])
    assert np.isfinite(frame[["late_loss", "test_loss"]]).all(axis=None)
    adapted = frame.loc[frame["method"] == training.SCALAR, "late_loss"]
    assert adapted.tolist() == pytest.approx([math.log(257)], rel=0.1)
    assert set(frame["dataset"]) == {f"TinyStories, {len(tinystories.load(257).train)} training tokens, vocabulary 257"}


@pytest.mark.parametrize("method", others.OF_PACKAGES)
def test_optimisers_of_packages_lower_a_loss(method: str) -> None:
    """Where they are installed; a weight in two places stays one weight."""
    if not packages.installed(method):
        pytest.skip(f"{packages.PACKAGES[method][1]} is not installed")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    net[2]._parameters["weight"] = net[0]._parameters["weight"]
    x, y = torch.randn(50, 4), torch.randn(50, 4)
    optimizer, first = others.of_a_package(method, net), float((net(x) - y).square().mean())
    for _ in range(200):
        optimizer.zero_grad()
        others.backward((net(x) - y).square().mean(), optimizer)
        optimizer.step()
    with others.at_rest(optimizer):
        assert float((net(x) - y).square().mean()) < first
    assert net[0]._parameters["weight"] is net[2]._parameters["weight"]
    assert others.kept(optimizer) >= 16


def test_numbers_kept_are_those_of_states_within_states_and_of_lists_in_groups() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], 0.1, momentum=0.9)
    assert others.kept(optimizer) == 0
    optimizer.state[p] = {"buffer": torch.zeros(3), "more": {"inside": torch.zeros(2)}}
    optimizer.param_groups[0]["list"] = [torch.zeros(5), 1.0]
    assert others.kept(optimizer) == 10


def test_a_record_keeps_the_version_of_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: True)
    c = config.replace(language.STUDY.runs("smoke")[0], method="Prodigy")
    result = store.Result({"late_loss": 1.0}, packages=packages.needed("Prodigy"))
    line = store.line("metaoptimize_language", "smoke", c, result, "cpu", 1, None)
    assert "prodigyopt" in line["versions"] and "dog-optimizer" not in line["versions"]
    assert packages.needed("fixed") == ()


@pytest.mark.parametrize("module", [language, sensitivity, cifar, continual, framework])
def test_configurations_are_their_own_and_methods_known(module: types.ModuleType) -> None:
    for sizes in module.SIZES.values():
        chosen = module.configs(sizes)
        assert len({config.key(module.STUDY.name, c) for c in chosen}) == len(chosen)
    chosen = module.configs(module.SIZES["smoke"])
    if module is not language:
        with pytest.raises(GradtuneError, match="unknown method"):
            module.run([config.replace(chosen[0], method="none")], torch.device("cpu"))


def test_sensitivity_reads_a_training_as_one_that_ended_there() -> None:
    long = sensitivity.Config("MetaOptimize", 0, "digits", 1e-3, 0.02, steps=150)
    short = config.replace(long, steps=100)
    a, b = (papers.run_now(sensitivity.STUDY, [c]).iloc[0] for c in (long, short))
    assert a["val_100"] == b["val_100"] and a["lr_100"] == b["lr_100"]
    assert sensitivity.read_at(3000) == [100, 300, 1000, 3000]


def test_a_small_residual_net_has_six_blocks() -> None:
    net = residual.net(4, 3, 0)
    blocks = residual.six_blocks(net)
    assert len(blocks) == 6 and sum(p.numel() for b in blocks for p in b) == sum(p.numel() for p in net.parameters())
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    whole = residual.net(64, 3, 0)
    assert len(residual.six_blocks(whole)) == 6 and sum(p.numel() for p in whole.parameters()) == 11_173_962
