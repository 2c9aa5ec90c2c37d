"""A rank's units made ready to run: where each reads, what it computes, where it writes and sends.

Everything that stays the same from request to request is settled here, once: kernels are bound to
their places in the arena, channels are opened, and units that need no Python become machine code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.kernels.buffers import memory_format
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.native import NativeCall
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.runtime.meter import Meter, Part
from edgeflow_mpi.runtime.pace import Pace
from edgeflow_mpi.runtime.program import Program, Steps, program
from edgeflow_mpi.runtime.storage import Conversion, Reader, Storage
from edgeflow_mpi.runtime.transport import Transport
from edgeflow_mpi.units.arena import Arena
from edgeflow_mpi.units.tables import Transfer, Unit, local_sources, units_by_layer

Tensor = torch.Tensor

_GLANCE_S = 20e-6
"""Leaving machine code to see what else could be done takes about as long."""


@dataclass(frozen=True)
class Task:
    """A unit, ready to run: where to read, what to compute, where to write, what to send.

    Attributes
    ----------
    readers : tuple of callables
        Give its inputs.
    compute : callable
        Takes them, and puts the result where it belongs.
    packs : tuple of callables
        What is to be done before messages leave.
    sends, settled : tuple of int
        Sends to start when it has run, and to complete before.
    opens, opens_in_order : tuple of int
        Receives that wait for it among others, and those to post right after it where all units
        run in the table's order.
    feeds : tuple of int
        The units that read it here.
    reads : tuple of str
        Layers whose tensors are dropped when nobody is left to read them.
    needs_local : int
        How many units here it reads.
    needs_transfers : tuple of int
        Receives that it waits for.
    """

    unit: Unit
    readers: tuple[Reader, ...]
    compute: Callable[..., object]
    packs: tuple[Callable[[], object], ...]
    sends: tuple[int, ...]
    settled: tuple[int, ...]
    opens: tuple[int, ...]
    opens_in_order: tuple[int, ...]
    feeds: tuple[int, ...]
    reads: tuple[str, ...]
    needs_local: int
    needs_transfers: tuple[int, ...]


@dataclass
class Mail:
    """What the present request brought, and what it is answered, by layers."""

    request: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def make_kernels(
    graph: Graph, needs: Needs, units: Sequence[Unit], weights: Mapping[str, Tensor]
) -> list[Kernel | None]:
    """What computes each unit; None for one that takes a request or gives an answer."""

    def kernel(unit: Unit) -> Kernel | None:
        layer = graph.by_name[unit.layer]
        if layer.kind in ("input", "output"):
            return None
        return prepare(graph, layer, unit.rows, weights, needs, unit.engine)

    return [kernel(unit) for unit in units]


class Tasks:
    """All units of a rank, with the channels that they receive and send through.

    Parameters
    ----------
    graph : the layer DAG.
    units, kernels : this rank's units in the table's order, and what computes each.
    arena, storage : where their tensors lie.
    mail : where requests come from and answers go.
    transport : channels to the other ranks.
    keep : whether tensors are kept until the next request.
    dropped : a transfer that Python must see arrive.
    pace : makes units take as long as on a slower device.
    meter : takes down what time is spent on.
    patience_s : how long machine code may poll for messages where nothing else could be done.

    Attributes
    ----------
    all : tuple of Task
        In the units' order.
    program : Program or None
        What of them is machine code.
    receives, sends : list of Transfer
        By handle.
    unpacks : list of Conversion or None
        By receive: what is to be done when it has arrived.
    gates : mapping
        Receive -> (units to run, sends to complete) before it is posted.
    """

    def __init__(
        self,
        graph: Graph,
        units: Sequence[Unit],
        kernels: Sequence[Kernel | None],
        arena: Arena,
        storage: Storage,
        mail: Mail,
        transport: Transport,
        *,
        keep: bool,
        dropped: Transfer | None,
        pace: Pace | None,
        meter: Meter | None,
        patience_s: float = 0.0,
    ) -> None:
        self._patience_s = patience_s
        self._graph, self._kernels, self._arena = graph, kernels, arena
        self._storage, self._mail, self._transport = storage, mail, transport
        self._dropped, self._pace, self._meter = dropped, pace, meter
        self.receives: list[Transfer] = []
        self.sends: list[Transfer] = []
        self.unpacks: list[Conversion | None] = []
        self.gates: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.program: Program | None = None
        self.all = self._prepare(units, keep)

    def _prepare(self, units: Sequence[Unit], keep: bool) -> tuple[Task, ...]:
        pieces = units_by_layer(units)
        feeds: dict[int, list[int]] = {i: [] for i in range(len(units))}
        for i, unit in enumerate(units):
            for need in unit.requirements:
                for source in local_sources(need, pieces):
                    feeds[source.index].append(i)
        incoming: dict[Transfer, int] = {}
        for unit in units:
            for need in unit.requirements:
                for transfer in need.transfers:
                    if transfer not in incoming:
                        region = self._storage.region(transfer)
                        incoming[transfer] = self._transport.open_receive(transfer, region)
                        self.receives.append(transfer)
                        self.unpacks.append(self._conversion(transfer))
        sends = {t: self._open_send(t) for unit in units for t in unit.forwards}
        self.gates = {
            incoming[transfer]: (gate.units, tuple(sends[t] for t in gate.sends))
            for transfer, gate in self._arena.gates.items()
        }
        opens: dict[int, list[int]] = {}
        last: dict[int, list[int]] = {}
        for transfer, gate in self._arena.gates.items():
            last.setdefault(max(gate.units), []).append(incoming[transfer])
            for index in gate.units:
                opens.setdefault(index, []).append(incoming[transfer])
        needs = [
            tuple(sorted({incoming[t] for need in unit.requirements for t in need.transfers}))
            for unit in units
        ]
        conversions = [
            [pack for t in unit.forwards if (pack := self._conversion(t))] for unit in units
        ]
        sent = [tuple(sends[transfer] for transfer in unit.forwards) for unit in units]
        settled = [
            tuple(sends[transfer] for transfer in self._arena.settled.get(i, ()))
            for i in range(len(units))
        ]
        needs_local = [
            sum(len(local_sources(need, pieces)) for need in unit.requirements) for unit in units
        ]
        alone = without_alternative(needs_local, feeds)
        self.program = program(
            [
                Steps(
                    self._bound(unit, self._kernels[i]),
                    _calls(conversions[i]),
                    needs[i],
                    self._patience_s if alone[i] else min(self._patience_s, _GLANCE_S),
                    any(self._watched(handle) for handle in needs[i]),
                    _calls([pack for handle in needs[i] if (pack := self.unpacks[handle])]) or (),
                    settled[i],
                    sent[i],
                    tuple((self.gates[handle][1], (handle,)) for handle in last.get(i, ())),
                )
                for i, unit in enumerate(units)
            ],
            self._transport.native(),
        )
        tasks = []
        for i, unit in enumerate(units):
            bound = self.program is not None and self.program.computes[i]
            reads = (need.producer for need in unit.requirements)
            tasks.append(
                Task(
                    unit,
                    ()
                    if bound
                    else tuple(self._storage.reader(n.producer, n.rows) for n in unit.requirements),
                    self._compute(unit, i),
                    tuple(pack.run for pack in conversions[i]),
                    sent[i],
                    settled[i],
                    tuple(opens.get(i, ())),
                    tuple(last.get(i, ())),
                    tuple(feeds[i]),
                    () if keep else tuple(name for name in reads if self._storage.loose(name)),
                    needs_local[i],
                    needs[i],
                )
            )
        return tuple(tasks)

    def _watched(self, handle: int) -> bool:
        """Whether there is something to do for Python when a message arrives."""
        unpack = self.unpacks[handle]
        by_python = unpack is not None and unpack.call is None
        return by_python or self.receives[handle] == self._dropped

    def _bound(self, unit: Unit, kernel: Kernel | None) -> tuple[NativeCall, ...] | None:
        """The unit's kernel with all in place, if it is machine code, and what comes before."""
        place = self._storage.place(unit)
        if kernel is None or kernel.bind is None or place is None or self._pace is not None:
            return None
        inputs, before = [], []
        for need in unit.requirements:
            tensor = self._storage.fixed(need.producer, need.rows)
            if tensor is None:
                combination = self._storage.combination(need.producer)
                if combination is None:
                    return None
                tensor = combination.target
                before.append(combination.call)
            inputs.append(tensor)
        call = kernel.bind(place, *inputs)
        return None if call is None else (*before, call)

    def _open_send(self, transfer: Transfer) -> int:
        self.sends.append(transfer)
        return self._transport.open_send(transfer, self._storage.region(transfer))

    def _compute(self, unit: Unit, i: int) -> Callable[..., object]:
        """What runs the unit and keeps its result, straight in its buffer if the kernel can."""
        layer, kernel = self._graph.by_name[unit.layer], self._kernels[i]
        if self.program is not None and self.program.computes[i]:
            return self._metered("kernel", partial(self.program.compute, i))
        write, place = self._storage.writer(unit), self._storage.place(unit)
        if layer.kind == "input":
            if place is not None:
                return self._metered("copy", lambda: place.copy_(self._mail.request[layer.name]))
            form = memory_format(layer.out)
            return self._metered(
                "copy", lambda: write(self._mail.request[layer.name].contiguous(memory_format=form))
            )
        if kernel is None:

            def answer(tensor: Tensor) -> None:
                self._mail.outputs[layer.name] = tensor.clone(memory_format=torch.contiguous_format)
                write(self._mail.outputs[layer.name])

            return self._metered("copy", answer)
        # A paced unit remembers its result, which must not be in memory that is used again.
        run = kernel.run if self._pace is None else self._pace.wrap(unit, kernel.run)
        if place is not None and kernel.into is not None and self._pace is None:
            return self._metered("kernel", partial(kernel.into, place))
        run, write = self._metered("kernel", run), self._metered("copy", write)
        return lambda *inputs: write(run(*inputs))

    def _conversion(self, transfer: Transfer) -> Conversion | None:
        convert = self._storage.conversion(transfer)
        if convert is None:
            return None
        return replace(convert, run=self._metered("copy", convert.run))

    def _metered(self, part: Part, call: Callable[..., Any]) -> Callable[..., Any]:
        return call if self._meter is None else self._meter.timed(part, call)


