"""Torch's checks of an optimiser's step."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradtune.optim import MetaOptimize
from gradtune.optim.foreach import BASES
from library.optim.checks import check
from library.optim.small import backward, gradient, net, relative, same, train, weights

step = partial(check, "step")
METAS = ("sgd", "adam", "lion", "rmsprop")


def fit(shapes: list[Tensor], steps: int = 20, **arguments: Any) -> list[float]:
    """The losses of weights and a bias on one row, by closures."""
    weight, bias = (nn.Parameter(x) for x in shapes)
    row = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(3)).to(weight)
    optimizer = MetaOptimize([weight, bias], 1e-2, **arguments)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(row) + bias).square().sum()
        loss.backward()
        return loss

    return [optimizer.step(closure).item() for _ in range(steps)]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@step("the loss goes down, with every base and meta rule")
def _down() -> None:
    for base in BASES:
        for meta in METAS:
            losses = fit([noise(10, 5), noise(10)], base=base, meta=meta)
            assert losses[-1] < losses[0]


@step("so it does with parameters that are not contiguous")
def _strided() -> None:
    for base in BASES:
        losses = fit([noise(10, 5, 2)[..., 0], noise(10, 2)[..., 0]], base=base)
        assert losses[-1] < losses[0]


@step("and with maximize=True up")
def _up() -> None:
    for base in BASES:
        losses = fit([noise(10, 5), noise(10)], base=base, maximize=True, weight_decay=0.1)
        assert losses[-1] > losses[0]


@step("a closure is called once, with gradients on, and its loss returned")
def _closure() -> None:
    model, calls = net(), []
    optimizer = MetaOptimize(model.parameters())

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return backward(model)

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True] and loss.requires_grad and optimizer.step() is None


@step("without gradients nothing moves")
def _no_gradients() -> None:
    params = [torch.ones(2, 3) for _ in range(2)]
    optimizer = MetaOptimize(params, 0.1)
    optimizer.step(lambda: torch.ones(1))
    assert all(torch.equal(p, torch.ones(2, 3)) for p in params) and not optimizer.state and optimizer.lr == [0.1]


@step("gradients of zero move nothing, the weight decay apart")
def _zero_gradients() -> None:
    for base in BASES:
        for decay in (0.0, 0.1):
            p = nn.Parameter(torch.ones(5, 1))
            p.grad = torch.zeros(5, 1)
            MetaOptimize([p], 0.1, base, weight_decay=decay).step()
            assert torch.allclose(p, torch.full((5, 1), 1 - 0.1 * decay))


@step("tensors without elements")
def _no_elements() -> None:
    for groups in ("scalar", "tensor"):
        for base in BASES:
            params = [nn.Parameter(noise(2, 3)), nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.empty(0))]
            optimizer = MetaOptimize(params, 0.1, base, groups=groups)
            for _ in range(3):
                for p in params:
                    p.grad = torch.ones_like(p)
                optimizer.step()
            assert optimizer.lr[0] != 0.1 and params[0].isfinite().all()


@step("numbers, tensors without dimensions")
def _numbers() -> None:
    for base in BASES:
        p, q = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.ones(1))
        for each in (p, q):
            optimizer = MetaOptimize([each], 0.1, base)
            for _ in range(3):
                each.grad = 2 * each.detach()
                optimizer.step()
        assert p.shape == () and p.item() == q.item() != 1.0


@step("one tensor after the other gives the same numbers (foreach=False)")
def _foreach() -> None:
    for base in BASES:
        ends = []
        for foreach in (None, True, False):
            model = net()
            optimizer = MetaOptimize(model.parameters(), 0.01, base, meta="adam", foreach=foreach)
            train(model, optimizer, 7)
            assert len(optimizer._buckets()) == (4 if foreach is False else 1)
            ends.append(weights(model))
        assert torch.equal(ends[0], ends[1]) and relative(ends[2], ends[0]) < 1e-12


@step("with and without the fused kernel it gives the numbers of torch's fused AdamW")
def _fused() -> None:
    for kind in (None, False):
        a, b = net(torch.float32), net(torch.float32)
        train(a, MetaOptimize(a.parameters(), 0.01, meta_step_size=0.0, fused=kind), 7)
        train(b, torch.optim.AdamW(b.parameters(), 0.01, fused=True), 7)
        assert relative(weights(a), weights(b)) < 1e-6


@step("the default type changes nothing")
def _default_type() -> None:
    for meta in METAS:
        ends = []
        for dtype in (torch.float32, torch.float64, torch.float16):
            model = net()
            torch.set_default_dtype(dtype)
            try:
                optimizer = MetaOptimize(model.parameters(), 0.01, meta=meta)
                for t in range(4):
                    for p in model.parameters():
                        p.grad = p.detach() + t
                    optimizer.step()
            finally:
                torch.set_default_dtype(torch.float32)
            assert optimizer.state[model.first.weight]["step"].dtype == torch.float32
            ends.append((weights(model), optimizer.lr))
        assert all(torch.equal(w, ends[0][0]) and lr == ends[0][1] for w, lr in ends)


@step("the default device changes nothing")
def _default_device() -> None:
    """A number that landed on `meta` would be lost."""
    for groups in ("scalar", "blockwise", "tensor"):
        for meta in METAS:
            ends = []
            for device in ("cpu", "meta"):
                model = net()
                with torch.device(device):
                    parts = [{"params": model.first.parameters()}, {"params": model.last.parameters(), "lr": 0.02}]
                    optimizer = MetaOptimize(parts, 0.01, meta=meta, groups=groups)
                    for t in range(4):
                        for p in list(model.parameters())[t % 2 :]:  # at times a block has no gradient
                            p.grad = p.detach() + t
                        optimizer.step()
                        optimizer.zero_grad()
                    optimizer.load_state_dict(optimizer.state_dict())
                ends.append((weights(model), optimizer.lr))
            assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


@step("tensors of several types in one optimiser")
def _types() -> None:
    for base in BASES:
        types = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        params = [nn.Parameter(noise(2, 3).to(dtype)) for dtype in types]
        whole = nn.Parameter(torch.randint(9, (2, 3)), requires_grad=False)
        eps = 1e-3 if base in ("adamw", "rmsprop") else None
        optimizer = MetaOptimize([*params, whole], 1e-2, base, eps=eps)
        before, ends = [p.detach().clone() for p in params], []
        for _ in range(7):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
            ends.append([p.detach().double() for p in params])
        assert all((p < q).all() for p, q in zip(params, before))
        assert all(torch.allclose(x, ends[-1][0], atol=0.05) for x in ends[-1])
        assert {optimizer.state[p]["trace"].dtype for p in params} == set(types)


@step("float16 and bfloat16")
def _half() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        losses = fit([noise(10, 5).to(dtype), noise(10).to(dtype)], eps=1e-3)
        assert losses[-1] < losses[0]


@step("gradients of another type than the weights'")
def _gradient_type() -> None:
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.ones(4))
        p.grad_dtype = None  # any
        optimizer = MetaOptimize([p], 0.1)
        for _ in range(3):
            p.grad = torch.tensor([0.5, 1.0, -2.0, 0.25], dtype=dtype)
            optimizer.step()
        ends.append(p.detach())
    assert torch.equal(*ends)


VARIATIONS: tuple[dict[str, Any], ...] = (
    *({}, {"maximize": True}, {"weight_decay": 0.1}),
    *({"form": "package"}, {"foreach": False}),
)


@step("complex parameters step as pairs of real ones do")
def _complex() -> None:
    """The last one is real, as in torch's test. The state is complex, as torch's is."""
    for base in BASES:
        for arguments in VARIATIONS:
            pairs = [noise(10, 5, 2).double(), noise(10, 2).double(), noise(10, 5).double()]
            mine = [nn.Parameter(torch.view_as_complex(x.clone())) for x in pairs[:2]]
            mine.append(nn.Parameter(pairs[2].clone()))
            real = [nn.Parameter(x) for x in pairs]
            optimizers = [MetaOptimize(x, 0.01, base, "adam", **arguments) for x in (mine, real)]
            for t in range(3):
                for p, q in zip(mine, real):
                    q.grad = torch.cos(q.detach() + t)
                    p.grad = torch.view_as_complex(q.grad) if p.is_complex() else q.grad.clone()
                for optimizer in optimizers:
                    optimizer.step()
            assert all(torch.equal(torch.view_as_real(p) if p.is_complex() else p, q) for p, q in zip(mine, real))
            assert optimizers[0].lr == optimizers[1].lr and optimizers[0].state[mine[0]]["trace"].is_complex()


@step("and as their real and imaginary parts apart")
def _complex_apart() -> None:
    """Through autograd, whose gradient may be a conjugate that was not written out."""
    z = nn.Parameter(torch.complex(noise(2), noise(3)[:2]).to(torch.complex128))
    parts = [nn.Parameter(x.detach().clone()) for x in (z.real, z.imag)]
    optimizers = [MetaOptimize(x, 1e-4, "sgdm", "adam") for x in ([z], parts)]
    for _ in range(10):
        for optimizer, value in zip(optimizers, (z, torch.complex(*parts))):
            optimizer.zero_grad()
            ((1 - value[0]).abs() ** 2 + 100 * (value[1] - value[0] ** 2).abs() ** 2).backward()
        z.grad = gradient(z).conj().resolve_conj().conj()
        for optimizer in optimizers:
            optimizer.step()
    assert relative(z.detach().real, parts[0].detach()) < 1e-12 > relative(z.detach().imag, parts[1].detach())


@step(
    "sparse gradients",
    "parameter 0 of group 0 has a sparse gradient, and MetaOptimize needs dense ones; "
    "build the layer with sparse=False, or leave its parameters to torch.optim.SparseAdam",
)
def _sparse() -> None:
    layer = nn.Embedding(5, 2, sparse=True)
    layer(torch.tensor([1, 2])).sum().backward()
    MetaOptimize(layer.parameters()).step()


@step("a tensor learning rate gives the numbers of a number, and stays the caller's")
def _tensor_rate() -> None:
    for groups in ("scalar", "blockwise", "tensor"):
        for shape in ((), (1,)):
            a, b, lr = net(), net(), torch.full(shape, 0.01, dtype=torch.float64)
            mine, plain = (MetaOptimize(m.parameters(), x, groups=groups) for m, x in ((a, lr), (b, 0.01)))
            for model, optimizer in ((a, mine), (b, plain)):
                scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
                train(model, optimizer, 3)
                scheduler.step()
                train(model, optimizer, 3)
            assert torch.equal(weights(a), weights(b)) and mine.lr == plain.lr and lr.item() == 0.01
            assert isinstance(mine.param_groups[0]["lr"], Tensor) and mine.param_groups[0]["lr"].shape == ()


@step("a learning rate of 0 moves nothing, until a value is assigned")
def _rate_of_0() -> None:
    for groups in ("scalar", "blockwise", "tensor"):
        for meta in METAS:
            model = net()
            before, optimizer = weights(model), MetaOptimize(model.parameters(), 0.0, meta=meta, groups=groups)
            train(model, optimizer, 3)
            assert torch.equal(weights(model), before) and not torch.tensor(optimizer.lr).any()
            optimizer.param_groups[0]["lr"] = 0.01
            train(model, optimizer, 5)
            assert weights(model).isfinite().all() and not torch.equal(weights(model), before)


@step("parameters that are views of one buffer")
def _views() -> None:
    buffer = noise(23).double()
    parts = [nn.Parameter(x) for x in buffer.split([12, 4, 7])]
    apart = [nn.Parameter(x.detach().clone()) for x in parts]
    optimizers = [MetaOptimize(x, 0.01) for x in (parts, apart)]
    for _ in range(4):
        for params, optimizer in zip((parts, apart), optimizers):
            for p in params:
                p.grad = p.detach().cos()
            optimizer.step()
    assert torch.equal(buffer, torch.cat([p.detach() for p in apart]))


@step("a step in inference mode")
def _inference() -> None:
    a, b = net(), net()
    mine, plain = MetaOptimize(a.parameters(), 0.01), MetaOptimize(b.parameters(), 0.01)
    for t in range(4):
        a.zero_grad()
        backward(a, t)
        with torch.inference_mode(t < 2):
            mine.step()
    train(b, plain, 4)
    assert torch.equal(weights(a), weights(b)) and same(copy.deepcopy(mine).state_dict(), plain.state_dict())


@step("a compiled step")
def _compiled() -> None:
    a, b = net(), net()
    mine = MetaOptimize(a.parameters(), 0.01)
    compiled: Any = torch.compile(mine.step, backend="eager")
    for t in range(3):
        a.zero_grad()
        backward(a, t)
        compiled()
    train(b, MetaOptimize(b.parameters(), 0.01), 3)
    assert torch.equal(weights(a), weights(b))


@step("gradients that carry a graph of their own")
def _graph() -> None:
    a, b = net(), net()
    x = torch.randn(8, 3).double()
    for model, create in ((a, True), (b, False)):
        optimizer = MetaOptimize(model.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            grads = torch.autograd.grad(model(x).square().mean(), list(model.parameters()), create_graph=create)
            for p, g in zip(model.parameters(), grads):
                p.grad = g
            optimizer.step()
        assert all(p.is_leaf and p.requires_grad for p in model.parameters())
        assert not any(t.requires_grad for state in optimizer.state.values() for t in state.values())
    assert torch.equal(weights(a), weights(b))
