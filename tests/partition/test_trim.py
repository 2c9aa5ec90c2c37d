"""Work that nobody needs is left out, and nothing else changes."""

from __future__ import annotations

import random

import pytest
from partition_cases import chain, random_graph

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.partition.flow import trace_flows
from edgeflow_mpi.partition.plan import LayerPlan, Plan, check_plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.trim import trimmed
from edgeflow_mpi.spans import EMPTY, Span


@pytest.mark.parametrize("seed", range(60))
def test_no_more_is_computed_and_no_more_travels(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, rows=rng.choice([5, 14]), layers=7)
    needs = Needs(graph)
    plan = random_plan(graph, needs, rng.choice([1, 2, 3, 5]), rng)
    fewer = trimmed(graph, needs, plan)
    check_plan(graph, fewer)
    assert trimmed(graph, needs, fewer) == fewer
    for name, spans in fewer.layers.items():
        assert all(
            new in old for new, old in zip(spans.computed, plan.layers[name].computed, strict=True)
        )

    def moved_bytes(some: Plan) -> int:
        flows = trace_flows(graph, needs, some).flows
        return sum(flow.size_bytes(graph.by_name[flow.producer]) for flow in flows)

    assert moved_bytes(fewer) <= moved_bytes(plan)


def test_an_owner_whose_rows_nobody_reads_gives_them_away() -> None:
    graph = chain(layers=2, rows=8)
    names = [layer.name for layer in graph.layers]
    whole, nothing = Span(0, 8), EMPTY
    layers = {name: LayerPlan.whole(graph.by_name[name].rows, 2, 0) for name in names}
    # Rank 1 owns the lower half of the middle layer, but rank 0 computes all of it.
    layers[names[1]] = LayerPlan((Span(0, 4), Span(4, 8)), (whole, Span(4, 8)))
    plan = Plan("by hand", 2, layers, tuple(names), boundary_first=frozenset({(names[1], 1)}))
    check_plan(graph, plan)
    fewer = trimmed(graph, Needs(graph), plan)
    assert fewer.layers[names[1]] == LayerPlan((whole, nothing), (whole, nothing))
    assert fewer.boundary_first == frozenset()
    assert not trace_flows(graph, Needs(graph), fewer).flows
