"""Every method on a convolutional net and on an LSTM language model, with dropout, on the pretended device."""

from __future__ import annotations

import pytest

from library.devices import cases
from library.devices.checks import equal, on_both


@pytest.mark.parametrize(("method", "rule", "net"), [c for c in cases.every() if c[2] != "mlp"])
def test_a_step_on_a_device_has_the_bits_of_the_cpu(method: str, rule: str, net: str) -> None:
    row = f"loop: {method}, {rule}, {net}"
    wanted, found = on_both(row, lambda d: cases.trained(method, rule, net, d), cases.STEPS, cases.STEPS)
    assert equal(wanted, found)
