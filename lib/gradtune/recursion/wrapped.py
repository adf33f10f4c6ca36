"""Outer rules around another one: clipped, masked or skipped hypergradients, and the last one kept to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

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


class GuardedState(NamedTuple):
    """State of `Guarded`.

    Attributes:
        inner: state of the inner rule.
        hypergradient: the last hypergradient `[R, P]` as it came in; NaN before the first.
        skipped: number of updates that were skipped, `[R, 1]`.
    """

    inner: Any
    hypergradient: Tensor
    skipped: Tensor


@dataclass(frozen=True)
class Guarded:
    """An outer rule that skips, and counts, an update whose hypergradient is not finite.

    The whole update of that run is left out: its coordinates and the inner rule's state stay as they are, so that one
    bad validation batch does no more than lose one update. `Masked` differs in that it replaces single coordinates by
    0, and the inner rule sees them. State: P + 1 a run more. Cost: nothing waits for the device.

    Attributes:
        outer: the rule that makes the update.
    """

    outer: Outer

    def init(self, raw: Tensor) -> GuardedState:
        return GuardedState(self.outer.init(raw), torch.full_like(raw, float("nan")), raw.new_zeros(len(raw), 1))

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: GuardedState, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, GuardedState]:
        finite = hypergradient.isfinite().all(1, keepdim=True)
        new, inner = self.outer.update(raw, hypergradient, state.inner, lam)

        def kept(after: Tensor, before: Tensor) -> Tensor:
            here = finite if after.dim() > 0 and len(after) == len(finite) else finite.all()
            return torch.where(here, after, before)

        inner = tree_map(kept, inner, state.inner)
        return kept(new, raw), GuardedState(inner, hypergradient, state.skipped + ~finite)
