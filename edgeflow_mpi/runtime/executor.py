"""The executor: a rank runs the first ready unit in its table, until all are done.

It is a small state machine. :meth:`Executor.step` looks at what has arrived and runs at most
one unit; waiting is the caller's business (a :class:`~edgeflow_mpi.runtime.pipeline.Pipeline`
in a job, a round-robin over all ranks in a test). Receives are posted when a request begins, those
into memory that is used before as soon as it is free; sends start when their unit is done and are
complete before the next request. That memory is shared rests on this order: a unit that is ready
never runs after one of lower priority (:mod:`edgeflow_mpi.units.precedence`).
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from edgeflow_mpi.errors import EdgeflowError, RuntimeFailure
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.kernels.buffers import memory_format
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.kept import kept_bytes
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.runtime.meter import Meter, Part
from edgeflow_mpi.runtime.pace import Pace
from edgeflow_mpi.runtime.storage import Reader, Storage
from edgeflow_mpi.runtime.transport import Transport
from edgeflow_mpi.units.arena import lay_out
from edgeflow_mpi.units.buffers import fixed_layers
from edgeflow_mpi.units.precedence import Precedence
from edgeflow_mpi.units.tables import (
    Transfer,
    Unit,
    UnitTables,
    local_sources,
    units_by_layer,
)

Tensor = torch.Tensor


@dataclass(frozen=True)
class _Task:
    """A unit, ready to run: where to read, what to compute, where to write, what to send."""

    unit: Unit
    readers: tuple[Reader, ...]
    compute: Callable[..., object]
    packs: tuple[Callable[[], object], ...]
    sends: tuple[int, ...]
    settled: tuple[int, ...]
    opens: tuple[int, ...]
    feeds: tuple[int, ...]
    reads: tuple[str, ...]
    needs_local: int
    needs_transfers: tuple[int, ...]


@dataclass
class Clock:
    """Seconds spent by one rank since the counters were last reset."""

    compute_s: float = 0.0
    wait_s: float = 0.0

    def reset(self) -> None:
        self.compute_s = self.wait_s = 0.0


class Executor:
    """One rank's units of one plan, prepared to run any number of requests.

    Parameters
    ----------
    graph, needs : the layer DAG and its row algebra.
    tables : verified tables.
    rank : whose units to run.
    weights : every weight that the table's layers name.
    transport : channels to the other ranks.
    keep : keep every tensor until the next request, for comparing layer by layer.
    dropped : a transfer whose first row is overwritten with zeros when it arrives, to
        prove that a comparison notices.
    pace : makes units take as long as on a slower device.
    shares : an executor of the same table whose kernels, layout and clock are used, so that
        several requests can be under way at once.
    meter : takes down what each unit's time is spent on.

    Attributes
    ----------
    clock : computing and waiting time of this rank.
    arena : where this rank's tensors lie.
    direct : the layers whose kernels compute straight into the arena.
    kept_bytes : what its kernels keep of weights beside them, and no others had before.
    """

    def __init__(
        self,
        graph: Graph,
        needs: Needs,
        tables: UnitTables,
        rank: int,
        weights: Mapping[str, Tensor],
        transport: Transport,
        *,
        keep: bool = False,
        dropped: Transfer | None = None,
        pace: Pace | None = None,
        shares: Executor | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._meter = meter
        self.clock: Clock = Clock() if shares is None else shares.clock
        self._graph = graph
        self._transport = transport if meter is None else meter.over(transport)
        self._dropped = dropped
        self._pace = pace
        self._request: Mapping[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._receives: list[Transfer] = []
        self._sends: list[Transfer] = []
        self._unpacks: list[Callable[[], object] | None] = []
        units = tables.ranks[rank]
        if shares is None:
            before = kept_bytes()
            self._kernels = [self._kernel(needs, unit, weights) for unit in units]
            self.kept_bytes = kept_bytes() - before
            self.direct = direct_layers(units, self._kernels)
            loose = frozenset(unit.layer for unit in units) - self.direct - fixed_layers(units)
            precedence = None if keep else Precedence(tables)
            self.arena = lay_out(graph, tables, rank, precedence, loose)
        else:
            self._kernels, self.direct, self.arena = shares._kernels, shares.direct, shares.arena
            self.kept_bytes = 0
        self.storage = Storage(graph, units, self.arena)
        self._tasks = self._prepare(units, keep)
        self._open_at_once = tuple(
            handle for handle, t in enumerate(self._receives) if t not in self.arena.gates
        )
        self._closed: dict[int, int] = {}
        self._readers_of = self._waiters()
        self._reads = Counter(name for task in self._tasks for name in task.reads)
        self._unread: Counter[str] = Counter()
        self._needs_local = [task.needs_local for task in self._tasks]
        self._needs_remote = [len(task.needs_transfers) for task in self._tasks]
        self._roots = [i for i, count in enumerate(self._needs_local) if not count]
        self._missing_local: list[int] = []
        self._missing_remote: list[int] = []
        self._here: set[int] = set()
        self._ready: list[int] = []
        self._awaiting: dict[int, None] = {}
        self._left = 0
        self._trace: list[tuple[float, float]] = [(0.0, 0.0)] * len(self._tasks)

    def _prepare(self, units: Sequence[Unit], keep: bool) -> tuple[_Task, ...]:
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
                        region = self.storage.region(transfer)
                        incoming[transfer] = self._transport.open_receive(transfer, region)
                        self._receives.append(transfer)
                        self._unpacks.append(self._conversion(transfer))
        sends = {t: self._open_send(t) for unit in units for t in unit.forwards}
        self._gates = {
            incoming[transfer]: (len(gate.units), tuple(sends[t] for t in gate.sends))
            for transfer, gate in self.arena.gates.items()
        }
        opens: dict[int, list[int]] = {}
        for transfer, gate in self.arena.gates.items():
            for index in gate.units:
                opens.setdefault(index, []).append(incoming[transfer])
        tasks = []
        for i, unit in enumerate(units):
            transfers = {incoming[t] for need in unit.requirements for t in need.transfers}
            tasks.append(
                _Task(
                    unit,
                    tuple(self.storage.reader(n.producer, n.rows) for n in unit.requirements),
                    self._compute(unit, self._kernels[i]),
                    tuple(pack for t in unit.forwards if (pack := self._conversion(t))),
                    tuple(sends[transfer] for transfer in unit.forwards),
                    tuple(sends[transfer] for transfer in self.arena.settled.get(i, ())),
                    tuple(opens.get(i, ())),
                    tuple(feeds[i]),
                    () if keep else tuple(need.producer for need in unit.requirements),
                    sum(len(local_sources(need, pieces)) for need in unit.requirements),
                    tuple(sorted(transfers)),
                )
            )
        return tuple(tasks)

    def _open_send(self, transfer: Transfer) -> int:
        self._sends.append(transfer)
        return self._transport.open_send(transfer, self.storage.region(transfer))

    def _kernel(self, needs: Needs, unit: Unit, weights: Mapping[str, Tensor]) -> Kernel | None:
        """What computes the unit; None for one that takes a request or gives an answer."""
        layer = self._graph.by_name[unit.layer]
        if layer.kind in ("input", "output"):
            return None
        return prepare(self._graph, layer, unit.rows, weights, needs, unit.engine)

    def _compute(self, unit: Unit, kernel: Kernel | None) -> Callable[..., object]:
        """What runs the unit and keeps its result, straight in its buffer if the kernel can."""
        layer = self._graph.by_name[unit.layer]
        write, place = self.storage.writer(unit), self.storage.place(unit)
        if layer.kind == "input":
            if place is not None:
                return self._metered("copy", lambda: place.copy_(self._request[layer.name]))
            form = memory_format(layer.out)
            return self._metered(
                "copy", lambda: write(self._request[layer.name].contiguous(memory_format=form))
            )
        if kernel is None:

            def answer(tensor: Tensor) -> None:
                self._outputs[layer.name] = tensor.clone(memory_format=torch.contiguous_format)
                write(self._outputs[layer.name])

            return self._metered("copy", answer)
        # A paced unit remembers its result, which must not be in memory that is used again.
        run = kernel.run if self._pace is None else self._pace.wrap(unit, kernel.run)
        if place is not None and kernel.into is not None and self._pace is None:
            return self._metered("kernel", partial(kernel.into, place))
        run, write = self._metered("kernel", run), self._metered("copy", write)
        return lambda *inputs: write(run(*inputs))

    def _conversion(self, transfer: Transfer) -> Callable[[], object] | None:
        convert = self.storage.conversion(transfer)
        return None if convert is None else self._metered("copy", convert)

    def _metered(self, part: Part, call: Callable[..., Any]) -> Callable[..., Any]:
        return call if self._meter is None else self._meter.timed(part, call)

    def _waiters(self) -> Mapping[int, tuple[int, ...]]:
        """Receive handle -> tasks that need it."""
        waiters: dict[int, list[int]] = {}
        for i, task in enumerate(self._tasks):
            for handle in task.needs_transfers:
                waiters.setdefault(handle, []).append(i)
        return {handle: tuple(tasks) for handle, tasks in waiters.items()}

    @property
    def engines(self) -> tuple[tuple[Unit, str], ...]:
        """The compute units, each with the name of the engine that computes it."""
        return tuple(
            (task.unit, kernel.engine)
            for task, kernel in zip(self._tasks, self._kernels, strict=True)
            if kernel is not None
        )

    @property
    def finished(self) -> bool:
        """Whether every unit of the request has run (sends may still be under way)."""
        return self._left == 0

    @property
    def sends_complete(self) -> bool:
        return self._transport.sends_complete()

    def begin(self, request: Mapping[str, Tensor]) -> None:
        """Start a request; ``request`` maps input names to tensors on rank 0, else is empty."""
        self.rest()
        self.storage.clear()
        self._request, self._outputs = request, {}
        self._unread = self._reads.copy()
        self._missing_local, self._missing_remote = self._needs_local[:], self._needs_remote[:]
        self._here.clear()
        self._awaiting = {}
        self._ready = []
        self._left = len(self._tasks)
        if self._meter is not None:
            self._meter.begin()
        self._closed = {handle: units for handle, (units, _) in self._gates.items()}
        self._transport.start_receives(self._open_at_once)
        for i in self._roots:
            self._locally_ready(i)

    def _locally_ready(self, i: int) -> None:
        if self._missing_remote[i] == 0:
            heapq.heappush(self._ready, i)
        else:
            for handle in self._tasks[i].needs_transfers:
                if handle not in self._here:
                    self._awaiting[handle] = None

    def poll(self) -> bool:
        """Take note of what has arrived; whether anything has."""
        if not self._awaiting:
            return False
        arrived = self._transport.arrived(list(self._awaiting))
        for handle in arrived:
            del self._awaiting[handle]
            self._here.add(handle)
            if self._receives[handle] == self._dropped:
                self._drop_row(self._receives[handle])
            unpack = self._unpacks[handle]
            if unpack is not None:
                unpack()
            for i in self._readers_of[handle]:
                self._missing_remote[i] -= 1
                if self._missing_remote[i] == 0 and self._missing_local[i] == 0:
                    heapq.heappush(self._ready, i)
        return bool(arrived)

    def _before(self, i: int) -> bool:
        """Whether a unit of higher priority than ``i`` waits for nothing but messages."""
        return any(self._readers_of[handle][0] < i for handle in self._awaiting)

    def _drop_row(self, transfer: Transfer) -> None:
        region = self.storage.region(transfer)
        axis = self._graph.by_name[transfer.producer].out.axis
        (region.view if axis is None else region.view.narrow(axis, 0, 1)).zero_()

    def step(self) -> bool:
        """Run the first ready unit in priority, if there is one."""
        # Looking costs a system call where ranks share cores, so only for what could run first.
        if not self._ready or (self._awaiting and self._before(self._ready[0])):
            self.poll()
        if not self._ready:
            if self._meter is not None:
                self._meter.idle()
            return False
        started_s = time.perf_counter()
        i = heapq.heappop(self._ready)
        task = self._tasks[i]
        if task.settled:
            self._transport.settle(task.settled)
        try:
            task.compute(*[read() for read in task.readers])
        except EdgeflowError:
            raise
        except Exception as error:
            raise RuntimeFailure(
                f"unit {task.unit.label} ({task.unit.operator}) failed: "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error
        for pack in task.packs:
            pack()
        if task.sends:
            self._transport.start_sends(task.sends)
        for handle in task.opens:
            self._open(handle)
        for name in task.reads:
            self._unread[name] -= 1
            if not self._unread[name]:
                self.storage.drop(name)
        for reader in task.feeds:
            self._missing_local[reader] -= 1
            if self._missing_local[reader] == 0:
                self._locally_ready(reader)
        self._left -= 1
        ended_s = time.perf_counter()
        self._trace[i] = (started_s, ended_s)
        self.clock.compute_s += ended_s - started_s
        if self._meter is not None:
            self._meter.close(i, last=self._left == 0)
        return True

    def _open(self, handle: int) -> None:
        """One unit less to wait for before a receive is posted."""
        self._closed[handle] -= 1
        if self._closed[handle] == 0:
            sends = self._gates[handle][1]
            if sends:
                self._transport.settle(sends)
            self._transport.start_receives((handle,))

    def rest(self) -> None:
        """The rank does nothing for a while; paced units begin anew."""
        if self._pace is not None:
            self._pace.rest()

    def outputs(self) -> dict[str, Tensor]:
        """Answer tensors by output layer, on rank 0 after the request has finished."""
        return self._outputs

    def trace(self) -> list[tuple[Unit, float, float]]:
        """Each unit with its start and end (``time.perf_counter``) in the last request."""
        return [(t.unit, *times) for t, times in zip(self._tasks, self._trace, strict=True)]

    def waiting_for(self) -> str:
        """One clause: the first unit that waits for messages, or what others have not taken."""
        return self._waiting()[0]

    def awaited_rank(self) -> int | None:
        """The rank from which, or to which, the first of these messages does not get on."""
        return self._waiting()[1]

    def _waiting(self) -> tuple[str, int | None]:
        for i, task in enumerate(self._tasks):
            if self._missing_local[i] == 0 and self._missing_remote[i] > 0:
                lacking = [self._receives[h] for h in task.needs_transfers if h not in self._here]
                here, first = len(task.needs_transfers) - len(lacking), lacking[0]
                clause = (
                    f"unit {task.unit.label} has {here} of {len(task.needs_transfers)} messages "
                    f"and waits for rows {first.rows} of {first.producer} from rank {first.source}"
                )
                return clause + _more(lacking), first.source
        sends = [self._sends[handle] for handle in self._transport.untaken()]
        if not sends:
            return "all its units have run", None
        first = sends[0]
        clause = f"rank {first.dest} has not taken rows {first.rows} of {first.producer}"
        return clause + _more(sends), first.dest

    def close(self) -> None:
        self._transport.close()


def direct_layers(units: Sequence[Unit], kernels: Sequence[Kernel | None]) -> frozenset[str]:
    """Layers whose kernels all compute straight into memory that they are given."""
    pairs = list(zip(units, kernels, strict=True))
    others = {unit.layer for unit, kernel in pairs if kernel is None or kernel.into is None}
    return frozenset(unit.layer for unit in units) - others


def _more(transfers: Sequence[Transfer]) -> str:
    """That there are others beside the one that was described."""
    others = len(transfers) - 1
    return f" (and {others} more message{'s' * (others > 1)})" if others else ""


__all__ = ["Clock", "Executor"]
