"""The pretended device itself: what it refuses, and what it counts."""

from __future__ import annotations

import pytest
import torch

from pretended import MixedDevices, plain, pretended


def test_two_devices_do_not_mix() -> None:
    with pretended():
        x = torch.ones(3, device="cuda")
        with pytest.raises(MixedDevices, match=r"add: expected all tensors on one device, found .* cpu \[\[3\]\]"):
            x + torch.ones(3)
        assert plain(x + torch.tensor(2.0)).tolist() == [3.0, 3.0, 3.0]  # a number is no other device
        with pytest.raises(MixedDevices, match="the generator is on cpu"):
            torch.rand(2, generator=torch.Generator(), device="cuda")
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


def test_what_waits_is_counted_and_what_launches() -> None:
    with pretended() as log:
        x = torch.arange(4.0, device="cuda")
        y = (x * 2 + 1).view(2, 2)
        assert (log.kernels, log.synced) == ({"arange": 1, "mul": 1, "add": 1}, 0)
        for k, wait in enumerate(
            (
                lambda: y[0, 0].item(),
                lambda: float(y.sum()),
                lambda: bool((y > 0).all()),
                lambda: y.tolist(),
                lambda: y.cpu(),
                lambda: torch.ones(2).to("cuda"),
                lambda: torch.tensor([1.0, 2.0], device="cuda"),
                lambda: y.new_tensor([1.0]),
                lambda: x[torch.tensor([0, 1])],
                lambda: x[x > 1],
                lambda: x.nonzero(),
                lambda: torch.cuda.synchronize(),
            ),
            start=1,
        ):
            wait()
            assert log.synced == k, dict(log.syncs)
        before = log.synced
        torch.ones(2).pin_memory().to("cuda", non_blocking=True)
        assert log.synced == before
        torch.ones(2).to("cuda", non_blocking=True)  # the driver copies memory that is not pinned before it returns
        assert log.synced == before + 1


def test_lists_of_tensors_are_one_launch_but_for_a_scalar_of_another_type() -> None:
    with pretended() as log:
        many = [torch.ones(2, device="cuda") for _ in range(5)]
        log.clear()
        torch._foreach_mul_(many, torch.ones((), device="cuda"))
        assert log.kernels["_foreach_mul_"] == 1
        torch._foreach_mul_(many, torch.ones((), device="cuda", dtype=torch.float64))
        assert log.kernels["_foreach_mul_ (slow: dtype of the scalar)"] == 5


def test_a_device_that_is_gone_is_gone() -> None:
    with pretended():
        assert torch.cuda.is_available()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(2, device="cuda")


# -- graphs ------------------------------------------------------------------------------------------------------------


def test_a_graph_takes_its_operations_again_on_its_own_memory() -> None:
    with pretended() as log:
        x, total, calls = torch.tensor([1.0, 2.0], device="cuda"), torch.zeros(2, device="cuda"), []
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            calls.append(1)
            y = (x * 3).view(2, 1).T + 1
            total += y[0]
        assert plain(y).isnan().all() and plain(total).tolist() == [0.0, 0.0]  # nothing was computed
        log.clear()
        for k in (1.0, 2.0):
            x.fill_(k)
            graph.replay()
            assert plain(y).tolist() == [[3 * k + 1] * 2]
        assert plain(total).tolist() == [11.0, 11.0] and calls == [1]
        assert log.kernels == {"fill_": 2, "graph": 2}


def test_what_a_capture_forbids_is_an_error() -> None:
    from pretended.graphs import CaptureError

    with pretended():
        x = torch.ones(2, device="cuda")
        for wait in (lambda: float(x[0]), lambda: torch.ones(2).to("cuda"), lambda: torch.cuda.synchronize()):
            graph = torch.cuda.CUDAGraph()
            with pytest.raises(CaptureError, match="not permitted when stream is"), torch.cuda.graph(graph):
                wait()
        with pytest.raises(CaptureError, match="replay without a preceding successful capture"):
            torch.cuda.CUDAGraph().replay()


def test_random_numbers_of_a_graph_follow_the_generators_seed() -> None:
    from pretended.graphs import CaptureError

    with pretended():
        generator, graph = torch.Generator(device="cuda"), torch.cuda.CUDAGraph()
        with pytest.raises(CaptureError, match="not in capture mode"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.rand(3, generator=generator, device="cuda")
        graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            drawn = torch.rand(3, generator=generator, device="cuda")
        for seed in (1, 2, 1):
            generator.manual_seed(seed)
            graph.replay()
            assert torch.equal(plain(drawn), torch.rand(3, generator=torch.Generator().manual_seed(seed)))
