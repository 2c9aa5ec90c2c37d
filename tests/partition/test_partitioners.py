"""The published policies: their plans are valid, compile, run, and look as published."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_cases import Builder, chain, profile, random_graph, random_profile, resnet50
from torch import nn

from edgeflow_mpi.cluster.profile import Link
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.aofl import aofl
from edgeflow_mpi.partition.baselines import equal, proportional, single
from edgeflow_mpi.partition.cost import predict
from edgeflow_mpi.partition.exact import exact
from edgeflow_mpi.partition.flow import trace_flows
from edgeflow_mpi.partition.fused import fused
from edgeflow_mpi.partition.layerwise import layerwise
from edgeflow_mpi.partition.one_shot import one_shot
from edgeflow_mpi.partition.plan import Plan, check_plan
from edgeflow_mpi.partition.progressive import Partitioner
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.verify import verify_tables
from tests.inprocess import Job, Model, build, relative_error, tolerance

seeds = st.integers(0, 10**9)

POLICIES = {
    "exact": exact,
    "fused": fused,
    "aofl": aofl,
    "layers": layerwise,
    "one-shot": one_shot,
}
each_policy = pytest.mark.parametrize("name", POLICIES)


@each_policy
@given(seed=seeds, ranks=st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_plans_are_valid_and_verified(name: str, seed: int, ranks: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    needs = Needs(graph)
    costs = random_profile(rng, graph, ranks)
    used = sorted(rng.sample(range(ranks), rng.randint(1, ranks)))
    plan = POLICIES[name](graph, needs, costs, used)
    check_plan(graph, plan)
    verify_tables(graph, needs, compile_tables(graph, needs, plan))
    assert plan.partitioner == name
    assert set(plan.active) <= {0, *used}
    assert plan == POLICIES[name](graph, needs, costs, used)


class Net(nn.Module):
    """Branches of unlike kernels, a concatenation, a squeeze, a stride, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.left = nn.Conv2d(8, 6, 5, padding=2)
        self.right = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1))
        self.squeeze = nn.Conv2d(12, 12, 1)
        self.down = nn.Conv2d(12, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        x = nn.functional.max_pool2d(x, 3, 1, 1)
        out: torch.Tensor = self.head(self.down(x).relu().mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def network() -> tuple[Model, torch.Tensor]:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 35, 20)
    return build(Net(), image), image


@each_policy
@pytest.mark.parametrize("kind", ["equal", "unlike", "slow links"])
def test_the_same_answer_as_on_one_device(
    name: str, kind: str, network: tuple[Model, torch.Tensor]
) -> None:
    model, image = network
    speeds = [1e6, 1e6, 1e6] if kind == "equal" else [1e6, 4e6, 2e6]
    rate = 1e5 if kind == "slow links" else 1e8
    costs = profile(model.graph, speeds, bandwidth_bytes_s=rate)
    plan = POLICIES[name](model.graph, model.needs, costs, range(3))
    expected, allowed = tolerance(model.module, image)
    assert relative_error(Job(model, plan).run(image), expected) <= allowed


def makespan_s(
    policy: Partitioner, graph: Graph, bandwidth_bytes_s: float, ranks: int = 4
) -> float:
    costs = profile(
        graph, [2.5e9] * ranks, bandwidth_bytes_s=bandwidth_bytes_s, latency_s=2e-4, fixed_s=5e-5
    )
    needs = Needs(graph)
    return predict(graph, needs, costs, policy(graph, needs, costs, range(ranks))).makespan_s


def rows_computed(graph: Graph, plan: Plan) -> int:
    return sum(
        rows.rows
        for layer in graph.layers
        if layer.kind == "compute"
        for rows in plan.layers[layer.name].computed
    )


def test_blocks_recompute_rather_than_exchange_where_latency_is_high() -> None:
    graph = chain(layers=6, rows=64)
    needs = Needs(graph)
    near = profile(graph, [1e6] * 4, latency_s=0.0, bandwidth_bytes_s=1e9, fixed_s=0.0)
    far = profile(graph, [1e6] * 4, latency_s=1e-1, bandwidth_bytes_s=1e9, fixed_s=0.0)
    apart, together = (aofl(graph, needs, costs, range(4)) for costs in (near, far))
    assert rows_computed(graph, apart) == 6 * 64
    assert rows_computed(graph, together) > 6 * 64
    # Only the input leaves rank 0, and only the result returns.
    flows = trace_flows(graph, needs, together).flows
    assert {flow.producer for flow in flows} == {"input", graph.layers[-2].name}


def test_halos_grow_towards_the_input_of_a_block() -> None:
    graph = chain(layers=3, rows=12)
    costs = profile(graph, [1e6] * 2, latency_s=1.0, bandwidth_bytes_s=1e9, fixed_s=0.0)
    plan = aofl(graph, Needs(graph), costs, range(2))
    computed = [plan.layers[layer.name].computed for layer in graph.layers[1:-1]]
    assert [(a.stop, b.start) for a, b in computed] == [(8, 4), (7, 5), (6, 6)]


def test_adaptive_blocks_are_as_good_as_an_exchange_after_every_layer() -> None:
    graph = resnet50(112)
    for bandwidth in (1e6, 1e7, 1e9):
        assert makespan_s(aofl, graph, bandwidth) <= 1.02 * makespan_s(
            proportional, graph, bandwidth
        )


def test_fused_layers_end_where_one_tensor_is_alive_and_the_gateway_goes_on() -> None:
    build = Builder(rows=32)
    at = build.conv("input")
    at = build.add(build.conv(at), at)
    middle = at
    at = build.whole(at)
    graph = build.graph(build.conv(build.conv(at)))
    costs = profile(graph, [1e5] * 4, latency_s=1e-4, bandwidth_bytes_s=1e8, fixed_s=0.0)
    plan = fused(graph, Needs(graph), costs, range(4))
    flows = trace_flows(graph, Needs(graph), plan).flows
    assert {(flow.producer, flow.dest) for flow in flows if flow.source != 0} == {(middle, 0)}
    assert all(plan.layers[layer.name].owned[0].rows == layer.rows for layer in graph.layers[4:])
    assert plan.layers[middle].owned[0].rows == 8


def test_bands_follow_speed() -> None:
    graph = chain(layers=2, rows=40)
    costs = profile(graph, [1e5, 3e5], latency_s=0.0, bandwidth_bytes_s=1e9, fixed_s=0.0)
    for policy in (fused, aofl):
        plan = policy(graph, Needs(graph), costs, range(2))
        last = graph.layers[-2].name
        assert [rows.rows for rows in plan.layers[last].owned] == [10, 30]


def test_branches_run_side_by_side() -> None:
    build = Builder(rows=16)
    branches = [build.conv(build.conv("input", kernel=5), kernel=5) for _ in range(2)]
    graph = build.graph(build.add(*branches))
    costs = profile(graph, [1e5, 1e5], latency_s=1e-6, bandwidth_bytes_s=1e9)
    plan = layerwise(graph, Needs(graph), costs, range(2))
    owners = [plan.layers[name].owned.index(max(plan.layers[name].owned)) for name in branches]
    assert sorted(owners) == [0, 1]
    for layer in graph.layers:
        assert sum(map(bool, plan.layers[layer.name].computed)) == 1
    alone = single(graph, Needs(graph), costs, range(2))
    needs = Needs(graph)
    assert (
        predict(graph, needs, costs, plan).makespan_s
        < 0.6 * predict(graph, needs, costs, alone).makespan_s
    )


def test_a_gap_in_the_schedule_is_filled() -> None:
    build = Builder(rows=16)
    long_way = build.conv(build.conv("input", kernel=5), kernel=5)
    short_way = build.conv("input", kernel=1)
    graph = build.graph(build.add(long_way, short_way))
    links = {pair: Link(0.02, 1e9) for pair in ((0, 1), (1, 0))}
    costs = profile(graph, [1e6, 4e6], links=links)
    plan = layerwise(graph, Needs(graph), costs, range(2))
    # Rank 1 does the long way; rank 0 has nothing to do until it comes back.
    assert plan.layers[long_way].owned[0] or plan.layers[short_way].owned[0]
    assert plan.order.index(short_way) < plan.order.index(graph.layers[-2].name)


def test_a_chain_stays_on_the_fastest_device() -> None:
    graph = chain(layers=4, rows=16)
    costs = profile(graph, [1e5, 1e7, 1e6], latency_s=1e-6, bandwidth_bytes_s=1e9)
    plan = layerwise(graph, Needs(graph), costs, range(3))
    assert plan.active == (0, 1)
    assert all(plan.layers[layer.name].owned[1] for layer in graph.layers[1:-1])


def test_once_is_worse_than_often() -> None:
    graph = resnet50(112)
    assert makespan_s(one_shot, graph, 1e7) > 1.001 * makespan_s(exact, graph, 1e7)


def test_an_even_split_is_hard_to_beat_on_equal_devices() -> None:
    graph = resnet50(112)
    assert makespan_s(equal, graph, 1.17e7) < makespan_s(exact, graph, 1.17e7)
