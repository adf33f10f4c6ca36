"""The table of launches is whole, and the page shows what the file says."""

from __future__ import annotations

from benchmarks import launches


def test_every_row_is_measured_and_the_page_shows_them() -> None:
    table = launches.stored()
    assert set(table) == set(launches.rows())
    assert all({"start", "now"} == set(row) for row in table.values())
    page = launches.PAGE.read_text(encoding="utf-8")
    assert launches.written(page, table) == page


def test_graphs_launch_a_small_part_of_what_they_did() -> None:
    table = launches.stored()
    small = [n for n in table if n.startswith(("study: ", "Tuner: "))]
    assert small and all(table[n]["now"][0] < table[n]["start"][0] / 4 for n in small)
    assert all(table[n]["now"][1] == 0.0 for n in small)
