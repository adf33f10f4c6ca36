"""What the chapter on an LSTM and a residual net says in prose, against the records."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gradtune_book.papers.onepass import language, net_tables, resnet, uci_tables
from gradtune_book.papers.onepass.image_tables import RATIO, times
from gradtune_book.papers.onepass.uci_claims import OURS
from gradtune_book.records import store
from gradtune_book.records.study import Study

SINGLE = ["Random", "Random-xLR", "Lorraine", "Baydin"]
TUNED = [*OURS, "Diff-through-Opt"]


@pytest.fixture(scope="module")
def words() -> pd.DataFrame:
    found = net_tables.trainings(store.load(language.STUDY, "laptop"), net_tables.TEXT)
    assert len(found) == 90
    return found


@pytest.fixture(scope="module")
def images() -> pd.DataFrame:
    return net_tables.trainings(store.load(resnet.STUDY, "laptop"), net_tables.IMAGES)


def test_small_rates_are_where_methods_differ(words: pd.DataFrame) -> None:
    table = words.pivot(index="seed", columns="method", values=net_tables.PERPLEXITY)
    slow = words.groupby("seed")["log10_lr"].first() < -3
    assert slow.sum() == 4 and len(slow) == 10
    assert (table.loc[slow, SINGLE] > 800).all(axis=None) and (table[TUNED] < 180).all(axis=None)


def test_means_on_words(words: pd.DataFrame) -> None:
    mean = words.groupby("method")[net_tables.PERPLEXITY].mean()
    assert (mean[TUNED] / mean["Random"]).between(0.25, 1 / 3).all()
    assert mean["Lorraine"] > mean["WD+LR"] > mean["WD+LR+M"]
    paper = uci_tables.published("onepass_table2.csv")["mean"][net_tables.TEXT].sort_values()
    ours, first = list(mean.sort_values().index), ["WD+LR+M", "Diff-through-Opt"]
    assert list(paper.index[:2]) == first == ours[1::-1]
    assert set(paper.index[6:8]) == {"Random", "Lorraine"} == set(ours[6:8])  # printed as equal
    assert [m for m in paper.index[2:] if m != "Random"] == [m for m in ours[2:] if m != "Random"]
    table = words.pivot(index="seed", columns="method", values=net_tables.PERPLEXITY)
    gap = table["WD+LR+M"] - table["Diff-through-Opt"]
    assert abs(gap.mean()) < 2 * gap.std() / len(gap) ** 0.5


def test_the_frequencies_of_words(words: pd.DataFrame) -> None:
    mark = np.exp(words.loc[words["method"] == "WD+LR+M", "unigram"].unique())
    assert [round(float(x)) for x in mark] == [140]
    assert round(words["best_perplexity"].min()) == 115


def test_images_decide_nothing(images: pd.DataFrame) -> None:
    table = images.pivot(index="seed", columns="method", values="test_ce")
    slow = images.groupby("seed")["log10_lr"].first() < -4
    assert slow.sum() == 2 and len(slow) == 6 and table.notna().all(axis=None)
    gap = table[list(OURS)].sub(table["Random"], axis=0)
    assert (gap[slow] < -1 / 3).all(axis=None)
    assert -0.06 < gap[~slow].min(axis=None) < -0.05 and 0.21 < gap[~slow].max(axis=None) < 0.22


@pytest.mark.parametrize("study", [language.STUDY, resnet.STUDY], ids=lambda study: study.name)
def test_times_are_of_one_repetition_each(study: Study) -> None:
    found = times(store.load(study, "laptop"))
    assert found.groupby("method").size().eq(5).all()
    assert found.groupby("method")[RATIO].median().between(0.9, 3).all()
