"""Outer rules around another outer rule: clipped or masked hypergradients, and the last one kept to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.recursion.outer import Outer


@dataclass(frozen=True)
class Clipped:
    """An outer rule fed with hypergradients clamped to [-limit, limit].

    Attributes:
        outer: the rule that is fed.
        limit: largest size of an entry (FDS, Figure 3: 3; Figure 4: 1).

    Raises:
        GradtuneError: `limit` is not > 0.
    """

    outer: Outer
    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise GradtuneError(f"the hypergradient is clipped at {self.limit}; expected a number > 0")

    def init(self, raw: Tensor) -> Any:
        return self.outer.init(raw)

    def update(self, raw: Tensor, hypergradient: Tensor, state: Any, lam: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        return self.outer.update(raw, hypergradient.clamp(-self.limit, self.limit), state, lam)


class KeptState(NamedTuple):
    """State of `Kept`.

    Attributes:
        inner: state of the inner rule.
        hypergradient: the last hypergradient `[R, P]` as it came in.
    """

    inner: Any
    hypergradient: Tensor


@dataclass(frozen=True)
class Kept:
    """An outer rule that also keeps the hypergradient of its last update in its state.

    It is for records and figures (FDS, Figures 2 and 7). With `SGD(0.0)` the hyperparameters stay as they are. State: P
    a run more.

    Attributes:
        outer: the rule that makes the update.
    """

    outer: Outer

    def init(self, raw: Tensor) -> KeptState:
        return KeptState(self.outer.init(raw), torch.zeros_like(raw))

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: KeptState, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, KeptState]:
        raw, inner = self.outer.update(raw, hypergradient, state.inner, lam)
        return raw, KeptState(inner, hypergradient)


@dataclass(frozen=True)
class Masked:
    """An outer rule fed with 0 where the hypergradient is NaN or infinite.

    A coordinate whose training diverged stays where it is, and the next training may do better (FDS's program gives NaN
    the sign 0). Without this rule a NaN stays in its run for ever.

    Attributes:
        outer: the rule that is fed.
    """

    outer: Outer

    def init(self, raw: Tensor) -> Any:
        return self.outer.init(raw)

    def update(self, raw: Tensor, hypergradient: Tensor, state: Any, lam: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        finite = torch.where(hypergradient.isfinite(), hypergradient, 0.0)
        return self.outer.update(raw, finite, state, lam)
