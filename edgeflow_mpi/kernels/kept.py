"""What engines keep beside weights to multiply faster: what it will be, and what it is."""

from __future__ import annotations

import math
import weakref
from typing import Final

from edgeflow_mpi.graph.local import share_of
from edgeflow_mpi.graph.needs import calls
from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import Convolution
from edgeflow_mpi.graph.types import DTYPE_BYTES, Graph, Layer
from edgeflow_mpi.kernels.names import DEFAULT
from edgeflow_mpi.spans import Span

_PANEL: Final = 64
"""Panels of output channels that code for any processor has at most."""
_RESULTS: Final = {3: 4, 5: 4, 7: 4}
_kept: dict[int, int] = {}


def keep(owner: object, size_bytes: int) -> None:
    """Count memory as kept for as long as ``owner`` lives."""
    _kept[id(owner)] = size_bytes
    weakref.finalize(owner, _kept.pop, id(owner), None)


def kept_bytes() -> int:
    """Bytes that are kept in this process now, by all kernels together."""
    return sum(_kept.values())


def likely_kept_bytes(graph: Graph, layer: Layer, rows: Span, engine: str = DEFAULT) -> int:
    """At most so much does ``engine`` keep for some rows of a layer (whichever, by default)."""
    if engine == "aten" or layer.kind != "compute":
        return 0
    if layer.divided != "rows":
        share = share_of(graph, layer, rows)
        return likely_kept_bytes(share.graph, share.layer, share.rows, engine)
    return sum(_copy_bytes(call, engine) for call in calls(graph, layer))


def _copy_bytes(call: Call, engine: str) -> int:
    weight = call.weight("weight") if isinstance(rule_for(call.step.target), Convolution) else None
    if weight is None or len(weight.shape) != 4:
        return 0
    out, taps = weight.shape[0], weight.shape[2:]
    plain = call.integer("groups") == 1 and math.prod(taps) > 1
    straight = call.ints("stride", 2) == call.ints("dilation", 2) == (1, 1)
    if plain and straight and engine in (DEFAULT, "winograd", "ncnn"):
        products = math.prod(taps)
        if set(taps) <= {1, *_RESULTS}:
            products = math.prod(t + _RESULTS[t] - 1 if t > 1 else 1 for t in taps)
        each = products * weight.shape[1]
    else:
        each = math.prod(weight.shape[1:])
    channels = -(-out // _PANEL) * _PANEL if call.integer("groups") == 1 else out
    return (channels * each + channels) * DTYPE_BYTES[weight.dtype]
