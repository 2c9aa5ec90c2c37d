"""One block of memory for all buffers of a rank, laid out once per plan.

Buffers share memory where one is certainly free before the other is written
(:class:`~edgeflow_mpi.units.buffers.Lifetimes`): the order of units and messages proves it, so no
unit ever waits for memory, and neither planner nor dry run need to know of it. Two things follow
for whoever runs the units. A receive into memory that was used before is posted after certain
units of this rank, always before the message can be sent; and the completion of sends from there
is asked for first, which are known to have arrived.

Places are given by size, the largest first, each at the lowest free address.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.units.buffers import Buffer, Lifetimes, buffers_of
from edgeflow_mpi.units.precedence import Precedence
from edgeflow_mpi.units.tables import Transfer, UnitTables

ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Gate:
    """When a receive may be posted: after these units, and when these sends are complete."""

    units: tuple[int, ...]
    sends: tuple[Transfer, ...]


@dataclass(frozen=True)
class Arena:
    """Where the buffers of a rank lie.

    Attributes
    ----------
    size_bytes : of the whole block.
    places : buffers with their offsets in bytes.
    gates : for the receives that must not be posted when a request begins.
    settled : for units that write where messages have left from, these; they have arrived.
    """

    size_bytes: int
    places: tuple[tuple[Buffer, int], ...]
    gates: Mapping[Transfer, Gate]
    settled: Mapping[int, tuple[Transfer, ...]]


def lay_out(
    graph: Graph,
    tables: UnitTables,
    rank: int,
    precedence: Precedence | None,
    loose: Collection[str] = (),
) -> Arena:
    """The arena of one rank: a function of its arguments alone.

    Parameters
    ----------
    graph, tables : the layer DAG, and verified tables.
    rank : whose arena.
    precedence : of ``tables``; None to let no two buffers share memory, so that every tensor
        stays until the next request.
    loose : see :func:`~edgeflow_mpi.units.buffers.buffers_of`.
    """
    buffers = buffers_of(graph, tables.ranks[rank], loose)
    if precedence is None:
        offsets, size = _side_by_side(buffers)
        return Arena(size, tuple(zip(buffers, offsets, strict=True)), {}, {})
    lifetimes = Lifetimes(precedence, rank, buffers)
    offsets, size = _by_size(buffers, lifetimes)
    gates, settled = _order(buffers, offsets, lifetimes)
    return Arena(size, tuple(zip(buffers, offsets, strict=True)), gates, settled)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _side_by_side(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for buffer in buffers:
        offsets.append(end)
        end += _aligned(buffer.size_bytes)
    return offsets, end


def _by_size(buffers: Sequence[Buffer], lifetimes: Lifetimes) -> tuple[list[int], int]:
    """Offsets such that buffers that may live at one time do not overlap, and their end."""
    sizes = [_aligned(buffer.size_bytes) for buffer in buffers]
    offsets: dict[int, int] = {}
    for i in sorted(range(len(buffers)), key=lambda i: (-sizes[i], i)):
        taken = sorted(
            (start, start + sizes[j])
            for j, start in offsets.items()
            if not (lifetimes.follows(i, j) or lifetimes.follows(j, i))
        )
        place = 0
        for start, stop in taken:
            if start - place >= sizes[i]:
                break
            place = max(place, stop)
        offsets[i] = place
    end = max((offsets[i] + sizes[i] for i in offsets), default=0)
    return [offsets[i] for i in range(len(buffers))], end


def _order(
    buffers: Sequence[Buffer], offsets: Sequence[int], lifetimes: Lifetimes
) -> tuple[dict[Transfer, Gate], dict[int, tuple[Transfer, ...]]]:
    """What must be minded where buffers overlap."""
    units: dict[Transfer, set[int]] = {}
    sends: dict[Transfer, set[Transfer]] = {}
    settled: dict[int, set[Transfer]] = {}
    ends = [offset + buffer.size_bytes for offset, buffer in zip(offsets, buffers, strict=True)]
    for late, buffer in enumerate(buffers):
        for early, other in enumerate(buffers):
            apart = ends[late] <= offsets[early] or ends[early] <= offsets[late]
            if early == late or apart or not lifetimes.follows(late, early):
                continue
            for index in buffer.writers:
                settled.setdefault(index, set()).update(other.departures)
            for transfer in buffer.arrivals:
                gate = lifetimes.gate(late, early, transfer)
                units.setdefault(transfer, set()).add(gate)
                sends.setdefault(transfer, set()).update(other.departures)
    gates = {t: Gate(tuple(sorted(units[t])), tuple(sorted(sends[t]))) for t in sorted(units)}
    for index in settled:  # once is enough
        for earlier in settled:
            if lifetimes.precedes(earlier, index):
                settled[index] = settled[index] - settled[earlier]
    return gates, {i: tuple(sorted(settled[i])) for i in sorted(settled) if settled[i]}
