"""One run of each study at its smallest, for the tests of devices: which method, and what is smaller than at smoke."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from gradtune_book import papers

_OHO = {"epochs": 1, "batch": 280, "outer_batch": 280, "width": 8}
_PTB = {"steps": 3, "warm_up": 0, "hidden": 6, "unrolled": 2, "batch_size": 10} | {
    **{"tokens": 1000, "val_tokens": 60, "vocabulary": 20}
}
SMALLEST: dict[str, tuple[str, dict[str, Any]]] = {
    "oho_performance": ("OHO", _OHO),
    "oho_choices": ("OHO", _OHO),
    "oho_layerwise": ("OHO", _OHO | {"readings": 1}),
    "oho_dynamics": ("OHO", _OHO),
    "clip_quadratic": ("Clip2", {"phase_steps": 4}),
    "clip_mnist": ("Clip5", {"steps": 3, "width": 8}),
    "clip_ptb": ("Clip5", _PTB),
    "clip_ptb_choices": ("Clip10", _PTB),
    "onepass_uci_trajectories": ("WD+LR", {"steps": 20}),
    "uci_onepass": ("WD+HDLR+M", {"steps": 20}),
    "uci_sensitivity": ("Hypergradients", {}),
    "uci_choices": ("WD+LR+M", {"steps": 10}),
    "uci_horizon": ("WD+LR+M", {"steps": 20}),
    "image_horizon": ("WD+LR+M", {"steps": 10}),
    "image_onepass": ("WD+LR+M", {"steps": 10}),
    "image_choices": ("WD+LR+M", {"steps": 10}),
    "fds_sharing_mse": ("non-greedy", {"images": 200, "steps": 3, "batch": 4, "validation": 20}),
    "fds_sharing_choices": ("non-greedy", {"images": 200, "steps": 3, "batch": 4, "validation": 20}),
    "fds_schedules": ("FDS", {"images": 200, "steps": 2, "batch": 4, "windows": 2, "outer_steps": 2, "validation": 20}),
    "fds_cifar_regret": ("FDS", {"steps": 7, "outer_steps": 1, "first_steps": 1, "outer_step_steps": 1, "batch": 4}),
    "fds_choices": ("FDS", {"steps": 7, "outer_steps": 1, "first_steps": 1, "outer_step_steps": 1, "batch": 4}),
    "metaoptimize_framework": ("full", {"steps": 3}),
    "metaoptimize_continual": ("MetaOptimize, scalar", {"tasks": 1, "images": 10}),
    "metaoptimize_imagenet": ("MetaOptimize, scalar", {"steps": 2, "batch": 2}),
    "metaoptimize_language": ("MetaOptimize, scalar", {"steps": 3}),
    "metaoptimize_sensitivity": ("MetaOptimize", {"steps": 3}),
    "metaoptimize_cifar": ("MetaOptimize, scalar", {"steps": 3}),
    "metaoptimize_overhead": ("in turns", {"rounds": 1, "each": 1}),
    "together": ("onepass", {"steps": 12}),
    "starts": ("onepass", {"steps": 12}),
    "energy_population": ("PBT", {"steps": 40, "members": 4}),
    "oho_resnet": ("OHO", {"epochs": 1, "batch": 560, "outer_batch": 20}),
    "onepass_language": ("WD+LR+M", _PTB | {"every": 2, "look_back": 1}),
    "onepass_resnet": ("WD+LR+M", {"steps": 3, "every": 2, "look_back": 1, "batch": 8}),
    "long_schedules": ("FDS", {"steps": 6, "batch": 4, "windows": 2, "outer_steps": 1, "validation": 20}),
    "long_sharing": (
        "FDS",
        {"images": 200, "steps": 4, "batch": 4, "windows": 2, "outer_steps": 1, "validation": 20, "tests": 1},
    ),
    "hyper_cleaning": ("whole training", {"rows": 100, "validation": 50, "steps": 6, "batch": 10, "outer_steps": 1}),
    "long_horizons": ("exact", {"steps": 4, "amount": 4.0}),
}


def smallest(study: str) -> Any:
    """The configuration of a study's smallest run."""
    method, smaller = SMALLEST[study]
    found = [c for c in papers.get(study).runs("smoke") if c.method == method]
    assert found, f"{study} has the methods {sorted({c.method for c in papers.get(study).runs('smoke')})}"
    names = {f.name for f in fields(found[0])}
    return replace(found[0], **{n: v for n, v in smaller.items() if n in names})
