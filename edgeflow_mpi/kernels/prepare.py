"""The kernel of a layer's span, by the engine that is wanted or by the next that can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from edgeflow_mpi.graph.local import local_weights, share_of
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.names import DEFAULT
from edgeflow_mpi.kernels.registry import ENGINES, usable, usable_engines
from edgeflow_mpi.spans import Span

__all__ = ["DEFAULT", "attempt", "prepare"]


def prepare(
    graph: Graph,
    layer: Layer,
    rows: Span,
    weights: Mapping[str, torch.Tensor],
    needs: Needs,
    engine: str = DEFAULT,
) -> Kernel:
    """The kernel of non-empty ``rows`` of ``layer``; its ``engine`` says who made it.

    Parameters
    ----------
    graph, layer, rows, weights, needs : see :meth:`edgeflow_mpi.kernels.engine.Engine.prepare`.
    engine : who is to make it; where that engine cannot, or does not work on this machine, the
        first does that can.

    Raises
    ------
    InputError
        If there is no such engine.
    ModelError
        If an operator is not in this build of torch.
    """
    names = usable_engines()
    for name in names if engine == DEFAULT else (engine, *names):
        kernel = attempt(graph, layer, rows, weights, needs, name)
        if kernel is not None:
            return kernel
    raise AssertionError("the last engine can do every layer")


def attempt(
    graph: Graph,
    layer: Layer,
    rows: Span,
    weights: Mapping[str, torch.Tensor],
    needs: Needs,
    engine: str,
) -> Kernel | None:
    """As :func:`prepare`, but None where the named engine itself cannot do it, or not here."""
    if engine == DEFAULT:
        return prepare(graph, layer, rows, weights, needs)
    if not usable(engine):
        return None
    if layer.divided != "rows":
        share = share_of(graph, layer, rows)
        pieces = local_weights(share, weights)
        made = attempt(share.graph, share.layer, share.rows, pieces, Needs(share.graph), engine)
        if made is None:
            return None
        return replace(made, rows=rows, needs=needs.of(layer.name, rows))
    return ENGINES[engine].prepare(graph, layer, rows, weights, needs)
