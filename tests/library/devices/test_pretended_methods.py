"""Every method x rule on the pretended device: the CPU's bits, no mixed devices, launches and waits by the table."""

from __future__ import annotations

import pytest

from library.devices import cases
from library.devices.checks import allowed, equal, on_both

EVERY = cases.every()


@pytest.mark.parametrize(("method", "rule", "net"), [c for c in EVERY if c[2] == "mlp"])
def test_a_step_on_a_device_has_the_bits_of_the_cpu(method: str, rule: str, net: str) -> None:
    row = f"loop: {method}, {rule}, {net}"
    wanted, found = on_both(row, lambda d: cases.trained(method, rule, net, d), cases.STEPS, cases.STEPS)
    assert equal(wanted, found)


@pytest.mark.parametrize("method", sorted(cases.ONLINE))
def test_no_online_method_waits_for_the_device(method: str) -> None:
    rows = [f"loop: {', '.join(case)}" for case in EVERY if case[0] == method]
    assert rows and [allowed(row)[1] for row in rows] == [0.0] * len(rows)
