"""Where a rank keeps tensors: fixed memory for what travels, references for what does not.

A tensor of which rows are sent or received has a *static* buffer, allocated once: received
rows land in it beside the computed ones, and messages leave straight from it. So has one that
is computed in several pieces. Any other tensor is whatever its kernel returned, and is dropped
after its last reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.buffers import empty
from edgeflow_mpi.runtime.transport import Region
from edgeflow_mpi.spans import EMPTY, Span
from edgeflow_mpi.units.tables import Transfer, Unit, units_by_layer

Tensor = torch.Tensor
Reader = Callable[[], Tensor]


class Storage:
    """The tensors of one rank during a request.

    Parameters
    ----------
    graph : the layer DAG.
    units : this rank's units.

    Notes
    -----
    A static buffer covers the hull of the rows that are computed here and those that
    arrive. Summands of one layer have a buffer per source rank instead.
    """

    def __init__(self, graph: Graph, units: Sequence[Unit]) -> None:
        self._graph = graph
        self._rank = units[0].rank if units else 0
        self._computed: dict[str, Span] = {}
        self._owned: dict[str, Span] = {}
        for unit in units:
            self._computed[unit.layer] = self._computed.get(unit.layer, EMPTY).hull(unit.rows)
            self._owned[unit.layer] = self._owned.get(unit.layer, EMPTY).hull(unit.owned)
        self._base: dict[str, int] = {}
        self._buffers: dict[str, Tensor] = {}
        self._summands: dict[str, dict[int, Tensor]] = {}
        self._live: dict[str, Tensor] = {}
        self._wire: dict[Transfer, Tensor] = {}
        incoming = {t for unit in units for need in unit.requirements for t in need.transfers}
        outgoing = {t for unit in units for t in unit.forwards}
        divided = [name for name, pieces in units_by_layer(units).items() if len(pieces) > 1]
        self._allocate(sorted(incoming), sorted(outgoing), divided)

    def _allocate(
        self, incoming: Iterable[Transfer], outgoing: Iterable[Transfer], divided: Iterable[str]
    ) -> None:
        held = {name: self._computed[name] for name in divided}
        for transfer in (*incoming, *outgoing):
            name = transfer.producer
            layer = self._graph.by_name[name]
            if layer.combine:
                pieces = self._summands.setdefault(name, {})
                pieces.setdefault(transfer.source, empty(layer.out, 1))
            else:
                held[name] = held.get(name, self._computed.get(name, EMPTY)).hull(transfer.rows)
        for name, pieces in self._summands.items():
            if name in self._computed:
                pieces.setdefault(self._rank, empty(self._graph.by_name[name].out, 1))
        for name, rows in held.items():
            layer = self._graph.by_name[name]
            self._base[name] = rows.start
            self._buffers[name] = empty(layer.out, rows.rows)

    @property
    def static_bytes(self) -> int:
        """Bytes of all static buffers."""
        tensors = [*self._buffers.values(), *self._wire.values()]
        for pieces in self._summands.values():
            tensors += pieces.values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def region(self, transfer: Transfer) -> Region:
        """The memory that a transfer fills here, or is read from."""
        layer = self._graph.by_name[transfer.producer]
        if layer.combine:
            return Region.of(self._summands[layer.name][transfer.source], layer.out, 0, 1)
        if layer.out.wire is not None:
            narrow, rows = replace(layer.out, dtype=layer.out.wire), transfer.rows.rows
            if transfer not in self._wire:
                self._wire[transfer] = empty(narrow, rows)
            return Region.of(self._wire[transfer], narrow, 0, rows)
        buffer, base = self._buffers[layer.name], self._base[layer.name]
        return Region.of(buffer, layer.out, transfer.rows.start - base, transfer.rows.rows)

    def conversion(self, transfer: Transfer) -> Callable[[], object] | None:
        """What brings a region up to date before it is sent, or its tensor after it arrived.

        None where messages leave from, and land in, the tensor itself.
        """
        layer = self._graph.by_name[transfer.producer]
        if layer.combine or layer.out.wire is None:
            return None
        narrow, tensor = self.region(transfer).view, self._view(layer, transfer.rows)
        if transfer.source == self._rank:
            return lambda: narrow.copy_(tensor)
        return lambda: tensor.copy_(narrow)

    def writer(self, unit: Unit) -> Callable[[Tensor], None]:
        """A function that keeps what the unit's kernel returned."""
        name, layer = unit.layer, self._graph.by_name[unit.layer]
        if name in self._summands:
            return self._summands[name][self._rank].copy_  # type: ignore[return-value]
        if name in self._buffers:
            return self._view(layer, unit.rows).copy_  # type: ignore[return-value]
        live = self._live

        def keep(result: Tensor) -> None:
            live[name] = result

        return keep

    def place(self, unit: Unit) -> Tensor | None:
        """Where a kernel may put the unit's result itself; None where nothing is reserved."""
        layer = self._graph.by_name[unit.layer]
        if layer.name in self._summands:
            return self._summands[layer.name][self._rank]
        return self._view(layer, unit.rows) if layer.name in self._buffers else None

    def reader(self, producer: str, rows: Span) -> Reader:
        """A function that gives rows of a tensor, or the combination of all summands."""
        layer = self._graph.by_name[producer]
        if layer.combine:
            return self._combiner(layer)
        if producer in self._buffers:
            view = self._view(layer, rows)
            return lambda: view
        live, have, axis = self._live, self._computed[producer], layer.out.axis
        if axis is None or rows == have:
            return lambda: live[producer]
        start, length = rows.start - have.start, rows.rows
        return lambda: live[producer].narrow(axis, start, length)

    def _view(self, layer: Layer, rows: Span) -> Tensor:
        buffer = self._buffers[layer.name]
        if layer.out.axis is None:
            return buffer
        return buffer.narrow(layer.out.axis, rows.start - self._base[layer.name], rows.rows)

    def _combiner(self, layer: Layer) -> Reader:
        """Combine the summands in rank order, so that replicas agree to the last bit."""
        pieces: Mapping[int, Tensor] = dict(sorted(self._summands.get(layer.name, {}).items()))
        if not pieces:
            live = self._live
            return lambda: live[layer.name]
        parts = list(pieces.values())
        if len(parts) == 1:
            return lambda: parts[0]
        operation = torch.maximum if layer.combine == "max" else torch.add

        def combine() -> Tensor:
            result = operation(parts[0], parts[1])
            for part in parts[2:]:
                operation(result, part, out=result)
            return result

        return combine

    def owned(self, name: str) -> Tensor | None:
        """The rows of a layer that this rank owns, if it has any; valid until the next request.

        None for summands, which mean nothing by themselves.
        """
        layer = self._graph.by_name[name]
        rows = self._owned.get(name, EMPTY)
        return None if layer.combine or not rows else self.reader(name, rows)()

    def drop(self, name: str) -> None:
        """Forget a tensor that nobody here will read again during this request."""
        self._live.pop(name, None)

    def clear(self) -> None:
        self._live.clear()
