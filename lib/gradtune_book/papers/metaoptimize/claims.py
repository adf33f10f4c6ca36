"""What the MetaOptimize paper claims about continual training and language, and the claims of all its chapters."""

from __future__ import annotations

from functools import partial

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimates, joined, measured, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.metaoptimize import continual, language, tables
from gradtune_book.papers.metaoptimize.framework_claims import FRAMEWORK, above
from gradtune_book.papers.metaoptimize.stationary_claims import OVERHEAD, STATIONARY
from gradtune_book.papers.metaoptimize.tables import BEST
from gradtune_book.papers.metaoptimize.training import SCALAR
from gradtune_book.records import store

# --- Figures 3, 4, 7 and 8 --------------------------------------------------------------------------------------------

SHARE, TEST, RISES, SLOPES = (
    *("cumulative accuracy", "test accuracy"),
    ("rise after a switch, convolutions", "rise after a switch, last layer"),
    ("change over the tasks, convolutions", "change over the tasks, last layer"),
)


def continual_estimates(scaled: bool, start: float) -> Estimates:
    """Read the passes off the records, with the paper's settings or with their share of a shorter stream."""
    runs = tables.passes(store.load(continual.STUDY, "laptop"), scaled, start)
    if runs.empty or continual.BLOCKS not in set(runs["row"]):
        return Estimates()
    named = runs.rename(columns={"cumulative": SHARE, "test_accuracy": TEST})
    moves = tables.movements(runs[runs["row"] == continual.BLOCKS])
    moves = moves.rename(columns={f"rise_{k}": RISES[k] for k in (0, 1)} | {f"slope_{k}": SLOPES[k] for k in (0, 1)})
    return joined(
        measured(named, "row", [SHARE, TEST], instance="seed"),
        measured(moves, "row", [*RISES, *SLOPES], instance="seed"),
    )


_SCALED, _PRINTED, _FROM_BEST = (
    Setting("laptop", f"ten mixed tasks, {words}", remembered(partial(continual_estimates, scaled, start)))
    for words, scaled, start in (
        ("settings scaled to the shorter stream", True, 1e-4),
        ("settings as printed", False, 1e-4),
        ("settings as printed from the best fixed step size", False, 1e-3),
    )
)


def _positive(columns: tuple[str, ...], t: Estimates) -> Finding:
    return Finding(tuple(judging.above_limit(t.at(continual.BLOCKS, c), 0, c) for c in columns))


def _negative(column: str, t: Estimates) -> Finding:
    return Finding((judging.below_limit(t.at(continual.BLOCKS, column), 0, column),))


def _of_continual(
    name: str, place: str, items: tuple[str, ...], statement: str, kind: Kind, check: Check, both: bool = True
) -> Claim:
    settings = (_SCALED, _PRINTED, _FROM_BEST) if both else (_PRINTED,)
    claim, notebook = f"metaoptimize-continual-{name}", "metaoptimize_continual"
    return Claim(claim, "MetaOptimize", place, items, statement, kind, check, notebook, settings)


_BOTH = (continual.SCALAR, continual.BLOCKS)

CONTINUAL = (
    _of_continual(
        "cumulative",
        "Section 7.2",
        ("Figure 3",),
        "MetaOptimize, scalar and in two blocks, has a higher cumulative accuracy than the best fixed step size",
        "order",
        partial(above, _BOTH, BEST, SHARE),
    ),
    _of_continual(
        "test",
        "Appendix D",
        ("Figure 7",),
        "so it is with the test accuracy at the end of each task, on average over the tasks",
        "order",
        partial(above, _BOTH, BEST, TEST),
    ),
    _of_continual(
        "switches",
        "Section 7.2",
        ("Figure 4", "Figure 8"),
        "right after a task has changed, the step sizes of both blocks rise",
        "shape",
        partial(_positive, RISES),
    ),
    _of_continual(
        "early",
        "Section 7.2",
        ("Figure 4", "Figure 8"),
        "over the tasks the step size of the early layers falls",
        "shape",
        partial(_negative, SLOPES[0]),
    ),
    _of_continual(
        "last",
        "Section 7.2",
        ("Figure 4", "Figure 8"),
        "over the tasks the step size of the last layer rises",
        "shape",
        partial(_positive, SLOPES[1:]),
    ),
    _of_continual(
        "gamma",
        "Section 7.5",
        (),
        "on the continual stream the discount 0.999 performs slightly better than 1",
        "order",
        partial(above, (continual.SCALAR,), continual.UNDISCOUNTED, SHARE),
        both=False,
    ),
)

