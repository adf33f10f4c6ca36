"""The methods of the five papers as choices on the same few axes: which sensitivity, outer loss, cadence and rule.

May import every room of the library but `tuning`. Does not belong here: how an estimator or a rule works.
"""

from gradtune.methods.making import (
    baydin,
    clip_r,
    diff_through_opt,
    fds,
    fixed,
    greedy,
    hd,
    idbd,
    lorraine,
    metaoptimize_hf,
    oho,
    onepass,
    per_step,
    unroll1_gtgv,
    unroll_k,
)
from gradtune.methods.table import METHODS, Row, get, rows, table

__all__ = [
    "METHODS",
    "Row",
    "baydin",
    "clip_r",
    "diff_through_opt",
    "fds",
    "fixed",
    "get",
    "greedy",
    "hd",
    "idbd",
    "lorraine",
    "metaoptimize_hf",
    "oho",
    "onepass",
    "per_step",
    "rows",
    "table",
    "unroll1_gtgv",
    "unroll_k",
]
