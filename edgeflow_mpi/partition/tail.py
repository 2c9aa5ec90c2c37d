"""Which layers of a model planners may divide otherwise than by rows."""

from __future__ import annotations

from edgeflow_mpi.graph.division import can_divide, multiplies
from edgeflow_mpi.graph.types import Graph

FEW_ROWS = 16
"""Maps of more rows are divided by rows alone,"""
ROWS_PER_DEVICE = 4
"""and so are maps of which each device can have more rows than this."""


def tail(graph: Graph, devices: int) -> frozenset[str]:
    """The layers that have few rows, and behind which all have.

    In front of them everything is divided by rows under any plan that a planner makes, which a
    lower bound makes use of.
    """
    most = min(FEW_ROWS, ROWS_PER_DEVICE * devices)
    found: set[str] = set()
    for layer in reversed(graph.layers):
        if layer.rows <= most and found.issuperset(graph.consumers[layer.name]):
            found.add(layer.name)
    return frozenset(found)


def maybe_divided(graph: Graph, devices: int) -> frozenset[str]:
    """The layers of the tail that a division may change: that can be divided, or read such."""
    last = tail(graph, devices)
    found: set[str] = set()
    for layer in graph.layers:
        if layer.kind == "compute" and layer.name in last:
            able = multiplies(layer) or can_divide(graph, layer, "outputs")
            if able or not found.isdisjoint(layer.inputs):
                found.add(layer.name)
    return frozenset(found)
