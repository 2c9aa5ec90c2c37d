"""Layers that cannot be divided: where they run."""

from __future__ import annotations

from partition_cases import Builder, profile

from edgeflow_mpi.cluster.profile import Link, Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.baselines import equal
from edgeflow_mpi.partition.placement import chain_from
from edgeflow_mpi.partition.plan import Plan, check_plan


def plan_on(graph: Graph, costs: Profile) -> Plan:
    plan = equal(graph, Needs(graph), costs, range(len(costs.devices)))
    check_plan(graph, plan)
    return plan


def computing(plan: Plan, name: str) -> list[int]:
    return [rank for rank, rows in enumerate(plan.layers[name].computed) if rows]


def excite(rows: int = 12) -> tuple[Graph, list[str]]:
    """Squeeze and excitation: the two layers between the pool and the product."""
    build = Builder(rows)
    maps = build.conv("input")
    first = build.tiny(build.pool(maps))
    second = build.tiny(first)
    build.add(maps, second, target="aten.mul.Tensor")
    return build.graph(), [first, second]


def test_a_chain_ends_where_its_result_is_read_twice_or_divided() -> None:
    build = Builder()
    pooled = build.pool("input")
    first = build.tiny(pooled)
    second = build.tiny(first)
    third, fourth = build.tiny(second), build.tiny(second)
    graph = build.graph(third, fourth)
    names = [layer.name for layer in chain_from(graph, graph.by_name[first])]
    assert names == [first, second]
    graph, tiny = excite()
    assert [layer.name for layer in chain_from(graph, graph.by_name[tiny[0]])] == tiny


def test_small_layers_between_divided_ones_are_replicated() -> None:
    graph, tiny = excite()
    plan = plan_on(graph, profile(graph, [1e7] * 3, latency_s=1e-3, fixed_s=1e-5))
    assert [computing(plan, name) for name in tiny] == [[0, 1, 2], [0, 1, 2]]


def test_they_run_once_where_devices_are_much_slower_than_links() -> None:
    graph, tiny = excite()
    costs = profile(graph, [1e4, 1e7, 1e4], latency_s=1e-7, fixed_s=0.0)
    plan = plan_on(graph, costs)
    assert [computing(plan, name) for name in tiny] == [[1], [1]]


def test_a_chain_runs_together_where_the_answer_is_earliest_on_rank_0() -> None:
    build = Builder(rows=12)
    pooled = build.pool(build.conv("input"))
    head = build.tiny(pooled)
    tail = build.tiny(head)
    graph = build.graph()
    plan = plan_on(graph, profile(graph, [1e6, 1e6], latency_s=1e-3))
    assert computing(plan, head) == computing(plan, tail) == [0]
    fast = profile(graph, [1e4, 1e8], latency_s=1e-6)
    plan = plan_on(graph, fast)
    assert computing(plan, head) == computing(plan, tail) == [1]
    far = {(1, 0): Link(10.0, 1e9)}
    plan = plan_on(graph, profile(graph, [1e4, 1e8], latency_s=1e-6, links=far))
    assert computing(plan, tail) == [0]


def test_chains_that_join_run_where_the_first_was_put() -> None:
    build = Builder(rows=12)
    left = build.tiny(build.pool(build.conv("input")))
    right = build.tiny(build.pool(build.conv("input", kernel=1)))
    joined = build.whole_sum(left, right)
    graph = build.graph()
    plan = plan_on(graph, profile(graph, [1e5, 1e7], latency_s=1e-7, bandwidth_bytes_s=1e10))
    assert computing(plan, left) == computing(plan, right) == computing(plan, joined) == [1]


def test_a_layer_with_summands_of_one_row_is_never_replicated() -> None:
    build = Builder(rows=3)
    maps = build.conv("input", kernel=3, padding=0)
    pooled = build.pool(maps)
    scale = build.tiny(pooled)
    graph = build.graph(build.add(maps, scale, target="aten.mul.Tensor"))
    assert graph.by_name[pooled].rows == 1
    plan = plan_on(graph, profile(graph, [1e6] * 3, latency_s=1e-3))
    assert len(computing(plan, pooled)) == 1


def test_a_rank_that_is_not_used_is_sent_the_result_and_computes_no_replica() -> None:
    build = Builder(rows=12)
    maps = build.conv("input")
    scale = build.tiny(build.pool(maps))
    scaled = build.add(maps, scale, target="aten.mul.Tensor")
    graph = build.graph(scaled, scale)
    near = {(rank, 0): Link(0.0, 1e9) for rank in (1, 2)}
    costs = profile(graph, [1e7] * 3, latency_s=1e-3, fixed_s=1e-5, links=near)
    plan = equal(graph, Needs(graph), costs, [1, 2])
    check_plan(graph, plan)
    assert computing(plan, scale) == [1, 2]
