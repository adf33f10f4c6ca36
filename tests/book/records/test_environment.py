"""What studies are computed with."""

import pytest
import torch

from gradtune_book.records import environment


def test_studies_run_on_one_thread_without_denormals_and_leave_both_as_they_were() -> None:
    tiny = torch.tensor(1e-38)

    def denormal() -> bool:
        return (tiny / 10).item() != 0

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for before in (False, True):
            if not torch.set_flush_denormal(before):
                pytest.skip("this processor cannot flush denormal numbers")
            with pytest.raises(KeyError), environment.as_recorded():
                assert torch.get_num_threads() == 1 and not denormal()
                raise KeyError
            assert torch.get_num_threads() == 2 and denormal() != before
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def test_a_stopwatch_adds_up_and_stands_still_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(environment.time, "perf_counter", lambda: now)
    monkeypatch.setattr(environment.time, "process_time", lambda: now / 2)
    spent = environment.Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with spent:
            now += 3.0
            with spent.paused():
                now += 10.0
            now += 1.0
        now += 100.0
    assert (spent.wall_s, spent.cpu_s) == (8.0, 4.0)
    assert spent.share(4) == {"wall_s": 2.0, "cpu_s": 1.0}
