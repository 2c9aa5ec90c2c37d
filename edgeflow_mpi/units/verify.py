"""Unit tables are verified before they run: on every rank, against the graph and each other.

What passes here can be run: every row of every layer has one owner; every unit reads exactly
the rows that the row algebra asks for, each computed on its rank or arriving once; every
message is expected by its receiver under the same name; nothing waits in a circle.

The checks go from what one unit says about itself to what units say about each other, and
each relies on those before it. They take time in proportion to the size of the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.spans import EMPTY, Span
from edgeflow_mpi.units import messages
from edgeflow_mpi.units.dryrun import dry_run
from edgeflow_mpi.units.faults import (
    DuplicateUnitError,
    OwnershipError,
    PinnedLayerError,
    Place,
    SpanError,
    SummandError,
    UnitIndexError,
    UnknownLayerError,
    WholeLayerError,
    WrongModelError,
    fault_at,
)
from edgeflow_mpi.units.tables import MPI_TAG_LIMIT, Unit, UnitTables, operator_of

if TYPE_CHECKING:
    from edgeflow_mpi.graph.needs import Needs


def verify_tables(
    graph: Graph, needs: Needs, tables: UnitTables, *, tag_limit: int = MPI_TAG_LIMIT
) -> None:
    """Raise at the first thing that is wrong with ``tables``.

    Parameters
    ----------
    graph : the layer DAG that they should be for.
    needs : its row algebra.
    tables : the tables of all ranks.
    tag_limit : the largest tag that may be used.

    Raises
    ------
    VerificationError
        One subclass for each kind of fault, see :mod:`edgeflow_mpi.units.faults`. The
        message names the unit and shows its rank's table with the line marked.
    """
    if tables.fingerprint != graph.fingerprint:
        raise WrongModelError(
            f"the plan is for {tables.model} (fingerprint {tables.fingerprint}), but this model "
            f"is {graph.name} (fingerprint {graph.fingerprint}): its layers or its input shape "
            "are not the same, so it needs a plan of its own"
        )
    check_units(graph, tables)
    check_owners(graph, tables)
    messages.check_sends(graph, tables, tag_limit)
    messages.check_requirements(graph, needs, tables, tag_limit)
    messages.check_pairs(tables)
    messages.check_coverage(graph, tables)
    dry_run(tables)


def check_units(graph: Graph, tables: UnitTables) -> None:
    """What every unit says of itself fits its place and its layer."""
    for rank, units in enumerate(tables.ranks):
        seen: dict[str, list[Unit]] = {}
        for position, unit in enumerate(units):
            place = Place(rank, position)
            if unit.index != position or unit.rank != rank:
                problem = f"calls itself unit {unit.index} of rank {unit.rank}"
                raise fault_at(UnitIndexError, tables, place, problem)
            if unit.layer not in graph.by_name:
                problem = f"is of a layer that {graph.name} does not have"
                raise fault_at(UnknownLayerError, tables, place, problem)
            operator = operator_of(graph.by_name[unit.layer])
            if unit.operator != operator:
                problem = f"runs {unit.operator}, but its layer runs {operator}"
                raise fault_at(UnknownLayerError, tables, place, problem)
            _check_spans(graph.by_name[unit.layer], unit, tables, place)
            for other in seen.setdefault(unit.layer, []):
                if other.rows & unit.rows or graph.by_name[unit.layer].combine:
                    problem = f"computes the same rows of its layer as unit {other.index}"
                    raise fault_at(DuplicateUnitError, tables, place, problem)
            seen[unit.layer].append(unit)


def _check_spans(layer: Layer, unit: Unit, tables: UnitTables, place: Place) -> None:
    whole = Span(0, layer.rows)
    if not unit.rows or unit.rows not in whole:
        problem = f"computes no rows, or others than the layer's {whole}"
        raise fault_at(SpanError, tables, place, problem)
    if unit.owned not in unit.rows:
        problem = f"owns rows {unit.owned}, which it does not compute"
        raise fault_at(SpanError, tables, place, problem)
    if layer.pinned and place.rank != 0:
        problem = f"is an {layer.kind} of the model, which only rank 0 has"
        raise fault_at(PinnedLayerError, tables, place, problem)
    if not layer.divisible and (unit.rows != whole or unit.owned not in (whole, EMPTY)):
        problem = f"owns rows {unit.owned}, but its layer can only be had whole, as rows {whole}"
        raise fault_at(WholeLayerError, tables, place, problem)
    if layer.combine and unit.owned != unit.rows:
        problem = f"owns rows {unit.owned}, but a summand must be computed by its owner alone"
        raise fault_at(SummandError, tables, place, problem)


def check_owners(graph: Graph, tables: UnitTables) -> None:
    """Every row of every layer has exactly one owner."""
    owners: dict[str, list[Unit]] = {layer.name: [] for layer in graph.layers}
    for units in tables.ranks:
        for unit in units:
            if unit.owned:
                owners[unit.layer].append(unit)
    for layer in graph.layers:
        owning = sorted(owners[layer.name], key=lambda unit: unit.owned)
        if not owning:
            raise OwnershipError(f"rows {Span(0, layer.rows)} of {layer.name} have no owner")
        covered = 0
        for unit in owning:
            place = Place(unit.rank, unit.index)
            if unit.owned.start > covered:
                problem = f"owns rows {unit.owned}, but row {covered} before them has no owner"
                raise fault_at(OwnershipError, tables, place, problem)
            if unit.owned.start < covered:
                problem = f"owns rows {unit.owned}, but row {unit.owned.start} has another owner"
                raise fault_at(OwnershipError, tables, place, problem)
            covered = unit.owned.stop
        if covered < layer.rows:
            place = Place(owning[-1].rank, owning[-1].index)
            problem = f"owns rows {owning[-1].owned}, but row {covered} behind them has no owner"
            raise fault_at(OwnershipError, tables, place, problem)
