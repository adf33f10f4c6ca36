"""All claims of the OnePass paper, in the order of the chapters."""

from __future__ import annotations

from gradtune_book.papers.onepass import (
    horizon_claims,
    image_claims,
    incumbent_claims,
    net_claims,
    population_claims,
    sensitivity_claims,
    trajectory_claims,
    uci_claims,
)

CLAIMS = (
    *trajectory_claims.CLAIMS,
    *uci_claims.CLAIMS,
    *incumbent_claims.CLAIMS,
    *image_claims.CLAIMS,
    *net_claims.CLAIMS,
    *sensitivity_claims.CLAIMS,
    *horizon_claims.CLAIMS,
    *population_claims.CLAIMS,
)
