"""From what a user gives to what trains: the problem, the rule, the hyperparameters and the loop of a tuner."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from gradtune.errors import GradtuneError
from gradtune.nets.adjusted import uncompiled
from gradtune.nets.refused import refuse
from gradtune.nets.single import Single
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.rules import Rule, clipped, norm_clipped
from gradtune.recursion.wrapped import Guarded
from gradtune.training.loop import Loop, Method
from gradtune.tuning import declared
from gradtune.tuning.calling import Loss
from gradtune.tuning.scaling import Scaling
from gradtune.tuning.supervised import Supervised


class Assembled(NamedTuple):
    """What trains.

    Attributes:
        single: the model.
        problem: its losses.
        hypers: the hyperparameters.
        loop: the loop over all of them, whose outer rule skips updates that are not finite.
    """

    single: Single
    problem: Supervised
    hypers: Hypers
    loop: Loop


def assembled(
    model: nn.Module,
    loss: Loss | None,
    *,
    val_loss: Loss | None,
    rule: str | Rule,
    hypers: declared.Given,
    fixed: declared.Fixed,
    method: Method,
    name: str,
    seed: int,
    horizon: int | None,
    clip_norm: float | None,
    clip_value: float | None,
    scaler: GradScaler | None,
    statistics: str,
) -> Assembled:
    """Put together what trains a model.

    The arguments are those of `Tuner`, where `name` is what the method is called.

    Raises:
        GradtuneError: `Tuner` raises it.
    """
    refuse(model, method.second_order)
    parameters = _trained(uncompiled(model))
    single = Single(model, [f for f in (loss, val_loss) if f is not None], method.second_order)
    of_model, of_loss = declared.keywords(model, 1), {} if loss is None else declared.keywords(loss, 2)
    made, given = declared.rule_and_hypers(rule, hypers, fixed, [*of_model, *of_loss], method, name)
    _check_loss(model, loss, of_loss, [h.name for h in given], val_loss is not None)
    if scaler is not None and method.replayed:
        raise GradtuneError(
            "a scaler leaves out steps by its own state, and store='tree' takes steps again; use store='state', or "
            "bfloat16 without a scaler"
        )
    if scaler is not None and method.mode != "reverse":
        raise GradtuneError("a scaler was given, and tangents of gradients are not scaled; use mode='reverse'")
    made = made if clip_norm is None else norm_clipped(made, clip_norm)
    made = made if clip_value is None else clipped(made, clip_value)
    shapes = {h.name: h.shape for h in given}
    layout, names = single.layout, shapes.keys()
    problem = Supervised(
        single,
        loss,
        val_loss or loss,
        {n: shapes[n] for n in of_model if n in names},
        {n: shapes[n] for n in of_loss if n in names},
        method.keep if method.mode == "reverse" else max(1, method.keep),
        seed,
        None if scaler is None else Scaling(scaler, layout.flatten(parameters)[None]),
        statistics,
        method.replayed,
    )
    if wide := [h for h in given if horizon is not None and h.windows > max(1, horizon)]:
        raise GradtuneError(
            f"{wide[0].name} has {wide[0].windows} windows over {horizon} steps; expected a step in each"
        )
    declared_hypers = Hypers(given, layout.sizes, horizon, names=layout.names, shapes=layout.shapes)
    guarded = method if method.outer is None else replace(method, outer=Guarded(method.outer))
    return Assembled(single, problem, declared_hypers, Loop(problem, made, declared_hypers, guarded))


def configuration(
    model: nn.Module,
    w: Tensor,
    rule: str | Rule,
    method: Method,
    made: Assembled,
    clip_norm: float | None,
    clip_value: float | None,
    accumulate: int,
    horizon: int | None,
    seed: int,
    statistics: str,
) -> dict[str, str]:
    """Return text by topic that tells tuners apart; `w` are the weights, the other arguments those of `Tuner`."""
    tensors = len(made.single.layout.names)
    return {
        "model": f"{type(model).__name__} of {w.shape[1]} weights in {tensors} tensors, {w.dtype}",
        "rule": (rule if isinstance(rule, str) else f"{rule.name} {list(rule.hypers)}")
        + f", gradients clipped to length {clip_norm}" * (clip_norm is not None)
        + f", gradients clipped at {clip_value}" * (clip_value is not None)
        + f", {accumulate} batches a step" * (accumulate > 1),
        "method": str(method) + f", {statistics} statistics" * (statistics != "running"),
        "hyperparameters": ", ".join(str(b.hyper) for b in made.hypers.blocks.values())
        + f", windows over {horizon} steps" * made.hypers.windowed,
        "seed": str(seed),
    }


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parameters have memory of their own.

    Raises:
        GradtuneError: the model cannot be copied.
    """
    try:
        own = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise GradtuneError(
            f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0][:160]}); remove what it keeps of a "
            "computation (torch.nn.utils.weight_norm does), or train it in place"
        ) from error
    with torch.no_grad():
        for p in own.parameters():
            p.data = p.data.clone()
    return own


def _check_loss(model: nn.Module, loss: Any, of_loss: dict[str, bool], names: list[str], own_val: bool) -> None:
    missing = [n for n, needed in of_loss.items() if needed and n not in names]
    if missing:
        raise GradtuneError(
            f"the loss takes {missing}, and no hyperparameter has that name; declare it in hypers, or give the "
            "argument a default"
        )
    needed = [n for n in of_loss if of_loss[n] and n in names]
    if needed and not own_val:
        raise GradtuneError(
            f"the loss cannot be called without {needed}, hyperparameters of training; give the argument a default "
            "for validation, or hand over val_loss=..."
        )
    own = {id(p) for p in model.parameters()}
    if isinstance(loss, nn.Module) and any(p.requires_grad and id(p) not in own for p in loss.parameters()):
        raise GradtuneError(
            f"the loss {type(loss).__name__} has parameters of its own, which would not be trained; make it a part "
            "of the model and call it through the model, or freeze them with requires_grad_(False)"
        )


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters that are trained, checked."""
    if not model.training:
        raise GradtuneError(
            f"{type(model).__name__} is in evaluation mode, in which dropout and batch norm do not train; call "
            "model.train() first (parts that shall stay as they are can be in evaluation mode)"
        )
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    kinds = {(str(p.dtype), str(p.device)) for p in trained.values()}
    if len(kinds) > 1:
        raise GradtuneError(
            f"the model's parameters have several types or devices, {sorted(kinds)}; expected one, as after "
            "model.to(device, dtype)"
        )
    if trained and not next(iter(trained.values())).is_floating_point():
        raise GradtuneError(f"the model's parameters are {kinds.pop()[0]}; expected a real floating-point type")
    return dict(trained)
