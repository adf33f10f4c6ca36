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
