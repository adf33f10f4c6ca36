"""Summaries of repeated runs."""

from gradtune_book.notebooks.stats import mean_error


def test_a_diverged_run_stays_out_of_the_mean_and_is_counted() -> None:
    assert mean_error([1.0, float("nan"), 3.0]) == (2.0, 1.0, 2, 1)
