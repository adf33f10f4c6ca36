"""The pictures of the chapter on the recursion: the sketch against the estimators, the toys against closed forms."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from gradtune.estimators import Estimator
from gradtune.estimators.forward import Forward
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method
from gradtune_book.papers.together import pictures, toys
from gradtune_book.papers.together.pictures import NOW, PERIOD, STEPS

LANES = {lane.label: lane for lane in pictures.lanes()}


@pytest.mark.parametrize(
    ("label", "estimator"),
    [
        ("OHO", Forward()),
        ("ClipR", Forward(radius=0.1)),
        ("UnrollK", Forward(reset_every=PERIOD)),
        ("greedy, Unroll1", Forward(reset_every=1)),
        ("OnePass, Lorraine", Neumann(5)),
        ("Diff-through-Opt", Reverse(5)),
        ("FDS", Forward()),
        ("per-step", Reverse(STEPS)),
    ],
)
def test_the_sketch_fills_the_steps_that_the_estimator_sees(label: str, estimator: Estimator) -> None:
    """With a learning rate of its own, a step is seen where its hypergradient is not 0."""
    asked, rule = LANES[label].asked, sgd(momentum=False, weight_decay=False)
    problem = toys.bowl(STEPS, noise=0.5)
    hypers = Hypers([Hyper("lr", 0.3, windows=STEPS)], (20,), STEPS)
    loop = Loop(problem, rule, hypers, Method(estimator, SGD(1.0), every=asked))
    start = loop.start(torch.zeros(1, 20, dtype=torch.float64))
    found = (start.raw - loop.advance(start, asked).raw)[0]
    assert [bool(x) for x in found != 0] == [weight > 0 for weight in LANES[label].seen]


def test_paler_is_further_back_and_nothing_is_seen_twice() -> None:
    for lane in LANES.values():
        past = np.array(lane.seen[: lane.asked])
        assert (np.diff(past) >= 0).all() and not any(lane.seen[lane.asked :])
        assert all(lane.seen[t] == 0 and t < NOW for t in lane.copies)


def test_without_a_ball_the_sensitivity_goes_to_its_fixed_point_and_with_one_it_does_not() -> None:
    frame = toys.ball_paths(2.0, steps=400)
    end, limit = frame.iloc[-1], np.array(frame.attrs["fixed point"])
    assert np.allclose(end[["exact 1", "exact 2"]].astype(float), limit, atol=1e-12)
    y = end[["ball 1", "ball 2"]].to_numpy(float)
    moved = np.array(toys.before_projection(frame, 400))
    assert np.linalg.norm(y) == pytest.approx(2.0)
    assert np.allclose(2.0 * moved / np.linalg.norm(moved), y, atol=1e-12)  # it stays: the step leads along the ray
    assert toys.ball_table(frame).loc["in the ball", "angle to y*"] > 5


def test_a_windows_column_is_the_sum_over_its_steps_and_0_before_it() -> None:
    found = toys.windows(24, 3)
    assert torch.allclose(found.per_step.reshape(3, 8).sum(-1), found.columns, rtol=1e-12)
    assert found.width == 8 and list(found.table().index) == [
        "1 (steps 1 to 8)",
        "2 (steps 9 to 16)",
        "3 (steps 17 to 24)",
    ]
    assert [int((column == 0).sum()) for column in found.lengths.T] == [0, 8, 16]


def test_the_series_is_the_window_for_one_term_and_once_training_has_settled() -> None:
    frame = toys.neumann(look_backs=(1, 10), settled=1500)
    apart = (frame["exact window"] - frame["Neumann series"]).abs()
    one, still = frame["look-back"] == 1, (frame["training"] == "settled") & (frame["tuned"] == "weight_decay")
    assert apart[one | still].max() < 1e-12 < 1e-3 < apart[~one & (frame["training"] == "under way")].min()


def test_a_settled_training_has_the_derivative_of_its_best_response() -> None:
    """On the bowl `w* = h / (h + decay)`, in closed form."""
    frame = toys.neumann(look_backs=(1,), settled=1500)
    found = frame[(frame["training"] == "settled") & (frame["tuned"] == "weight_decay")]["all steps"].item()
    problem, decay = toys.bowl(), 0.01
    best = problem.h / (problem.h + decay)
    slope = -decay * np.log(10) * problem.h / (problem.h + decay) ** 2
    assert found == pytest.approx(float((best - problem.target) @ slope), rel=1e-9)


def test_every_picture_is_drawn() -> None:
    departures = pd.DataFrame(
        {"method": "A", "parameter": "p", "value": [1.0, 10.0], "relative error": [0.5, 0.1], "cosine": [0.9, 1.0]}
    )
    drawn = [
        pictures.timeline(),
        pictures.draw_ball(toys.ball_paths(2.0, 20), 2.0, 6),
        pictures.draw_windows(toys.windows(12, 3)),
        pictures.draw_neumann(toys.neumann((1, 2), 20)),
        pictures.draw_departures(departures, ["p"]),
    ]
    for fig in drawn:
        fig.canvas.draw()
        assert all(ax.has_data() for ax in fig.axes)
        plt.close(fig)
