"""An LSTM and a residual net tuned in one pass: derivatives, published settings, every method, what a chapter reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from gradtune import methods
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import norm_clipped, sgd
from gradtune.training.loop import Loop, Method
from gradtune_book import papers
from gradtune_book.data import text
from gradtune_book.papers.onepass import image_tables, language, net_tables, one_pass, resnet
from gradtune_book.papers.onepass.one_pass import TIMES
from gradtune_book.papers.onepass.uci_onepass import ONE_PASS, THREE
from gradtune_book.papers.onepass.uci_training import Setting, declared, setting
from gradtune_book.records.store import Result
from gradtune_book.tasks.language import AveragedLanguageModelling, LanguageModelling

CPU = torch.device("cpu")
TINY = language.Config("Random", 0, "markov", 1_000, 200, 30, 6, 1, 5, 10, steps=40)


def published(c: language.Config) -> tuple[Any, ...]:
    return c.hidden, c.layers, c.unrolled, c.batch_size, c.max_norm, c.every, c.look_back, c.steps


def test_the_papers_settings() -> None:
    """Section 4.2: 72 epochs of all 929,589 words, in 40 streams and pieces of 70."""
    paper = [c for c in language.STUDY.runs("paper") if c.method != TIMES]
    assert len(paper) == 50 * 9 and {published(c) for c in paper} == {(650, 2, 70, 40, 0.25, 10, 5, 23_832)}
    assert 72 * ((929_589 // 40 - 1) // 70) == 23_832
    assert {(c.tokens, c.val_tokens, c.vocabulary, c.data) for c in paper} == {(None, None, None, "ptb")}
    pictures = [c for c in resnet.STUDY.runs("paper") if c.method != TIMES]
    assert {(c.method, c.trials) for c in pictures} == {(m, 3 if m == THREE else 1) for m in ONE_PASS}
    laptop = language.STUDY.runs("laptop")
    assert laptop[0].steps == 72 * ((10_000 // 10 - 1) // 35)
    assert [c.method for c in laptop[:50:5]] == [*ONE_PASS, "Random"]  # five seeds of all methods, then the next


def test_the_papers_configuration_takes_some_steps() -> None:
    """20 million weights, two streams of generated words, an update after two steps that looks back on one of them."""
    c = next(c for c in language.STUDY.runs("paper") if c.method == "WD+LR+M")
    c = replace(c, data="markov", tokens=400, val_tokens=200, vocabulary=10_000, batch_size=2, steps=2)
    task, t = language.trainer(replace(c, every=2, look_back=1), [0], CPU)
    assert sum(task.layout.sizes) == 19_780_400
    before = t.run.raw.clone()
    now = t.advance(2)
    assert now.state.w.isfinite().all() and now.raw.isfinite().all() and (now.raw != before).all()


@pytest.mark.parametrize("look_back", [3, 5])
def test_the_exact_hypergradient_of_a_clipped_lstm_is_that_of_unrolled_autograd(look_back: int) -> None:
    """Learning rate, weight decay and momentum, through gradients that are shortened in every step."""
    corpus = text.load("embedded", 12, 200, 100)
    rule = norm_clipped(sgd(), 0.05)

    def task() -> LanguageModelling:
        return AveragedLanguageModelling(corpus, [0, 1], 4, 2, 4, 5, torch.float64)

    made = methods.diff_through_opt(look_back, look_back)
    w = task().init(0.5)
    hypers = Hypers(declared(setting("Diff-through-Opt"), None, w), task().layout.sizes)
    loop = Loop(task(), rule, hypers, Method(made.estimator, SGD(1.0), every=look_back))
    start = loop.start(w)
    found = start.raw - loop.advance(start, look_back).raw
    exact = oracle.unrolled(task(), rule, hypers, w, look_back)
    assert found.shape == exact.shape == (2, 3) and (exact != 0).all()
    assert torch.allclose(found, exact, rtol=1e-8)
    g = task().train_loss(leaf := w.clone().requires_grad_(), {}, 0).sum()
    assert (torch.autograd.grad(g, leaf)[0].norm(dim=-1) > 0.05).all()  # they are shortened


def test_the_loss_is_an_average_over_words() -> None:
    corpus = text.load("embedded", 12, 200, 100)
    summed = LanguageModelling(corpus, [0], 4, 1, 4, 5, torch.float64)
    averaged = AveragedLanguageModelling(corpus, [0], 4, 1, 4, 5, torch.float64)
    w = summed.init(0.5)
    for t in range(3):
        assert torch.allclose(summed.train_loss(w, {}, t), 4 * averaged.train_loss(w, {}, t), rtol=1e-12)
    step = averaged.on(averaged.batch(2))
    assert torch.equal(step.train_loss(w, {}, 2), averaged.train_loss(w, {}, 2))


def test_initial_weights_are_pytorchs_own() -> None:
    """An embedding from the standard normal, layers of 16 units uniform up to a quarter; a row is its seed's."""
    corpus = text.load("embedded", 200, 2_000, 100)
    w = AveragedLanguageModelling(corpus, [3, 4], 16, 2, 4, 5).pytorch_init()
    embedding, rest = w[:, : 200 * 16], w[:, 200 * 16 :]
    assert abs(float(embedding.std()) - 1) < 0.05 and 0.24 < float(rest.abs().max()) <= 0.25
    task = AveragedLanguageModelling(corpus, [4], 16, 2, 4, 5)
    before, alone = torch.random.get_rng_state(), task.pytorch_init()
    assert torch.equal(alone[0], w[1]) and not torch.equal(w[0], w[1])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_methods_without_validation_train_on_the_validation_text_too() -> None:
    for method in ONE_PASS:
        if method == THREE:
            continue
        task, _ = language.trainer(replace(TINY, method=method), [0], CPU)
        corpus = text.load("markov", 30, 1_000, 200)
        words = [corpus.train, corpus.val] if method in ("Random", "Random-xLR", "Baydin") else [corpus.train]
        assert torch.equal(task.text.train, torch.cat(words)) and torch.equal(task.text.val, corpus.val)


