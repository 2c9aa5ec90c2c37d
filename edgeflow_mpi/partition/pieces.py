"""Boundary first: the rows that others wait for are computed and sent before the rest.

A unit of a plan that is marked so runs in up to three pieces: the rows at its top that leave,
those at its bottom, then the interior, which is computed while the others travel. What runs
per piece, and so what each piece costs, is one unit of the tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeflow_mpi.graph.types import Layer
from edgeflow_mpi.partition.flow import Flow
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.spans import Span


def pieces_of(plan: Plan, layer: Layer, rank: int, flows: Sequence[Flow]) -> tuple[Span, ...]:
    """The spans in which ``rank`` computes its rows of ``layer``, in that order.

    ``flows`` are those that leave, as for :func:`split_boundary`. Only units that the plan
    marks, of layers that may send rows early, have several.
    """
    computed = plan.layers[layer.name].computed[rank]
    if (layer.name, rank) in plan.boundary_first and layer.sends_early:
        return split_boundary(computed, flows)
    return (computed,)


def split_boundary(computed: Span, flows: Sequence[Flow]) -> tuple[Span, ...]:
    """The pieces of one unit, in the order in which they run.

    Parameters
    ----------
    computed : the rows that the unit computes, at least one.
    flows : what leaves of them (``Traffic.forwards`` of the unit); not summands.

    Returns
    -------
    tuple of Span
        They tile ``computed``. The unit stays whole where nothing leaves, where a flow
        reaches across the middle of it, or where no interior row would be left.
    """
    head, tail = computed.start, computed.stop
    for flow in flows:
        # A flow belongs to the end that it is nearer to; rows beyond it go along with it.
        if flow.rows.start - computed.start <= computed.stop - flow.rows.stop:
            head = max(head, flow.rows.stop)
        else:
            tail = min(tail, flow.rows.start)
    if not flows or head >= tail:
        return (computed,)
    pieces = (Span.of(computed.start, head), Span.of(tail, computed.stop), Span(head, tail))
    return tuple(piece for piece in pieces if piece)
