"""Slow devices: what units are to take, from prices and a cluster file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from profile_cases import on_ranks, relu_graph

from edgeflow_mpi.cache import Cache
from edgeflow_mpi.cluster import emulation, prices
from edgeflow_mpi.cluster.cluster_file import ClusterSpec, parse_cluster
from edgeflow_mpi.cluster.emulation import Emulator, UnitTimes
from edgeflow_mpi.cluster.measure import Timing
from edgeflow_mpi.cluster.prices import Prices
from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.progress import NoProgress

CALL_S, ROW_S = 20e-6, 10e-6


def worked_graph() -> Graph:
    """Of the three layers of 8 rows two have 500 multiply-adds each; the third has none."""
    graph = relu_graph()
    layers = [
        dataclasses.replace(layer, macs=500 if layer.name in "ab" else 0) for layer in graph.layers
    ]
    return dataclasses.replace(graph, layers=tuple(layers))


def spec(*gflops: float) -> ClusterSpec:
    devices = "".join(
        f"  - {{name: d{i}, gflops: {speed}, overhead_us: 50, memory_mb: 100}}\n"
        for i, speed in enumerate(gflops)
    )
    return parse_cluster(
        f"devices:\n{devices}links: {{default: {{bandwidth_mbps: 100, latency_ms: 0}}}}", "slow"
    )


@pytest.fixture(autouse=True)
def priced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A kernel of r rows takes ``CALL_S + ROW_S * r`` here; the rows of each that was timed."""
    timed: list[int] = []

    def time_calls(run: Callable[[], object], window_s: float) -> Timing:
        rows = run().shape[2]  # type: ignore[attr-defined]
        timed.append(rows)
        return Timing(CALL_S + ROW_S * rows, 1.0, 1.0)

    monkeypatch.setattr(prices, "time_calls", time_calls)
    return timed


def without_cache() -> Prices:
    return Prices(("onednn", "aten"), Cache(None, NoProgress()))


def calibrated(cluster: ClusterSpec, times: UnitTimes = "kernels") -> list[Emulator]:
    graph = worked_graph()

    def work(comm: object) -> Emulator:
        emulator = Emulator(cluster, graph, Needs(graph), without_cache(), times)
        emulator.calibrate(comm, 2, NoProgress())  # type: ignore[arg-type]
        emulator.learn(comm, NoProgress(), [("a", 3), ("a", 3), ("b", 2)])  # type: ignore[arg-type]
        return emulator

    found = on_ranks(len(cluster.devices), work)
    assert all(isinstance(one, Emulator) for one in found), found
    return found  # type: ignore[return-value]


def test_the_unsplit_model_takes_its_work_at_the_stated_speed_plus_overheads() -> None:
    slow, fast = 1e-3, 2e-3  # GFLOP/s
    for emulator in calibrated(spec(slow, fast)):
        for rank, speed in enumerate((slow, fast)):
            whole = sum(emulator.seconds(rank, name, 8) for name in "abc")
            assert whole == pytest.approx(2 * 1000 / (speed * 1e9) + 3 * 50e-6)


def test_thin_slices_keep_what_kernels_make_of_them() -> None:
    emulator, other = calibrated(spec(1e-3, 1e-3))
    assert emulator.calibration is not None
    # The cheapest call is that of one row, and what it takes is replaced by the overhead.
    assert emulator.calibration.call_s == pytest.approx(CALL_S + ROW_S)
    factor = emulator.calibration.factors[0]
    assert emulator.seconds(0, "a", 3) == pytest.approx(50e-6 + factor * 2 * ROW_S)
    assert emulator.seconds(0, "b", 1) == pytest.approx(50e-6)
    assert other.seconds(1, "a", 3) == emulator.seconds(0, "a", 3)


def test_every_price_is_measured_by_one_rank_in_several_turns(priced: list[int]) -> None:
    calibrated(spec(1e-3, 1e-3, 1e-3))
    # Layers a and b have one shape. What the units have, 2 and 3 rows, is there.
    again = sorted([*range(1, 9)] * 2)
    for rows in again:
        priced.remove(rows)
    assert sorted({*priced}) == [*range(1, 9)] and len(priced) >= (prices.TURNS - 1) * len(again)


def test_stated_times_are_those_of_the_file() -> None:
    for emulator in calibrated(spec(1e-3, 4e-3), "stated"):
        assert emulator.seconds(0, "a", 4) == pytest.approx(50e-6 + 500 / 1e6)
        assert emulator.seconds(1, "c", 8) == pytest.approx(50e-6)


def test_costs_are_lines_through_the_units_times() -> None:
    emulator, _ = calibrated(spec(1e-3, 2e-3))
    costs = emulator.costs()
    signature = worked_graph().signatures["a"]
    for rank in (0, 1):
        points = costs[rank][signature].points
        assert [rows for rows, _ in points] == [*range(1, 9)]
        assert len(costs[rank][signature].engines) == len(points)
        assert all(seconds == emulator.seconds(rank, "a", rows) for rows, seconds in points)
    devices = emulator.devices(["one", "two"])
    assert [device.memory_bytes for device in devices] == [100_000_000] * 2
    assert [(device.name, device.host) for device in devices] == [("d0", "one"), ("d1", "two")]
    assert all("emulated" in device.cpu for device in devices)


def failing(cluster: ClusterSpec, ranks: int) -> list[str]:
    graph = worked_graph()

    def work(comm: object) -> None:
        emulator = Emulator(cluster, graph, Needs(graph), without_cache())
        emulator.calibrate(comm, 2, NoProgress())  # type: ignore[arg-type]

    found = on_ranks(ranks, work)
    assert all(isinstance(error, ClusterError) for error in found)
    return [str(error) for error in found]


def test_a_model_that_computes_nothing_is_emulated_too() -> None:
    graph = worked_graph()
    layers = tuple(layer for layer in graph.layers if layer.kind == "input")
    graph = dataclasses.replace(graph, layers=layers)

    def work(comm: object) -> Emulator:
        emulator = Emulator(spec(1e-3, 2e-3), graph, Needs(graph), without_cache())
        emulator.calibrate(comm, 2, NoProgress())  # type: ignore[arg-type]
        return emulator

    for emulator in on_ranks(2, work):
        assert isinstance(emulator, Emulator) and emulator.costs() == ({}, {})


def test_a_device_for_every_rank() -> None:
    sentences = failing(spec(1e-3, 1e-3, 1e-3), 2)
    assert set(sentences) == {
        "slow describes 3 devices and the job has 2 ranks: an emulated device is one rank"
    }


def test_a_device_faster_than_this_machine_is_named() -> None:
    for sentence in failing(spec(1e-3, 100), 2):
        assert "d1 cannot be emulated: it does 100 GFLOP/s" in sentence


def test_ranks_of_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    boots = iter(["one", "two"])
    monkeypatch.setattr(emulation, "_boot", lambda: next(boots))
    for sentence in failing(spec(1e-3, 1e-3), 2):
        assert "must be ranks of one machine" in sentence


def test_too_many_devices_for_the_machine_are_warned_about() -> None:
    graph = worked_graph()

    def work(comm: object) -> str | None:
        # Two devices of nearly a core each.
        cluster = spec(*[2000 / (3 * 7 * ROW_S) / 1e9 * 0.95] * 2)
        emulator = Emulator(cluster, graph, Needs(graph), without_cache())
        return emulator.calibrate(comm, 2, NoProgress())  # type: ignore[arg-type]

    for warning in on_ranks(2, work):
        assert isinstance(warning, str) and "cores' work and this machine has 2" in warning
