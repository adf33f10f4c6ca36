"""MetaOptimize in a training loop of one's own: a `torch.optim.Optimizer` that adapts its learning rates.

Example::

    optimizer = gradtune.optim.MetaOptimize(model.parameters(), lr=1e-4)
    for x, y in loader:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradtune.errors import GradtuneError
from gradtune.optim.foreach import PIECE, Bucket, Rate, add_scaled, inner, scale_and_add
from gradtune.optim.settings import Settings, check_group, hyperparameters, named, outer_rule, parameter_lists
from gradtune.recursion.outer import Outer


class MetaOptimize(Optimizer):
    """Hessian-free MetaOptimize (Sharifnassab et al. 2025, Algorithm 3) around a base optimiser.

    The learning rates alpha = exp(beta) of the base optimiser follow the discounted effect of all steps taken on the
    training loss::

        z <- <h, g>;  w <- w + change;  h <- gamma (1 - alpha weight_decay) h + change;  beta <- meta rule (beta, z)

    It is used as any optimiser of torch::

        optimizer = gradtune.optim.MetaOptimize(model.parameters(), lr=1e-4)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    The learning rates in force are in `param_groups[i]["lr"]` and, all of them as numbers, in `lr`. With
    `groups="tensor"` the former is the geometric mean of the group; away from the CPU it is a tensor, so that no step
    waits for the device. A value assigned to `param_groups[i]["lr"]` is where adaptation goes on from. So a scheduler
    that multiplies the learning rate (ExponentialLR, StepLR, MultiplicativeLR) composes with the adaptation, and one
    that sets it (LambdaLR, OneCycleLR) undoes it: do not combine those.

    A parameter without a gradient is passed over with all its state, as in torch's optimisers. A learning rate none of
    whose parameters has a gradient stays, whatever the meta rule's momentum.

    A NaN gradient makes the learning rate NaN at once, and all its weights with the next step. An infinite gradient
    spoils its own weights first, as in torch's optimisers. `torch.amp.GradScaler` keeps both away: it skips the step,
    and no state changes.

    The optimiser computes what `methods.metaoptimize_hf` computes in `loop.Loop`, for one run, with the fused and
    foreach kernels of torch, on a model and a loop that the user owns. The loop there has several runs side by side,
    learning rates per weight, and any rule.

    Cost: elementwise passes and an inner product; no further gradient. With `groups="tensor"` every tensor takes a step
    by itself, which costs time where they are many and small.

    Memory, in multiples of the D weights: the base's (0 for "sgd"; 1 for "sgdm", "rmsprop" and "lion"; 2 for "adamw")
    and 1 for h. During a step it is 1 more (3 with `form="package"`), on the CPU for about a million weights at a time.

    Args:
        params: parameters, named parameters or parameter groups, as in every optimiser of torch. Each group may
            override lr and the base's hyperparameters.
        lr: the learning rate at the start (`alpha_0`).
        base: "sgd", "sgdm" (with momentum), "rmsprop", "adamw" or "lion": the steps of torch.optim's optimisers, with
            decoupled weight decay in "rmsprop", "adamw" and "lion".
        meta: "sgd", "adam", "lion" or "rmsprop" with `meta_step_size`, or an outer rule of `gradtune.recursion.outer`,
            which has a step size of its own.
        meta_step_size: step size of a meta rule given by name. With "lion", every step multiplies or divides a learning
            rate by exp(meta_step_size).
        gamma: discount of past steps, in (0, 1].
        groups: what shares a learning rate: "scalar", all parameters (parameter groups keep the ratios of their lr);
            "blockwise", each parameter group; "tensor", each tensor by itself.
        weight_decay: by default 0.01 in "adamw" and else 0, as in torch.optim.
        betas: of "adamw", by default (0.9, 0.999), and of "lion", by default (0.9, 0.99).
        momentum: of "sgdm", by default 0.9.
        alpha: of "rmsprop", by default 0.99: the decay of the squared gradients.
        eps: of "rmsprop" and "adamw", by default 1e-8.
        maximize: maximise the loss.
        form: "ours" is Algorithm 3; "package" follows the published package: h of normalised gradients, without
            momentum and weight decay, and the new momentum inside the sign of the meta rule "lion".

    Raises:
        GradtuneError: there are no parameters, or complex ones; a name is unknown; a value is outside its range; or a
            hyperparameter is given that the base does not have. It is a ValueError.
    """

    _settings: Settings

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        base: str = "adamw",
        meta: str | Outer = "lion",
        meta_step_size: float = 1e-3,
        gamma: float = 1.0,
        groups: str = "scalar",
        *,
        weight_decay: float | None = None,
        betas: tuple[float, float] | None = None,
        momentum: float | None = None,
        alpha: float | None = None,
        eps: float | None = None,
        maximize: bool = False,
        form: str = "ours",
    ) -> None:
        self._settings = Settings(base, outer_rule(meta, meta_step_size, form), gamma, groups, form)
        given = {"weight_decay": weight_decay, "betas": betas, "momentum": momentum, "alpha": alpha, "eps": eps}
        defaults = {"lr": lr, "maximize": maximize, **hyperparameters(base, given)}
        super().__init__(parameter_lists(params), defaults)

    # -- the step ------------------------------------------------------------------------------------------------------

    @torch._disable_dynamo  # a training step that is compiled as a whole breaks its graph here, once and in silence
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the weights and, after it, of the learning rates.

        Args:
            closure: computes the loss and its gradients, where these are not computed beforehand.

        Returns:
            What `closure` returns; None without it.

        Raises:
            GradtuneError: a gradient is sparse; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        buckets = self._buckets()
        if buckets:
            self._move_meta(buckets[0].params[0].device)
            rates = self._rates(buckets)
            self._adapt([(bucket.block, self._advance(bucket, lr)) for bucket, lr in zip(buckets, rates)])
        return loss

    def _buckets(self) -> list[Bucket]:
        """Return what has a gradient, with its states, after all of it was checked."""
        found: dict[tuple[Any, ...], list[Tensor]] = {}
        for number, (group, (first, last)) in enumerate(zip(self.param_groups, self._blocks())):
            for k, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if p.grad.layout != torch.strided:
                    raise GradtuneError(
                        f"parameter {k} of group {number} has a sparse gradient, and MetaOptimize needs dense ones; "
                        "build the layer with sparse=False, or leave its parameters to torch.optim.SparseAdam"
                    )
                found.setdefault((number, min(first + k, last - 1), p.device, p.dtype), []).append(p)
        return [self._bucket(self.param_groups[key[0]], key[1], params) for key, params in found.items()]

    def _bucket(self, group: dict[str, Any], block: int, params: list[Tensor]) -> Bucket:
        states = [self.state[p] or self._initial(p) for p in params]
        by_name = {name: [state[name] for state in states] for name in states[0]}
        grads = [_like(p.grad, trace) for p, trace in zip(params, by_name["trace"])]
        return Bucket(group, block, params, grads, by_name)

    def _initial(self, p: Tensor) -> dict[str, Tensor]:
        state = {name: torch.zeros_like(p) for name in (*self._settings.rule.buffers, "trace")}
        if self._settings.rule.counted:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        self.state[p] = state
        return state

    def _advance(self, bucket: Bucket, lr: Rate) -> Rate:
        """Step a bucket's weights and traces; return the inner product of gradients and old traces."""
        if self._settings.rule.counted:
            torch._foreach_add_(bucket.states["step"], 1)
        size = PIECE if self._settings.form == "ours" else PIECE // 4  # which has more tensors in between
        return sum(self._move(piece, lr) for piece in bucket.pieces(size))

    def _move(self, piece: Bucket, lr: Rate) -> Rate:
        rule, trace = self._settings.rule, piece.states["trace"]
        if piece.group["maximize"]:
            piece.grads = list(torch._foreach_neg(piece.grads))
        product = inner(trace, piece.grads)
        change = rule.step(piece, lr)
        keep = self._settings.gamma * (1 - lr * piece.group["weight_decay"])
        if self._settings.form == "ours":
            scale_and_add(trace, keep, change)
        else:
            torch._foreach_mul_(trace, keep)
            add_scaled(trace, rule.plain(piece), -lr)
        torch._foreach_add_(piece.params, change)
        return product

    # -- the learning rates --------------------------------------------------------------------------------------------

    @property
    def _meta(self) -> dict[str, Any]:
        """The meta-parameters beta and the meta rule's state, `[blocks]` each, and the names of the settings.

        They lie in `state`, where torch saves and copies them.
        """
        state = cast(dict[Any, Any], self.state)
        if "meta" not in state:
            state["meta"] = self._grown({"raw": torch.zeros(0, dtype=torch.float64), **self._settings.names()})
        return state["meta"]

    @_meta.setter
    def _meta(self, meta: dict[str, Any]) -> None:
        cast(dict[Any, Any], self.state)["meta"] = meta

    @property
    def lr(self) -> list[Any]:
        """The learning rates in force as numbers, one per parameter group; reading them waits for the device.

        With `groups="tensor"` they are a list per parameter group, with one number per tensor.
        """
        level = [float(group["lr"]) for group in self.param_groups]
        if self._settings.groups != "tensor":
            return level
        apart = self._apart(self._meta["raw"]).tolist()
        return [[lr * each for each in apart[a:b]] for lr, (a, b) in zip(level, self._blocks())]

    def _blocks(self) -> list[tuple[int, int]]:
        """Return the first block of each parameter group, and the one after its last."""
        if self._settings.groups == "tensor":
            sizes = [len(group["params"]) for group in self.param_groups]
            return [(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
        step = int(self._settings.groups == "blockwise")
        return [(step * i, step * i + 1) for i in range(len(self.param_groups))]

    def _apart(self, raw: Tensor) -> Tensor:
        """Return exp(beta - mean beta of the group) of every block."""
        return torch.cat([raw[a:b] - raw[a:b].mean() for a, b in self._blocks()]).exp()

    def _rates(self, buckets: list[Bucket]) -> list[Rate]:
        """Return the learning rate of each bucket.

        It is that of the parameter group, with "tensor" times what sets the tensor apart from the group's mean.
        """
        raw: Tensor = self._meta["raw"]
        on_cpu = raw.device.type == "cpu"
        for group in self.param_groups:
            lr = group["lr"]
            group["lr"] = float(lr) if on_cpu else torch.as_tensor(lr, dtype=raw.dtype, device=raw.device)
        rates: list[Rate] = [bucket.group["lr"] for bucket in buckets]
        if self._settings.groups == "tensor":
            apart = self._apart(raw)
            every = apart.tolist() if on_cpu else apart
            rates = [lr * every[bucket.block] for lr, bucket in zip(rates, buckets)]
        devices = (bucket.params[0].device for bucket in buckets)
        return [r.to(d, non_blocking=True) if isinstance(r, Tensor) else r for r, d in zip(rates, devices)]

    def _adapt(self, products: list[tuple[int, Rate]]) -> None:
        """Apply the meta rule to the blocks of which there is a product; the learning rates of the groups follow."""
        meta = self._meta
        raw: Tensor = meta["raw"]
        z, active = _summed(products, raw)
        new, memory = self._settings.meta.update(raw, z, self._settings.memory(meta), {"lr": raw.exp()})
        moved = {"raw": new, **named(memory)}
        if active is not None:
            moved = {name: torch.where(active, each, meta[name]) for name, each in moved.items()}
        # a new dict with new tensors: a `state_dict()` taken before keeps its values
        self._meta = {**meta, **moved}
        factors = self._of_groups(moved["raw"] - raw).exp()
        rises = factors.tolist() if raw.device.type == "cpu" else factors
        for i, group in enumerate(self.param_groups):
            group["lr"] = group["lr"] * rises[i]

    def _of_groups(self, x: Tensor) -> Tensor:
        """Return the mean of every group's blocks, `[groups]`."""
        if self._settings.groups == "tensor":
            return torch.stack([x[a:b].sum() / max(b - a, 1) for a, b in self._blocks()])
        return x.expand(len(self.param_groups))

    def _move_meta(self, device: torch.device) -> None:
        """Move the learning rates' state to where the weights are; MPS has no float64."""
        meta = self._meta
        if meta["raw"].device != device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._meta = {n: x.to(device, dtype) if isinstance(x, Tensor) else x for n, x in meta.items()}

    # -- groups and states ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, at any time.

        Its learning rates start from the group's lr. With `groups="scalar"` they follow the common factor from there.

        Raises:
            GradtuneError: a parameter of the group is complex, or a hyperparameter is outside its range; the group is
                not added then.
        """
        super().add_param_group(param_group)
        try:
            check_group(len(self.param_groups) - 1, self.param_groups[-1], self.defaults)
        except GradtuneError:
            self.param_groups.pop()
            raise
        self._meta = self._grown(self._meta)

    def _grown(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Return `meta` with a learning rate for every new block: that of its group."""
        old: Tensor = meta["raw"]
        blocks = self._blocks()
        lrs = [group["lr"] for group, (a, b) in zip(self.param_groups, blocks) for _ in range(a, b)]
        new = old.new_tensor([math.log(float(lr)) for lr in lrs[len(old) : blocks[-1][1]]])
        memory = {n: x.expand_as(new) for n, x in named(self._settings.meta.init(new)).items()}
        return {**meta, **{n: torch.cat([meta.get(n, old[:0]), x]) for n, x in {"raw": new, **memory}.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`, to the bit; the state is copied.

        Raises:
            GradtuneError: the state is that of another kind of optimiser.
        """
        saved = state_dict["state"].get("meta", {})
        for name, mine in self._settings.names().items():
            if state_dict["state"] and saved.get(name) != mine:
                raise GradtuneError(
                    f"the state is of an optimiser with {name} = {saved.get(name)!r}, and this one has {mine!r}; "
                    "load it into a MetaOptimize with the same arguments"
                )
        super().load_state_dict(deepcopy(state_dict))
        for p, state in self.state.items():
            if isinstance(p, Tensor) and "step" in state:  # torch leaves counters where they were saved
                state["step"] = state["step"].to(p.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_settings": self._settings}


def _like(g: Tensor | None, state: Tensor) -> Tensor:
    """Return a gradient with the strides of its weights' states, as the kernels run through the memory."""
    assert g is not None
    return g if g.stride() == state.stride() else torch.empty_like(state).copy_(g)


def _summed(products: list[tuple[int, Rate]], raw: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the products by block, `[P]`, and which blocks have one (None: all)."""
    sums: list[Any] = [None] * len(raw)
    for block, each in products:
        each = each.to(raw.device, raw.dtype) if isinstance(each, Tensor) else each
        sums[block] = each if sums[block] is None else sums[block] + each
    active = None if None not in sums else torch.tensor([x is not None for x in sums]).to(raw.device)
    full = [0.0 if x is None else x for x in sums]
    if raw.device.type == "cpu":
        return torch.tensor([float(x) for x in full], dtype=raw.dtype), active
    return torch.stack([torch.as_tensor(x, dtype=raw.dtype, device=raw.device) for x in full]), active
