"""Prices of kernels: which are measured, by which engine, and what is kept of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from profile_cases import on_ranks, relu_graph

from edgeflow_mpi.cache import Cache
from edgeflow_mpi.cluster import prices
from edgeflow_mpi.cluster.measure import Timing
from edgeflow_mpi.cluster.prices import Price, Prices, Subject, dense_rows, dense_shares
from edgeflow_mpi.errors import EdgeflowError, ModelError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Layer
from edgeflow_mpi.progress import NoProgress

ENGINES = ("onednn", "aten")


def layer_of(rows: int, *, splits: bool = True) -> Layer:
    layer = relu_graph(rows=rows).by_name["a"]
    return layer if splits else replace(layer, divisible=False)


def subject(*counts: int, layer: str = "a") -> Subject:
    graph = relu_graph()
    return Subject(graph, Needs(graph), graph.by_name[layer], counts)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every kernel takes less from turn to turn; the rows of each that was timed."""
    rows: list[int] = []

    def time_calls(run: Callable[[], object], window_s: float) -> Timing:
        count = run().shape[2]  # type: ignore[attr-defined]
        rows.append(count)
        return Timing(count + 1 / rows.count(count), 1.0, 1.0)

    monkeypatch.setattr(prices, "time_calls", time_calls)
    return rows


def learned(folder: Path | None, *subjects: Subject, fresh: bool = False) -> Prices:
    def work(comm: object) -> Prices:
        found = Prices(ENGINES, Cache(folder, NoProgress()), fresh=fresh)
        found.learn(comm, NoProgress(), subjects)  # type: ignore[arg-type]
        return found

    everyone = on_ranks(2, work)
    kind = subjects[0].kind
    assert all(isinstance(one, Prices) for one in everyone), everyone
    first, other = everyone
    assert first.of(kind) == other.of(kind)  # type: ignore[attr-defined]
    return first  # type: ignore[return-value]


def test_all_small_numbers_of_rows_and_pairs_of_large_ones_are_priced() -> None:
    assert dense_rows(layer_of(7)) == tuple(range(1, 8))
    many = dense_rows(layer_of(224))
    assert set(range(1, 33)) <= set(many) and {40, 41, 64, 65, 112, 192, 193, 224} <= set(many)
    assert len(many) < 65 and max(many) == 224
    assert dense_rows(layer_of(9, splits=False)) == (9,)
    shares = dense_shares(layer_of(512))
    assert {512, 256, 128, 64, 73, 65, 192, 193} <= set(shares) and len(shares) < 40
    assert 257 not in dense_shares(layer_of(4096)) and 129 in dense_shares(layer_of(2048))
    inputs = replace(layer_of(512), divided="inputs")
    assert set(range(8, 512, 8)) <= set(dense_shares(inputs))
    assert dense_shares(layer_of(1)) == (1,)


@pytest.mark.usefixtures("timed")
def test_the_best_of_several_turns_counts() -> None:
    found = learned(None, subject(3, 5), subject(3, 8)).of(subject(1).kind)
    assert set(found) == {3, 5, 8}
    for rows, price in found.items():
        assert price.seconds <= rows + 1 / prices.TURNS
        assert price.engine in ENGINES


def test_what_was_measured_is_not_measured_again(tmp_path: Path, timed: list[int]) -> None:
    first = learned(tmp_path, subject(2, 4))
    timed.clear()
    again = learned(tmp_path, subject(2, 4))
    assert timed == [] and again.of(subject(1).kind) == first.of(subject(1).kind)
    more = learned(tmp_path, subject(2, 4, 6)).of(subject(1).kind)
    assert set(timed) == {6} and set(more) == {2, 4, 6}


def test_measured_again_the_smaller_price_counts(tmp_path: Path, timed: list[int]) -> None:
    before = learned(tmp_path, subject(2, 6)).of(subject(1).kind)
    timed.clear()
    timed += [6] * 100  # from now on kernels of 6 rows take less than ever before
    after = learned(tmp_path, subject(6, 8), fresh=True).of(subject(1).kind)
    assert set(timed[100:]) == {6, 8} and set(after) == {2, 6, 8}
    assert after[2] == before[2] and after[6].seconds < before[6].seconds
    timed.clear()  # and now they take more again
    again = learned(tmp_path, subject(6), fresh=True).of(subject(1).kind)
    assert set(timed) == {6} and again[6] == after[6]
    assert learned(tmp_path, subject(6)).of(subject(1).kind) == again


@pytest.mark.usefixtures("timed")
def test_the_cheapest_call_is_one_of_those_that_are_asked_for(tmp_path: Path) -> None:
    learned(tmp_path, subject(1, 8))
    found = learned(tmp_path, subject(4, 8))
    assert set(found.of(subject(1).kind)) == {1, 4, 8}
    assert found.least_s([subject(8), subject(4)]) == found.of(subject(1).kind)[4].seconds
    assert found.least_s([]) == 0


@pytest.mark.parametrize("text", ["one two", "a b c d e\n", "s 8 2 fast aten\n"])
def test_a_text_of_another_form_is_no_price(text: str) -> None:
    assert prices._parsed(text) == {}
    assert prices._parsed("s 8 2 0.25 aten\n") == {("s", 8): {2: Price(0.25, "aten")}}


def test_between_two_numbers_of_rows_their_engines_are_tried() -> None:
    known = {2: Price(1.0, "aten"), 8: Price(1.0, "onednn"), 16: Price(1.0, "ncnn")}
    assert prices._around(known, 5) == {"aten", "onednn"}
    assert prices._around(known, 20) == {"ncnn"}
    assert prices._around({}, 3) == set()


def test_a_price_above_that_of_more_rows_was_disturbed() -> None:
    found = {4: Price(2.0, "ncnn"), 2: Price(5.0, "aten"), 1: Price(1.0, "aten")}
    assert prices._undisturbed(found) == {
        4: Price(2.0, "ncnn"), 2: Price(2.0, "aten"), 1: Price(1.0, "aten"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "error", [ModelError("layer a has no such operator"), RuntimeError("no memory\nand more")]
)
def test_a_kernel_that_fails_fails_on_all_ranks(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(prices, "random_weights", refuse)

    def work(comm: object) -> None:
        found = Prices(ENGINES, Cache(None, NoProgress()))
        found.learn(comm, NoProgress(), [subject(2)])  # type: ignore[arg-type]

    for found in on_ranks(2, work):
        assert isinstance(found, EdgeflowError) and "layer a " in str(found)
        assert str(error).partition("\n")[0] in str(found) and "\n" not in str(found)


def test_whatever_decides_on_a_price_is_part_of_its_key() -> None:
    """So that what an older version has measured is not taken for what this one would."""
    sources = {*prices._MEASURING}
    text = Path(prices.__file__).read_text()
    used = set(re.findall(r"^from edgeflow_mpi\.cluster\.(\w+) import", text, re.MULTILINE))
    assert used - {"agree", "comm", "devices"} <= sources
