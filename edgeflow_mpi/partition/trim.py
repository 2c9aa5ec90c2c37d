"""Leave out work of a plan that nobody needs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.flow import trace_flows
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.spans import EMPTY, Span


def trimmed(graph: Graph, needs: Needs, plan: Plan) -> Plan:
    """The plan without rows that are computed twice although one of the two is never read.

    A search that looks at the makespan alone does not mind such rows where there is time to
    spare; the energy and the device may be somebody's. Rows go from an owner who neither
    reads nor sends them to a neighbour who computes them as well.

    Returns
    -------
    Plan
        Every rank computes the same rows or fewer, and no other rows travel than before.
        ``predicted_s`` is what it was.
    """
    while True:
        fewer = _trimmed_once(graph, needs, plan)
        if fewer == plan:
            return plan
        plan = fewer


def _trimmed_once(graph: Graph, needs: Needs, plan: Plan) -> Plan:
    sent = trace_flows(graph, needs, plan).forwards
    layers = dict(plan.layers)
    for layer in reversed(graph.layers):
        if layer.pinned or layer.combine is not None:
            continue
        spans = layers[layer.name]
        used = []
        for rank in range(plan.ranks):
            rows = EMPTY
            for flow in sent.get((layer.name, rank), ()):
                rows = rows.hull(flow.rows)
            for reader in graph.consumers[layer.name]:
                place = graph.by_name[reader].inputs.index(layer.name)
                read = needs.of(reader, layers[reader].computed[rank])[place]
                rows = rows.hull(read & spans.computed[rank])
            used.append(rows)
        layers[layer.name] = _trimmed_layer(layer, spans, used)
    # A unit that is gone has no boundary rows.
    first = frozenset(unit for unit in plan.boundary_first if layers[unit[0]].computed[unit[1]])
    return replace(plan, layers=layers, boundary_first=first)


def _trimmed_layer(layer: Layer, spans: LayerPlan, used: list[Span]) -> LayerPlan:
    owned = list(spans.owned)
    if layer.divisible:
        owners = [rank for rank, rows in enumerate(owned) if rows]
        for i, j in pairwise(owners):
            _move_down(owned, spans.computed, used, i, j)
        owners = [rank for rank, rows in enumerate(owned) if rows]
        for i, j in reversed(list(pairwise(owners))):
            _move_up(owned, spans.computed, used, i, j)
    computed = [rows.hull(mine) for rows, mine in zip(used, owned, strict=True)]
    if not layer.divisible:
        whole = Span(0, layer.rows)
        computed = [whole if rows else EMPTY for rows in computed]
    return LayerPlan(tuple(owned), tuple(computed))


def _move_down(
    owned: list[Span], computed: tuple[Span, ...], used: list[Span], i: int, j: int
) -> None:
    """Rows at the end of what ``i`` owns go to ``j``, the next owner, where i has no use."""
    start = max(owned[i].start, used[i].stop, computed[j].start)
    if start < owned[i].stop:
        owned[j] = Span(start, owned[j].stop)
        owned[i] = Span.of(owned[i].start, start)


def _move_up(
    owned: list[Span], computed: tuple[Span, ...], used: list[Span], i: int, j: int
) -> None:
    """Rows at the beginning of what ``j`` owns go to ``i``, the owner before it."""
    first = used[j].start if used[j] else owned[j].stop
    stop = min(owned[j].stop, first, computed[i].stop)
    if stop > owned[j].start:
        owned[i] = Span(owned[i].start, stop)
        owned[j] = Span.of(stop, owned[j].stop)
