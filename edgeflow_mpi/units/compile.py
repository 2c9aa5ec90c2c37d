"""From a graph and a plan to the unit tables of every rank.

Nothing is decided here. The plan says who computes what and in which order, and
:func:`edgeflow_mpi.partition.flow.trace_flows` says which rows travel; this module writes
that down as units, makes one :class:`Transfer` of every flow, shared by both of its ends,
and counts out the tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from edgeflow_mpi.errors import TableError
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.names import DEFAULT
from edgeflow_mpi.partition.flow import Demand, Flow, trace_flows
from edgeflow_mpi.partition.pieces import pieces_of
from edgeflow_mpi.partition.plan import Plan, check_plan
from edgeflow_mpi.spans import Span
from edgeflow_mpi.units.tables import (
    MPI_TAG_LIMIT,
    Requirement,
    Transfer,
    Unit,
    UnitTables,
    operator_of,
)

if TYPE_CHECKING:
    from edgeflow_mpi.graph.needs import Needs


def compile_tables(
    graph: Graph, needs: Needs, plan: Plan, *, tag_limit: int = MPI_TAG_LIMIT
) -> UnitTables:
    """The unit tables of ``plan``: a function of the arguments alone.

    Parameters
    ----------
    graph : the layer DAG, with the plan's division.
    needs : its row algebra.
    plan : spans of every layer on every rank, and the order of the layers.
    tag_limit : the largest tag that may be used.

    Returns
    -------
    UnitTables
        On every rank, for each layer of which it computes rows, in the plan's order, one
        unit, or one for each piece where the plan wants boundary rows first; each with one
        requirement for each of the layer's inputs, in their order.

    Raises
    ------
    PlanError
        Where the plan breaks a rule of ``check_plan``.
    TableError
        Where more tags are needed than ``tag_limit`` allows.
    """
    check_plan(graph, plan)
    traffic = trace_flows(graph, needs, plan)
    tags = count_tags(graph, traffic.flows, tag_limit)
    transfers = {flow: _transfer(flow, tags) for flow in traffic.flows}
    ranks: list[list[Unit]] = [[] for _ in range(plan.ranks)]
    for name in plan.order:
        layer, spans = graph.by_name[name], plan.layers[name]
        for rank, units in enumerate(ranks):
            if not spans.computed[rank]:
                continue
            flows = traffic.forwards.get((name, rank), ())
            for rows in pieces_of(plan, layer, rank, flows):
                requirements = tuple(
                    _requirement(graph.by_name[demand.producer], demand, need, transfers)
                    for demand, need in zip(
                        traffic.demands[name, rank], needs.of(name, rows), strict=True
                    )
                )
                units.append(
                    Unit(
                        index=len(units),
                        layer=name,
                        rank=rank,
                        rows=rows,
                        owned=spans.owned[rank] & rows,
                        requirements=requirements,
                        forwards=tuple(transfers[flow] for flow in flows if flow.rows in rows),
                        operator=operator_of(layer),
                        engine=plan.engines.get((name, rank), DEFAULT),
                    )
                )
    return UnitTables(
        model=graph.name,
        fingerprint=graph.fingerprint,
        partitioner=plan.partitioner,
        predicted_s=plan.predicted_s,
        ranks=tuple(tuple(units) for units in ranks),
        division=plan.division,
    )


def _requirement(
    producer: Layer, demand: Demand, need: Span, transfers: Mapping[Flow, Transfer]
) -> Requirement:
    """What a piece of a unit reads of one input, of all that the unit reads of it."""
    flows = (flow for flow in demand.flows if producer.combine or flow.rows & need)
    return Requirement(producer.name, need, tuple(transfers[flow] for flow in flows))


def count_tags(
    graph: Graph, flows: Iterable[Flow], tag_limit: int
) -> Mapping[tuple[str, str, int], int]:
    """Tags 0, 1, 2, ... for the (producer, consumer, piece) of ``flows``, in graph order.

    One edge has one tag on all pairs of ranks, so a tag found in a trace names its edge; two
    messages between the same ranks differ in edge or in piece and so have different tags.
    """
    position = {layer.name: i for i, layer in enumerate(graph.layers)}
    identities = sorted(
        {(flow.producer, flow.consumer, flow.piece) for flow in flows},
        key=lambda identity: (position[identity[0]], position[identity[1]], identity[2]),
    )
    if len(identities) > tag_limit + 1:
        raise TableError(
            f"the plan for {graph.name} sends messages on {len(identities)} edges, but this MPI "
            f"allows only {tag_limit + 1} different tags: split fewer layers or use fewer ranks"
        )
    return {identity: tag for tag, identity in enumerate(identities)}


def _transfer(flow: Flow, tags: Mapping[tuple[str, str, int], int]) -> Transfer:
    return Transfer(
        producer=flow.producer,
        consumer=flow.consumer,
        source=flow.source,
        dest=flow.dest,
        rows=flow.rows,
        piece=flow.piece,
        tag=tags[flow.producer, flow.consumer, flow.piece],
    )
