"""ASHA and PBT whose trials tune themselves: what goes on, what is copied, what a mutation does."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune_book import papers
from gradtune_book.papers.onepass import energy_population as study
from gradtune_book.papers.onepass import population_tables, uci_tables
from gradtune_book.papers.onepass.energy_population import ASHA, INSIDE, PBT, Config, Halving, Trials
from gradtune_book.papers.onepass.uci_training import ALL, LR

CPU = torch.device("cpu")
TINY = Config(ASHA, 0, "diabetes", 64, members=12, dtype="float64")


def _trials(inside: str, **changes: Any) -> Trials:
    return Trials(replace(TINY, inside=inside, **changes), CPU)


def test_asha_looks_at_powers_of_four_and_costs_what_the_trainings_would() -> None:
    assert study.ages(4000) == [1, 4, 16, 64, 256, 1024, 4000] and study.ages(64) == [1, 4, 16, 64]
    assert study.trials_of(replace(TINY, steps=4000, members=200)) == 114_286


@pytest.mark.parametrize("inside", INSIDE)
def test_rows_put_together_train_as_they_would_alone(inside: str) -> None:
    """Trials are taken apart and put together at an age that is no whole update interval."""
    trials = _trials(inside)
    whole = trials.advance(trials.drawn(range(4)), 16)
    parts = [trials.advance(trials.drawn([2 * k, 2 * k + 1]), 4) for k in range(2)]
    mixed = study.united([study.rows_of(p, [1, 0]) for p in parts])
    again = trials.advance(study.rows_of(mixed, [1, 0, 3, 2]), 12)
    assert torch.allclose(again.run.state.w, whole.run.state.w, rtol=1e-12)
    assert torch.allclose(again.run.raw, whole.run.raw, rtol=1e-9)
    assert all(torch.equal(again.seen[n], whole.seen[n]) for n in ALL)


def test_a_mutation_multiplies_the_value_that_the_method_has_reached() -> None:
    trials = _trials("WD+LR+M")
    before = trials.advance(trials.drawn(range(3)), 20)
    seen = [{n: float(before.seen[n][k]) for n in ALL} for k in range(3)]
    seen[1] = seen[0] | {LR: 1.2 * seen[0][LR]}
    after = trials.select(before, [0, 0, 2], seen)
    old, new = (trials.loop.hypers.natural(m.run.raw) for m in (before, after))
    assert not torch.allclose(old[LR].flatten(), before.seen[LR])  # it has moved
    for name in ALL:
        factor = 1.2 if name == LR else 1.0
        assert new[name][1].item() == pytest.approx(factor * old[name][0].item(), rel=1e-12)
        assert torch.equal(new[name][[0, 2]], old[name][[0, 2]])
    assert torch.equal(after.run.state.w[1], before.run.state.w[0])
    outer = pd.Series([after.run.outer.mean[1].tolist(), before.run.outer.mean[0].tolist()])
    assert outer[0] == outer[1]


def test_a_mutation_of_fixed_hyperparameters_sets_them() -> None:
    trials = _trials("Random")
    before = trials.advance(trials.drawn(range(2)), 10)
    seen = [{n: float(before.seen[n][0]) for n in ALL} for _ in range(2)]
    seen[1][LR] *= 0.8
    after = trials.select(before, [0, 0], seen)
    rates = after.run.fixed[LR].flatten()
    assert rates[1].item() == pytest.approx(0.8 * rates[0].item(), rel=1e-12)


def test_a_trial_goes_on_in_the_best_quarter_of_those_before_it() -> None:
    before: list[float] = []
    assert Halving._goes_on(before, 5.0)  # nobody to compare with
    assert not Halving._goes_on(before, 6.0) and Halving._goes_on(before, 4.0)
    assert not Halving._goes_on(before, math.nan) and before[-1] == math.inf
    assert not Halving._goes_on(before, 4.5) and Halving._goes_on(before, 3.0)


def test_the_best_quarter_is_that_of_the_quantile() -> None:
    drawn = np.random.default_rng(0).normal(size=300).tolist()
    before: list[float] = []
    for k, loss in enumerate(drawn):
        wanted = k == 0 or loss <= np.quantile(drawn[:k], 1 / study.REDUCTION, method="lower")
        assert Halving._goes_on(before, loss) == wanted
    assert before == sorted(drawn)


def test_halving_trains_few_to_the_end_and_counts_its_steps() -> None:
    trials = _trials("Random")
    halving = Halving(trials, 230)
    halving.run(0)
    reached = [*(len(halving.losses[k]) for k in range(3)), len(halving.finals)]
    assert reached[0] == 230 and all(a > b > 0 for a, b in pairwise(reached))
    assert study._taken(halving) == reached[0] + 3 * reached[1] + 12 * reached[2] + 48 * reached[3]
    for k in range(3):
        assert reached[k + 1] >= reached[k] / 4  # the stopping form lets early ones go on as well
    best = [mse for _, mse in trials.best]
    assert best == sorted(best, reverse=True) and min(best) <= np.nanmin(halving.finals)


def test_the_studys_searches_and_their_table() -> None:
    frame = papers.run_now(study.STUDY, study.configs(study.SIZES["smoke"]))
    assert [*zip(frame["method"], frame["inside"])] == [(m, i) for m in (ASHA, PBT) for i in INSIDE]
    pbt = frame[frame["method"] == PBT]
    assert (pbt["finished"] == 12).all() and (pbt["steps_taken"] == 12 * 64).all()
    table = population_tables.table(frame, uci_tables.published("onepass_table15.csv"))
    assert (
        table.loc["ASHA + WD+LR+M", "mean, paper"].split() == ["0.160", "±", "0.004"] and (table["searches"] == 1).all()
    )
    assert population_tables.table(frame.iloc[:0], uci_tables.published("onepass_table15.csv")).empty


def test_time_counts_until_the_lowest_loss_that_every_search_found() -> None:
    rows = [(ASHA, [1.0, 2.0, 3.0], [9.0, 0.4, 0.1]), (PBT, [2.0, 5.0], [3.0, 0.5])]
    frame = pd.DataFrame(
        [{"method": m, "inside": "Random", "incumbent_s": s, "incumbent_mse": x, "cpu_s": 7.0} for m, s, x in rows]
    )
    assert population_tables.level(frame) == 0.5
    assert population_tables.until(frame)[population_tables.UNTIL].tolist() == [2.0, 5.0]
    assert population_tables.until(frame.iloc[:0]).empty and math.isnan(population_tables.level(frame.iloc[:0]))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(GradtuneError, match="Randon"):
        Trials(replace(TINY, inside="Randon"), CPU)
    with pytest.raises(GradtuneError, match="ASHE"):
        study.run([replace(TINY, method="ASHE")], CPU)
