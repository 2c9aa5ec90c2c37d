"""What is measured, on what data, and what happens when a kernel fails on one rank."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import pytest
import torch
from profile_cases import on_ranks, relu_graph

from edgeflow_mpi.cluster.comm import PointToPoint
from edgeflow_mpi.cluster.measure import (
    Computation,
    Points,
    Timing,
    centred,
    distinct_layers,
    measure_compute,
    points_of,
    pooled,
    row_counts,
    time_calls,
    time_in_turn,
)
from edgeflow_mpi.cluster.profile import Device
from edgeflow_mpi.cluster.trial import Attempt
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.division import with_division
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, In, Layer, Step, TensorSpec, Weight
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.names import DEFAULT
from edgeflow_mpi.kernels.prepare import attempt
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.spans import Span


def layer_of(rows: int, *, divisible: bool = True) -> Layer:
    spec = TensorSpec((1, 4, rows, 6), "float32", 2)
    return Layer("l", "compute", ("x",), (), spec, rows, divisible)


@pytest.mark.parametrize(
    ("layer", "ranks", "expected"),
    [
        (layer_of(56), 4, (7, 14, 28, 56)),
        (layer_of(7), 4, (1, 2, 4, 7)),
        (layer_of(56), 2, (14, 28, 56)),
        (layer_of(3), 8, (1, 2, 3)),
        (layer_of(1), 4, (1,)),
        (layer_of(56), 1, (56,)),
        (layer_of(56, divisible=False), 4, (56,)),
    ],
    ids=["even", "odd", "two-ranks", "more-ranks-than-rows", "one-row", "one-rank", "whole"],
)
def test_row_counts_reach_from_half_a_share_to_all(
    layer: Layer, ranks: int, expected: tuple[int, ...]
) -> None:
    assert row_counts(layer, ranks) == expected


def test_spans_are_in_the_middle() -> None:
    assert centred(8, 8) == Span(0, 8)
    assert centred(8, 2) == Span(3, 5)
    assert centred(7, 2) == Span(2, 4)
    assert centred(1, 1) == Span(0, 1)


def test_layers_of_one_shape_are_measured_once() -> None:
    assert [layer.name for layer in distinct_layers(relu_graph())] == ["a", "c"]


def test_a_window_holds_at_least_two_calls_and_each_has_something_between() -> None:
    calls: list[str] = []
    timing = time_calls(lambda: calls.append("run"), 0.0, lambda: calls.append("between"))
    assert calls == ["between", "run"] * 2
    assert timing.cpu_s > 0 and timing.wall_s > 0 and timing.stretch > 0


def test_what_is_compared_is_called_in_turn() -> None:
    calls: list[str] = []
    runs = [lambda: calls.append("a"), lambda: calls.append("b")]
    first, second = time_in_turn(runs, 0.0, lambda run: calls.append(f"before {runs.index(run)}"))
    assert calls[:8] == ["before 0", "a", "before 1", "b"] * 2
    assert first.stretch == second.stretch


TIMINGS = {
    ("s", 1, "e"): Timing(cpu_s=1.0, wall_s=1.5, stretch=2.0),
    ("s", 4, "e"): Timing(cpu_s=3.0, wall_s=3.5, stretch=2.5),
    ("t", 1, "e"): Timing(cpu_s=1.0, wall_s=1.0, stretch=9.0),
}


def test_one_thread_counts_processor_time_times_the_typical_stretch() -> None:
    points = points_of(TIMINGS, threads=1)
    assert points == Points({("s", 1, "e"): 2.5, ("s", 4, "e"): 7.5, ("t", 1, "e"): 2.5}, 2.5)


def test_several_threads_count_durations() -> None:
    points = points_of(TIMINGS, threads=2)
    assert points == Points({("s", 1, "e"): 1.5, ("s", 4, "e"): 3.5, ("t", 1, "e"): 1.0}, 1.0)


def test_a_core_of_its_own_stretches_nothing() -> None:
    idle = {("s", 1, "e"): Timing(cpu_s=1.0, wall_s=1.0, stretch=0.99)}
    assert points_of(idle, threads=1) == Points({("s", 1, "e"): 1.0}, 1.0)
    assert points_of({}, threads=1) == Points({}, 1.0)


def test_ranks_that_are_alike_share_their_means() -> None:
    def rank(a: float, b: float, stretch: float) -> Points:
        return Points({("s", 1, "e"): a, ("s", 4, "e"): b}, stretch)

    found = pooled(
        [rank(1, 9, 2.0), rank(2, 8, 2.5), rank(2, 18, 2.0), rank(1, 10, 3.0)],
        ["desk", "desk", "desk", "pi"],
    )
    assert found[0] == found[1] == rank(1, 8.5, 2.25), "what took twice as long was a bad moment"
    assert found[2] == rank(2, 18, 2.0), "the slow core of the desk keeps its own"
    assert found[3] == rank(1, 10, 3.0)


def conv_graph() -> Graph:
    """A convolution of a table lookup: integer input, weights of several kinds."""
    tokens = TensorSpec((1, 12, 6), "int64", None)
    looked_up = TensorSpec((1, 12, 6, 3), "float32", None)
    image = TensorSpec((1, 3, 12, 6), "float32", 2)
    out = TensorSpec((1, 5, 12, 6), "float32", 2)
    lookup = Step(
        "aten.embedding.default", (("weight", Weight("table")), ("indices", In(0))), looked_up
    )
    turn = Step("aten.permute.default", (("self", In(0)), ("dims", (0, 3, 1, 2))), image)
    conv = Step(
        "aten.conv2d.default",
        (
            ("input", In(0)), ("weight", Weight("kernel")), ("bias", Weight("bias")),
            ("stride", (1, 1)), ("padding", (1, 1)), ("dilation", (1, 1)), ("groups", 1),
        ),
        out,
    )  # fmt: skip
    layers = (
        Layer("tokens", "input", (), (), tokens, 1, False),
        Layer("lookup", "compute", ("tokens",), (lookup,), looked_up, 1, False),
        Layer("turn", "compute", ("lookup",), (turn,), image, 12, False),
        Layer("conv", "compute", ("turn",), (conv,), out, 12, True),
        Layer("y", "output", ("conv",), (), out, 12, True),
    )
    weights = (
        ("table", TensorSpec((10, 3), "float32", None)),
        ("kernel", TensorSpec((5, 3, 3, 3), "float32", None)),
        ("bias", TensorSpec((5,), "float32", None)),
    )
    return Graph("lookup-net", layers, weights, ("y",))


def measured(
    comm: PointToPoint,
    graph: Graph,
    *,
    budget_s: float = 0.01,
    attempt: Attempt = attempt,
    engines: Sequence[str] = (DEFAULT,),
) -> Computation:
    devices = [Device(f"d/{rank}", 1, 1, host="d") for rank in range(comm.Get_size())]
    return measure_compute(
        comm, graph, Needs(graph), devices,
        progress=NoProgress(), budget_s=budget_s, engines=engines, attempt=attempt,
    )  # fmt: skip


def test_real_kernels_are_measured_on_every_rank() -> None:
    graph = conv_graph()

    def work(comm: PointToPoint) -> Computation:
        return measured(comm, graph)

    first, second = on_ranks(2, work)
    assert isinstance(first, Computation) and first == second
    assert len(first.costs) == len(first.stretches) == 2 and min(first.stretches) >= 1
    for costs in first.costs:
        assert set(costs) == {graph.signatures[name] for name in ("lookup", "turn", "conv")}
        conv = costs[graph.signatures["conv"]]
        assert [rows for rows, _ in conv.points] == [3, 6, 12]
        assert conv.fixed_s >= 0 and conv.per_row_s >= 0 and conv.seconds(12) > 0


def test_kernels_get_the_rows_they_need_of_ordinary_numbers() -> None:
    graph = conv_graph()
    seen: list[tuple[str, Span, tuple[tuple[int, ...], ...]]] = []
    weights_seen: dict[str, torch.Tensor] = {}

    def recording(
        graph: Graph,
        layer: Layer,
        rows: Span,
        weights: Mapping[str, torch.Tensor],
        needs: Needs,
        engine: str,
    ) -> Kernel | None:
        weights_seen.update(weights)
        kernel = attempt(graph, layer, rows, weights, needs, engine)
        assert kernel is not None

        def run(*inputs: torch.Tensor) -> torch.Tensor:
            seen.append((layer.name, rows, tuple(tuple(x.shape) for x in inputs)))
            for x in inputs:
                if x.is_floating_point():
                    assert x.isfinite().all() and 0.5 < x.std() < 2
                else:
                    assert not x.any()
            return kernel(*inputs)

        return Kernel(kernel.rows, kernel.needs, kernel.name, run)

    def work(comm: PointToPoint) -> object:
        return measured(comm, graph, attempt=recording)

    on_ranks(1, work)
    assert set(seen) == {
        ("lookup", Span(0, 1), ((1, 12, 6),)),
        ("turn", Span(0, 12), ((1, 12, 6, 3),)),
        ("conv", Span(0, 12), ((1, 3, 12, 6),)),
    }
    seen.clear()
    on_ranks(2, work)
    assert ("conv", Span(4, 7), ((1, 3, 5, 6),)) in seen
    assert {rows for name, rows, _ in seen if name == "conv"} == {
        Span(0, 12), Span(3, 9), Span(4, 7)
    }  # fmt: skip
    assert weights_seen["bias"].min() >= 0.5
    assert 0.1 < weights_seen["kernel"].std() * 27**0.5 < 2


@pytest.mark.parametrize("failing_call", [1, 4], ids=["first-call", "within-the-window"])
def test_a_kernel_that_fails_on_one_rank_is_told_to_all(failing_call: int) -> None:
    graph = conv_graph()
    local = threading.local()

    def failing(
        graph: Graph,
        layer: Layer,
        rows: Span,
        weights: Mapping[str, torch.Tensor],
        needs: Needs,
        engine: str,
    ) -> Kernel | None:
        kernel = attempt(graph, layer, rows, weights, needs, engine)
        assert kernel is not None
        calls = 0

        def run(*inputs: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if layer.name == "conv" and local.rank == 1 and calls == failing_call:
                raise RuntimeError("out of memory\nwith details")
            return kernel(*inputs)

        return Kernel(kernel.rows, kernel.needs, kernel.name, run)

    def work(comm: PointToPoint) -> object:
        local.rank = comm.Get_rank()
        return measured(comm, graph, budget_s=0.1, attempt=failing)

    for outcome in on_ranks(3, work):
        assert isinstance(outcome, ProfileError)
        assert str(outcome).startswith("rank 1 (")
        assert "layer conv cannot be measured with rows" in str(outcome)
        assert str(outcome).endswith("RuntimeError: out of memory")


def wide_graph() -> Graph:
    """A 1×1 convolution with few rows and 300 KB of weights."""
    x = TensorSpec((1, 256, 3, 2), "float32", 2)
    out = TensorSpec((1, 300, 3, 2), "float32", 2)
    args = (
        ("input", In(0)), ("weight", Weight("w")), ("bias", None), ("stride", (1, 1)),
        ("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1),
    )  # fmt: skip
    layers = (
        Layer("x", "input", (), (), x, 3, divisible=True),
        Layer("conv", "compute", ("x",), (Step("aten.conv2d.default", args, out),), out, 3, True),
        Layer("out", "output", ("conv",), (), out, 3, divisible=False),
    )
    return Graph("wide", layers, (("w", TensorSpec((300, 256, 1, 1), "float32", None)),), ("out",))


def test_channels_of_layers_with_many_weights_are_measured_too() -> None:
    graph = wide_graph()
    share = with_division(graph, (("conv", "outputs"),)).signatures["conv"]
    for ranks, counts in ((1, None), (2, [150, 300]), (3, [100, 150, 300])):
        found = on_ranks(
            ranks,
            lambda comm: measure_compute(
                comm, graph, Needs(graph), [Device("d", 1, 10**9)] * comm.Get_size(),
                progress=NoProgress(), budget_s=0.01, engines=("aten",),
            ),
        )  # fmt: skip
        for costs in found[0].costs:
            if counts is None:
                assert share not in costs
                continue
            whole = costs[graph.signatures["conv"]]
            assert [channels for channels, _ in costs[share].points] == counts
            assert costs[share].points[-1] == (300, dict(whole.points)[3])
            assert costs[share].seconds(300) == pytest.approx(whole.seconds(3))
            assert set(costs[share].engines) == {"aten"}
