"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow_mpi.report.wording import listed, ms, percent, rate, rounded, size, table, times


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (ms(1.6385), "1,638 ms"), (ms(0.0605), "60.5 ms"), (ms(0.00012), "0.12 ms"),
        (ms(0), "0 ms"),
        (times(2.4), "2.4×"), (times(1.04), "1.04×"), (times(1), "1.00×"), (times(0.5), "0.5×"),
        (times(0.0234), "0.02×"), (times(1500), "1,500×"),
        (percent(0), "0 %"), (percent(0.031), "3.1 %"), (percent(0.42), "42 %"),
        (size(999), "999 B"), (size(1234), "1.2 kB"), (size(96.4e6), "96.4 MB"),
        (size(553e6), "553 MB"), (size(3.5e9), "3.5 GB"),
        (rate(93.7e6 / 8), "94 Mbit/s"), (rate(1250e6), "10 Gbit/s"),
        (rounded(0.0387), "0.039"), (rounded(129.4), "129"), (rounded(1294), "1,290"),
        (listed([]), ""), (listed(["a"]), "a"), (listed(["a", "b", "c"]), "a, b and c"),
        (listed(list("abcdefgh"), 4), "a, b, c and 5 more"),
    ],
)  # fmt: skip
def test_numbers_and_lists(made: str, text: str) -> None:
    assert made == text


@given(st.floats(1e-9, 1e9))
def test_a_gain_never_reads_as_none(factor: float) -> None:
    shown = float(times(factor).rstrip("×").replace(",", ""))
    assert shown == pytest.approx(factor, rel=0.5)
    assert times(factor) != "1.0×"


def test_columns_are_aligned() -> None:
    assert table(("name", "ms"), [("a", "10"), ("long", "7")]) == [
        "name  ms", "a     10", "long   7",
    ]  # fmt: skip
