"""What a rank keeps tensors in, who touches it, and what of it may share memory.

A tensor of which rows travel, or that is computed in pieces, has one *buffer*: for the hull of the
rows computed here and those that arrive. Summands of one layer have a buffer for each rank that
makes one, and rows that travel in another form than they are kept in one for each message: in
another element type, or packed, where they lie in many short runs. Any other tensor has a buffer if
its kernel can compute into one (it is not *loose*).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeflow_mpi.graph.types import Graph, TensorSpec
from edgeflow_mpi.kernels.buffers import runs
from edgeflow_mpi.spans import EMPTY, Span
from edgeflow_mpi.units.precedence import Precedence
from edgeflow_mpi.units.tables import Transfer, Unit, units_by_layer

_FEW_RUNS = 8

Key = tuple[str, int | None, Transfer | None]


@dataclass(frozen=True)
class Buffer:
    """Memory of ``rows`` rows of a tensor like ``spec``, and its use on one rank.

    ``key`` is the layer, for summands with the rank that makes them, for rows as they travel with
    the message. ``writers`` and ``readers`` are indices of units of this rank; ``arrivals``
    land here, ``departures`` leave from here.
    """

    key: Key
    spec: TensorSpec
    rows: Span
    writers: tuple[int, ...]
    readers: tuple[int, ...]
    arrivals: tuple[Transfer, ...] = ()
    departures: tuple[Transfer, ...] = ()

    @property
    def size_bytes(self) -> int:
        if self.spec.axis is None:
            return self.spec.size_bytes
        return self.spec.size_bytes // max(self.spec.rows, 1) * self.rows.rows


def fixed_layers(units: Sequence[Unit]) -> frozenset[str]:
    """Layers of which rows travel from or to the rank of ``units``, or that it divides."""
    moved = {transfer.producer for transfer in (*_incoming(units), *_outgoing(units))}
    return frozenset(moved) | {
        name for name, pieces in units_by_layer(units).items() if len(pieces) > 1
    }


def buffers_of(graph: Graph, units: Sequence[Unit], loose: Collection[str]) -> tuple[Buffer, ...]:
    """The buffers of one rank.

    Parameters
    ----------
    graph : the layer DAG.
    units : the rank's verified table.
    loose : layers without a buffer, none of them among :func:`fixed_layers`. Their results may
        share memory with what they are computed from: who reads them, reads that too.
    """
    readers = _readers(units, frozenset(loose))
    incoming, outgoing = _by_producer(_incoming(units)), _by_producer(_outgoing(units))
    pieces = units_by_layer(units)
    found: list[Buffer] = []
    for name in dict.fromkeys((*incoming, *pieces)):
        if name in loose:
            continue
        layer, made = graph.by_name[name], pieces.get(name, ())
        arrivals, departures = incoming.get(name, ()), outgoing.get(name, ())
        writers, used = tuple(unit.index for unit in made), readers.get(name, ())
        if layer.combine:
            if made:
                key: Key = (name, made[0].rank, None)
                found.append(
                    Buffer(key, layer.out, Span(0, 1), writers, used, departures=departures)
                )
            for transfer in arrivals:
                key = (name, transfer.source, None)
                found.append(Buffer(key, layer.out, Span(0, 1), (), used, arrivals=(transfer,)))
            continue
        rows = EMPTY
        for span in (*(u.rows for u in made), *(t.rows for t in (*arrivals, *departures))):
            rows = rows.hull(span)
        found.append(
            Buffer((name, None, None), layer.out, rows, writers, used, arrivals, departures)
        )
        travelling = travels_as(layer.out)
        if travelling is not None:
            for transfer in arrivals:
                takers = _takers(units, transfer)
                key = (name, None, transfer)
                found.append(
                    Buffer(key, travelling, transfer.rows, (), takers, arrivals=(transfer,))
                )
            for transfer in departures:
                sender = tuple(unit.index for unit in made if transfer in unit.forwards)
                key = (name, None, transfer)
                found.append(
                    Buffer(key, travelling, transfer.rows, sender, (), departures=(transfer,))
                )
    return tuple(found)


def travels_as(spec: TensorSpec) -> TensorSpec | None:
    """What rows of a tensor are packed into before they travel; None if they travel as they lie.

    MPI can gather many runs itself, but takes three times as long as copying them before and
    after: 141 us against 34 for a thousand channels of 7×7 pixels.
    """
    if spec.wire is not None:
        return replace(spec, dtype=spec.wire)
    return spec if runs(spec)[0] > _FEW_RUNS else None


def _incoming(units: Sequence[Unit]) -> tuple[Transfer, ...]:
    transfers = (t for unit in units for need in unit.requirements for t in need.transfers)
    return tuple(dict.fromkeys(transfers))


def _outgoing(units: Sequence[Unit]) -> tuple[Transfer, ...]:
    return tuple(transfer for unit in units for transfer in unit.forwards)


def _by_producer(transfers: Sequence[Transfer]) -> dict[str, tuple[Transfer, ...]]:
    found: dict[str, list[Transfer]] = {}
    for transfer in transfers:
        found.setdefault(transfer.producer, []).append(transfer)
    return {name: tuple(those) for name, those in found.items()}


def _takers(units: Sequence[Unit], transfer: Transfer) -> tuple[int, ...]:
    return tuple(
        unit.index
        for unit in units
        if any(transfer in need.transfers for need in unit.requirements)
    )


def _readers(units: Sequence[Unit], loose: frozenset[str]) -> Mapping[str, tuple[int, ...]]:
    """Layer -> indices of the units that read its tensor, or what may be a view of it."""
    found: dict[str, set[int]] = {}
    for unit in reversed(units):
        reads = {unit.index} | (found.get(unit.layer, set()) if unit.layer in loose else set())
        for need in unit.requirements:
            found.setdefault(need.producer, set()).update(reads)
    return {name: tuple(sorted(indices)) for name, indices in found.items()}


class Lifetimes:
    """When the buffers of one rank are free for others, whatever the ranks' speeds.

    Sets of units are integers, in which bit i stands for the unit with index i.
    """

    def __init__(self, precedence: Precedence, rank: int, buffers: Sequence[Buffer]) -> None:
        self._buffers = buffers
        units = 0
        for buffer in buffers:
            units = max((units, *(i + 1 for i in (*buffer.writers, *buffer.readers))))
        done = self._done = [precedence.done(rank, index) for index in range(units)]
        self._written = [_mask(buffer.writers) for buffer in buffers]
        self._landing = [
            tuple(precedence.done_at_send(transfer) for transfer in buffer.arrivals)
            for buffer in buffers
        ]
        self._dead_before: list[int] = []
        self._dead_after: list[int] = []
        for buffer in buffers:
            users = _mask((*buffer.writers, *buffer.readers))
            before = after = 0
            for index in range(units):
                if users & ~(done[index] | 1 << index):
                    continue
                sent = buffer.departures
                if all(precedence.delivered(transfer, rank, index) for transfer in sent):
                    after |= 1 << index
                    before |= (not users >> index & 1) << index
            self._dead_before.append(before)
            self._dead_after.append(after)

    def follows(self, late: int, early: int) -> bool:
        """Whether buffer ``early`` is free before anything is written to buffer ``late``."""
        after = self._dead_after[early]
        return not self._written[late] & ~self._dead_before[early] and all(
            after & done for done in self._landing[late]
        )

    def precedes(self, early: int, late: int) -> bool:
        """Whether unit ``early`` has certainly run before unit ``late`` begins."""
        return bool(self._done[late] >> early & 1)

    def gate(self, late: int, early: int, transfer: Transfer) -> int:
        """The first unit after which buffer ``early`` is free and that runs before ``transfer``,
        which lands in ``late``, can be sent."""
        place = self._buffers[late].arrivals.index(transfer)
        both = self._dead_after[early] & self._landing[late][place]
        return (both & -both).bit_length() - 1


def _mask(indices: Sequence[int]) -> int:
    mask = 0
    for index in indices:
        mask |= 1 << index
    return mask


__all__ = ["Buffer", "Key", "Lifetimes", "buffers_of", "fixed_layers", "travels_as"]
