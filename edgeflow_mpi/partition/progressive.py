"""Planning layer by layer in topological order, with a policy for the divided layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.placement import place_chain
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.partition.timeline import Timeline
from edgeflow_mpi.spans import EMPTY, Span, from_breakpoints

Partitioner: TypeAlias = Callable[[Graph, Needs, Profile, Sequence[int]], Plan]
"""(graph, its row algebra, profile of all ranks, ascending ranks to use) -> plan.

Rank 0 holds the input and receives the answer even where it is not among those to use.
"""

LayerPolicy: TypeAlias = Callable[[Timeline, Layer, Sequence[int]], Sequence[int]]
"""(what is planned so far, a layer to divide, ranks) -> breakpoints x_0 = 0, ..., x_k = rows."""


def plan_progressively(
    name: str,
    policy: LayerPolicy,
    graph: Graph,
    needs: Needs,
    profile: Profile,
    ranks: Sequence[int],
) -> Plan:
    """A plan in the graph's own layer order: ``policy`` divides, chains are placed whole.

    Every rank computes exactly what it owns, replicas of undivided layers apart.
    """
    timeline = Timeline(graph, needs, profile)
    placed: dict[str, LayerPlan] = {}
    for layer in graph.layers:
        if layer.pinned:
            plan = LayerPlan.whole(layer.rows, timeline.ranks, 0)
        elif layer.splits:
            breakpoints = policy(timeline, layer, ranks) if len(ranks) > 1 else (0, layer.rows)
            plan = LayerPlan.split(_spans(breakpoints, ranks, timeline.ranks))
        else:
            if layer.name not in placed:
                placed |= place_chain(timeline, layer, ranks, placed)
            plan = placed[layer.name]
        timeline.commit(layer, plan)
    order = tuple(layer.name for layer in graph.layers)
    return Plan(name, timeline.ranks, timeline.plans, order)


def _spans(breakpoints: Sequence[int], used: Sequence[int], ranks: int) -> tuple[Span, ...]:
    spans = [EMPTY] * ranks
    for rank, span in zip(used, from_breakpoints(breakpoints), strict=True):
        spans[rank] = span
    return tuple(spans)