@pytest.fixture(scope="module")
def words() -> pd.DataFrame:
    sizes = replace(language.SIZES["smoke"], runs=2, steps=40, timed_steps=10)
    return papers.run_now(language.STUDY, language.configs(sizes))


def test_every_method_trains_an_lstm(words: pd.DataFrame) -> None:
    assert set(words["method"]) == {*ONE_PASS, TIMES}
    trained = net_tables.trainings(words, net_tables.TEXT)
    assert np.isfinite(trained["test_loss"]).all() and (trained["diverged"] == 0).all()
    assert all(len(curve) >= 4 and curve[0] >= curve[-1] for curve in trained["loss_curve"])
    assert np.allclose(trained[net_tables.PERPLEXITY], np.exp(trained["test_loss"]))
    once = trained[trained["seed"] == 0].set_index("method")["test_loss"]
    tuned = once[[m for m in ONE_PASS if not m.startswith("Random")]]
    assert tuned.nunique() == len(tuned) and (tuned != once["Random"]).all()


def test_the_chapter_reads_tables_and_times(words: pd.DataFrame) -> None:
    trained = net_tables.trainings(words, net_tables.TEXT)
    table = net_tables.beside(trained, net_tables.PERPLEXITY, "onepass_table2.csv")
    printed = str(table.loc["OnePass WD+LR+M", "mean, paper"])
    assert list(table["runs"]) == [2] * 9 and printed.replace("\N{NO-BREAK SPACE}", " ") == "**270 ± 30**"
    times = image_tables.times(words)
    assert (times[image_tables.MS] > 0).all() and len(times) == 8
    none = words.iloc[:0]
    assert net_tables.trainings(none, net_tables.TEXT).empty
    assert net_tables.quantiles(none, none).empty
    assert set(net_tables.quantiles(trained, none)["measure"]) == {"perplexity"}


def test_a_perplexity_too_large_for_a_number_counts_as_diverged() -> None:
    frame = pd.DataFrame({"method": "Random", "test_loss": [1.0, 800.0, np.nan], "best_loss": [1.0, 2.0, np.nan]})
    found = net_tables.trainings(frame, net_tables.TEXT)[net_tables.PERPLEXITY]
    assert found[0] == pytest.approx(np.e) and found[1:].isna().all()


def test_three_batched_keeps_the_training_of_lowest_validation_loss() -> None:
    (kept,) = language.run([replace(TINY, method=THREE, trials=3, seed=2)], CPU)
    thirds = [language.run([replace(TINY, seed=one_pass.THIRDS + 6 + j)], CPU)[0].metrics for j in range(3)]
    assert kept.metrics == min(thirds, key=lambda m: float(m["val_loss"] or np.inf))
    lost, none = Result({"val": None}, cpu_s=1.0), Result({"val": 2.0}, cpu_s=2.0, wall_s=3.0)
    assert one_pass.best([lost, none], "val") == replace(none, cpu_s=3.0)


def test_runs_side_by_side_are_those_alone() -> None:
    def ends(batch: Sequence[language.Config]) -> list[Any]:
        return [r.metrics["test_loss"] for r in language.run(batch, CPU)]

    both = [replace(TINY, method="WD+LR+M", seed=s) for s in (0, 1)]
    assert ends(both) == pytest.approx([*ends(both[:1]), *ends(both[1:])], rel=1e-5)


def test_a_learning_rate_for_each_weight_starts_from_the_one_for_all() -> None:
    its: Setting = setting("WD+HDLR+M")
    task, t = language.trainer(replace(TINY, method="WD+HDLR+M", every=2, look_back=1), [0], CPU)
    assert its.per_weight and t.run.raw.shape[-1] == sum(task.layout.sizes) + 2
    rates: Tensor = t.advance(2).raw[0, : sum(task.layout.sizes)]
    assert len(rates.unique()) > 1