# --- Figures 6 and 11 -------------------------------------------------------------------------------------------------

TRAIN_LOSS, TEST_LOSS = "training loss at the end", "test loss"
_WORDS = [f"{SCALAR} ({base}, {meta})" for base, meta in language.PAIRS]


def language_estimates() -> Estimates:
    """Read the trainings of the decoder off the records; each measure has its own best fixed step size."""
    frame = store.load(language.STUDY, "laptop")
    if frame.empty:
        return Estimates()
    parts = [
        measured(tables.named(frame, c, True).rename(columns={c: name}), "row", [name], instance="seed")
        for c, name in (("late_loss", TRAIN_LOSS), ("test_loss", TEST_LOSS))
    ]
    return joined(*parts)


_PTB = (
    Setting(
        "laptop",
        "a small decoder on 200,000 words of Penn Treebank",
        remembered(language_estimates),
    ),
)


def _ahead_of_fixed(column: str, t: Estimates) -> Finding:
    return judging.all_below(t, _WORDS, [f"{BEST} {base}" for base, _ in language.PAIRS], column)


def _behind_the_schedule(column: str, t: Estimates) -> Finding:
    return judging.all_below(t, [f"best {language.COSINE}"], _WORDS, column)


_BASELINES = ("DoG", "gdtuo", "Prodigy", "mechanic")


def _ahead_of_packages(column: str, t: Estimates) -> Finding:
    return judging.all_below(t, _WORDS, _BASELINES, column)


def _of_language(name: str, place: str, item: str, statement: str, check: Check, note: str = "") -> Claim:
    claim, notebook = f"metaoptimize-language-{name}", "metaoptimize_language"
    return Claim(claim, "MetaOptimize", place, (item,), statement, "order", check, notebook, _PTB, note=note)


LANGUAGE = (
    _of_language(
        "train",
        "Section 7.4",
        "Figure 6",
        "both combinations of MetaOptimize end with a lower training loss than AdamW and Lion with the best fixed step",
        partial(_ahead_of_fixed, TRAIN_LOSS),
    ),
    _of_language(
        "packages",
        "Section 7.4",
        "Figure 6",
        "both combinations end with a lower training loss than DoG, gdtuo, Prodigy and mechanic",
        partial(_ahead_of_packages, TRAIN_LOSS),
        "each with the defaults of its package; the paper searches over settings of DoG, gdtuo and mechanic",
    ),
    _of_language(
        "schedule",
        "Section 7.4",
        "Figure 6",
        "the well-tuned schedule, warm-up and cosine, is the one baseline that MetaOptimize does not outperform",
        partial(_behind_the_schedule, TRAIN_LOSS),
    ),
    _of_language(
        "test",
        "Appendix D",
        "Figure 11",
        "the test loss has the same order: MetaOptimize ahead of the best fixed steps",
        partial(_ahead_of_fixed, TEST_LOSS),
    ),
    _of_language(
        "test-packages",
        "Appendix D",
        "Figure 11",
        "the test loss has the same order: MetaOptimize ahead of DoG, gdtuo, Prodigy and mechanic",
        partial(_ahead_of_packages, TEST_LOSS),
        "each with the defaults of its package",
    ),
)

CLAIMS = (*FRAMEWORK, *STATIONARY, *CONTINUAL, *LANGUAGE, *OVERHEAD)
