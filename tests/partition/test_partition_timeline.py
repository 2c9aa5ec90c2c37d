"""What a layer-by-layer planner knows agrees with itself and with the cost model."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_cases import Builder, chain, every_split, profile, random_graph, random_profile

from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.partition.baselines import equal
from edgeflow_mpi.partition.cost import predict
from edgeflow_mpi.partition.plan import LayerPlan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.timeline import Timeline
from edgeflow_mpi.spans import Span, from_breakpoints


@given(seed=st.integers(0, 10**9), ranks=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_a_problem_says_what_the_timeline_then_records(seed: int, ranks: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    needs = Needs(graph)
    timeline = Timeline(graph, needs, random_profile(rng, graph, ranks))
    plan = random_plan(graph, needs, ranks, rng)
    for layer in graph.layers:
        if not layer.splits:
            timeline.commit(layer, plan.layers[layer.name])
            continue
        x = np.array(rng.choice(every_split(layer.rows, ranks)))
        said_s = timeline.problem(layer, range(ranks)).finish_s(x)
        timeline.commit(layer, LayerPlan.split(from_breakpoints(x.tolist())))
        assert timeline.finish_s[layer.name] == pytest.approx(said_s.tolist(), rel=1e-12)


def test_fractional_breakpoints_interpolate() -> None:
    graph = chain(layers=1, rows=8, kernel=1)
    costs = profile(graph, [1e6, 1e6], fixed_s=0.0)
    timeline = Timeline(graph, Needs(graph), costs)
    timeline.commit(graph.layers[0], LayerPlan.whole(8, 2, 0))
    problem = timeline.problem(graph.layers[1], range(2))
    between = problem.finish_s(np.array([0.0, 4.5, 8.0]))
    around = problem.finish_s(np.array([[0, 4, 8], [0, 5, 8]]))
    assert between == pytest.approx(around.mean(axis=0))


def test_rows_received_once_are_not_paid_for_again() -> None:
    build = Builder(rows=8)
    first = build.conv("input", kernel=1)
    second = build.conv(first, kernel=3)
    third = build.conv(first, kernel=3, channels=2)
    graph = build.graph(second, third)
    even = LayerPlan.split(from_breakpoints((0, 4, 8)))
    timeline = Timeline(graph, Needs(graph), profile(graph, [1.0, 1.0]))
    for layer, plan in zip(graph.layers, [LayerPlan.whole(8, 2, 0), even, even], strict=False):
        if layer.name == second:
            messages = timeline.messages(graph.by_name[first], 1)
            assert [message.rows for message in messages] == [Span(0, 4)]
        timeline.commit(layer, plan)
    messages = timeline.messages(graph.by_name[first], 1)
    assert [message.rows for message in messages] == [Span(0, 3)]


@given(seed=st.integers(0, 10**9))
@settings(deadline=None, max_examples=25)
def test_finish_times_are_those_of_the_cost_model_where_nothing_contends(seed: int) -> None:
    rng = random.Random(seed)
    graph = chain(layers=4, rows=rng.choice([6, 9, 16]))
    needs = Needs(graph)
    speeds = [10 ** rng.uniform(3, 5) for _ in range(2)]
    costs = profile(graph, speeds, bandwidth_bytes_s=1e13, latency_s=0.0, fixed_s=1e-3)
    plan = equal(graph, needs, costs, range(2))
    found = predict(graph, needs, costs, plan)
    timeline = Timeline(graph, needs, costs)
    for layer in graph.layers:
        timeline.commit(layer, plan.layers[layer.name])
        for rank, finish_s in enumerate(timeline.finish_s[layer.name]):
            if plan.layers[layer.name].computed[rank]:
                assert finish_s == pytest.approx(found.units[layer.name, rank].finish_s)


def test_a_missing_link_is_named() -> None:
    graph = chain(layers=1)
    costs = profile(graph, [1.0, 1.0])
    broken = type(costs)(
        costs.model, costs.fingerprint, costs.devices, costs.costs, {(1, 0): costs.links[1, 0]}
    )
    with pytest.raises(ProfileError, match="no link from rank 0 to rank 1"):
        equal(graph, Needs(graph), broken, range(2))
