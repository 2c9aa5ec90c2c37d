"""Execution units: what each rank needs, computes and forwards.

A unit waits for its *requirements*, applies its layer's operator to its rows, and sends
what its *forwarding table* says. The same :class:`Transfer` object stands in the sender's
forwarding table and in the receiver's requirements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from edgeflow_mpi.graph.division import Division
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.names import DEFAULT
from edgeflow_mpi.spans import Span

MPI_TAG_LIMIT = 32767
"""The largest tag that every MPI allows."""


@dataclass(frozen=True, order=True)
class Transfer:
    """Rows of one DAG edge that go from one rank to another, once per request.

    ``rows`` are rows of the producing layer, or, where that layer makes summands, the rows
    whose summand travels. Identity is everything but the tag; ``tag`` is counted out last.
    Rows that several consumers on a rank need travel once, on the edge of the first of
    them; the others' requirements name that same transfer.
    """

    producer: str
    consumer: str
    source: int
    dest: int
    rows: Span
    piece: int = 0
    slot: int = 0
    tag: int = -1


@dataclass(frozen=True)
class Requirement:
    """Rows of ``producer`` that a unit reads: those computed here, and those that arrive.

    ``rows`` must lie inside the union of this rank's computed rows and the transfers', and
    every transfer must bring some of them. Where the producer makes summands, ``rows`` are
    all of its rows and the transfers bring the summand of every other owner.
    """

    producer: str
    rows: Span
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True)
class Unit:
    """Rows of one layer on one rank, never none. ``owned`` rows are part of ``rows``.

    ``index`` counts the units of a rank from 0 in the order of their priority: an input
    computed on the same rank must have a smaller one. A rank may have several units of one
    layer (pieces, whose rows must not overlap). There is one requirement for each of
    the layer's inputs, in their order. Every forwarded transfer's rows must be among
    ``owned``. ``operator`` is :func:`operator_of` its layer, for people and for checking;
    ``engine`` is who computes it, by the name that the engine has in
    :data:`edgeflow_mpi.kernels.registry.ENGINES`, or ``default``.
    """

    index: int
    layer: str
    rank: int
    rows: Span
    owned: Span
    requirements: tuple[Requirement, ...]
    forwards: tuple[Transfer, ...]
    operator: str
    engine: str = DEFAULT

    @property
    def label(self) -> str:
        return f"{self.layer}[{self.rows}]@{self.rank}"


@dataclass(frozen=True)
class UnitTables:
    """The units of every rank, in the order of their priority, and what they are for.

    ``division`` says which layers of the model are not divided by rows; graph and fingerprint
    are those of :func:`edgeflow_mpi.graph.division.with_division`.
    """

    model: str
    fingerprint: str
    partitioner: str
    predicted_s: float | None
    ranks: tuple[tuple[Unit, ...], ...]
    division: Division = ()

    @property
    def size(self) -> int:
        return len(self.ranks)


def operator_of(layer: Layer) -> str:
    """What a layer applies, such as ``conv2d+relu``; ``input`` and ``output`` apply nothing."""
    names = [step.target.split(".") for step in layer.steps]
    return "+".join(name[min(1, len(name) - 1)] for name in names) or layer.kind


def on_engine(graph: Graph, tables: UnitTables, engine: str) -> UnitTables:
    """The same tables with everything that is computed on one engine."""

    def changed(unit: Unit) -> Unit:
        computes = graph.by_name[unit.layer].kind == "compute"
        return replace(unit, engine=engine) if computes else unit

    ranks = tuple(tuple(changed(unit) for unit in units) for units in tables.ranks)
    return replace(tables, ranks=ranks)


def units_by_layer(units: Iterable[Unit]) -> Mapping[str, tuple[Unit, ...]]:
    """Layer name -> its units on one rank, in the order of their priority."""
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.layer, []).append(unit)
    return {name: tuple(pieces) for name, pieces in found.items()}


def local_sources(
    requirement: Requirement, pieces: Mapping[str, tuple[Unit, ...]]
) -> tuple[Unit, ...]:
    """The units of the same rank that compute some of the rows that are required."""
    return tuple(
        unit for unit in pieces.get(requirement.producer, ()) if unit.rows & requirement.rows
    )
