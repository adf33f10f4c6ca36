"""What is read off the runs of the OHO studies, on runs made up for the purpose."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gradtune_book.claims import inventory
from gradtune_book.claims.claim import answer
from gradtune_book.claims.estimates import Estimates
from gradtune_book.papers.oho import claims, dynamics, tables
from gradtune_book.papers.oho.training import OHO


def _row(**values: Any) -> dict[str, Any]:
    common = {"method": OHO, "seed": 0, "sets": 1, "lr": 0.1, "test": 0.2, "val": 0.2, "wall_s": 9.0, "cpu_s": 2.0}
    return {
        **common,
        "search": "random",
        "part": dynamics.ALONE,
        "epochs": 10,
        "at": 0,
        "after": "OHO",
        "to": 0.0,
        **values,
    }


def test_a_diverged_training_counts_as_a_guess_and_reaches_nothing() -> None:
    frame = pd.DataFrame([_row(test=math.nan), _row(test=50.0, seed=1), _row(test=0.25, seed=2)])
    one = tables.trainings(frame)
    assert one[tables.LOSS].tolist() == pytest.approx([math.log(10), math.log(10), 0.25])
    assert one[tables.RATE].tolist() == pytest.approx([0, 0, 30])  # good trainings a minute, at 2 seconds each
    assert one[tables.SPREAD].tolist() == pytest.approx([0, 0, math.log(10) - 0.25])
    table = tables.performance(pd.concat([frame, pd.DataFrame([_row(method="Fixed", cpu_s=0.5)])]))
    assert table.loc[tables.GLOBAL, tables.RATIO] == pytest.approx(4)


def test_a_search_counts_its_trainings_until_one_is_good() -> None:
    trials = {"search": "bayes", "method": "Fixed", "trial_s": [1.0, 2.0, 3.0]}
    frame = pd.DataFrame(
        [_row(**trials, trial_test=[2.0, 0.3, 0.1]), _row(**trials, trial_test=[2.0, None, 0.4], seed=1)]
    )
    found = tables.searches(frame)
    assert found[tables.TRAININGS].tolist() == [2, 4]
    assert found[tables.UNTIL].tolist()[0] == 2.0 and math.isnan(found[tables.UNTIL].tolist()[1])


def test_equal_time_takes_the_best_by_validation_of_as_many_as_fit() -> None:
    """Of two equal trainings of half the time, two fit; validation prefers the one that is worse on the test."""
    rows = [_row(seed=k, test=0.2, cpu_s=2.0) for k in (0, 1)]
    rows += [
        _row(method="Fixed", seed=0, test=0.1, val=0.9, cpu_s=1.0),
        _row(method="Fixed", seed=1, test=0.5, val=0.1, cpu_s=1.0),
    ]
    table = tables.at_equal_time(pd.DataFrame(rows), draws=4000)
    assert table.loc["Fixed", "trainings"] == 2 and table.loc[tables.GLOBAL, "trainings"] == 1
    assert table.loc["Fixed", "mean test loss"] == pytest.approx(0.75 * 0.5 + 0.25 * 0.1, abs=0.02)


def test_what_is_left_of_a_jump() -> None:
    """A reset from 0.1 to 0.2 at half-time that has fallen to 0.125 a tenth later: a quarter is left."""
    steps = [float(k) for k in range(11)]
    alone = _row(steps=steps, lr_0=[0.1] * 11, test_curve=[1.0] * 11)
    reset = [0.1] * 6 + [0.125] * 5
    moved = _row(
        part=dynamics.RATE_RESET, at=5, to=0.2, steps=steps, lr_0=reset, test_curve=[1.0] * 6 + [0.8, 0.9] * 2 + [0.8]
    )
    found = tables.resets(pd.DataFrame([alone, moved]), dynamics.RATE_RESET)
    assert found[tables.BACK].tolist() == pytest.approx([0.25])
    assert found[tables.SWING].tolist() == pytest.approx([(0.2 + 4 * 0.1) / 5])


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([0.0, *[1.0] * 9], False),
        ([0.0, *[1.0] * 6, 99.0, 1.0, 1.0], False),
        ([0.0, *[1.0] * 6, 101.0, 1.0, 1.0], True),
        ([0.0, *[1.0] * 8, None], True),
        ([0.0, *[float(10**k) for k in range(9)]], True),
    ],
)
def test_a_norm_explodes(curve: list[float | None], expected: bool) -> None:
    assert tables.explodes(curve) is expected


def test_rates_that_lie_together_by_layer() -> None:
    rates = {"lr_0": 0.1, "lr_1": 0.001}
    rows = [_row(sets=1, lr=0.01, steps=[0.0, 1.0, 2.0])]
    rows += [
        _row(sets=2, lr=lr, steps=[0.0, 1.0, 2.0], **{k: [lr, v * f, v] for k, v in rates.items()})
        for lr, f in ((0.1, 1.0), (0.2, 1.1))
    ]
    apart = tables.clustering(pd.DataFrame(rows)).set_index("row")["apart"]
    assert apart["layers"] == pytest.approx(2 / math.sqrt(2), rel=1e-6)
    assert apart["starts"] == pytest.approx(math.log10(1.1) / math.sqrt(2), rel=1e-6)


def test_open_choices_are_told_apart() -> None:
    base = dynamics.SIZES["laptop"].base
    runs = [base, *(dynamics.varied(base, v) for v in dynamics.VARIATIONS.values())]
    frame = pd.DataFrame([{**_row(lr_0=[0.1], decay_0=[0.0]), **vars(c), "method": OHO} for c in runs])
    assert list(tables.choices(frame).index) == ["as chosen", *dynamics.VARIATIONS]


def test_every_figure_with_a_result_has_a_claim() -> None:
    figures = {i.item for i in inventory.items() if i.paper == "OHO" and i.result}
    assert {item for claim in claims.CLAIMS for item in claim.items} == figures


def test_nothing_recorded_is_not_run() -> None:
    for claim in claims.CLAIMS:
        assert answer(claim.check, Estimates).word == "not run", claim.id


def test_the_length_of_a_training_is_judged_by_a_factor_of_two() -> None:
    """The printed 12 holds, 5 fails: judged on runs made up with little scatter."""
    check = next(c.check for c in claims.CLAIMS if c.id == "oho-2-twelve")
    assert answer(check, claims.performance_printed).word == "holds"
    for ratio, word in ((12.0, "holds"), (5.0, "fails")):
        rng = np.random.default_rng(0)
        rows = [_row(seed=s, cpu_s=ratio + 0.01 * rng.standard_normal()) for s in range(5)]
        rows += [_row(seed=s, method="Fixed", cpu_s=1 + 0.01 * rng.standard_normal()) for s in range(5)]
        found = claims.measured(tables.trainings(pd.DataFrame(rows)), "row", [tables.SECONDS])
        assert answer(check, partial(Estimates, found.cells)).word == word


def test_the_studies_have_the_settings_that_the_text_gives() -> None:
    table = tables.settings()
    assert len(table) == 13
    assert table["paper"].tolist() == pytest.approx(table["ours"].tolist())
