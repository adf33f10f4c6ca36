"""The studies of what the FDS paper leaves open: one choice is changed at a time, and the change has its effect."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from gradtune.recursion.rules import clipped
from gradtune_book import papers
from gradtune_book.papers.fds import choices, cifar_regret, sharing_choices, sharing_mse
from gradtune_book.papers.fds.cifar_training import GAMMA, MOMENTUM, Bench
from gradtune_book.records import store

CPU = torch.device("cpu")


def usual() -> choices.Config:
    found = [c for c in cifar_regret.STUDY.runs("smoke") if c.method == cifar_regret.FDS]
    small = replace(choices.Config(**asdict(found[0])), steps=6, outer_steps=2, outer_step_steps=3, first_steps=2)
    return replace(small, lr_windows=1)


def test_one_choice_of_a_search_is_changed_at_a_time() -> None:
    base, names = usual(), set()
    for c in choices.changes(base):
        changed = {n for n, v in asdict(base).items() if getattr(c, n) != v} - {"choice"}
        assert changed in ({"momentum_step"}, {"momentum_step", "decay_step"}, {"fixed_rows"}, {"weights"}, set())
        assert changed or c.choice in choices.NETS
        names.add(c.choice)
    assert len(names) == len(choices.changes(base))
    assert len(choices.STUDY.runs("laptop")) == 3 * len(names)


def test_unchanged_it_is_the_run_of_the_paper() -> None:
    base = usual()
    (own,) = choices.run([base], CPU)
    (partner,) = cifar_regret.run([base], CPU)
    assert own.metrics["accuracy"] == partner.metrics["accuracy"]
    names = [n for n in own.series if n.startswith("answer")]
    assert names and all(own.series[n] == partner.series[n] for n in names)


def test_the_first_step_of_the_momentum_is_the_one_asked_for() -> None:
    ends = {}
    for step in (0.1, 0.3):
        (result,) = choices.run([replace(usual(), momentum_step=step)], CPU)
        ends[step] = abs(result.series["answer_momentum"][-1] or 0.0)
    assert ends == pytest.approx({0.1: 0.1, 0.3: 0.3})  # it does not move at the first outer step


def test_rows_are_redrawn_unless_they_are_fixed() -> None:
    for fixed in (False, True):
        bench = choices.Changed(replace(usual(), fixed_rows=fixed), CPU)
        first, second = (bench.task([bench.seed(k)]).val_rows[0] for k in (0, 1))
        assert torch.equal(first, second) == fixed


def test_weights_by_he_have_their_deviation() -> None:
    torch.manual_seed(0)
    he = choices.Changed(replace(usual(), weights="he"), CPU).net()
    linear = [m for m in he.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    fan = linear.weight[0].numel()
    assert float(linear.weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.1)
    assert Bench(usual(), CPU).gamma == GAMMA and GAMMA[MOMENTUM] == 0.15


def test_nets_of_other_widths_are_the_same_net_with_other_channels() -> None:
    def shapes(choice: str) -> list[list[int]]:
        net = choices.Changed(replace(usual(), choice=choice), CPU).net()
        return [list(p.shape) for p in net.parameters()]

    half, plain, twice = (shapes(c) for c in ("half the channels", choices.USUAL, "twice the channels"))
    assert len(half) == len(plain) == len(twice)
    for a, b, c in zip(half, plain, twice, strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            assert (2 * x, 2 * y) == (y, z) or x == y == z  # channels, or pixels and classes
    assert half != plain


def test_tables_set_choices_beside_their_partners() -> None:
    base = usual()
    changed = papers.run_now(choices.STUDY, choices.changes(base)[:2])
    plain = cifar_regret.Config(**{n: v for n, v in asdict(base).items() if n in asdict(cifar_regret.Config("", 0))})
    chosen = papers.run_now(cifar_regret.STUDY, [plain])
    table = choices.beside(changed, chosen)
    assert list(table.index) == [choices.USUAL, *changed["choice"]] and table["seeds"].eq(1).all()
    gain = 100 * (changed["accuracy"].iloc[0] - chosen["accuracy"].iloc[0])
    assert float(table["difference"].iloc[1].split(" ")[0]) == pytest.approx(gain, abs=0.06)
    zero, count = choices.zeros(chosen)
    assert zero == 0 and count == 3  # of the second outer step; at the first, where rates are 0 ...
    for name in ("momentum", "weight_decay"):
        assert np.array(chosen[f"hypergradient_{name}"].iloc[0])[0] == 0  # ... these two have none


def test_choices_of_figure_2_change_one_field_and_are_set_beside_the_same_seeds() -> None:
    runs = sharing_choices.STUDY.runs("smoke")
    chosen = papers.run_now(sharing_mse.STUDY, [c for c in sharing_mse.STUDY.runs("smoke") if c.seed < 2])
    by_seed = {c.seed: c for c in sharing_mse.STUDY.runs("smoke") if c.method == "non-greedy" and c.lr == 0.01}
    for c in runs:
        changed = {n for n, v in asdict(by_seed[c.seed]).items() if getattr(c, n) != v}
        assert changed in ({"momentum"}, {"validation"}, set())
        assert bool(changed) == (c.choice != sharing_choices.CLIP)
    frame = papers.run_now(sharing_choices.STUDY, runs)
    table = sharing_choices.beside(frame, chosen)
    others = ["no momentum", "twice the validation images", sharing_choices.CLIP]
    assert list(table.index) == [sharing_choices.USUAL, *others]
    assert table["trainings"].eq(2).all() and (table["MSE there over W = 1"] <= 1).all()
    assert len(store.load(sharing_choices.STUDY, "smoke")) == 0


def test_the_clip_of_gradients_reaches_trainings_and_hypergradients() -> None:
    c = replace(sharing_choices.STUDY.runs("smoke")[0], steps=8)
    usual, tight = (sharing_mse.run([c], CPU, rule)[0] for rule in (sharing_mse.RULE, clipped(sharing_mse.RULE, 1e-3)))
    losses = [r.metrics["val_loss"] or np.nan for r in (usual, tight)]
    assert losses[0] < losses[1]
    assert usual.series["hypergradient_0"] != tight.series["hypergradient_0"]
    (own,) = sharing_choices.run([replace(c, choice=sharing_choices.CLIP)], CPU)
    (by_hand,) = sharing_mse.run([c], CPU, clipped(sharing_mse.RULE, 1.0))
    assert own.metrics == by_hand.metrics and own.series == by_hand.series


def test_what_the_page_of_omissions_says_of_the_records() -> None:
    changed, chosen = (store.load(study, "laptop") for study in (choices.STUDY, cifar_regret.STUDY))
    both = changed.merge(chosen[chosen["method"] == cifar_regret.FDS], on="seed", suffixes=("", " of the partner"))
    both = both.assign(
        gain=both["accuracy"] - both["accuracy of the partner"],
        end=[np.array(each, float)[-1] for each in both["answer_momentum"]],
        usual=[np.array(each, float)[-1] for each in both["answer_momentum of the partner"]],
    )
    groups = both.groupby("choice")
    assert (groups.size() == 3).all() and len(groups) == 7
    gain = groups["gain"].agg(["mean", "sem"])
    nets = gain.loc[list(choices.NETS)]
    assert (gain.drop(nets.index)["mean"].abs() < 2 * gain["sem"].drop(nets.index)).all()
    assert (nets["mean"].abs() > 5 * nets["sem"]).all()
    assert nets.loc["half the channels", "mean"] < 0 < nets.loc["twice the channels", "mean"]
    moved = groups["end"].mean() - groups["usual"].mean()
    assert moved["momentum's first step 0.1"] < 0 < moved["momentum's first step 0.3"]
    assert moved["a sign after none halves the step"] < 0
    assert choices.zeros(chosen)[0] == 0


def test_what_the_page_of_omissions_says_of_figure_2() -> None:
    table = sharing_choices.beside(*(store.load(s, "paper") for s in (sharing_choices.STUDY, sharing_mse.STUDY)))
    left = table["MSE there over W = 1"]
    assert (table["trainings"] == 30).all()
    assert left[sharing_choices.USUAL] < 0.5 and 0.7 < left["no momentum"] < 0.8  # more than half of it, and a quarter
    assert table.loc["no momentum", "mean |c|"] > 3 * table.loc[sharing_choices.USUAL, "mean |c|"]
    assert abs(left["twice the validation images"] - left[sharing_choices.USUAL]) < 0.1
    assert 0.45 < left[sharing_choices.CLIP] < 0.55
    assert (table.loc[sharing_choices.CLIP, "best W"], table.loc[sharing_choices.USUAL, "best W"]) == (125, 250)
