"""Which rows of which tensor travel from whom to whom, and for which consumer.

This one rule is shared by everybody who reads a plan: the cost model that predicts it and
the compiler that turns it into unit tables. A rank that computes rows of a layer needs rows
of the layer's inputs (the row algebra says which). Those that it does not compute itself
come from their owners. Consumers are served in the order of ``plan.order``: rows that an
earlier consumer on the same rank has caused to travel do not travel again, and a later
consumer that reads them depends on the earlier one's flow. What one consumer needs is never
put into another's flow, so that sharing makes no one wait for rows it does not read.

A layer that makes summands (``layer.combine``) sends whole summands: every owner with rows
sends its own to every rank that computes a consumer. A rank that computes a producer itself
needs no flow for it, so replicas cost no messages to their readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.spans import Span, subtract


@dataclass(frozen=True, order=True)
class Flow:
    """Rows of the edge ``producer -> consumer`` that ``source`` sends to ``dest`` once.

    ``rows`` are global rows of the producer, all owned by ``source`` and not computed by
    ``dest``; where the producer makes summands, ``rows`` is the owned span whose summand
    travels. ``piece`` counts the flows of one edge between one pair of ranks, from 0 (there
    is more than one only where what ``dest`` already has lies in the middle).
    """

    producer: str
    consumer: str
    source: int
    dest: int
    rows: Span
    piece: int = 0

    def size_bytes(self, producer: Layer) -> int:
        """Bytes on the wire, ``producer`` being the layer of that name."""
        return transfer_bytes(producer, self.rows)


def transfer_bytes(producer: Layer, rows: Span) -> int:
    """Bytes of ``rows`` rows of a layer's tensor, or of one of its summands."""
    return producer.out.size_bytes if producer.combine else producer.out.row_bytes * rows.rows


@dataclass(frozen=True)
class Demand:
    """What one unit reads of one input: ``rows`` of ``producer``, empty for nothing.

    Every row is computed on the unit's rank or is in one of ``flows``, each of which holds
    at least one of them and may travel on an earlier consumer's edge.
    """

    producer: str
    rows: Span
    flows: tuple[Flow, ...]


@dataclass(frozen=True)
class Traffic:
    """All flows of a plan.

    ``flows`` come in the plan's order of their consumers, then by destination, input,
    source and rows. ``demands[(layer, rank)]`` has one entry for each of the layer's inputs,
    for every rank that computes rows of it, and no other keys.
    """

    flows: tuple[Flow, ...]
    demands: Mapping[tuple[str, int], tuple[Demand, ...]]

    @cached_property
    def forwards(self) -> Mapping[tuple[str, int], tuple[Flow, ...]]:
        """(producer, source) -> its flows, those of earlier consumers first."""
        found: dict[tuple[str, int], list[Flow]] = {}
        for flow in self.flows:
            found.setdefault((flow.producer, flow.source), []).append(flow)
        return {unit: tuple(flows) for unit, flows in found.items()}


def trace_flows(graph: Graph, needs: Needs, plan: Plan) -> Traffic:
    """Flows and demands of ``plan``, which must satisfy ``check_plan``.

    Parameters
    ----------
    graph : the layer DAG.
    needs : its row algebra; ``needs.of(layer, span)`` are the input rows that a span needs.
    plan : owned and computed spans of every layer.

    Returns
    -------
    Traffic
        Deterministic: a function of the three arguments alone.
    """
    flows: list[Flow] = []
    demands: dict[tuple[str, int], tuple[Demand, ...]] = {}
    delivered: dict[tuple[str, int], list[Flow]] = {}
    for name in plan.order:
        layer = graph.by_name[name]
        for dest, computed in enumerate(plan.layers[name].computed):
            if not computed:
                continue
            wanted = zip(layer.inputs, needs.of(name, computed), strict=True)
            unit_demands = []
            for producer_name, rows in wanted:
                arrived = delivered.setdefault((producer_name, dest), [])
                new = _missing(graph.by_name[producer_name], name, dest, rows, plan, arrived)
                flows += new
                arrived += new
                used = tuple(flow for flow in arrived if flow.rows & rows)
                unit_demands.append(Demand(producer_name, rows, used))
            demands[name, dest] = tuple(unit_demands)
    return Traffic(tuple(flows), demands)


def _missing(
    producer: Layer, consumer: str, dest: int, rows: Span, plan: Plan, arrived: list[Flow]
) -> list[Flow]:
    """Flows that bring ``dest`` the ``rows`` it neither computes nor has been sent."""
    produced = plan.layers[producer.name]
    if rows in produced.computed[dest]:
        return []
    gaps = subtract(rows, [produced.computed[dest], *(flow.rows for flow in arrived)])
    found = []
    for source, owned in enumerate(produced.owned):
        if producer.combine:
            pieces = [owned] if source != dest and any(owned & gap for gap in gaps) else []
        else:
            pieces = [owned & gap for gap in gaps if owned & gap]
        found += [
            Flow(producer.name, consumer, source, dest, piece, number)
            for number, piece in enumerate(pieces)
        ]
    return found
