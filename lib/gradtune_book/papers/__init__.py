"""The papers: configurations, runs, tables, figures and claims of their studies, a package each.

May import everything of the library and of the book's rooms below (data, records, notebooks, tasks); papers do not
import one another. Does not belong here: what no number of a paper needs.
"""

from __future__ import annotations

from importlib import import_module

from gradtune.errors import unknown

from gradtune_book.config import sizes_with
from gradtune_book.records.study import Study, run_now

__all__ = ["get", "names", "run_now", "sizes_with"]

_STUDIES = {
    "clip_quadratic": "clip.quadratic",
    "clip_mnist": "clip.mnist",
    "clip_ptb": "clip.ptb",
    "clip_ptb_choices": "clip.ptb_choices",
    "onepass_uci_trajectories": "onepass.uci_trajectories",
    "uci_onepass": "onepass.uci_onepass",
    "uci_sensitivity": "onepass.uci_sensitivity",
    "uci_choices": "onepass.uci_choices",
    "uci_horizon": "onepass.uci_horizon",
    "image_horizon": "onepass.image_horizon",
    "fds_sharing_mse": "fds.sharing_mse",
    "fds_schedules": "fds.schedules",
    "fds_cifar_regret": "fds.cifar_regret",
}
"""Name of a study, which its records keep for ever -> its module below this package, in the order of the lists."""


def names() -> list[str]:
    """The names of all studies."""
    return list(_STUDIES)


def get(name: str) -> Study:
    """A study by name; GradtuneError with the nearest name when there is none."""
    if name not in _STUDIES:
        raise unknown("study", name, _STUDIES)
    study = import_module(f"{__name__}.{_STUDIES[name]}").STUDY
    assert isinstance(study, Study)
    return study
