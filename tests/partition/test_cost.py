"""Predicted timelines against timelines made by hand."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_cases import Builder, chain, profile, random_graph, random_profile

from edgeflow_mpi.cluster.profile import LayerCost, Link, Profile
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.baselines import equal, single
from edgeflow_mpi.partition.cost import Interval, Prediction, predict
from edgeflow_mpi.partition.flow import Flow
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.simulator.simulator import Simulator
from edgeflow_mpi.spans import Span, from_breakpoints

ROW = 64
"""Bytes of a row of the maps below: 4 channels of width 4 in float32."""


def costed(graph: Graph, costs: Mapping[str, LayerCost], ranks: int, **links: Link) -> Profile:
    """Equal devices with the costs given by layer; one row a second on links not given."""
    by_signature = {graph.signatures[name]: cost for name, cost in costs.items()}
    found = profile(graph, [1.0] * ranks, bandwidth_bytes_s=ROW, latency_s=0.0)
    named = {(int(name[1]), int(name[2])): link for name, link in links.items()}
    return dataclasses.replace(found, costs=(by_signature,) * ranks, links={**found.links, **named})


def planned(graph: Graph, ranks: int, **layers: LayerPlan) -> Plan:
    plans = {
        layer.name: layers.get(layer.name, LayerPlan.whole(layer.rows, ranks, 0))
        for layer in graph.layers
    }
    return Plan("by hand", ranks, plans, tuple(layer.name for layer in graph.layers))


def split(*breakpoints: int) -> LayerPlan:
    return LayerPlan.split(from_breakpoints(breakpoints))


def evaluate(graph: Graph, costs: Profile, plan: Plan) -> Prediction:
    """What the readable model predicts; the compiled simulator must say the same."""
    found = predict(graph, Needs(graph), costs, plan)
    assert Simulator(graph, Needs(graph), costs).makespan_s(plan) == found.makespan_s
    return found


def test_a_chain_on_two_devices() -> None:
    graph = chain(layers=2, rows=8)
    first, second = graph.layers[1].name, graph.layers[2].name
    costs = costed(
        graph,
        {first: LayerCost(1.0, 0.5)},  # the second layer is of the same shape
        2,
        _01=Link(0.25, ROW),
        _10=Link(0.75, 2 * ROW),
    )
    plan = planned(graph, 2, **{first: split(0, 6, 8), second: split(0, 4, 8)})
    found = evaluate(graph, costs, plan)
    # input: rows 5..7 leave at 0 and are on rank 1 at 0.25 + 3.
    assert found.units[first, 0] == Interval(0.0, 4.0)
    assert found.units[first, 1] == Interval(3.25, 5.25)
    # rank 0 needs rows 0..4 of the first layer and has them; rank 1 needs rows 3..7.
    assert found.units[second, 0] == Interval(4.0, 7.0)
    assert found.transfers[Flow(first, second, 0, 1, Span(3, 6))] == Interval(4.0, 7.25)
    assert found.units[second, 1] == Interval(7.25, 10.25)
    # four rows back at two rows a second.
    assert found.makespan_s == 10.25 + 0.75 + 2.0
    assert found.compute_s == (7.0, 5.0)
    assert found.bytes_sent == (6 * ROW, 4 * ROW)
    assert found.messages == (2, 1)


def test_a_sender_serves_messages_in_order_and_overlaps_latency() -> None:
    graph = chain(layers=1, rows=9, kernel=1)
    layer = graph.layers[1].name
    costs = costed(graph, {layer: LayerCost(0.0, 1.0)}, 3, _01=Link(5.0, ROW), _02=Link(1.0, ROW))
    found = evaluate(graph, costs, planned(graph, 3, **{layer: split(0, 3, 6, 9)}))
    assert found.transfers[Flow("input", layer, 0, 1, Span(3, 6))] == Interval(0.0, 8.0)
    assert found.transfers[Flow("input", layer, 0, 2, Span(6, 9))] == Interval(3.0, 7.0)
    assert found.units[layer, 1] == Interval(8.0, 11.0)


def test_a_receiver_serves_messages_as_they_reach_it_and_holds_up_no_sender() -> None:
    build = Builder(rows=12)
    first = build.conv("input", kernel=1)
    second = build.conv(first, kernel=1)
    graph = build.graph()
    # The first layer takes no time, so what limits is the input that rank 0 sends to rank 1
    # (from 0 to 3) and 2 (from 3 to 6); both then send to rank 3.
    costs = costed(graph, {first: LayerCost(0.0, 0.0), second: LayerCost(0.0, 0.0)}, 4)
    plans = {first: split(0, 6, 9, 12, 12), second: split(0, 0, 0, 0, 12)}
    found = evaluate(graph, costs, planned(graph, 4, **plans))
    to_3 = {f.source: t for f, t in found.transfers.items() if f.consumer == second}
    assert to_3[1] == Interval(3.0, 6.0)
    # Rank 0 asked at 0 behind its two messages of the input; it leaves at 6. Rank 2 asks at 6.
    assert to_3[0] == Interval(6.0, 12.0)
    # Rank 2's message leaves at once, and waits in the network until rank 3 is free at 12.
    assert to_3[2] == Interval(6.0, 15.0)
    assert found.makespan_s == 15.0 + 12.0


def test_a_device_runs_the_first_ready_unit_in_the_order_of_the_plan() -> None:
    build = Builder(rows=4)
    first, second = build.conv("input", kernel=1), build.conv("input", kernel=3)
    third = build.conv(second, kernel=1, channels=8)
    graph = build.graph(first, third)
    costs = costed(
        graph,
        {first: LayerCost(2.0, 0.0), second: LayerCost(1.0, 0.0), third: LayerCost(1.0, 0.0)},
        1,
    )
    plan = planned(graph, 1)
    assert evaluate(graph, costs, plan).units[first, 0] == Interval(0.0, 2.0)
    order = ("input", second, first, third, "output0", "output1")
    found = evaluate(graph, costs, dataclasses.replace(plan, order=order))
    # When `second` finishes, `first` comes before `third`, which is ready as well.
    assert found.units[first, 0] == Interval(1.0, 3.0)
    assert found.units[third, 0] == Interval(3.0, 4.0)


def test_a_device_does_not_wait_for_a_unit_that_is_first_but_not_ready() -> None:
    build = Builder(rows=4)
    far = build.conv("input", kernel=1)
    joined = build.conv(far, kernel=3)
    near = build.conv("input", kernel=5)
    graph = build.graph(joined, near)
    costs = costed(
        graph, {far: LayerCost(1.0, 0.0), joined: LayerCost(1.0, 0.0), near: LayerCost(2.0, 0.0)}, 2
    )
    found = evaluate(graph, costs, planned(graph, 2, **{far: split(0, 0, 4)}))
    assert found.units[near, 0] == Interval(0.0, 2.0)
    assert found.units[joined, 0] == Interval(9.0, 10.0)


def test_summands_are_sent_by_all_owners_and_replicas_read_for_nothing() -> None:
    build = Builder(rows=4)
    pooled = build.pool("input")
    scale = build.tiny(pooled)
    scaled = build.add("input", scale, target="aten.mul.Tensor")
    graph = build.graph(scaled)
    costs = costed(
        graph,
        {pooled: LayerCost(0.0, 1.0), scale: LayerCost(3.0, 0.0), scaled: LayerCost(0.0, 0.0)},
        2,
    )
    plans = {
        pooled: split(0, 2, 4),
        scale: LayerPlan.whole(1, 2, 0, frozenset({1})),
        scaled: split(0, 2, 4),
    }
    found = evaluate(graph, costs, planned(graph, 2, **plans))
    # Rank 0 adds rows 0..1 until 2; rank 1 has rows 2..3 at 2 and adds them until 4. A summand
    # is a quarter of a row.
    assert found.units[scale, 1] == Interval(4.0, 7.0)
    assert found.units[scale, 0] == Interval(4.25, 7.25)
    assert not [flow for flow in found.transfers if flow.producer == scale]
    # No more of the input travels: rank 1 has its rows since the pool.
    assert [flow for flow in found.transfers if flow.producer == "input"] == [
        Flow("input", pooled, 0, 1, Span(2, 4))
    ]


def test_a_unit_whose_boundary_goes_first_sends_before_it_is_done() -> None:
    graph = chain(layers=2, rows=8)
    first, second = graph.layers[1].name, graph.layers[2].name
    costs = costed(graph, {first: LayerCost(1.0, 1.0)}, 2, _01=Link(0.0, 1e9), _10=Link(0.0, 1e9))
    even = split(0, 4, 8)
    plan = planned(graph, 2, **{first: even, second: even})
    late = evaluate(graph, costs, plan)
    flow = Flow(first, second, 0, 1, Span(3, 4))
    assert late.transfers[flow].start_s == 5.0
    early = evaluate(
        graph, costs, dataclasses.replace(plan, boundary_first=frozenset({(first, 0)}))
    )
    # Row 3 alone takes 1 + 1 seconds, then rows 0..2 take 1 + 3.
    assert early.transfers[flow].start_s == 2.0
    assert early.units[first, 0] == Interval(0.0, 6.0)
    assert early.compute_s == (late.compute_s[0] + 1.0, late.compute_s[1])


def test_one_message_at_a_time_travels_on_a_shared_medium() -> None:
    graph = chain(layers=1, rows=9, kernel=1)
    layer = graph.layers[1].name
    costs = profile(graph, [1.0] * 3, bandwidth_bytes_s=ROW, latency_s=0.5)
    by_signature = {graph.signatures[layer]: LayerCost(0.0, 1.0)}
    costs = dataclasses.replace(costs, costs=(by_signature,) * 3, network="shared")
    found = evaluate(graph, costs, planned(graph, 3, **{layer: split(0, 3, 6, 9)}))
    assert found.transfers[Flow("input", layer, 0, 1, Span(3, 6))] == Interval(0.0, 3.5)
    assert found.transfers[Flow("input", layer, 0, 2, Span(6, 9))] == Interval(3.0, 6.5)
    # The medium is free from 6 on; rank 1's answer is asked for at 6.5, rank 2's at 9.5.
    assert found.transfers[Flow(layer, "output0", 1, 0, Span(3, 6))] == Interval(6.5, 10.0)
    assert found.transfers[Flow(layer, "output0", 2, 0, Span(6, 9))] == Interval(9.5, 13.0)
    assert found.makespan_s == 13.0


def test_messages_take_processor_time_on_both_sides() -> None:
    graph = chain(layers=1, rows=8, kernel=1)
    layer = graph.layers[1].name
    costs = costed(graph, {layer: LayerCost(0.0, 1.0)}, 2)
    costs = dataclasses.replace(costs, message_cpu_s=(1.0, 2.0))
    found = evaluate(graph, costs, planned(graph, 2, **{layer: split(0, 4, 8)}))
    # Rank 0 hands its message over until 1, and computes only then.
    assert found.transfers[Flow("input", layer, 0, 1, Span(4, 8))] == Interval(1.0, 5.0)
    assert found.units[layer, 0] == Interval(1.0, 5.0)
    # Rank 1 takes it in until 7, computes until 11, and hands the answer over until 13.
    assert found.units[layer, 1] == Interval(5.0, 11.0)
    assert found.transfers[Flow(layer, "output0", 1, 0, Span(4, 8))] == Interval(13.0, 17.0)
    assert found.makespan_s == 18.0


def test_a_profile_that_says_too_little_is_refused() -> None:
    graph = chain(layers=1)
    plan = equal(graph, Needs(graph), profile(graph, [1.0, 1.0]), [0, 1])
    full = profile(graph, [1.0, 1.0])
    with pytest.raises(ProfileError, match="no link from rank 0 to rank 1"):
        evaluate(graph, dataclasses.replace(full, links={}), plan)
    with pytest.raises(ProfileError, match=r"no cost of layer conv1 on device device0"):
        evaluate(graph, dataclasses.replace(full, costs=({}, {})), plan)
    with pytest.raises(ProfileError, match="describes 1 devices"):
        evaluate(graph, dataclasses.replace(full, costs=full.costs[:1]), plan)


@given(seed=st.integers(0, 10**9), ranks=st.integers(1, 5))
@settings(deadline=None, max_examples=100)
def test_timelines_of_random_plans_are_feasible(seed: int, ranks: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    needs = Needs(graph)
    plan = random_plan(graph, needs, ranks, rng)
    costs = random_profile(rng, graph, ranks)
    found = predict(graph, needs, costs, plan)
    assert found == predict(graph, needs, costs, plan)
    assert set(found.units) == {
        (name, rank)
        for name, layer in plan.layers.items()
        for rank, rows in enumerate(layer.computed)
        if rows
    }
    for rank in range(ranks):
        units = sorted(
            (unit.start_s, unit.finish_s) for (_, at), unit in found.units.items() if at == rank
        )
        if not plan.boundary_first:  # pieces of several units may take turns
            assert all(late[0] >= early[1] for early, late in pairwise(units))
        latest_s = max((finish_s for _, finish_s in units), default=0.0)
        assert latest_s >= found.compute_s[rank] * (1 - 1e-9)
    for flow, transfer in found.transfers.items():
        made = found.units[flow.producer, flow.source]
        read = found.units[flow.consumer, flow.dest]
        in_pieces = (flow.producer, flow.source) in plan.boundary_first
        assert transfer.start_s >= (made.start_s if in_pieces else made.finish_s)
        in_pieces = (flow.consumer, flow.dest) in plan.boundary_first
        assert transfer.finish_s <= (read.finish_s if in_pieces else read.start_s)
        least_s = costs.links[flow.source, flow.dest].seconds(
            flow.size_bytes(graph.by_name[flow.producer])
        )
        assert transfer.finish_s - transfer.start_s >= least_s * (1 - 1e-9)
    last_s = max(found.units[layer.name, 0].finish_s for layer in graph.outputs)
    assert found.makespan_s == last_s
    assert sum(found.messages) == len(found.transfers)


@given(seed=st.integers(0, 10**9))
@settings(deadline=None, max_examples=50)
def test_one_device_takes_the_sum_of_its_layers(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    costs = random_profile(rng, graph, 3)
    found = predict(graph, Needs(graph), costs, single(graph, Needs(graph), costs, [0]))
    total_s = sum(
        costs.costs[0][graph.signatures[layer.name]].seconds(layer.rows)
        for layer in graph.layers
        if not layer.pinned
    )
    assert found.makespan_s <= total_s * (1 + 1e-9)
    assert found.compute_s[0] == pytest.approx(total_s)
    assert found.messages == (0, 0, 0)


def published_formula_s(graph: Graph, costs: Profile, plan: Plan) -> float:
    """When the answer of a chain is there by T = max(T_m,j + p / B) + t_comp, and nothing else.

    Nothing queues there, neither messages at a device's sides nor units at a device.
    """
    needs = Needs(graph)
    finish_s = {("input", 0): 0.0}
    for layer in graph.layers[1:]:
        (source,) = layer.inputs
        for rank, rows in enumerate(plan.layers[layer.name].owned):
            if not rows:
                continue
            (need,) = needs.of(layer.name, rows)
            start_s = 0.0
            for sender, owned in enumerate(plan.layers[source].owned):
                if overlap := (need & owned).rows:
                    size = overlap * graph.by_name[source].out.row_bytes
                    link = costs.links.get((sender, rank))
                    trans_s = size / link.bandwidth_bytes_s if link else 0.0
                    start_s = max(start_s, finish_s[source, sender] + trans_s)
            cost = costs.costs[rank].get(graph.signatures[layer.name])
            finish_s[layer.name, rank] = start_s + (cost.seconds(rows.rows) if cost else 0.0)
    return finish_s["output0", 0]


@given(seed=st.integers(0, 10**9), layers=st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_chains_without_contention_follow_the_published_formula(seed: int, layers: int) -> None:
    """Divided layers whose messages are so short that none meets another."""
    rng = random.Random(seed)
    graph = chain(layers=layers, rows=rng.choice([5, 8, 17]))
    links = {(i, j): Link(0.0, 10 ** rng.uniform(12, 13)) for i, j in ((0, 1), (1, 0))}
    costs = profile(graph, [10 ** rng.uniform(3, 5) for _ in range(2)], links=links, fixed_s=1e-3)
    plan = equal(graph, Needs(graph), costs, [0, 1])
    found = evaluate(graph, costs, plan)
    assert found.makespan_s == pytest.approx(published_formula_s(graph, costs, plan), rel=1e-9)


@given(seed=st.integers(0, 10**9), ranks=st.integers(2, 6))
@settings(deadline=None, max_examples=50)
def test_long_messages_follow_the_published_formula_too(seed: int, ranks: int) -> None:
    """Each layer on one device, so that there is one message at a time, however long."""
    rng = random.Random(seed)
    graph = chain(layers=6, rows=9)
    pairs = [(i, j) for i in range(ranks) for j in range(ranks) if i != j]
    links = {pair: Link(0.0, 10 ** rng.uniform(3, 6)) for pair in pairs}
    costs = profile(graph, [10 ** rng.uniform(4, 7) for _ in range(ranks)], links=links)
    plans = {
        layer.name: LayerPlan.whole(layer.rows, ranks, rng.randrange(ranks))
        for layer in graph.layers
        if not layer.pinned
    }
    plan = planned(graph, ranks, **plans)
    found = evaluate(graph, costs, plan)
    assert found.makespan_s == pytest.approx(published_formula_s(graph, costs, plan), rel=1e-9)
