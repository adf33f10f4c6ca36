"""How claims are judged: against SciPy's own tests, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Claim, Setting, judge, verdict
from gradtune_book.claims.estimates import Estimate, Estimates, Missing, joined, mean_of, measured, median_of, printed
from gradtune_book.claims.judging import Answer, Comparison, Finding, decide
from gradtune_book.claims.words import Shown, figure, paper_says, rests_on

RNG = np.random.default_rng(0)
X, Y = RNG.normal(0.0, 1.0, 30), RNG.normal(0.7, 2.0, 25)


def test_two_means_by_welch_from_values_and_from_summaries() -> None:
    wanted = stats.ttest_ind(X, Y, equal_var=False)
    a, b = mean_of(X), mean_of(Y)
    found = judging.below(a, b, "x - y")
    assert found.p == pytest.approx(wanted.pvalue) and found.size == pytest.approx(X.mean() - Y.mean())
    assert found.size / found.error == pytest.approx(wanted.statistic) and found.n == 25
    summaries = judging.below(Estimate(a.value, a.error, 30), Estimate(b.value, b.error, 25), "x - y")
    assert summaries.p == pytest.approx(wanted.pvalue) and summaries.by == "Welch's t"


def test_the_same_instances_are_compared_one_by_one() -> None:
    found = judging.below(mean_of(X[:25]), mean_of(Y), "x - y", paired=True)
    assert found.p == pytest.approx(stats.ttest_rel(X[:25], Y).pvalue) and found.by == "paired t"
    gone = np.where(np.arange(25) < 5, np.nan, Y)
    less = judging.below(mean_of(X[:25]), mean_of(gone), "x - y", paired=True)
    assert less.n == 20 and less.p == pytest.approx(stats.ttest_rel(X[5:25], Y[5:]).pvalue)


def test_a_factor_is_tested_on_the_difference() -> None:
    found = judging.below(mean_of(X[:25]), mean_of(Y), "x - 2 y", paired=True, factor=2.0)
    assert found.p == pytest.approx(stats.ttest_rel(X[:25], 2 * Y).pvalue)
    apart = judging.below(mean_of(X), mean_of(Y), "x - 2 y", factor=2.0)
    assert apart.p == pytest.approx(stats.ttest_ind(X, 2 * Y, equal_var=False).pvalue)


def test_a_limit_by_the_one_sample_t() -> None:
    wanted = stats.ttest_1samp(Y, 0.0)
    assert judging.above_limit(mean_of(Y), 0.0, "y").p == pytest.approx(wanted.pvalue)
    assert judging.above_limit(mean_of(Y), 0.0, "y").for_it and not judging.below_limit(mean_of(Y), 0.0, "y").for_it


def test_medians_by_the_bca_bootstrap() -> None:
    """The p-value is 1 less the level of the interval that just reaches zero; NaN are left out."""
    found = judging.below(median_of([*X, np.nan]), median_of(Y), "x - y")

    def gap(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.median(a, axis=axis) - np.median(b, axis=axis))

    rng = np.random.default_rng(0)
    ends = [
        stats.bootstrap((X, Y), gap, n_resamples=1999, confidence_level=1 - p, method="BCa", rng=rng)
        for p in (found.p * 1.5, found.p / 1.5)
    ]
    assert found.by == "BCa bootstrap" and found.size == pytest.approx(np.median(X) - np.median(Y))
    assert ends[0].confidence_interval.high < 0 < ends[1].confidence_interval.high


def test_nearness_by_two_one_sided_tests() -> None:
    a, b = mean_of(X), mean_of(X + 0.01)
    error, freedom = math.hypot(a.error, b.error), 58
    by_hand = stats.t.sf((1.0 - 0.01) / error, freedom)
    found = judging.near(a, b, 1.0, "near")
    assert found.p == pytest.approx(by_hand) and found.for_it
    far = judging.near(a, mean_of(X + 5), 1.0, "near")
    assert not far.for_it and far.p < 1e-6
    assert decide(Finding((judging.near(a, b, 0.1, "near"),))).word == "within noise"


def test_what_cannot_be_told_apart() -> None:
    a = mean_of(X)
    assert decide(Finding((judging.apart(a, mean_of(X + 0.05), "same"),))).word == "holds"
    assert decide(Finding((judging.apart(a, mean_of(X + 2), "same"),))).word == "fails"
    assert decide(Finding((judging.apart(Estimate(1.0), Estimate(1.1), "same"),))).word == "within noise"


def test_shares_by_the_binomial_distribution() -> None:
    assert judging.share((15, 20), 0.5, "most").p == pytest.approx(stats.binomtest(15, 20, 0.5).pvalue)
    words = [decide(Finding((judging.share((k, 20), 0.5, "most"),))).word for k in (19, 12, 1)]
    assert words == ["holds", "within noise", "fails"]
    assert [decide(Finding((judging.share((k, 20), 1, "all"),))).word for k in (20, 19)] == ["holds", "fails"]
    with pytest.raises(Missing, match="all: there is none yet"):
        judging.share((0, 0), 1, "all")


def test_trends_by_rank_correlation() -> None:
    at, y = range(20), -np.arange(20.0)
    assert judging.trend(at, list(y), True, "falls").p == pytest.approx(stats.kendalltau(at, y).pvalue)
    words = [decide(Finding((judging.trend(at, list(v), True, "falls"),))).word for v in (y, -y, y * 0)]
    assert words == ["holds", "fails", "within noise"]


def test_a_trend_that_is_none() -> None:
    at, noise = list(range(200)), list(np.random.default_rng(1).normal(size=200))
    assert decide(Finding((judging.no_trend(at, noise, 0.3, "none"),))).word == "holds"
    assert decide(Finding((judging.no_trend(at, [float(k) for k in at], 0.3, "none"),))).word == "fails"


def test_holms_correction() -> None:
    """By hand: 3 x 0.01, then 2 x 0.02, then 1 x 0.03, never falling."""
    assert judging.holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert judging.holm([0.6, math.nan, 0.5])[::2] == [1.0, 1.0] and math.isnan(judging.holm([math.nan])[0])


def comparison(p: float, for_it: bool, n: int = 10, by: str = "t") -> Comparison:
    return Comparison("x", -1.0, 0.1, n, p, for_it, by)


def test_several_comparisons_make_an_answer() -> None:
    good, bad, open_ = comparison(0.001, True), comparison(0.001, False), comparison(0.4, True)

    def word(*parts: Comparison, every: bool = True) -> str:
        return decide(Finding(parts, every)).word

    assert [word(good, good), word(good, open_), word(good, bad)] == ["holds", "within noise", "fails"]
    assert [word(bad, good, every=False), word(bad, open_, every=False), word(bad, bad, every=False)] == [
        "holds",
        "within noise",
        "fails",
    ]
    assert word(comparison(0.03, True), comparison(0.04, True)) == "within noise"  # by Holm
    assert word() == "not run"
    assert decide(Finding((good, bad))).decisive == bad and decide(Finding((good, open_))).decisive == open_


def test_two_runs_decide_nothing() -> None:
    for n in (1, 2):
        few = judging.below(mean_of([0.0] * n), mean_of([9.0] * n), "x")
        assert decide(Finding((few,))).word == "within noise" and few.for_it
    assert decide(Finding((judging.below(mean_of([0.0, 0.1, 0.2]), mean_of([9.0, 9.1, 9.3]), "x"),))).word == "holds"


def test_printed_numbers_are_judged_by_value_and_it_is_said() -> None:
    answer = decide(Finding((judging.below(Estimate(1.0), Estimate(2.0), "x"),)))
    assert answer.word == "holds" and rests_on(answer) == "x: −1, by value alone"
    assert paper_says(answer) == "holds (x: −1, value alone)"
    assert decide(Finding((judging.below(Estimate(2.0), Estimate(2.0), "x"),))).word == "within noise"


def test_tables_of_estimates() -> None:
    frame = pd.DataFrame({"method": ["a", "a", "b"], "seed": [1, 0, 1], "loss": [2.0, 1.0, 5.0]})
    t = measured(frame, "method", ["loss"], instance="seed")
    assert t.paired and t.at("a", "loss").values == (1.0, 2.0) and t.at("b", "loss").n == 1
    assert math.isnan(t.at("b", "loss").values[0]) and t.rows("loss") == ["a", "b"]
    with pytest.raises(Missing, match="no number for c, loss"):
        t.at("c", "loss")
    with pytest.raises(Missing, match="nothing counted"):
        t.count("x")
    both = joined(t, Estimates(counts={"x": (1, 2)}))
    assert both.count("x") == (1, 2) and not both.paired
    assert printed(pd.DataFrame({"loss": {"a": 1.0, "b": np.nan}})).rows("loss") == ["a"]
    with pytest.raises(Missing):
        mean_of([np.nan])


def test_a_claim_is_answered_in_each_setting() -> None:
    t = Estimates({("a", "loss"): mean_of(X), ("b", "loss"): mean_of(X + 3)})
    theirs = printed(pd.DataFrame({"loss": {"a": 1.0, "b": 2.0}}))
    settings = (Setting("paper", "toy", lambda: t, lambda: theirs), Setting("laptop", "other", Estimates))
    claim = Claim(
        *("c", "P", "Section 1", ("Table 1",), "a is below b", "order"),
        lambda t: judging.all_below(t, ["a"], ["b"], "loss"),
        *("chapter", settings),
    )
    first, second = judge(claim)
    assert (first.ours.word, first.paper.word, second.ours.word) == ("holds", "holds", "not run")
    shown = Shown([first, second])
    assert repr(shown).startswith(
        "Table 1: partly (1 of 2 answers not run): "
        "Reproduced on toy (n = 30); the paper's size. Not run on other; reduced size\n"
    )
    assert "| a is below b | Section 1 | other, reduced size | – | no number for a, loss | not run |" in (
        shown._repr_markdown_()
    )


def test_verdicts_follow_from_the_answers() -> None:
    def of(*words: str) -> str:
        return verdict([Answer(word) for word in words])  # type: ignore[arg-type]

    assert [of("holds", "holds"), of("holds", "fails"), of("holds", "within noise")] == [
        "reproduced",
        "partly",
        "partly",
    ]
    assert [of("fails", "within noise"), of("within noise"), of("not run"), of()] == [
        "not",
        "within noise",
        "not run",
        "not run",
    ]
    assert of("holds", "not run") == "partly (1 of 2 answers not run)"


def test_numbers_in_words() -> None:
    assert [figure(-0.0005), figure(1234.6), figure(-0.0)] == ["−0.0005", "1230", "0"]
