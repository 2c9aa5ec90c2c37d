"""Which layers of a model planners may divide otherwise than by rows, and where that may pay."""

from __future__ import annotations

import math

from edgeflow_mpi.graph.division import Division, can_divide, multiplies
from edgeflow_mpi.graph.types import DTYPE_BYTES, Graph, Layer

FEW_ROWS = 16
"""Maps of more rows are divided by rows alone,"""
ROWS_PER_DEVICE = 4
"""and so are maps of which each device can have more rows than this."""
MANY_BYTES = 1 << 18
"""Of fewer weights a part takes its part of the time: they are no matter of fetching weights."""


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


def weighty(graph: Graph, devices: int) -> Division:
    """The layers of the tail by their outputs, as far as these have weights that take time."""
    last = tail(graph, devices)
    return tuple(
        (layer.name, "outputs")
        for layer in graph.layers
        if layer.name in last
        and weight_bytes(graph, layer) >= MANY_BYTES
        and can_divide(graph, layer, "outputs")
    )


def weight_bytes(graph: Graph, layer: Layer) -> int:
    """Of all of a layer's weights."""
    specs = [graph.weight_specs[name] for name in layer.weights]
    return sum(math.prod(spec.shape) * DTYPE_BYTES[spec.dtype] for spec in specs)
