"""Torch's checks of what stands around an optimiser's step: hooks, the profiler, gradients taken away."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch.autograd.profiler import profile
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradtune.optim import MetaOptimize
from library.optim.checks import check
from library.optim.small import backward, gradient, net, same, train, weights

step = partial(check, "step")


@step("zero_grad takes gradients away, or makes them 0")
def _zero_grad() -> None:
    model = net()
    for foreach in (None, True):
        optimizer = MetaOptimize(model.parameters(), foreach=foreach)
        backward(model)
        optimizer.zero_grad(set_to_none=False)
        assert all(not gradient(p).any() for p in model.parameters())
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())


@step("frozen parameters keep their weights and states")
def _frozen() -> None:
    model = net()
    optimizer = MetaOptimize(model.parameters(), 0.01)
    train(model, optimizer, 2)
    model.last.requires_grad_(False)
    optimizer.zero_grad()
    before, state = weights(model.last), copy.deepcopy(optimizer.state[model.last.weight])
    train(model, optimizer, 2)
    assert torch.equal(weights(model.last), before) and same(optimizer.state[model.last.weight], state)


@step("the profiler sees it by its name")
def _profiler() -> None:
    model = net()
    optimizer = MetaOptimize(model.parameters())
    with profile() as record:
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    names = {event.name for event in record.function_events}
    assert {"Optimizer.step#MetaOptimize.step", "Optimizer.zero_grad#MetaOptimize.zero_grad"} <= names


@step("a hook before the step may change its arguments")
def _pre_hook() -> None:
    model, seen = net(), []
    optimizer = MetaOptimize(model.parameters())
    handle = optimizer.register_step_pre_hook(lambda o, args, kwargs: ((args[0], lambda: 7), kwargs))
    assert optimizer.step() == 7
    handle.remove()
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(o))
    assert optimizer.step() is None and seen == [optimizer]


@step("a hook after the step sees what it did")
def _post_hook() -> None:
    model, seen = net(), []
    optimizer = MetaOptimize(model.parameters(), 0.01, meta_step_size=0.1)
    handle = optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(len(o.state)))
    train(model, optimizer, 1)
    handle.remove()
    train(model, optimizer, 1)
    assert seen == [4]


@step("hooks of all optimisers run around its own")
def _all_hooks() -> None:
    model, order = net(), []
    optimizer = MetaOptimize(model.parameters())
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: order.append("before, all")),
        register_optimizer_step_post_hook(lambda o, args, kwargs: order.append("after, all")),
        optimizer.register_step_pre_hook(lambda o, args, kwargs: order.append("before")),
        optimizer.register_step_post_hook(lambda o, args, kwargs: order.append("after")),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    assert order == ["before, all", "before", "after", "after, all"]
