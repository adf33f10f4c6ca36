"""The study `together`: every way at tiny sizes, starts and plans, and its tables against numbers found by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune_book import papers
from gradtune_book.papers.packages import installed
from gradtune_book.papers.together import comparison, comparison_tables, decisions, ways
from gradtune_book.papers.together.comparison import SIZES, Config, applies, start_of, steps_for
from gradtune_book.records import store
from gradtune_book.tasks import problems

CPU = torch.device("cpu")


def config(method: str, problem: str = "energy", steps: int = 30, **more: Any) -> Config:
    way = ways.get(method)
    given = {"tunes": way.tunes, "start": 1e-2 if way.starts else None} | more
    return Config(method, 0, problem, problems.resolve(problem, "embedded"), steps, steps, **given)


def metrics(c: Config) -> dict[str, Any]:
    return comparison.run([c], CPU)[0].metrics


@pytest.mark.parametrize("method", ways.WAYS)
def test_every_way_trains_for_its_steps(method: str) -> None:
    if not installed(method):
        with pytest.raises(GradtuneError, match="pip install"):
            metrics(config(method))
        pytest.skip(f"{method} needs a package that is not installed")
    found = metrics(config(method))
    assert math.isfinite(found["val"]) and math.isfinite(found["test"]) and found["initial_val"] > 0


@pytest.mark.parametrize(
    ("method", "tunes"), [(n, t) for n, w in ways.WAYS.items() for t in w.also if t != "smoothing"]
)
def test_whatever_a_way_can_tune_is_moved(method: str, tunes: Any) -> None:
    """Not a fixed training in disguise: other losses than with everything fixed."""
    fixed = metrics(Config("fixed", 0, "energy", "diabetes", 30, 30, start=1e-2, rule="SGD", weight_decay=1e-4))
    found = metrics(config(method, tunes=tunes))
    assert math.isfinite(found["val"]) and found["val"] != fixed["val"]


@pytest.mark.parametrize("method", [n for n, w in ways.WAYS.items() if "smoothing" in w.also])
def test_the_smoothing_of_the_loss_is_tuned(method: str) -> None:
    plain = metrics(config(method, "mnist", tunes="smoothing"))
    far = metrics(config(method, "mnist", tunes="smoothing", factor=5000.0))
    assert math.isfinite(plain["val"]) and plain["val"] != far["val"]


@pytest.mark.parametrize("problem", problems.TITLES)
def test_every_problem_trains(problem: str) -> None:
    found = metrics(config("AdamW-cosine", problem, 60))
    if problem == problems.STREAM:  # each numbering of the classes gets ten steps
        assert found["val"] != found["initial_val"]
    else:
        assert found["val"] < found["initial_val"]
    assert found == metrics(config("AdamW-cosine", problem, 60))


def test_the_stream_renumbers_its_classes_and_a_shorter_one_does_so_sooner() -> None:
    stream = problems.load("stream", "digits")
    for steps in (12, 60):
        batches = stream.data(steps, 0)
        assert len(batches) == steps
        for t, (x, y) in enumerate(batches):
            old = [int(stream.train[1][(stream.train[0] == image).flatten(1).all(1)][0]) for image in x[:3]]
            assert problems.numbering(t * problems.PARTS // steps)[old].tolist() == y[:3].tolist()
    assert [sorted(problems.numbering(k).tolist()) for k in range(3)] == [list(range(10))] * 3
    assert problems.numbering(0).tolist() == list(range(10)) != problems.numbering(1).tolist()


def test_ways_that_need_validation_rows_stay_away_from_the_stream() -> None:
    runs = comparison.configs(SIZES["paper"])
    here = {c.method for c in runs if c.problem == problems.STREAM}
    assert "hd" in here and "AdamW" in here and "fixed" in here
    assert not here & {"onepass", "recipe", "random", "oho"}
    assert not applies("grid", problems.STREAM)


def test_five_seeds_share_out_the_range_of_starts() -> None:
    starts = [start_of(s) for s in range(10)]
    assert starts == [start_of(s) for s in range(10)]
    for block in (starts[:5], starts[5:]):
        fifths = sorted(int((math.log10(s) + 6) / 7 * 5) for s in block)
        assert fifths == [0, 1, 2, 3, 4]
    assert starts[:5] != starts[5:]


def test_a_dear_way_has_fewer_steps_and_all_ways_the_same_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "cost", lambda name, problem, tunes="": 4.0 if name == "oho" else 1.0)
    assert steps_for("oho", "energy", "rate and decay", 100) == 25
    runs = comparison.configs(SIZES["smoke"])
    assert len(runs) == len(set(runs))
    first = [c for c in runs if c.problem == "energy" and c.seed == 0]
    assert {c.steps for c in first if c.method == "oho"} == {c.budget // 4 for c in first} | {first[0].budget}
    assert {c.steps for c in first if c.method == "AdamW"} == {first[0].budget}
    assert {c.start for c in first if ways.WAYS.get(c.method) and ways.get(c.method).starts} == {start_of(0)}


def test_what_there_is_to_run_does_not_depend_on_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = comparison.configs(SIZES["paper"])
    assert {c.method for c in plain} == {
        *(n for n in ways.WAYS if n not in ("ScheduleFree", "Prodigy", "D-Adaptation", "DoG")),
        "fixed",
    }
    monkeypatch.setattr(comparison, "installed", lambda name: True)
    assert {c.method for c in comparison.arranged("paper", plain)} == {*ways.WAYS, "fixed"}
    assert {c.start for c in plain if c.method in ("random", "AdamW-1e-3")} == {None}


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(GradtuneError, match="way to train"):
        ways.get("onepas")
    with pytest.raises(GradtuneError, match="rule of fixed trainings"):
        ways.fixed("adam", 0.0)
    with pytest.raises(GradtuneError, match="what is tuned"):
        metrics(config("onepass", tunes="all"))
    with pytest.raises(GradtuneError, match="problem"):
        problems.resolve("minst", "auto")
    with pytest.raises(GradtuneError, match="choice of data"):
        problems.resolve("mnist", "some")
    with pytest.raises(GradtuneError, match="trains on fashion or digits"):
        problems.load("lenet", "mnist")


# --- tables, on runs made up --------------------------------------------------------------------------------------


def made_up() -> pd.DataFrame:
    """Two problems; the reference has test losses 1 and 2; OnePass is at 1.2, fails, 2 and 8; AdamW at 1, 1, 3, 2."""
    rows = []

    def add(method: str, problem: str, seed: int, val: float, test: float, **more: Any) -> None:
        way = ways.WAYS.get(method)
        row = {"method": method, "problem": problem, "seed": seed, "val": val, "test": test, "initial_val": 10.0}
        row |= {"steps": 100, "budget": 100, "tunes": way.tunes if way else "", "factor": 1.0, "cpu_s": 1.0}
        rows.append(row | {"start": None, "rule": "", "weight_decay": None} | more)

    for problem, test in (("energy", 1.0), ("mnist", 2.0)):
        for lr, val in ((0.1, 3.0), (0.2, 0.5)):
            for seed in (0, 1):
                kept = test if lr == 0.2 else 100.0
                add("fixed", problem, seed, val, kept, rule="SGD", start=lr, weight_decay=0.0)
    for method, tests, cpu in (("onepass", (1.2, 9.0, 2.0, 8.0), 2.0), ("AdamW-1e-3", (1.0, 1.0, 3.0, 2.0), 1.0)):
        for k, test in enumerate(tests):
            val = 11.0 if test == 9.0 else 1.0
            problem = ("energy", "mnist")[k // 2]
            start = (1e-3, 1.0)[k % 2] if method == "onepass" else None
            add(method, problem, k % 2, val, test, start=start, cpu_s=cpu)
    return pd.DataFrame(rows)


@pytest.fixture
def equal_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "cost", lambda name, problem, tunes="": 1.0)


def test_ratios_are_to_the_best_fixed_setting_and_failures_are_infinite(equal_costs: None) -> None:
    best = comparison_tables.reference(made_up())
    assert best["start"].tolist() == [0.2, 0.2] and best["test"].tolist() == [1.0, 2.0] and best["n"].tolist() == [2, 2]
    runs = comparison_tables.scored(made_up())
    assert runs[runs["method"] == "onepass"]["ratio"].tolist() == [1.2, np.inf, 1.0, 4.0]
    assert runs["usual"].all() and set(runs["kind"]) == {"gradients", "optimiser"}
    assert len(comparison_tables.seen(runs, "equal time")) == len(comparison_tables.seen(runs, "equal steps")) == 8


def test_summaries_count_and_rank(equal_costs: None) -> None:
    runs = comparison_tables.seen(comparison_tables.scored(made_up()), "equal time")
    table = comparison_tables.summary(runs)
    assert table.loc["OnePass", ["n", "near", "failed", "time"]].tolist() == [4, 50.0, 1, 2.0]
    assert table.loc["OnePass", "low"] < 50 < table.loc["OnePass", "high"]
    assert table.loc["AdamW 0.001", ["near", "median"]].tolist() == [100.0, 1.0]
    grid = comparison_tables.matrix(runs)
    assert grid.loc["OnePass", "mnist"] == 2.5 and list(grid.index) == ["OnePass", "AdamW 0.001"]
    assert comparison_tables.by_start(runs).loc["OnePass"].tolist() == [1.1, np.inf]
    apart = comparison_tables.spread(runs)
    assert apart.loc["AdamW 0.001", "spread"] == 1.25 and apart.loc["OnePass", "failed somewhere"] == 1


def test_figures_are_drawn_of_any_runs(equal_costs: None) -> None:
    runs = comparison_tables.seen(comparison_tables.scored(made_up()), "equal time")
    names = ["OnePass", "AdamW 0.001"]
    assert comparison_tables.draw_matrix(runs).axes and comparison_tables.draw_costs(runs).axes
    for draw in (comparison_tables.draw_profile, comparison_tables.draw_starts):
        assert draw(runs, names).axes[0].get_legend() is not None


def test_the_study_runs_at_smoke_and_its_tables_read_it() -> None:
    study = papers.get("together")
    chosen = [c for c in study.runs("smoke") if c.problem == "energy" and c.seed == 0]
    frame = papers.run_now(study, chosen).assign(cpu_s=1.0)
    runs = comparison_tables.scored(frame)
    titles = set(comparison_tables.matrix(comparison_tables.seen(runs, "equal steps")).index)
    assert {"Default", "OnePass", "AdamW"} <= titles and "Random" not in titles  # searches share out a budget


def test_the_decision_table_takes_what_the_records_say(equal_costs: None) -> None:
    runs = comparison_tables.scored(made_up())
    table = decisions.table(runs)
    assert list(table.index) == [case.words for case in decisions.CASES]
    anything = table.loc["nothing is known of the rate"]
    assert anything["take"] == "AdamW 0.001" and anything["runner-up"] == "OnePass"
    assert anything["near"].startswith("100 % (") and anything["its"].startswith("50 % (")
    assert table.loc["a rate is given, and may be far off", "take"] == "not recorded"
    few = runs[(runs["method"] != "onepass") | (runs["problem"] == "energy")]
    assert table.loc["momentum is tuned too", "take"] == "not recorded"
    assert "OnePass" not in decisions.ranked(few, decisions.CASES[1]).index  # it was not run on both problems


def test_none_of_these_where_another_kind_is_surely_better(equal_costs: None) -> None:
    runs = comparison_tables.scored(made_up())
    own, best = runs[runs["method"] == "onepass"], runs[runs["method"] == "AdamW-1e-3"]
    parts = [
        own.assign(method=name, title=ways.get(name).title, ratio=ratios, tunes=ways.get(name).tunes)
        for name, ratios in (("pbt", [1.2, 5.0, 5.0, 5.0]), ("grid", [6.0] * 4))
    ]
    for copies, words in ((1, "PBT"), (20, "none of these: AdamW 0.001")):
        row = decisions.table(pd.concat([best, *parts] * copies)).loc["one number to search for, many trainings"]
        assert row["take"].startswith(words) and row["best of them"] == "PBT"


def test_over_its_start_a_way_helps_where_a_sign_test_says_so() -> None:
    def runs(method: str, ratios: list[float]) -> pd.DataFrame:
        return pd.DataFrame({"method": method, "problem": "energy", "seed": range(len(ratios)), "ratio": ratios})

    alone, ten = runs("SGD", [2.0] * 9 + [np.inf]), decisions.over_start
    for ratios, better, worse, helps in (
        ([1.0] * 10, 100, 0, "yes"),
        ([3.0] * 9 + [1.0], 10, 90, "no"),
        ([1.0] * 5 + [3.0] * 4 + [np.inf], 50, 40, "not clear"),
        ([2.0] * 9 + [np.inf], 0, 0, "not clear"),
    ):
        row = ten(pd.concat([alone, runs("oho", ratios)])).loc["OHO"]
        assert row.tolist() == ["SGD", 10, better, worse, helps]


def test_the_recorded_decision_table_is_what_counting_by_hand_gives() -> None:
    recorded = store.load(papers.get("together"), "paper")
    if recorded.empty:
        pytest.skip("nothing is recorded of the study")
    runs = comparison_tables.scored(recorded)
    table = decisions.table(runs)
    for case in decisions.CASES:
        own = decisions.chosen(runs, case)
        counts = own.groupby("title")["problem"].nunique()
        shares = {t: (own.loc[own["title"] == t, "ratio"] <= 1.5).mean() for t in counts[counts == counts.max()].index}
        if len(shares) > 1:
            assert shares[table.loc[case.words, "best of them"]] == max(shares.values())
