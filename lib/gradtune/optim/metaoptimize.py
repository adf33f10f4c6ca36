"""MetaOptimize in a training loop of one's own: a `torch.optim.Optimizer` that adapts its learning rates.

Example::

    optimizer = gradtune.optim.MetaOptimize(model.parameters(), lr=1e-4)
    for x, y in loader:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradtune.errors import GradtuneError, GradtuneWarning
from gradtune.optim import foreach, fused, rates, saved, shards
from gradtune.optim.foreach import Bucket, Rate
from gradtune.optim.settings import (
    FLAGS,
    Settings,
    check_group,
    hyperparameters,
    named,
    outer_rule,
    parameter_lists,
    torchs_errors,
)
from gradtune.recursion.outer import Outer


class MetaOptimize(Optimizer):
    """Hessian-free MetaOptimize (Sharifnassab et al. 2025, Algorithm 3) around a base optimiser.

    The learning rates alpha = exp(beta) of the base optimiser follow the discounted effect of all steps taken on the
    training loss::

        z <- <h, g>;  w <- w + change;  h <- gamma (1 - alpha weight_decay) h + change;  beta <- meta rule (beta, z)

    It is used as any optimiser of torch, as above.

    The learning rates in force are in `param_groups[i]["lr"]` and, all of them as numbers, in `lr`. With
    `groups="tensor"` the former is the geometric mean of the group; away from the CPU it is a tensor, so that no step
    waits for the device. A value assigned to `param_groups[i]["lr"]` is where adaptation goes on from. So a scheduler
    that multiplies the learning rate (StepLR, ExponentialLR, CosineAnnealingLR, ReduceLROnPlateau) composes with the
    adaptation. One that sets it (LambdaLR, OneCycleLR, CyclicLR, CosineAnnealingWarmRestarts, SWALR) undoes it, with a
    warning. A learning rate of 0 stays 0 until a value is assigned; its weights rest.

    `state` holds tensors by parameter. What the learning rates need is under "meta" in the parameter groups, and so
    part of `state_dict()`, where `torch.distributed.checkpoint` finds it.

    DTensors (`fully_shard`) train as the whole tensors would: each process steps its part, and the inner products are
    summed over the mesh in one small message a step. For parameters that are divided without being DTensors see
    `sharded`. A complex parameter steps as the pairs of its real and imaginary parts do.

    A parameter without a gradient is passed over with all its state, as in torch's optimisers. A learning rate none of
    whose parameters has a gradient stays, whatever the meta rule's momentum.

    A NaN gradient makes the learning rate NaN at once, and all its weights with the next step. An infinite gradient
    spoils its own weights first, as in torch's optimisers. `torch.amp.GradScaler` keeps both away: it skips the step,
    and no state changes.

    The optimiser computes what `methods.metaoptimize_hf` computes in `loop.Loop`, for one run, on a model and a loop
    that the user owns. The loop there has several runs side by side, learning rates per weight, and any rule.

    Cost: an inner product and elementwise operations, no further gradient. On a CPU with a C++ compiler they are one
    pass over the memory (see `fused`), else several, by the foreach and fused kernels of torch. With `groups="tensor"`
    every tensor takes a step by itself, which costs time where they are many and small.

    Memory, in multiples of the D weights: the base's (0 for "sgd"; 1 for "sgdm", "rmsprop" and "lion"; 2 for "adamw")
    and 1 for h. During a step of several passes it is 1 more (3 with `form="package"`), on the CPU for about a million
    weights at a time.

    Args:
        params: parameters, named parameters or parameter groups, as in every optimiser of torch. Each group may
            override lr and the base's hyperparameters.
        lr: the learning rate at the start (`alpha_0`), >= 0: a number, or a tensor of one element, which is copied.
        base: "sgd", "sgdm" (with momentum), "rmsprop", "adamw" or "lion": the steps of torch.optim's optimisers, with
            decoupled weight decay in "rmsprop", "adamw" and "lion".
        meta: "sgd", "adam", "lion" or "rmsprop" with `meta_step_size`, or an outer rule of `gradtune.recursion.outer`,
            which has a step size of its own.
        meta_step_size: step size of a meta rule given by name. With "lion", every step multiplies or divides a learning
            rate by exp(meta_step_size): over T steps it moves by a factor of exp(T meta_step_size) at most. By default
            it follows from `steps`, and is 0.02 without, which suits about 1,000 steps. The paper has 1e-3, for
            trainings of many thousand steps; in a few hundred, that hardly moves.
        steps: the number of steps that the training will take, in place of `meta_step_size`, which is then 20 / steps,
            but at least 1e-3 and at most 0.1 (`settings.meta_step`). Only for the meta rules "lion", "adam" and
            "rmsprop".
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
        foreach: False steps every tensor by itself, with the same numbers; None or True, those of one kind together.
        fused: None takes a step in one pass over the memory where that can be had, for dense tensors of float32 and
            float64 on the CPU, by a kernel that the first step compiles in a second or two and keeps
            (`GRADTUNE_COMPILE=0` goes without); all else, and all with False, by the operations of torch, with the same
            numbers to rounding. True is an error where there is no kernel for some parameter; away from the CPU only
            "adamw" has one, torch's.
        capturable: no CUDA graph can hold a step; True is an error.
        differentiable: no graph is kept through a step; True is an error.
        sharded: the processes of the default group hold different parts of the parameters, as with
            FullyShardedDataParallel or ZeroRedundancyOptimizer: inner products are summed over all of them. Leave it
            False where all processes hold the same (DistributedDataParallel), with DTensors, and with
            ZeroRedundancyOptimizer and `groups="tensor"`, where each process has learning rates of its own.

    Raises:
        GradtuneError: there are no parameters; a name is unknown; a value is outside its range; a hyperparameter is
            given that the base does not have; `steps` has nothing to decide; or `fused` or `sharded` does not fit the
            parameters. It is a ValueError.
    """

    _settings: Settings
    _sharded = False
    _left: list[Any] | None = None  # the learning rates after the last step
    _assigned = 0  # steps before which a learning rate was assigned
    _warned = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        base: str = "adamw",
        meta: str | Outer = "lion",
        meta_step_size: float | None = None,
        gamma: float = 1.0,
        groups: str = "scalar",
        *,
        steps: int | None = None,
        weight_decay: float | None = None,
        betas: tuple[float, float] | None = None,
        momentum: float | None = None,
        alpha: float | None = None,
        eps: float | None = None,
        maximize: bool = False,
        form: str = "ours",
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        sharded: bool = False,
    ) -> None:
        self._settings = Settings(base, outer_rule(meta, meta_step_size, form, steps), gamma, groups, form)
        if sharded:
            shards.check_processes()
            self._sharded = True
        given = {"weight_decay": weight_decay, "betas": betas, "momentum": momentum, "alpha": alpha, "eps": eps}
        flags = dict(zip(FLAGS, (maximize, foreach, fused, capturable, differentiable)))
        defaults = {"lr": lr, **hyperparameters(base, given), **flags}
        with torchs_errors():
            super().__init__(parameter_lists(params, may_be_none=sharded), defaults)

    # -- the step ------------------------------------------------------------------------------------------------------

    @torch._disable_dynamo  # a training step that is compiled as a whole breaks its graph here, once and in silence
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the weights and, after it, of the learning rates.

        Args:
            closure: computes the loss and its gradients, where these are not computed beforehand.

        Returns:
            What `closure` returns; None without it.

        Raises:
            GradtuneError: a gradient is sparse, or a CUDA graph is being captured; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.is_inference_mode_enabled():  # a state made there could not be changed outside
            with torch.inference_mode(False):
                self._take_step()
        else:
            self._take_step()
        return loss

    @torch.no_grad()
    def _take_step(self) -> None:
        buckets = self._buckets()
        if not buckets and not self._sharded:
            return
        meta: dict[str, Any] = self.param_groups[0]["meta"]
        device = buckets[0].params[0].device if buckets else meta["raw"].device
        if meta["raw"].device != device:
            meta = rates.moved(meta, device)
        if _captured(device):
            raise GradtuneError(
                "a CUDA graph is being captured, and MetaOptimize cannot be part of it; "
                "capture the gradients alone and call step() after the replay"
            )
        lrs = self._rates(meta["raw"], buckets)
        products = [self._advance(bucket, lr) for bucket, lr in zip(buckets, lrs)]
        places = [bucket.place for bucket in buckets]
        if any(places):
            products = shards.over_meshes(products, places, device)
        self._adapt(meta, [(bucket.block, each) for bucket, each in zip(buckets, products)])

    def _buckets(self) -> list[Bucket]:
        """Return what has a gradient, with its states, after all of it was checked."""
        found: dict[tuple[Any, ...], list[Tensor]] = {}
        blocks = rates.blocks(self.param_groups, self._settings.groups)
        for number, (group, (first, last)) in enumerate(zip(self.param_groups, blocks)):
            together = group["foreach"] is not False
            for k, p in enumerate(group["params"]):
                g = p.grad
                if g is None:
                    continue
                if g.layout != torch.strided:
                    raise GradtuneError(
                        f"parameter {k} of group {number} has a sparse gradient, and MetaOptimize needs dense ones; "
                        "build the layer with sparse=False, or leave its parameters to torch.optim.SparseAdam"
                    )
                place = None if type(p) in shards.PLAIN else shards.place(p)
                key = (number, min(first + k, last - 1), p.device, p.dtype, place if together else (place, k))
                found.setdefault(key, []).append(p)
        return [self._bucket(self.param_groups[key[0]], key[1], params) for key, params in found.items()]

    def _bucket(self, group: dict[str, Any], block: int, params: list[Tensor]) -> Bucket:
        states = [self.state[p] or self._initial(p) for p in params]
        by_name = {name: [state[name] for state in states] for name in states[0]}
        grads: list[Any] = [p.grad for p in params]
        if place := None if type(params[0]) in shards.PLAIN else shards.place(params[0]):
            params, grads = ([shards.local(x, place) for x in each] for each in (params, grads))
            by_name = {name: [shards.local(x, place) for x in each] for name, each in by_name.items()}
        bucket = Bucket(group, block, params, [_like(g, x) for g, x in zip(grads, by_name["trace"])], by_name, place)
        return bucket.real() if params[0].is_complex() else bucket

    def _initial(self, p: Tensor) -> dict[str, Tensor]:
        state = {name: torch.zeros_like(p) for name in (*self._settings.rule.buffers, "trace")}
        if self._settings.rule.counted:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        self.state[p] = state
        return state

    def _advance(self, bucket: Bucket, lr: Rate) -> Rate:
        """Step a bucket's weights and traces; return the inner product of gradients and old traces."""
        package = self._settings.form == "package"
        keep = self._settings.gamma * (1 - lr * bucket.group["weight_decay"])
        if bucket.group["fused"] is not False and not isinstance(lr, Tensor):
            product = fused.advance(bucket, lr, keep, self._settings.base, package)
            if product is not None:
                return product
        return foreach.advance(bucket, lr, keep, self._settings.rule, package)

    # -- the learning rates --------------------------------------------------------------------------------------------

    @property
    def lr(self) -> list[Any]:
        """The learning rates in force as numbers, one per parameter group; reading them waits for the device.

        With `groups="tensor"` they are a list per parameter group, with one number per tensor.
        """
        level = [float(group["lr"]) for group in self.param_groups]
        if self._settings.groups != "tensor":
            return level
        blocks = rates.blocks(self.param_groups, "tensor")
        apart = rates.apart(self.param_groups[0]["meta"]["raw"], blocks).tolist()
        return [[lr * each for each in apart[a:b]] for lr, (a, b) in zip(level, blocks)]

    def _rates(self, raw: Tensor, buckets: list[Bucket]) -> list[Rate]:
        """Return the learning rate of each bucket.

        It is that of the parameter group, with "tensor" times what sets the tensor apart from the group's mean.
        """
        self._heed_schedulers()
        on_cpu = raw.device.type == "cpu"
        if not on_cpu:
            for group in self.param_groups:
                group["lr"] = torch.as_tensor(group["lr"], dtype=raw.dtype, device=raw.device)
        lrs: list[Rate] = [float(b.group["lr"]) if on_cpu else b.group["lr"] for b in buckets]
        if self._settings.groups == "tensor":
            apart = rates.apart(raw, rates.blocks(self.param_groups, "tensor"))
            every = apart.tolist() if on_cpu else apart
            lrs = [lr * every[bucket.block] for lr, bucket in zip(lrs, buckets)]
        devices = (bucket.params[0].device for bucket in buckets)
        return [r.to(d, non_blocking=True) if isinstance(r, Tensor) else r for r, d in zip(lrs, devices)]

    def _heed_schedulers(self) -> None:
        """Warn, once, where a scheduler has set a learning rate whatever was learned."""
        if self._warned or self._left is None or "initial_lr" not in self.param_groups[0]:
            return
        now = [group["lr"] for group in self.param_groups]
        if all(x is y and not (isinstance(x, Tensor) and x._version) for x, y in zip(self._left, now)):
            return
        self._assigned += 1
        if self._assigned & (self._assigned - 1):
            return  # to look for schedulers takes time: at 1, 2, 4, 8, ...
        if kinds := rates.undoing(self):
            self._warned = True
            warnings.warn(
                f"{' and '.join(sorted(kinds))} sets the learning rate and undoes what MetaOptimize has learned; "
                "use a scheduler that multiplies it, such as StepLR, ExponentialLR or MultiplicativeLR",
                GradtuneWarning,
                stacklevel=10,  # the caller of step(), around which torch and the scheduler have wrappers
            )

    def _adapt(self, meta: dict[str, Any], products: list[tuple[int, Rate]]) -> None:
        """Apply the meta rule to the blocks of which there is a product; the learning rates of the groups follow."""
        raw = meta["raw"]
        z, active = rates.summed(products, raw)
        if self._sharded:
            z, active = shards.over_processes(z, active)
        new, memory = self._settings.meta.update(raw, z, self._settings.memory(meta), {"lr": raw.exp()})
        moved = {"raw": new, **named(memory)}
        if active is not None:
            moved = {name: torch.where(active, each, meta[name]) for name, each in moved.items()}
        rates.deal(self.param_groups, {**meta, **moved})
        rises = rates.rises(moved["raw"] - raw, self.param_groups, self._settings.groups)
        for group, rise in zip(self.param_groups, rises):
            group["lr"] = group["lr"] * rise
        self._left = [group["lr"] for group in self.param_groups]

    # -- groups and states ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, at any time.

        Its learning rates start from the group's lr. With `groups="scalar"` they follow the common factor from there.

        Raises:
            GradtuneError: a hyperparameter is outside its range, or the parameters cannot be optimised; the group is
                not added then.
        """
        with torchs_errors():
            super().add_param_group(parameter_lists([param_group], may_be_none=True)[0])
        group = self.param_groups[-1]
        try:
            check_group(len(self.param_groups) - 1, group, self._settings.base, self._sharded)
        except GradtuneError:
            self.param_groups.pop()
            raise
        group["lr"], self._left = rates.own(group["lr"]), None
        old = self.param_groups[0]["meta"] if len(self.param_groups) > 1 else None
        rates.grow(self.param_groups, self._settings, old)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`, as torch's optimisers do."""
        return saved.marked(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`, to the bit; the state is copied.

        States of earlier versions can be loaded too.

        Raises:
            GradtuneError: the state is that of another kind of optimiser or of other parameters, or not whole.
        """
        if not isinstance(state_dict, dict):
            raise GradtuneError(f"the state is a {type(state_dict).__name__}; expected what state_dict() returns")
        last = self.register_load_state_dict_pre_hook(saved.checked)  # after the hooks of others
        try:
            with torchs_errors():
                super().load_state_dict(state_dict)
        finally:
            last.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state over and fill in what an earlier version did not save."""
        super().__setstate__(state)
        self._left = None
        self.defaults = {**FLAGS, **self.defaults}
        for group in self.param_groups:
            group.update({n: x for n, x in self.defaults.items() if n not in group and n != "lr"})
            group.pop(saved.BEGUN, None)
        meta = cast(dict[Any, Any], self.state).pop("meta", None)  # where an earlier version had it
        if meta is not None:
            rates.deal(self.param_groups, meta)
        elif not all("meta" in group for group in self.param_groups):
            rates.grow(self.param_groups, self._settings, None)
        for p, of_it in self.state.items():
            if of_it and "step" in of_it:  # torch leaves counters where they were saved; once they were numbers
                of_it["step"] = torch.as_tensor(of_it["step"], dtype=torch.float32, device=p.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_settings": self._settings, "_sharded": self._sharded}


def _captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _like(g: Tensor, state: Tensor) -> Tensor:
    """Return a gradient that lies in the memory as its weights' states do, as the kernels run through it."""
    same = g.stride() == state.stride() and g.dtype is state.dtype and not g.is_neg()
    return g if same else torch.empty_like(state).copy_(g)
