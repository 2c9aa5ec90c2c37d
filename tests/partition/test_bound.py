"""The lower bound: never above any plan, and as high as can be worked out where it can."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from partition_cases import (
    Builder,
    chain,
    neighbour,
    profile,
    random_graph,
    random_profile,
    resnet50,
)
from torch import nn

from edgeflow_mpi.cluster.profile import LayerCost, Link, Profile
from edgeflow_mpi.graph.division import can_divide, divided
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.tail import maybe_divided
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.aofl import aofl
from edgeflow_mpi.partition.baselines import equal, proportional, single
from edgeflow_mpi.partition.bound import Bound, exchange, lower_bound, work
from edgeflow_mpi.partition.cost import predict
from edgeflow_mpi.partition.exact import exact
from edgeflow_mpi.partition.fused import fused
from edgeflow_mpi.partition.layerwise import layerwise
from edgeflow_mpi.partition.plan import check_plan
from edgeflow_mpi.partition.random import random_plan
from tests.inprocess import build

seeds = st.integers(0, 10**9)


def bound_of(graph: Graph, costs: Profile) -> Bound:
    return lower_bound(graph, Needs(graph), costs)


def any_profile(rng: random.Random, graph: Graph, ranks: int) -> Profile:
    """Any devices and links; some networks are shared, some messages cost processor time."""
    if rng.random() < 0.4:
        found = random_profile(rng, graph, ranks)
    else:
        same = rng.random() < 0.5
        found = profile(
            graph,
            [10 ** (6.5 if same else rng.uniform(5.5, 8)) for _ in range(ranks)],
            bandwidth_bytes_s=10 ** rng.uniform(5, 9),
            latency_s=rng.choice([0.0, 1e-5, 1e-3]),
            fixed_s=rng.choice([0.0, 1e-5, 1e-3]),
        )
    if rng.random() < 0.3:
        rate = 10 ** rng.uniform(5, 9)
        links = {pair: Link(link.latency_s, rate) for pair, link in found.links.items()}
        found = dataclasses.replace(found, network="shared", links=links)
    if rng.random() < 0.2:
        found = dataclasses.replace(found, message_cpu_s=(1e-5,) * ranks)
    return found


@given(seed=seeds, ranks=st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_never_above_any_plan_that_a_search_finds(seed: int, ranks: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, layers=rng.randint(1, 8))
    if rng.random() < 0.3:
        graph = chain(
            layers=rng.randint(1, 5), rows=rng.choice([2, 3, 6]), kernel=rng.choice([1, 3])
        )
    needs = Needs(graph)
    costs = any_profile(rng, graph, ranks)
    bound = lower_bound(graph, needs, costs)
    policies = (equal, proportional, exact, fused, aofl, layerwise, single)
    plans = [policy(graph, needs, costs, range(ranks)) for policy in policies]
    plans += [random_plan(graph, needs, ranks, rng) for _ in range(5)]
    best = min(plans, key=lambda plan: predict(graph, needs, costs, plan).makespan_s)
    best_s = predict(graph, needs, costs, best).makespan_s
    for _ in range(80):
        plan = neighbour(rng, graph, needs, best)
        check_plan(graph, plan)
        makespan_s = predict(graph, needs, costs, plan).makespan_s
        if makespan_s <= best_s:
            best, best_s = plan, makespan_s
    assert best_s >= bound.makespan_s, bound.parts
    assert bound.makespan_s == max(bound.parts.values())
    assert bound == lower_bound(graph, needs, costs)


@given(seed=seeds, ranks=st.integers(2, 5))
@example(seed=64533, ranks=2)  # a mean of all rows behind a layer that is divided by channels
@settings(deadline=None, max_examples=60)
def test_never_above_any_plan_that_divides_channels(seed: int, ranks: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, rows=rng.choice([3, 7, 14, 16]), layers=rng.randint(1, 6))
    costs = any_profile(rng, graph, ranks)
    bound = lower_bound(graph, Needs(graph), costs)
    last = maybe_divided(graph, ranks)
    for share in (0.3, 1.0, 1.0):
        division = tuple(
            (layer.name, "outputs")
            for layer in graph.layers
            if layer.name in last and can_divide(graph, layer, "outputs") and rng.random() < share
        )
        made, needs = divided(graph, Needs(graph), division)
        policies = (equal, proportional, exact, layerwise)
        plans = [policy(made, needs, costs, range(ranks)) for policy in policies]
        plans += [random_plan(made, needs, ranks, rng) for _ in range(3)]
        best = min(plans, key=lambda plan: predict(made, needs, costs, plan).makespan_s)
        best_s = predict(made, needs, costs, best).makespan_s
        for _ in range(30):
            plan = neighbour(rng, made, needs, best)
            makespan_s = predict(made, needs, costs, plan).makespan_s
            if makespan_s <= best_s:
                best, best_s = plan, makespan_s
        assert best_s >= bound.makespan_s, (division, bound.parts)


def test_a_flattening_that_a_division_spares_costs_nothing() -> None:
    """Summands of a linear layer are made of the map; rows of the flattened one are not needed."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 7 * 6, 64))
    graph = build(module, torch.zeros(1, 3, 7, 6)).graph
    costs = profile(graph, [1e6] * 3, latency_s=0.0, bandwidth_bytes_s=1e12, fixed_s=1e-2)
    flat, linear = graph.layers[2].name, graph.layers[3].name
    made, needs = divided(graph, Needs(graph), ((linear, "inputs"),))
    assert flat not in made.by_name
    plan = proportional(made, needs, costs, range(3))
    assert predict(made, needs, costs, plan).makespan_s >= bound_of(graph, costs).makespan_s
    alone = single(made, needs, costs, [0])
    assert predict(made, needs, costs, alone).makespan_s >= bound_of(graph, costs).makespan_s


