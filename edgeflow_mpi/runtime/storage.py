"""Where a rank keeps tensors: fixed places in one block of memory.

The :mod:`arena <edgeflow_mpi.units.arena>` says where. Received rows land in a tensor's place
beside the computed ones, messages leave straight from it, and kernels compute into it. What a
kernel cannot compute into memory that it is given, and nobody sends, is *loose*: whatever the
kernel returned, dropped after its last reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.buffers import placed
from edgeflow_mpi.kernels.large_pages import on_large_pages
from edgeflow_mpi.kernels.llvm.available import available
from edgeflow_mpi.kernels.native import NativeCall
from edgeflow_mpi.runtime.transport import Region
from edgeflow_mpi.spans import EMPTY, Span
from edgeflow_mpi.units.arena import Arena
from edgeflow_mpi.units.buffers import travels_as
from edgeflow_mpi.units.tables import Transfer, Unit

Tensor = torch.Tensor
Reader = Callable[[], Tensor]


@dataclass(frozen=True)
class Conversion:
    """A copy of a tensor into another that may have another type and lie otherwise.

    Attributes
    ----------
    run : callable
        Copies.
    call : NativeCall or None
        Does so as well, if machine code can.
    """

    run: Callable[[], object]
    call: NativeCall | None

    @staticmethod
    def of(target: Tensor, source: Tensor) -> Conversion:
        if not available():
            return Conversion(lambda: target.copy_(source), None)
        from edgeflow_mpi.kernels.llvm.runs import copy_call, runner

        call = copy_call(target, source)
        if call is None:
            return Conversion(lambda: target.copy_(source), None)
        return Conversion(runner(call), call)


@dataclass(frozen=True)
class Combination:
    """All summands of a layer as one tensor, which ``call`` makes."""

    target: Tensor
    call: NativeCall

    @staticmethod
    def of(parts: Sequence[Tensor]) -> Combination | None:
        """None where machine code cannot add them."""
        if not available():
            return None
        from edgeflow_mpi.kernels.llvm.sums import sum_call

        target = torch.empty_like(parts[0])
        call = sum_call(target, parts)
        return None if call is None else Combination(target, call)


class Storage:
    """The tensors of one rank during a request.

    Parameters
    ----------
    graph : the layer DAG.
    units : this rank's units.
    arena : places of all tensors that are not loose.

    Attributes
    ----------
    memory : uint8, the arena.
    """

    def __init__(self, graph: Graph, units: Sequence[Unit], arena: Arena) -> None:
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
        self.memory = on_large_pages(arena.size_bytes)
        for buffer, offset in arena.places:
            tensor = placed(buffer.spec, buffer.rows.rows, self.memory, offset)
            name, source, transfer = buffer.key
            if transfer is not None:
                self._wire[transfer] = tensor
            elif source is not None:
                self._summands.setdefault(name, {})[source] = tensor
            else:
                self._base[name] = buffer.rows.start
                self._buffers[name] = tensor

    def region(self, transfer: Transfer) -> Region:
        """The memory that a transfer fills here, or is read from."""
        layer = self._graph.by_name[transfer.producer]
        if layer.combine:
            return Region.of(self._summands[layer.name][transfer.source], layer.out, 0, 1)
        if transfer in self._wire:
            travelling = travels_as(layer.out)
            assert travelling is not None
            return Region.of(self._wire[transfer], travelling, 0, transfer.rows.rows)
        buffer, base = self._buffers[layer.name], self._base[layer.name]
        return Region.of(buffer, layer.out, transfer.rows.start - base, transfer.rows.rows)

    def conversion(self, transfer: Transfer) -> Conversion | None:
        """What brings a region up to date before it is sent, or its tensor after it arrived.

        None where messages leave from, and land in, the tensor itself.
        """
        layer = self._graph.by_name[transfer.producer]
        if layer.combine or transfer not in self._wire:
            return None
        packed, tensor = self.region(transfer).view, self._view(layer, transfer.rows)
        return Conversion.of(
            *(packed, tensor) if transfer.source == self._rank else (tensor, packed)
        )

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

    def fixed(self, producer: str, rows: Span) -> Tensor | None:
        """What :meth:`reader` gives, where that is the same memory in every request."""
        layer = self._graph.by_name[producer]
        if layer.combine:
            pieces = self._summands.get(producer, {})
            return next(iter(pieces.values())) if len(pieces) == 1 else None
        return self._view(layer, rows) if producer in self._buffers else None

    def combination(self, producer: str) -> Combination | None:
        """What :meth:`reader` gives of a layer of which several ranks make summands, as one call of
        machine code; None where that cannot be."""
        layer = self._graph.by_name[producer]
        pieces = [piece for _, piece in sorted(self._summands.get(producer, {}).items())]
        return Combination.of(pieces) if layer.combine == "sum" and len(pieces) > 1 else None

    def loose(self, name: str) -> bool:
        """Whether a tensor is whatever its kernel returned."""
        return name not in self._buffers and name not in self._summands

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