def direct_layers(units: Sequence[Unit], kernels: Sequence[Kernel | None]) -> frozenset[str]:
    """Layers whose kernels all compute straight into memory that they are given."""
    pairs = list(zip(units, kernels, strict=True))
    others = {unit.layer for unit, kernel in pairs if kernel is None or kernel.into is None}
    return frozenset(unit.layer for unit in units) - others


def without_alternative(
    needs_local: Sequence[int], feeds: Mapping[int, Sequence[int]]
) -> list[bool]:
    """By unit: whether it alone can be next when those before it have run, and no others.

    Parameters
    ----------
    needs_local : by unit, how many units it reads.
    feeds : unit -> the units that read it.
    """
    missing = list(needs_local)
    runnable = missing.count(0)
    found = []
    for i in range(len(missing)):
        found.append(runnable == 1)
        runnable -= 1
        for reader in feeds[i]:
            missing[reader] -= 1
            runnable += missing[reader] == 0
    return found


def _calls(conversions: Sequence[Conversion]) -> tuple[NativeCall, ...] | None:
    """All of them as machine code; None where one is not."""
    found = tuple(one.call for one in conversions if one.call is not None)
    return found if len(found) == len(conversions) else None


__all__ = ["Mail", "Task", "Tasks", "direct_layers", "make_kernels", "without_alternative"]
