"""Flows: by hand on small cases, and their rules on random plans."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from partition_cases import Builder, chain, random_graph

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.flow import Flow, Traffic, trace_flows, transfer_bytes
from edgeflow_mpi.partition.plan import LayerPlan, Plan, check_plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.spans import EMPTY, Span, from_breakpoints


def plan_of(graph: Graph, ranks: int, **layers: LayerPlan) -> Plan:
    """Named layers as given, the rest whole on rank 0."""
    plans = {
        layer.name: layers.get(layer.name, LayerPlan.whole(layer.rows, ranks, 0))
        for layer in graph.layers
    }
    plan = Plan("by hand", ranks, plans, tuple(layer.name for layer in graph.layers))
    check_plan(graph, plan)
    return plan


def split(*breakpoints: int) -> LayerPlan:
    return LayerPlan.split(from_breakpoints(breakpoints))


def trace(graph: Graph, plan: Plan) -> Traffic:
    return trace_flows(graph, Needs(graph), plan)


def test_neighbours_exchange_the_halo_and_the_ends_are_scattered_and_gathered() -> None:
    graph = chain(layers=2, rows=8)
    first, second = (layer.name for layer in graph.layers[1:3])
    traffic = trace(graph, plan_of(graph, 2, **{first: split(0, 4, 8), second: split(0, 4, 8)}))
    assert traffic.flows == (
        Flow("input", first, 0, 1, Span(3, 8)),
        Flow(first, second, 1, 0, Span(4, 5)),
        Flow(first, second, 0, 1, Span(3, 4)),
        Flow(second, "output0", 1, 0, Span(4, 8)),
    )
    assert traffic.forwards[first, 0] == (traffic.flows[2],)
    assert [demand.rows for demand in traffic.demands[second, 1]] == [Span(3, 8)]
    assert (first, 2) not in traffic.demands


def test_a_halo_may_come_from_several_neighbours_and_an_empty_rank_gets_nothing() -> None:
    build = Builder(rows=7)
    first = build.conv("input", kernel=1)
    second = build.conv(first, kernel=5)
    graph = build.graph()
    even = split(0, 1, 2, 3, 3, 4, 5, 6, 7)
    traffic = trace(graph, plan_of(graph, 8, **{first: even, second: even}))
    into_2 = [(f.source, f.rows) for f in traffic.flows if (f.consumer, f.dest) == (second, 2)]
    assert into_2 == [
        (0, Span(0, 1)),
        (1, Span(1, 2)),
        (4, Span(3, 4)),
        (5, Span(4, 5)),
    ]
    assert not any(3 in (flow.source, flow.dest) for flow in traffic.flows)


def test_rows_travel_once_and_later_consumers_name_the_earlier_flow() -> None:
    build = Builder(rows=8)
    trunk = build.conv("input")
    narrow = build.conv(trunk, kernel=3)
    wide = build.conv(trunk, kernel=5)
    graph = build.graph(narrow, wide)
    even = split(0, 4, 8)
    traffic = trace(graph, plan_of(graph, 2, **{trunk: even, narrow: even, wide: even}))
    of_trunk = [flow for flow in traffic.flows if flow.producer == trunk and flow.dest == 0]
    assert of_trunk == [
        Flow(trunk, narrow, 1, 0, Span(4, 5)),
        Flow(trunk, wide, 1, 0, Span(5, 6)),
    ]
    assert traffic.demands[narrow, 0][0].flows == (of_trunk[0],)
    assert traffic.demands[wide, 0][0].flows == tuple(of_trunk)


def test_the_earlier_consumer_is_the_one_the_plan_runs_first() -> None:
    build = Builder(rows=8)
    trunk = build.conv("input", kernel=1)
    narrow = build.conv(trunk, kernel=3)
    wide = build.conv(trunk, kernel=5)
    graph = build.graph(narrow, wide)
    even = split(0, 4, 8)
    plan = plan_of(graph, 2, **{trunk: even, narrow: even, wide: even})
    order = ("input", trunk, wide, narrow, "output0", "output1")
    traffic = trace(graph, Plan("by hand", 2, plan.layers, order))
    of_trunk = [flow for flow in traffic.flows if flow.producer == trunk and flow.dest == 0]
    assert of_trunk == [Flow(trunk, wide, 1, 0, Span(4, 6))]
    assert traffic.demands[narrow, 0][0].flows == tuple(of_trunk)


def test_every_owner_sends_its_summand_once_to_every_reader() -> None:
    build = Builder(rows=6)
    pooled = build.pool("input")
    first, second = build.tiny(pooled), build.tiny(pooled)
    graph = build.graph(first, second)
    plans = {
        pooled: split(0, 2, 2, 6),
        first: LayerPlan.whole(1, 3, 1, frozenset({2})),
        second: LayerPlan.whole(1, 3, 1),
    }
    traffic = trace(graph, plan_of(graph, 3, **plans))
    summands = [flow for flow in traffic.flows if flow.producer == pooled]
    assert summands == [
        Flow(pooled, first, 0, 1, Span(0, 2)),
        Flow(pooled, first, 2, 1, Span(2, 6)),
        Flow(pooled, first, 0, 2, Span(0, 2)),
    ]
    assert traffic.demands[second, 1][0].flows == tuple(summands[:2])
    assert transfer_bytes(graph.by_name[pooled], Span(2, 6)) == 4 * 4


def test_recomputed_rows_and_replicas_need_no_message() -> None:
    graph = chain(layers=2, rows=8)
    first, second = (layer.name for layer in graph.layers[1:3])
    owned = from_breakpoints((0, 4, 8))
    plans = {first: LayerPlan(owned, (Span(0, 5), Span(3, 8))), second: split(0, 4, 8)}
    traffic = trace(graph, plan_of(graph, 2, **plans))
    assert not [flow for flow in traffic.flows if flow.producer == first]
    assert Flow("input", first, 0, 1, Span(2, 8)) in traffic.flows


def test_what_is_missing_on_both_sides_of_recomputed_rows_travels_in_two_pieces() -> None:
    graph = chain(layers=2, rows=9)
    first, second = (layer.name for layer in graph.layers[1:3])
    plans = {
        first: LayerPlan((Span(0, 9), EMPTY), (Span(0, 9), Span(3, 5))),
        second: split(0, 0, 9),
    }
    traffic = trace(graph, plan_of(graph, 2, **plans))
    assert [flow for flow in traffic.flows if flow.producer == first] == [
        Flow(first, second, 0, 1, Span(0, 3), piece=0),
        Flow(first, second, 0, 1, Span(5, 9), piece=1),
    ]


@given(seed=st.integers(0, 10**9), ranks=st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_rules_of_flows_on_random_plans(seed: int, ranks: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    needs = Needs(graph)
    plan = random_plan(graph, needs, ranks, rng)
    traffic = trace_flows(graph, needs, plan)
    assert traffic == trace_flows(graph, needs, plan)
    sent: set[tuple[str, int, int]] = set()
    for flow in traffic.flows:
        producer, spans = graph.by_name[flow.producer], plan.layers[flow.producer]
        assert flow.rows and flow.source != flow.dest
        assert flow.rows in spans.owned[flow.source]
        assert not flow.rows & spans.computed[flow.dest]
        assert flow.producer in graph.by_name[flow.consumer].inputs
        for row in range(flow.rows.start, flow.rows.stop):
            assert (flow.producer, row, flow.dest) not in sent
            sent.add((flow.producer, row, flow.dest))
        assert flow.size_bytes(producer) > 0
    position = {name: i for i, name in enumerate(plan.order)}
    computed = {
        (name, rank)
        for name, layer in plan.layers.items()
        for rank, rows in enumerate(layer.computed)
        if rows
    }
    assert set(traffic.demands) == computed
    for (name, rank), demands in traffic.demands.items():
        for demand in demands:
            held = plan.layers[demand.producer].computed[rank]
            assert all(
                row in range(held.start, held.stop)
                or any(flow.rows.start <= row < flow.rows.stop for flow in demand.flows)
                for row in range(demand.rows.start, demand.rows.stop)
            )
            for flow in demand.flows:
                assert flow.dest == rank and flow.rows & demand.rows
                assert position[flow.consumer] <= position[name]
    assert {flow for unit in traffic.forwards.values() for flow in unit} == set(traffic.flows)
