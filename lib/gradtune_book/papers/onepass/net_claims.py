"""What the OnePass paper claims about its LSTM and its residual net (Section 4.2, Appendix B.6.1), as data."""

from __future__ import annotations

from functools import partial

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimates, measured, median_of, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.onepass import (
    image_claims,
    image_tables,
    language,
    net_tables,
    resnet,
    uci_claims,
    uci_tables,
)
from gradtune_book.papers.onepass.image_claims import SCALAR
from gradtune_book.papers.onepass.image_tables import RATIO
from gradtune_book.papers.onepass.net_tables import IMAGES, TEXT
from gradtune_book.papers.onepass.uci_claims import MEAN, MEDIAN, OURS
from gradtune_book.records import store
from gradtune_book.records.study import Study

NOTEBOOK = "onepass_nets"
_SCALE, _INITIALISATIONS = "laptop", 50
_STUDIES = {TEXT: language.STUDY, IMAGES: resnet.STUDY}


def losses(dataset: str, loss: str) -> Estimates:
    """Read one set's column of Table 2 or 8 off the records."""
    return uci_claims.averages(net_tables.trainings(store.load(_STUDIES[dataset], _SCALE), dataset), loss)


def printed(number: int, dataset: str) -> Estimates:
    """Return one set's column of Table 2 or 8 as printed."""
    table = uci_tables.published(f"onepass_table{number}.csv").loc[dataset]
    return uci_claims.printed_averages(table, lambda method: _INITIALISATIONS)


def seconds(study: Study) -> Estimates:
    """Read Figure 14 off the records: the time of a step over that of plain training."""
    return measured(image_tables.times(store.load(study, _SCALE)), "method", [RATIO], median_of)


_WORDS = Setting(
    _SCALE,
    "10,000 words of Penn Treebank, a smaller LSTM",
    remembered(partial(losses, TEXT, net_tables.PERPLEXITY)),
    partial(printed, 2, TEXT),
    ("Table 2", "Figure 12"),
)
_PICTURES = "5,000 images of CIFAR-10, a small residual net"
_LOSS = Setting(
    _SCALE,
    _PICTURES,
    remembered(partial(losses, IMAGES, net_tables.CE)),
    partial(printed, 2, IMAGES),
    ("Table 2", "Figure 12"),
)
_ERRORS = Setting(
    _SCALE,
    f"{_PICTURES}, errors",
    remembered(partial(losses, IMAGES, net_tables.ERROR)),
    partial(printed, 8, IMAGES),
    ("Table 8", "Figure 13"),
)
_TIMES = tuple(
    Setting(_SCALE, data, remembered(partial(seconds, study)), None, ("Figure 14",))
    for data, study in ((_WORDS.data, language.STUDY), (_PICTURES, resnet.STUDY))
)
_BASELINES = ("Random", "Random-xLR", "Lorraine")


def _below(first: tuple[str, ...], second: tuple[str, ...]) -> Check:
    return lambda t: judging.all_below(t, first, second, MEAN, MEDIAN)


def _more(t: Estimates) -> Finding:
    return judging.falls(t, ("Lorraine", "WD+LR", "WD+LR+M"), MEAN, MEDIAN)


def _claim(
    name: str, statement: str, check: Check, settings: tuple[Setting, ...], kind: Kind = "order", note: str = ""
) -> Claim:
    place = "Appendix B.6.1" if kind == "ratio" else "Section 4.2"
    return Claim(f"onepass-2-{name}", "OnePass", place, (), statement, kind, check, NOTEBOOK, settings, note=note)


_ON_A_PROCESSOR = "steps of one net, taken in turns on a processor, not on the paper's GPU"
CLAIMS = (
    _claim(
        "words-more",
        "on Penn Treebank average losses fall with each hyperparameter that is tuned as well",
        _more,
        (_WORDS,),
        note="Lorraine tunes the weight decay, WD+LR the learning rate too, WD+LR+M all three",
    ),
    _claim(
        "words-rate",
        "on Penn Treebank OnePass and Diff-through-Opt, which tune the learning rate, average better than Random, "
        "Random (× LR) and Lorraine",
        _below((*OURS, "Diff-through-Opt"), _BASELINES),
        (_WORDS,),
    ),
    _claim(
        "pictures",
        "on CIFAR-10 WD+LR and WD+LR+M keep useful improvements over Random, its variants, Lorraine and Baydin",
        _below(SCALAR, (*image_claims.FIXED, "Baydin")),
        (_LOSS, _ERRORS),
    ),
    _claim(
        "nets-time",
        "WD+LR and WD+LR+M cost less than two trainings with fixed hyperparameters",
        partial(image_claims.twice, SCALAR),
        _TIMES,
        "ratio",
        _ON_A_PROCESSOR,
    ),
    _claim(
        "nets-jump",
        "a learning rate for each weight makes a prominent jump in runtime",
        image_claims.jump,
        _TIMES,
        "ratio",
        f"prominent: by a fifth of WD+LR+M's time; {_ON_A_PROCESSOR}",
    ),
)
