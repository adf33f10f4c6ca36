"""What the OnePass paper leaves open on images: one choice changed at a time, each with its effect."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune_book import papers
from gradtune_book.papers.onepass import image_choices, image_horizon, image_training, uci_tables
from gradtune_book.papers.onepass.image_choices import PIXELS, SHARES, USUAL, Config
from gradtune_book.records import store
from gradtune_book.tasks import fashion

CPU = torch.device("cpu")
TINY = Config("WD+LR+M", 3, "digits", 40)


def test_one_choice_is_changed_at_a_time() -> None:
    common: list[set[str]] = [{"standardised"}, set()]  # the split goes by the name of the choice
    for method, names in (("WD+LR+M", [{"val_batch"}, *common]), ("Random", common)):
        base = replace(TINY, method=method)
        found = [{n for n, v in asdict(base).items() if getattr(c, n) != v} for c in image_choices.changes(base, 200)]
        assert [each - {"choice"} for each in found] == names


def test_unchanged_it_is_the_run_of_the_study_of_horizons() -> None:
    (ours,) = image_choices.run([TINY], CPU)
    (theirs,) = image_horizon.run([image_training.Config("WD+LR+M", 3, "digits", 40)], CPU)
    assert ours.metrics == theirs.metrics and ours.series == theirs.series


def test_changes_reach_the_images() -> None:
    plain, larger, pixels, _ = (
        image_choices.problem(c, CPU, merged=False) for c in (TINY, *image_choices.changes(TINY, 200))
    )
    assert len(plain.val.at(0)[0]) == 50 and len(larger.val.at(0)[0]) == 200
    assert float(pixels.images.x_train.min()) == 0 and float(pixels.images.x_train.max()) == 1
    both = fashion.load("digits")
    assert float(torch.cat([both.x_train, both.x_val]).mean()) == pytest.approx(0, abs=1e-5)
    again = pixels.images.x_train * 16  # scikit-learn's digits have pixels from 0 to 16
    assert torch.equal(again, again.round())


def test_shares_split_all_images_in_their_order() -> None:
    split = image_choices.problem(replace(TINY, choice=SHARES), CPU, merged=False).images
    assert [len(part[1]) for part in (split.train, split.val, split.test)] == [1078, 360, 359]
    usual = fashion.load("digits").flat()
    assert torch.equal(split.y_train, usual.y_train[:1078]) and torch.equal(split.y_test[-300:], usual.y_test)
    assert float(torch.cat([split.x_train, split.x_val]).mean()) == pytest.approx(0, abs=1e-5)
    with pytest.raises(GradtuneError, match="1797 images make 898 training and 899 validation images; expected two"):
        fashion.load("digits", shares=(0.5, 0.5))


def test_the_table_sets_choices_beside_the_same_seeds() -> None:
    changed = papers.run_now(image_choices.STUDY, image_choices.STUDY.runs("smoke"))
    usual = papers.run_now(image_horizon.STUDY, [c for c in image_horizon.STUDY.runs("smoke") if c.steps == 80])
    table = image_choices.effects(changed, usual)
    assert table.index.tolist() == [
        *[("WD+LR+M", name) for name in (USUAL, "150 validation images an update", PIXELS, SHARES)],
        *[("Random", name) for name in (USUAL, PIXELS, SHARES)],
    ]
    assert (table["runs"] == 3).all()
    own = (
        changed[(changed["method"] == "Random") & (changed["choice"] == PIXELS)]
        .sort_values("seed")["test_ce"]
        .to_numpy()
    )
    partner = usual[(usual["method"] == "Random") & (usual["seed"] < 3)].sort_values("seed")["test_ce"].to_numpy()
    shown = table.loc[("Random", PIXELS), "difference"].split("\u00a0")[0]
    assert float(shown) == pytest.approx(np.mean(own - partner), abs=6e-4)


def test_what_the_page_of_omissions_says_of_the_records() -> None:
    changed, usual = (store.load(name, "paper") for name in ("image_choices", "image_horizon"))
    usual = usual[(usual["dataset"] == "fashion") & (usual["steps"] == 10_000)]
    both = changed.merge(usual, on=["method", "seed", "dataset", "steps"], suffixes=("", "_usual"))
    groups = both.groupby(["method", "choice"])
    assert (groups.size() == 50).all()
    mean, before = (groups[name].mean() for name in ("test_ce", "test_ce_usual"))
    change = mean / before - 1
    assert -0.015 < change["WD+LR+M", "500 validation images an update"] < -0.005  # about one per cent
    assert 0.08 < change["WD+LR+M", PIXELS] < 0.13 < change["Random", PIXELS]  # about a tenth, and more
    assert -0.045 < change["WD+LR+M", SHARES] < -0.035 and abs(change["Random", SHARES]) < 0.01
    paper = uci_tables.published("onepass_table2.csv").loc["Fashion-MNIST"]["mean"]
    was, now = before["WD+LR+M", SHARES], mean["WD+LR+M", SHARES]
    assert 0.28 < (was - now) / (was - paper["WD+LR+M"]) < 0.38  # a third of the way
    for choice in (PIXELS, SHARES):
        gaps = [
            (abs(x["WD+LR+M", choice] - paper["WD+LR+M"]), abs(x["Random", choice] - paper["Random"]))
            for x in (before, mean)
        ]
        assert sum(now < was for was, now in zip(*gaps, strict=True)) < 2
