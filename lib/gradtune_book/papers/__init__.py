"""The papers: configurations, runs, tables, figures and claims of their studies, a package each.

May import everything of the library and of the book's rooms below (data, records, notebooks, tasks); papers do not
import one another. Does not belong here: what no number of a paper needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from gradtune.errors import unknown
from gradtune_book.records.study import Study, run_now

__all__ = ["STUDIES", "get", "names", "run_now"]


class Entry(NamedTuple):
    """A study before its module is imported: where it is (below this package) and what it recomputes."""

    module: str
    title: str


STUDIES = {
    "oho_performance": Entry(
        "oho.performance",
        "Figures 2 and 3 of the OHO paper: one training with OHO against searches that train many times",
    ),
    "oho_choices": Entry(
        "oho.choices", "What the OHO paper leaves open on MNIST: the influence of ranges, epochs and pixels on Figure 3"
    ),
    "oho_layerwise": Entry("oho.layerwise", "Figures 4 and 5 of the OHO paper: global, layerwise, and sets in between"),
    "oho_dynamics": Entry(
        "oho.dynamics", "Figures 6 to 10 of the OHO paper: perturbations, outer data, resets, norms and correlations"
    ),
    "oho_resnet": Entry("oho.resnet", "Figure 4 of the OHO paper at its own size, for a GPU: ResNet-18 on CIFAR-10"),
    "clip_quadratic": Entry("clip.quadratic", "Table 1 of the Clip paper: five online methods on a quadratic toy"),
    "clip_mnist": Entry(
        "clip.mnist", "Table 2 and Appendix B.1 of the Clip paper: the weight decay of a four-layer net on MNIST"
    ),
    "clip_ptb": Entry(
        "clip.ptb",
        "Table 3 and Appendix B.2 of the Clip paper: the keep probability of a language model on Penn Treebank",
    ),
    "clip_ptb_choices": Entry(
        "clip.ptb_choices",
        "What the Clip paper leaves open for its language model: the influence of each choice on Penn Treebank",
    ),
    "onepass_uci_trajectories": Entry(
        "onepass.uci_trajectories", "Figure 3 of the OnePass paper: trajectories over a map of final test losses"
    ),
    "uci_onepass": Entry(
        "onepass.uci_onepass",
        "Tables 1 and 6, Figures 8 to 11 of the OnePass paper: ten methods on eight regression sets",
    ),
    "uci_sensitivity": Entry(
        "onepass.uci_sensitivity",
        "Figures 4, 6 and 7, Table 14 of the OnePass paper: update interval, look-back, validation rows",
    ),
    "uci_choices": Entry(
        "onepass.uci_choices", "What the OnePass paper leaves open: the influence of each choice on UCI Energy"
    ),
    "image_onepass": Entry(
        "onepass.image_onepass",
        "Tables 2, 7, 8 and 9 of the OnePass paper on Fashion-MNIST: ten methods, with and without batch norm",
    ),
    "image_choices": Entry(
        "onepass.image_choices",
        "What the OnePass paper leaves open on Fashion-MNIST: validation batches, pixels and the split",
    ),
    "energy_population": Entry(
        "onepass.energy_population", "Table 15 and Figure 19 of the OnePass paper: ASHA and PBT with OnePass inside"
    ),
    "uci_horizon": Entry(
        "onepass.uci_horizon", "Figures 16 and 18, Tables 10 and 13 of the OnePass paper: short and full horizons"
    ),
    "image_horizon": Entry(
        "onepass.image_horizon",
        "Figures 16 and 17, Tables 11 and 12 of the OnePass paper: short and longer horizons on Fashion-MNIST",
    ),
    "onepass_language": Entry(
        "onepass.language",
        "Table 2, Figures 12 and 14 of the OnePass paper: an LSTM on Penn Treebank, tuned in one pass",
    ),
    "onepass_resnet": Entry(
        "onepass.resnet", "Tables 2 and 8 of the OnePass paper: a residual net on CIFAR-10, tuned in one pass"
    ),
    "fds_sharing_mse": Entry(
        "fds.sharing_mse",
        "Figures 2, 5 and 6 of the FDS paper: noise of per-step hypergradients, and what sharing does to it",
    ),
    "fds_sharing_choices": Entry(
        "fds.sharing_choices",
        "What is open in Figure 2 of the FDS paper: the influence of three choices on MNIST",
    ),
    "fds_schedules": Entry("fds.schedules", "Figure 3 of the FDS paper: learning rate schedules learned from zero"),
    "fds_cifar_regret": Entry(
        "fds.cifar_regret", "Figures 1, 4, 7 and 8 of the FDS paper: what each method finds on CIFAR-10, and how soon"
    ),
    "fds_choices": Entry(
        "fds.choices", "What the FDS paper leaves open for Figure 1: the influence of each choice on CIFAR-10"
    ),
    "metaoptimize_framework": Entry(
        "metaoptimize.framework",
        "Sections 3 to 6 of the MetaOptimize paper: forward and backward view, the approximations, the discount",
    ),
    "metaoptimize_continual": Entry(
        "metaoptimize.continual", "Figures 3, 4, 7 and 8 of the MetaOptimize paper: ten tasks, one image a step"
    ),
    "metaoptimize_imagenet": Entry(
        "metaoptimize.imagenet", "Figures 5, 9 and 10 of the MetaOptimize paper: ResNet-18 on ImageNet"
    ),
    "metaoptimize_language": Entry(
        "metaoptimize.language", "Figures 6 and 11 of the MetaOptimize paper: a small decoder on Penn Treebank"
    ),
    "metaoptimize_sensitivity": Entry(
        "metaoptimize.sensitivity", "Section 7.5 of the MetaOptimize paper: meta step, discount and form on MNIST"
    ),
    "metaoptimize_cifar": Entry(
        "metaoptimize.cifar", "Figures 1 and 2 of the MetaOptimize paper: a residual net on CIFAR-10"
    ),
    "metaoptimize_overhead": Entry(
        "metaoptimize.overhead", "Table 1 of the MetaOptimize paper: time and memory of an iteration beside AdamW"
    ),
    "together": Entry(
        "together.comparison",
        "Every way to train on nine problems, at equal processor time and at equal steps, from starts of 1e-6 to 10",
    ),
    "starts": Entry(
        "together.starts",
        "All methods with their defaults on six small problems, from learning rates between 1e-6 and 10",
    ),
    "long_horizons": Entry(
        "together.long_horizons",
        "The bias of truncation: shortcuts against the exact hypergradient of a long training, on three small nets",
    ),
    "long_schedules": Entry(
        "together.long_schedules",
        "Figure 3 of the FDS paper over 5,000 steps: a learning rate a step, exact, in memory that stays small",
    ),
    "long_sharing": Entry(
        "together.long_sharing",
        "Theorem 4.1 of the FDS paper over ten epochs: what sharing loses or saves when noise is measured",
    ),
    "hyper_cleaning": Entry(
        "together.cleaning",
        "A weight for each of 5,000 training rows, 30 % of them with wrong labels, by whole-training hypergradients",
    ),
}
"""Every study by the name that its records have, in the order of the lists."""


def names() -> list[str]:
    """Return the names of all studies."""
    return list(STUDIES)


def get(name: str) -> Study:
    """Return a study by name.

    Raises:
        GradtuneError: there is no such study; names the nearest.
    """
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    study = import_module(f"{__name__}.{STUDIES[name].module}").STUDY
    assert isinstance(study, Study)
    return study
