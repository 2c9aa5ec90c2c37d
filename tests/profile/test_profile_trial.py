"""Which engines are measured: accurate ones that are near the best in a trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest
import torch
from test_profile_measure import conv_graph, measured

from edgeflow_mpi.cluster.comm import PointToPoint
from edgeflow_mpi.cluster.profile import LayerCost
from edgeflow_mpi.cluster.trial import close, relative_error
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.spans import Span
from tests.profile.profile_cases import on_ranks

Tensor = torch.Tensor


def altered(change: Callable[[Tensor], Tensor], seconds: float = 0.0) -> Callable[[Kernel], Kernel]:
    """An engine that is plain torch but for its results, or takes longer."""

    def of(kernel: Kernel) -> Kernel:
        def run(*inputs: Tensor) -> Tensor:
            done_s = time.thread_time() + seconds
            while time.thread_time() < done_s:
                pass
            return change(kernel(*inputs))

        return Kernel(kernel.rows, kernel.needs, kernel.name, run)

    return of


ENGINES: Mapping[str, Callable[[Kernel], Kernel]] = {
    "aten": altered(lambda x: x, 0.002),
    "good": altered(lambda x: x),
    "slow": altered(lambda x: x, 0.02),
    "wrong": altered(lambda x: x * 1.001),
    "broken": altered(lambda x: x * float("nan")),
}


def attempt(
    graph: Graph,
    layer: Layer,
    rows: Span,
    weights: Mapping[str, Tensor],
    needs: Needs,
    engine: str,
) -> Kernel | None:
    """Every engine does the convolution; the rest is plain torch's."""
    plain = prepare(graph, layer, rows, weights, needs, "aten")
    if layer.name != "conv":
        return plain if engine in ("aten", "default") else None
    made = ENGINES[engine](plain)
    return Kernel(made.rows, made.needs, made.name, made.run, engine)


def engines_of_conv(*engines: str) -> tuple[str, ...]:
    graph = conv_graph()

    def work(comm: PointToPoint) -> object:
        costs = measured(comm, graph, attempt=attempt, engines=engines).costs[0]
        return costs[graph.signatures["conv"]].engines

    (found,) = on_ranks(1, work)
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize(
    ("engines", "chosen"),
    [
        (("aten", "good", "slow"), "good"),
        (("aten", "wrong", "broken"), "aten"),
        (("wrong", "broken"), "aten"),
        (("slow",), "slow"),
    ],
    ids=["fastest", "accurate", "none-accurate", "forced"],
)
def test_the_fastest_accurate_engine_is_named(engines: tuple[str, ...], chosen: str) -> None:
    assert engines_of_conv(*engines) == (chosen,)


def test_engines_near_the_best_of_some_rank_are_timed_on_all() -> None:
    assert close([{"a": 1.0, "b": 1.2, "c": 9.0}, {"a": 3.0, "c": 2.0}]) == ("a", "b", "c")
    assert close([{"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}]) == ("a",)
    assert close([{}, {}]) == ()


def test_errors_are_relative_to_the_largest_value() -> None:
    expected = torch.tensor([0.5, -4.0])
    assert relative_error(expected + 0.004, expected) == pytest.approx(1e-3, rel=1e-3)
    assert relative_error(expected * float("nan"), expected) == float("inf")


@pytest.mark.parametrize(
    ("rows", "engine"), [(1, "a"), (5, "a"), (7, "b"), (9, "b"), (100, "b")], ids=str
)
def test_the_nearest_number_of_rows_decides(rows: int, engine: str) -> None:
    cost = LayerCost(0.0, 1.0, ((4, 1.0), (9, 2.0)), ("a", "b"))
    assert cost.engine(rows) == cost.scaled(2.0).engine(rows) == engine
    assert LayerCost(0.0, 1.0).engine(rows) == "default"
