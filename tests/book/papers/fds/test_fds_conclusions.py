"""What the chapters on FDS say of their recorded runs, beside the verdicts."""

from __future__ import annotations

from gradtune_book.papers.fds.schedules import COSINE, FDS, GREEDY, NON_GREEDY, STUDY, TUNED
from gradtune_book.records import store


def test_what_the_chapter_on_schedules_says_of_the_papers_size() -> None:
    runs = store.load(STUDY, "paper")
    groups = runs[runs["data"] == "mnist"].groupby("method")
    assert (groups.size() == 3).all() and set(groups.groups) == {COSINE, FDS, GREEDY, NON_GREEDY, TUNED}
    lost, mean = groups["diverged"].sum(), groups["test_accuracy"].mean()
    assert lost[FDS] == 0 < lost[GREEDY] and lost[NON_GREEDY] > 75  # of 150 trainings
    assert max(mean[GREEDY], mean[NON_GREEDY]) < mean[FDS] < min(mean[COSINE], mean[TUNED])
    error = groups["test_accuracy"].sem()
    for other in (GREEDY, NON_GREEDY):
        assert mean[FDS] - mean[other] < 4.3 * error[other]  # Student's t with two degrees of freedom
    assert min(mean[COSINE], mean[TUNED]) - mean[FDS] < 4.3 * max(error[COSINE], error[TUNED])
