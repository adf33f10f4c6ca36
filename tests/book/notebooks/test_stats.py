"""Summaries of repeated runs."""

import math

from gradtune_book.notebooks.stats import apart, mean_error


def test_a_diverged_run_stays_out_of_the_mean_and_is_counted() -> None:
    assert mean_error([1.0, float("nan"), 3.0]) == (2.0, 1.0, 2, 1)


def test_values_without_an_error_are_equal_or_infinitely_far_apart() -> None:
    assert apart((1.0, 0.3), (2.0, 0.4)) == 2.0
    assert apart((1.0, 0.0), (1.0, 0.0)) == 0.0
    assert apart((1.0, 0.0), (2.0, 0.0)) == math.inf
    assert math.isnan(apart((1.0, math.nan), (2.0, 0.0)))
