"""What verification checks of the messages between units, and of what arrives by them.

The units themselves must have been found in order before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.spans import Span, subtract
from edgeflow_mpi.units.faults import (
    CoverageError,
    ForwardError,
    InputsError,
    NeedsError,
    Place,
    RanksError,
    SummandError,
    SurplusError,
    TagError,
    UnitOrderError,
    UnknownLayerError,
    UnmatchedReceiveError,
    UnmatchedSendError,
    fault_at,
)
from edgeflow_mpi.units.tables import (
    Requirement,
    Transfer,
    Unit,
    UnitTables,
    local_sources,
    units_by_layer,
)
from edgeflow_mpi.units.text import transfer_text

if TYPE_CHECKING:
    from edgeflow_mpi.graph.needs import Needs


def check_sends(graph: Graph, tables: UnitTables, tag_limit: int) -> None:
    """Every unit sends rows that it owns, over edges of the graph, under tags of their own."""
    tags: dict[tuple[int, int, int], Transfer] = {}
    identities: dict[tuple[str, str, int, int, int, int], Transfer] = {}
    for place, unit, transfer in _sends(tables):
        _check_transfer(graph, tables, transfer, place, tag_limit)
        if transfer.producer != unit.layer or transfer.source != place.rank:
            problem = "sends what another unit produces"
            raise fault_at(ForwardError, tables, place, problem)
        if not transfer.rows or transfer.rows not in unit.owned:
            problem = f"sends rows {transfer.rows}, but owns rows {unit.owned}"
            raise fault_at(ForwardError, tables, place, problem)
        if graph.by_name[unit.layer].combine and transfer.rows != unit.owned:
            problem = f"sends rows {transfer.rows} of the one summand of its rows {unit.owned}"
            raise fault_at(ForwardError, tables, place, problem)
        ends = (transfer.source, transfer.dest)
        other = tags.setdefault((*ends, transfer.tag), transfer)
        if other is not transfer:
            problem = f"sends with a tag that is taken between its ranks: {transfer_text(other)}"
            raise fault_at(TagError, tables, place, problem)
        edge = (transfer.producer, transfer.consumer)
        other = identities.setdefault((*edge, *ends, transfer.piece, transfer.slot), transfer)
        if other is not transfer:
            problem = f"sends two messages of one name; the other is {transfer_text(other)}"
            raise fault_at(TagError, tables, place, problem)


def check_requirements(graph: Graph, needs: Needs, tables: UnitTables, tag_limit: int) -> None:
    """Every unit requires its layer's inputs, exactly the rows it needs, computed before it."""
    for rank, units in enumerate(tables.ranks):
        pieces = units_by_layer(units)
        for position, unit in enumerate(units):
            inputs = graph.by_name[unit.layer].inputs
            required = tuple(requirement.producer for requirement in unit.requirements)
            if required != inputs:
                problem = f"requires {_listed(required)}, but its layer reads {_listed(inputs)}"
                raise fault_at(InputsError, tables, Place(rank, position), problem)
            needed = needs.of(unit.layer, unit.rows)
            for i, (requirement, rows) in enumerate(zip(unit.requirements, needed, strict=True)):
                place = Place(rank, position, ("needs", i))
                if requirement.rows != rows:
                    problem = (
                        f"requires rows {requirement.rows} of {requirement.producer}, "
                        f"but the rows it needs are {rows}"
                    )
                    raise fault_at(NeedsError, tables, place, problem)
                late = [u for u in local_sources(requirement, pieces) if u.index > position]
                if late:
                    problem = (
                        f"comes before unit {late[0].index} of its rank, "
                        f"which computes {requirement.producer} for it"
                    )
                    raise fault_at(UnitOrderError, tables, place, problem)
    for place, requirement, transfer in _takes(tables):
        _check_transfer(graph, tables, transfer, place, tag_limit)
        if transfer.dest != place.rank or transfer.producer != requirement.producer:
            problem = f"takes a message that does not bring {requirement.producer} to its rank"
            raise fault_at(RanksError, tables, place, problem)


def check_pairs(tables: UnitTables) -> None:
    """Every send has its receive and every receive its send: the very same transfer.

    The consumer in a transfer's name must be among those that take it.
    """
    sent = {transfer for _, _, transfer in _sends(tables)}
    takers: dict[Transfer, set[str]] = {}
    for place, _, transfer in _takes(tables):
        takers.setdefault(transfer, set()).add(_unit_at(tables, place).layer)
        if transfer not in sent:
            problem = f"waits for a message that rank {transfer.source} does not send"
            raise fault_at(UnmatchedReceiveError, tables, place, problem + _similar(transfer, sent))
    for place, _, transfer in _sends(tables):
        if transfer.consumer not in takers.get(transfer, ()):
            problem = (
                f"sends a message that {transfer.consumer} on rank {transfer.dest} does not take"
            )
            raise fault_at(UnmatchedSendError, tables, place, problem + _similar(transfer, takers))


