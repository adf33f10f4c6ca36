"""The study of Table 3 at tiny sizes, a few steps of the paper's configuration, and what the notebook reads."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import norm_clipped, sgd
from gradtune.training.loop import Loop, Method
from gradtune_book import papers
from gradtune_book.data import text
from gradtune_book.notebooks import stats
from gradtune_book.papers.clip import noise, ptb, ptb_choices, tables
from gradtune_book.papers.clip.training import METHODS
from gradtune_book.records import store
from gradtune_book.tasks.language import AveragedLanguageModelling, LanguageModelling

STUDY = papers.get("clip_ptb")
SIZES = ptb.Sizes("markov", 20, 2, 1_000, 60, 30, hidden=6, unrolled=4, batch_size=10, layers=1)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return papers.run_now(STUDY, [replace(c, outer_rate=0.1) for c in ptb.configs(SIZES)])


def test_the_rows_of_table_3_are_run_with_equal_steps() -> None:
    for scale in ptb.SIZES:
        configs = ptb.STUDY.runs(scale)
        assert {c.method for c in configs} == set(METHODS) and len({c.steps for c in configs}) == 1
        rows = {(c.method, c.keep if c.method == "Fixed" else 0, c.outer_scale) for c in configs}
        assert len(rows) == 8 + len(ptb.SIZES[scale].fixed)
        assert {c.keep for c in configs if c.method == "Fixed"} >= {0.35, 0.40, 0.45}
    first = [c.seed for c in ptb.STUDY.runs("laptop")]
    assert first == sorted(first) and first.count(0) == 13  # the first seed of all rows comes first


def test_the_study_gives_every_run_its_numbers(frame: pd.DataFrame) -> None:
    assert len(frame) == 22 and not frame["diverged"].any()
    assert (frame["best_val"] <= frame["val"]).all() and (frame["val"] < text.uniform(text.load("embedded", 30))).all()
    fixed = frame["method"] == "Fixed"
    assert np.allclose(frame["keep_end"][fixed], frame["keep"][fixed])
    assert (frame["keep_end"][~fixed] - 0.5).abs().min() > 1e-7
    assert frame["keep_end"].between(0.1, 0.95).all()
    assert {len(v) for v in frame["panel_val"]} == {len({round(p * 20 / 250) for p in ptb.PANELS} - {0})}
    assert {len(v) for v in frame["val_curve"]} == {20}
    slow, fast = (frame[(frame["method"] == "Clip5") & (frame["outer_scale"] == s)] for s in (0.1, 1.0))
    moved = [float((f["keep_end"] - 0.5).abs().mean()) for f in (slow, fast)]
    assert moved[0] < moved[1]


def test_a_language_model_that_does_not_learn_would_be_seen() -> None:
    """A short training passes the unigram mark and stays above the entropy of the language."""
    corpus = text.load("embedded", 30, 4_000, 600)
    c = ptb.Config("Fixed", 0, 0.9, steps=150, data="markov", tokens=4_000, val_tokens=600, vocabulary=30)
    c = replace(c, hidden=24, layers=1, unrolled=10, batch_size=10, lr=0.8, init=0.3)
    val = float(papers.run_now(STUDY, [c])["best_val"].iloc[0])
    assert corpus.entropy is not None
    assert corpus.entropy < val < text.unigram(corpus) - 0.2


def test_the_papers_configuration_takes_some_steps() -> None:
    """The medium net of Zaremba et al. (20 million weights) with Clip5 for two steps on generated words, on two of its
    20 streams: one step on all of them takes 20 seconds."""
    c = ptb.STUDY.runs("paper")[-1]
    assert (c.method, c.hidden, c.layers, c.unrolled, c.batch_size, c.init, c.max_norm) == (
        *("Clip5", 650, 2, 35, 20),
        *(0.05, 5.0),
    )
    c = replace(c, warm_up=0, data="markov", tokens=200, val_tokens=100, vocabulary=10_000, steps=2, batch_size=2)
    task = ptb.problem(c, [0], torch.device("cpu"))
    assert sum(task.layout.sizes) == 2 * 6_500_000 + 10_000 + 2 * (4 * 650 * 1300 + 8 * 650) == 19_780_400
    loop = ptb.loop(c, task)
    run = loop.advance(loop.start(task.init(c.init)), c.steps)
    assert run.state.w.isfinite().all() and run.raw.isfinite().all()
    assert 0 < float(run.memory.w.norm()) <= 5 * (1 + 1e-5) and float(run.raw[0, 0]) != 0.5


def test_hypergradient_through_a_clipped_lstm_is_that_of_unrolled_autograd() -> None:
    """The written-out second derivatives of an LSTM in every step, through shortened gradients and dropout."""
    corpus = text.load("embedded", 12, 200, 100)
    rule = norm_clipped(sgd(momentum=False, weight_decay=False), 0.3)

    def task() -> LanguageModelling:
        return LanguageModelling(corpus, [0, 1], 4, 2, 4, 5, torch.float64)

    hypers = Hypers([Hyper("lr", 0.7), Hyper("keep", 0.8, tuned=False)], task().layout.sizes)
    loop = Loop(task(), rule, hypers, Method(Forward(), SGD(1.0), every=6))
    w = task().init(0.5)
    hypergradient = 0.7 - loop.advance(loop.start(w), 6).raw
    exact = oracle.unrolled(task(), rule, hypers, w, 6)
    assert torch.allclose(hypergradient, exact, rtol=1e-9)


def test_the_noise_of_the_three_products() -> None:
    """Coupled masks have the least noise, independent ones far more; all agree on average."""
    corpus = text.load("embedded", 12, 300, 200)
    sizes = {"hidden": 6, "layers": 1, "unrolled": 5, "batch_size": 4}
    w, z = noise.example(corpus, steps=20, length=1.0, **sizes)
    table = noise.products(corpus, w, z, 0.6, (0.05,), draws=400, batch=200, **sizes).loc[0.05]
    errors = table["standard deviation"] / 400**0.5
    coupled, independent, joint = table["mean"]
    assert table["variance / coupled"].iloc[0] == 1 and table["variance / coupled"].iloc[1] > 3
    assert (
        abs(coupled - independent) < 4 * errors.iloc[1]
        and abs(coupled - joint) < 4 * errors.iloc[2] + 0.1 * errors.iloc[2]
    )


# -- what the notebook reads -------------------------------------------------------------------------------------------


def test_rows_and_averages_of_table_3(frame: pd.DataFrame, tmp_path: Path) -> None:
    seeds = tables.ptb_seeds(frame)
    assert set(seeds["row"]) == set(tables.published(3).index)
    both = frame[frame["method"] == "Clip5"]
    row = seeds[seeds["row"] == tables.SCALED]
    assert row["val"].mean() == pytest.approx(np.exp(both["val"]).mean()) and (row["runs"] == 2).all()
    assert tables.drift(frame).shape == (7, 3) and tables.parting(frame).shape == (3, 3)
    nothing = store.load(STUDY, "laptop", root=tmp_path)
    assert tables.shown(tables.summary(tables.ptb_seeds(nothing)), tables.published(3)).empty


def test_gaps_to_the_test_text_are_compared_seed_by_seed() -> None:
    rows = [("Fixed", s, k, 1.0, v, t) for s, k, v, t in ((0, 0.3, 4.0, 4.5), (0, 0.4, 4.1, 9.0), (1, 0.3, 5.0, 5.1))]
    rows += [("Clip5", s, 0.5, 1.0, v, t) for s, v, t in ((0, 3.0, 3.6), (1, 4.0, 4.4))] + [
        ("Clip5", 0, 0.5, 0.1, 0, 9)
    ]
    frame = pd.DataFrame(rows, columns=["method", "seed", "keep", "outer_scale", "best_val", "best_test"])
    gaps = tables.ptb_gaps(frame)
    assert gaps.loc["Clip5", ["gap", "larger", "larger_error"]].tolist() == pytest.approx([0.5, 0.2, 0.1])
    assert gaps.loc["Fixed", ["best_val", "gap", "larger"]].tolist() == pytest.approx([4.5, 0.3, 0])
    text = tables.shown_gaps(gaps)
    assert text.loc["Clip5", "larger than the grid's best by"] == f"0.200{stats.PLUS_MINUS}0.100"
    assert tables.shown_gaps(tables.ptb_gaps(pd.DataFrame())).empty


def test_perplexity_and_bits_of_a_loss() -> None:
    table = tables.marks({"uniform": float(np.log(8))})
    assert table.loc["uniform"].tolist() == pytest.approx([8, 3])


def test_steps_must_be_taken_from_where_the_text_starts() -> None:
    task = LanguageModelling(text.load("embedded", 12, 200, 100), [0], 4, 1, 4, 5)
    with pytest.raises(GradtuneError, match="state before piece 3"):
        task.train_loss(task.init(), {}, 3)
    with pytest.raises(GradtuneError, match="keep"):
        task.train_loss(task.init(), {"keep": torch.tensor([[1.5]])}, 0)


# --- clip_ptb_choices -------------------------------------------------------------------------------------------------


def test_one_choice_is_changed_at_a_time(frame: pd.DataFrame) -> None:
    sizes = replace(SIZES, warm_up=5)
    configs = ptb_choices.configs(sizes)
    usual = next(c for c in ptb.configs(sizes) if c.method == "Clip10")
    assert [c.choice for c in configs] == list(ptb_choices.changes(usual))
    for c in configs:
        changed = {n for n, v in asdict(usual).items() if getattr(c, n) != v}
        assert changed == set(ptb_choices.changes(usual)[c.choice])
    chosen = papers.run_now(papers.get("clip_ptb_choices"), [c for c in configs if c.choice == "start at 0.80"])
    table = ptb_choices.effects(frame, chosen)
    assert list(table.index) == ["as in this book", "as in this book, 2 seeds", "start at 0.80"]
    both = np.exp(frame[frame["method"] == "Clip10"]["val"])
    assert table["without"].iloc[1] == f"{both.min():.2f} to {both.max():.2f}"
    assert table["keep at the end"].iloc[2] == f"{chosen['keep_end'].iloc[0]:.2f}"
    assert ptb_choices.effects(frame, chosen.iloc[:0]).empty


def test_a_loss_averaged_over_words_is_a_rate_divided_by_them() -> None:
    """Clip10 trained on the averaged loss with the usual settings, and on the summed one with those of the choice."""
    usual = replace(next(c for c in ptb.configs(SIZES) if c.method == "Clip10"), dtype="float64")
    choice = next(c for c in ptb_choices.configs(SIZES) if c.choice == "loss averaged over words")
    summed = ptb.problem(usual, [0], torch.device("cpu"))
    sizes = SIZES.hidden, SIZES.layers, SIZES.unrolled, SIZES.batch_size, torch.float64
    ends = []
    for c, task in ((usual, AveragedLanguageModelling(summed.text, [0], *sizes)), (choice, summed)):
        loop = ptb.loop(c, task)
        ends.append(loop.advance(loop.start(task.init(1.0)), 10))
    assert torch.allclose(ends[0].state.w, ends[1].state.w, rtol=1e-6)
    assert ends[0].raw.item() == pytest.approx(ends[1].raw.item(), rel=1e-6) and abs(ends[0].raw.item() - 0.5) > 1e-5