@given(seed=seeds)
@settings(deadline=None, max_examples=20)
def test_on_one_device_it_is_the_time_of_that_device(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    costs = any_profile(rng, graph, 1)
    plan = single(graph, Needs(graph), costs, [0])
    makespan_s = predict(graph, Needs(graph), costs, plan).makespan_s
    # Rows that no answer reads are computed by this plan, but need not be.
    assert bound_of(graph, costs).makespan_s <= makespan_s
    if all(useful_rows(graph, layer.name) == layer.rows for layer in graph.layers):
        assert bound_of(graph, costs).gap(makespan_s) == pytest.approx(0.0, abs=1e-6)


def useful_rows(graph: Graph, name: str) -> int:
    """Rows of a layer that answers depend on, by going forward from each row."""
    needs = Needs(graph)
    count = 0
    for row in range(graph.by_name[name].rows):
        reached = {name: {row}}
        for layer in graph.layers:
            for at, source in enumerate(layer.inputs):
                low, high = needs.table(layer.name)[at]
                rows = {
                    r
                    for r in range(layer.rows)
                    if any(low[r] <= s < high[r] for s in reached.get(source, ()))
                }
                if rows and not layer.divisible:
                    rows = set(range(layer.rows))
                reached.setdefault(layer.name, set()).update(rows)
        count += any(reached[layer.name] for layer in graph.outputs)
    return count


def test_free_links_leave_the_work() -> None:
    graph = chain(layers=1, rows=12, kernel=1)
    costs = profile(graph, [1e6, 2e6], latency_s=0.0, bandwidth_bytes_s=1e18, fixed_s=0.0)
    plan = exact(graph, Needs(graph), costs, range(2))
    makespan_s = predict(graph, Needs(graph), costs, plan).makespan_s
    assert bound_of(graph, costs).gap(makespan_s) == pytest.approx(0.0, abs=1e-6)


def test_slow_links_divide_the_work_by_what_they_can_carry() -> None:
    graph = chain(layers=3, rows=32)
    costs = profile(graph, [1e6, 1e9], latency_s=0.0, bandwidth_bytes_s=2e4, fixed_s=0.0)
    alone = single(graph, Needs(graph), costs, [0])
    alone_s = predict(graph, Needs(graph), costs, alone).makespan_s
    bound = bound_of(graph, costs)
    assert bound.parts["exchange"] > 4 * bound.parts["work"]
    # A share f of the rows goes out while rank 0 computes the rest.
    carry_s = 32 * 64 / 2e4
    assert bound.parts["exchange"] == pytest.approx(1 / (1 / carry_s + 1 / alone_s), rel=1e-4)


def test_far_devices_leave_rank_0_alone() -> None:
    graph = chain(layers=3, rows=12)
    costs = profile(graph, [1e6, 1e9], latency_s=1.0, bandwidth_bytes_s=1e18)
    alone = single(graph, Needs(graph), costs, [0])
    makespan_s = predict(graph, Needs(graph), costs, alone).makespan_s
    assert makespan_s < 1.0
    assert bound_of(graph, costs).gap(makespan_s) == pytest.approx(0.0, abs=1e-6)


def test_seven_rows_keep_eight_devices_from_sharing_evenly() -> None:
    graph = chain(layers=5, rows=7, kernel=3, channels=1)
    costs = profile(graph, [1e6] * 8, latency_s=0.0, bandwidth_bytes_s=1e18, fixed_s=0.0)
    row_s = costs.costs[0][graph.signatures[graph.layers[2].name]].per_row_s
    bound = bound_of(graph, costs)
    assert bound.parts["order"] == pytest.approx(5 * row_s)
    assert bound.parts["work"] == pytest.approx(5 * row_s * 7 / 8)


def test_a_squeeze_makes_everybody_wait_for_everybody() -> None:
    build = Builder(rows=8, channels=1)
    maps = build.conv("input")
    for _ in range(3):
        scale = build.tiny(build.pool(maps))
        maps = build.conv(build.add(maps, scale, target="aten.mul.Tensor"))
    graph = build.graph(maps)
    costs = profile(graph, [1e5 / 16] * 4, latency_s=1e-2, bandwidth_bytes_s=1e12, fixed_s=0.0)
    bound = bound_of(graph, costs)
    # Each squeeze takes a latency, or its summands would all be of one device.
    longest = costs.costs[0][graph.signatures[graph.layers[1].name]].per_row_s
    assert bound.parts["order"] > 3 * 1e-2 + 4 * longest
    assert bound.makespan_s == bound.parts["order"]


def test_a_shared_medium_bounds_more_than_a_switch() -> None:
    graph = chain(layers=4, rows=32)
    switched = profile(graph, [1e6] * 4, latency_s=0.0, bandwidth_bytes_s=3e4, fixed_s=0.0)
    shared = dataclasses.replace(switched, network="shared")
    assert (
        bound_of(graph, shared).parts["exchange"]
        > 1.1 * bound_of(graph, switched).parts["exchange"]
    )


def test_ranks_that_may_not_work_do_not_count() -> None:
    graph = chain(layers=3, rows=12)
    needs = Needs(graph)
    costs = profile(graph, [1e6, 1e6, 1e8], bandwidth_bytes_s=1e8)
    few = lower_bound(graph, needs, costs, [1])
    assert few == lower_bound(graph, needs, profile(graph, [1e6, 1e6], bandwidth_bytes_s=1e8))
    assert few.makespan_s > lower_bound(graph, needs, costs).makespan_s


def test_ranks_that_slow_each_other_down_may_also_rest() -> None:
    graph = chain(layers=3, rows=12)
    quiet = profile(graph, [1e6, 1e6], bandwidth_bytes_s=1e3)
    crowded = dataclasses.replace(
        quiet,
        devices=tuple(dataclasses.replace(device, host="one") for device in quiet.devices),
        costs=tuple(
            {key: cost.scaled(2.0) for key, cost in costs.items()} for costs in quiet.costs
        ),
        stretches=(2.0, 2.0),
    )
    assert bound_of(graph, crowded).makespan_s == pytest.approx(bound_of(graph, quiet).makespan_s)


def test_rows_that_no_answer_reads_are_not_counted() -> None:
    build = Builder(rows=9)
    first = build.conv("input", kernel=1)
    graph = build.graph(build.conv(first, kernel=1, stride=2))
    costs = profile(graph, [1e6], fixed_s=0.0)
    seconds = {
        layer.name: costs.costs[0][graph.signatures[layer.name]].per_row_s
        for layer in graph.layers[1:-1]
    }
    assert bound_of(graph, costs).makespan_s == pytest.approx(5 * sum(seconds.values()))


def test_a_solver_without_an_answer_leaves_a_weaker_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = chain(layers=3, rows=12)
    costs = profile(graph, [1e6, 3e6], bandwidth_bytes_s=1e7)
    usual = bound_of(graph, costs)
    failure = SimpleNamespace(status=4, message="no", x=None, fun=None)
    for module in (work, exchange):
        monkeypatch.setattr(module, "linprog", lambda *_, **__: failure)
    weaker = bound_of(graph, costs)
    assert 0.0 < weaker.makespan_s <= usual.makespan_s


def test_layers_that_cost_nothing() -> None:
    graph = chain(layers=2)
    costs = profile(graph, [1.0, 1.0])
    free = dataclasses.replace(
        costs,
        costs=tuple({key: LayerCost(0.0, 0.0) for key in known} for known in costs.costs),
    )
    bound = bound_of(graph, free)
    assert bound.makespan_s == 0.0
    assert bound.gap(0.0) == 0.0
    assert bound.gap(1.0) == float("inf")


def test_an_answer_that_is_an_input() -> None:
    build = Builder(rows=4)
    graph = build.graph("input")
    assert bound_of(graph, profile(graph, [1.0, 1.0])).makespan_s == 0.0


def test_a_real_network() -> None:
    graph = resnet50()
    needs = Needs(graph)
    costs = profile(graph, [2.5e9] * 8, bandwidth_bytes_s=1.17e7, latency_s=2e-4, fixed_s=5e-5)
    bound = lower_bound(graph, needs, costs)
    best_s = predict(graph, needs, costs, aofl(graph, needs, costs, range(8))).makespan_s
    assert 0.0 < bound.gap(best_s) < 1.0