def check_coverage(graph: Graph, tables: UnitTables) -> None:
    """What a unit reads is computed on its rank or arrives, and no row of it arrives twice."""
    computed = [units_by_layer(units) for units in tables.ranks]
    arriving: dict[tuple[str, int, int], dict[Transfer, Place]] = {}
    for place, requirement, transfer in _takes(tables):
        own = [unit.rows for unit in computed[place.rank].get(requirement.producer, ())]
        _check_useful(tables, place, requirement, transfer, own)
        key = (requirement.producer, place.rank, transfer.slot)
        arriving.setdefault(key, {}).setdefault(transfer, place)
    for (producer, _, _), places in arriving.items():
        transfers = sorted(places, key=lambda transfer: transfer.rows)
        for one, other in pairwise(transfers):
            if one.rows & other.rows:
                problem = (
                    f"takes rows {one.rows & other.rows} of {producer} that another message "
                    f"brings to its rank: {transfer_text(one)}"
                )
                raise fault_at(SurplusError, tables, places[other], problem)
    for place, requirement in _requirements(tables):
        own = [unit.rows for unit in computed[place.rank].get(requirement.producer, ())]
        lacking = subtract(requirement.rows, [*own, *(t.rows for t in requirement.transfers)])
        if not lacking:
            continue
        rows = " and ".join(str(span) for span in lacking)
        if graph.by_name[requirement.producer].combine:
            problem = f"lacks the summand of rows {rows} of {requirement.producer}"
            raise fault_at(SummandError, tables, place, problem)
        problem = (
            f"reads rows {rows} of {requirement.producer}, which are neither computed on its "
            "rank nor arrive"
        )
        raise fault_at(CoverageError, tables, place, problem)


def _check_useful(
    tables: UnitTables,
    place: Place,
    requirement: Requirement,
    transfer: Transfer,
    own: Iterable[Span],
) -> None:
    if requirement.transfers.count(transfer) > 1:
        raise fault_at(SurplusError, tables, place, "takes one message twice")
    for rows in own:
        if transfer.rows & rows:
            problem = f"takes rows {transfer.rows & rows}, which its rank computes itself"
            raise fault_at(SurplusError, tables, place, problem)
    if not transfer.rows & requirement.rows:
        problem = f"waits for rows {transfer.rows}, of which it reads none"
        raise fault_at(SurplusError, tables, place, problem)


def _check_transfer(
    graph: Graph, tables: UnitTables, transfer: Transfer, place: Place, tag_limit: int
) -> None:
    """What holds of a transfer wherever it stands."""
    consumer = graph.by_name.get(transfer.consumer)
    if consumer is None or transfer.producer not in consumer.inputs:
        problem = f"has a message on an edge that {graph.name} does not have"
        raise fault_at(UnknownLayerError, tables, place, problem)
    if not (0 <= transfer.source < tables.size and 0 <= transfer.dest < tables.size):
        problem = f"has a message between ranks of which only 0 to {tables.size - 1} exist"
        raise fault_at(RanksError, tables, place, problem)
    if transfer.source == transfer.dest:
        raise fault_at(RanksError, tables, place, "has a message from a rank to itself")
    if not 0 <= transfer.tag <= tag_limit:
        problem = f"has a message with tag {transfer.tag}, but tags are from 0 to {tag_limit}"
        raise fault_at(TagError, tables, place, problem)


def _sends(tables: UnitTables) -> Iterator[tuple[Place, Unit, Transfer]]:
    for rank, units in enumerate(tables.ranks):
        for position, unit in enumerate(units):
            for i, transfer in enumerate(unit.forwards):
                yield Place(rank, position, ("sends", i)), unit, transfer


def _requirements(tables: UnitTables) -> Iterator[tuple[Place, Requirement]]:
    for rank, units in enumerate(tables.ranks):
        for position, unit in enumerate(units):
            for i, requirement in enumerate(unit.requirements):
                yield Place(rank, position, ("needs", i)), requirement


def _takes(tables: UnitTables) -> Iterator[tuple[Place, Requirement, Transfer]]:
    for needs, requirement in _requirements(tables):
        for j, transfer in enumerate(requirement.transfers):
            place = Place(needs.rank, needs.position, ("takes", needs.part[1], j))
            yield place, requirement, transfer


def _unit_at(tables: UnitTables, place: Place) -> Unit:
    return tables.ranks[place.rank][place.position]


def _similar(transfer: Transfer, others: Collection[Transfer]) -> str:
    """A hint at the transfer that was probably meant at the other end, or nothing."""
    edge = (transfer.producer, transfer.consumer, transfer.source, transfer.dest)
    for other in sorted(others):
        if (other.producer, other.consumer, other.source, other.dest) == edge:
            return f"; at the other end it is {transfer_text(other)}"
    return ""


def _listed(names: Collection[str]) -> str:
    return ", ".join(names) or "nothing"
