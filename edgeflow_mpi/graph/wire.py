"""A narrower type for activations on the wire: fewer bytes for less precision.

Only what travels between ranks is rounded; every rank computes in the model's own type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgeflow_mpi.graph.types import Graph

WIRE_DTYPES: Mapping[str, str | None] = {"fp32": None, "fp16": "float16", "bf16": "bfloat16"}
"""Names on the command line, and the element type that travels (None: the tensor's own)."""


def with_wire(graph: Graph, wire: str) -> Graph:
    """The graph whose float32 activations travel as ``wire``, a key of :data:`WIRE_DTYPES`.

    The input keeps its own type, and so do summands, which are small and would lose most.
    """
    dtype = WIRE_DTYPES[wire]
    if dtype is None:
        return graph
    layers = tuple(
        replace(layer, out=replace(layer.out, wire=dtype))
        if layer.kind == "compute" and layer.out.dtype == "float32" and not layer.combine
        else layer
        for layer in graph.layers
    )
    return replace(graph, layers=layers)
