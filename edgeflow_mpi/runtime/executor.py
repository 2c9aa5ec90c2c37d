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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeflow_mpi.errors import EdgeflowError, RuntimeFailure
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.kernels.kept import kept_bytes
from edgeflow_mpi.runtime.meter import Meter
from edgeflow_mpi.runtime.pace import Pace
from edgeflow_mpi.runtime.program import Program
from edgeflow_mpi.runtime.storage import Storage
from edgeflow_mpi.runtime.tasks import Mail, Tasks, direct_layers, make_kernels
from edgeflow_mpi.runtime.transport import Transport
from edgeflow_mpi.units.arena import lay_out
from edgeflow_mpi.units.buffers import fixed_layers
from edgeflow_mpi.units.precedence import Precedence
from edgeflow_mpi.units.tables import Transfer, Unit, UnitTables

Tensor = torch.Tensor


@dataclass(frozen=True)
class _State:
    """What is so when the first units have run, and no others.

    Attributes
    ----------
    missing_local : list of int
        By unit: those computed here that it still waits for.
    runnable : list of int
        The units that wait for none.
    here : frozenset of int
        Receives that the first units took.
    closed : mapping of int to int
        Receives that are not posted -> units to wait for before they are.
    """

    missing_local: list[int]
    runnable: list[int]
    here: frozenset[int]
    closed: Mapping[int, int]


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
    patience_s : how long to poll for messages without a word to the caller, where there is
        nothing else to do.

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
        patience_s: float = 0.0,
    ) -> None:
        self._meter = meter
        self.clock: Clock = Clock() if shares is None else shares.clock
        self._graph = graph
        self._transport = transport if meter is None else meter.over(transport)
        self._dropped = dropped
        self._pace = pace
        self._mail = Mail()
        units = tables.ranks[rank]
        if shares is None:
            before = kept_bytes()
            self._kernels = make_kernels(graph, needs, units, weights)
            self.kept_bytes = kept_bytes() - before
            self.direct = direct_layers(units, self._kernels)
            loose = frozenset(unit.layer for unit in units) - self.direct - fixed_layers(units)
            precedence = None if keep else Precedence(tables)
            self.arena = lay_out(graph, tables, rank, precedence, loose)
        else:
            self._kernels, self.direct, self.arena = shares._kernels, shares.direct, shares.arena
            self.kept_bytes = 0
        self.storage = Storage(graph, units, self.arena)
        made = Tasks(
            graph, units, self._kernels, self.arena, self.storage, self._mail, self._transport,
            keep=keep, dropped=dropped, pace=pace, meter=meter, patience_s=patience_s,
        )  # fmt: skip
        self._tasks, self._program, self._gates = made.all, made.program, made.gates
        self._receives, self._sends, self._unpacks = made.receives, made.sends, made.unpacks
        self._open_at_once = tuple(
            handle for handle, t in enumerate(self._receives) if t not in self.arena.gates
        )
        self._closed: dict[int, int] = {}
        self._readers_of = self._waiters()
        self._reads = Counter(name for task in self._tasks for name in task.reads)
        self._unread: Counter[str] = Counter()
        self._needs_local = [task.needs_local for task in self._tasks]
        self._states: dict[int, _State] = {}
        self._missing_local: list[int] = []
        self._here: set[int] = set()
        self._ready: list[int] = []
        self._awaiting: dict[int, None] = {}
        self._first = self._ran = 0
        self._done = bytearray(len(self._tasks))
        self._in_order = True
        self._trace: list[tuple[float, float]] = [(0.0, 0.0)] * len(self._tasks)

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
        return self._ran == len(self._tasks)

    @property
    def sends_complete(self) -> bool:
        return self._transport.sends_complete()

    def begin(self, request: Mapping[str, Tensor]) -> None:
        """Start a request; ``request`` maps input names to tensors on rank 0, else is empty."""
        self.rest()
        self.storage.clear()
        self._mail.request, self._mail.outputs = request, {}
        self._unread = self._reads.copy()
        self._here.clear()
        self._first = self._ran = 0
        self._done = bytearray(len(self._tasks))
        self._in_order = True
        if self._meter is not None:
            self._meter.begin()
        self._transport.start_receives(self._open_at_once)

    def step(self, *, one: bool = False) -> bool:
        """Run the first ready unit in priority, if there is one.

        Where all units before it have run, those behind it that need no Python may run as well,
        unless it is to be ``one``.
        """
        if self._in_order:
            if self._ran == len(self._tasks):
                return False
            if self._step_in_order(one=one):
                return True
            if self._in_order:
                if self._meter is not None:
                    self._meter.idle()
                return False
        return self._step_out_of_order()

    def _step_in_order(self, *, one: bool) -> bool:
        """Run the first unit that has not run, unless its messages are not here."""
        i, code = self._first, self._program
        started_s = time.perf_counter()
        if code is not None and code.asks[i]:
            stop = code.run(i, i + 1 if one else len(self._tasks))
            if stop == i:
                self._waited(code)
                self._leave_order()
                return False
        else:
            lacking = self._lacking(i)
            if lacking:
                self._note(self._transport.arrived(lacking))
                if not self._here.issuperset(lacking):
                    self._leave_order()
                    return False
            if code is not None and code.whole[i]:
                stop = code.run(i, i + 1 if one else len(self._tasks), arrived=True)
            else:
                self._run(i)
                for handle in self._tasks[i].opens_in_order:
                    self._post(handle)
                stop = i + 1
        self._first = self._ran = stop
        ended_s = time.perf_counter()
        self._account(i, stop, started_s, ended_s, in_order=True)
        return True

    def _waited(self, code: Program) -> None:
        """The first unit's messages were waited for in vain."""
        waited_s = code.take_waited_s()
        self.clock.wait_s += waited_s
        if self._meter is not None:
            self._meter.spent("waiting", waited_s)

    def _leave_order(self) -> None:
        """The first unit that has not run must wait: others that are ready may come before."""
        state = self._state(self._first)
        if len(state.runnable) == 1:  # there are no others
            return
        self._in_order = False
        self._missing_local, self._closed = state.missing_local[:], dict(state.closed)
        self._here |= state.here
        self._done[: self._first] = b"\1" * self._first
        self._ready, self._awaiting = [], {}
        for i in state.runnable:
            self._locally_ready(i)

    def _state(self, first: int) -> _State:
        """What is so when ``first`` units have run; worked out once."""
        found = self._states.get(first)
        if found is None:
            missing = self._needs_local[:]
            here: set[int] = set()
            for task in self._tasks[:first]:
                here.update(task.needs_transfers)
                for reader in task.feeds:
                    missing[reader] -= 1
            runnable = [i for i in range(first, len(missing)) if not missing[i]]
            closed = {
                handle: sum(i >= first for i in units) for handle, (units, _) in self._gates.items()
            }
            closed = {handle: count for handle, count in closed.items() if count}
            found = self._states[first] = _State(missing, runnable, frozenset(here), closed)
        return found

    def _lacking(self, i: int) -> list[int]:
        """The receives that a unit waits for."""
        return [h for h in self._tasks[i].needs_transfers if h not in self._here]

    def _locally_ready(self, i: int) -> None:
        lacking = self._lacking(i)
        if lacking:
            self._awaiting.update(dict.fromkeys(lacking))
        else:
            heapq.heappush(self._ready, i)

    def poll(self) -> bool:
        """Take note of what has arrived; whether anything has."""
        if self._in_order:
            lacking = [] if self.finished else self._lacking(self._first)
            arrived = self._transport.arrived(lacking) if lacking else []
            self._note(arrived)
            return bool(arrived)
        if not self._awaiting:
            return False
        arrived = self._transport.arrived(list(self._awaiting))
        self._note(arrived)
        for handle in arrived:
            del self._awaiting[handle]
        for i in dict.fromkeys(i for handle in arrived for i in self._readers_of[handle]):
            if not self._missing_local[i] and self._here.issuperset(self._tasks[i].needs_transfers):
                heapq.heappush(self._ready, i)
        return bool(arrived)

    def _note(self, arrived: Sequence[int]) -> None:
        """These messages are here."""
        self._here.update(arrived)
        for handle in arrived:
            if self._receives[handle] == self._dropped:
                self._drop_row(self._receives[handle])
            unpack = self._unpacks[handle]
            if unpack is not None:
                unpack.run()

    def _before(self, i: int) -> bool:
        """Whether a unit of higher priority than ``i`` waits for nothing but messages."""
        return any(self._readers_of[handle][0] < i for handle in self._awaiting)

    def _drop_row(self, transfer: Transfer) -> None:
        region = self.storage.region(transfer)
        axis = self._graph.by_name[transfer.producer].out.axis
        (region.view if axis is None else region.view.narrow(axis, 0, 1)).zero_()

    def _step_out_of_order(self) -> bool:
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
        if self._program is not None and self._program.whole[i]:
            self._program.alone(i)
        else:
            self._run(i)
        for handle in task.opens:
            self._open(handle)
        for reader in task.feeds:
            self._missing_local[reader] -= 1
            if self._missing_local[reader] == 0:
                self._locally_ready(reader)
        self._ran += 1
        self._done[i] = 1
        while self._first < self._ran and self._done[self._first]:
            self._first += 1
        # Nothing behind the first that has not run has run.
        self._in_order = self._first == self._ran
        ended_s = time.perf_counter()
        self._account(i, i + 1, started_s, ended_s, in_order=False)
        return True

    def _run(self, i: int) -> None:
        """Run a unit, and send what it is to send."""
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
        for name in task.reads:
            self._unread[name] -= 1
            if not self._unread[name]:
                self.storage.drop(name)

    def _account(
        self, first: int, stop: int, started_s: float, ended_s: float, *, in_order: bool
    ) -> None:
        """Units ``first`` to ``stop`` have run: where their time went."""
        code = self._program
        waited_s = 0.0 if code is None else code.take_waited_s()
        self.clock.compute_s += ended_s - started_s - waited_s
        self.clock.wait_s += waited_s
        if code is None or not code.whole[first]:
            self._trace[first] = (started_s, ended_s)
        if self._meter is None:
            return
        for i in range(first, stop):
            last = self._ran == len(self._tasks) and i == stop - 1
            if code is not None and code.whole[i]:
                code.account(i, self._meter, last=last, in_order=in_order)
            else:
                self._meter.close(i, last=last)
        self._meter.resume()

    def _open(self, handle: int) -> None:
        """One unit less to wait for before a receive is posted."""
        self._closed[handle] -= 1
        if self._closed[handle] == 0:
            self._post(handle)

    def _post(self, handle: int) -> None:
        """Post a receive whose memory is free."""
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
        return self._mail.outputs

    def trace(self) -> list[tuple[Unit, float, float]]:
        """Each unit with its start and end (``time.perf_counter``) in the last request."""
        code, times = self._program, self._trace
        return [
            (t.unit, *(times[i] if code is None or not code.whole[i] else code.times_s(i)))
            for i, t in enumerate(self._tasks)
        ]

    def waiting_for(self) -> str:
        """One clause: the first unit that waits for messages, or what others have not taken."""
        return self._waiting()[0]

    def awaited_rank(self) -> int | None:
        """The rank from which, or to which, the first of these messages does not get on."""
        return self._waiting()[1]

    def _waiting(self) -> tuple[str, int | None]:
        for i in self._unfinished():
            task, lacking = self._tasks[i], [self._receives[h] for h in self._lacking(i)]
            if lacking:
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

    def _unfinished(self) -> Sequence[int]:
        """Units that wait for nothing but messages, if for anything."""
        if self._in_order:
            return () if self.finished else (self._first,)
        places = range(self._first, len(self._tasks))
        return [i for i in places if not self._done[i] and not self._missing_local[i]]

    def close(self) -> None:
        self._transport.close()


def _more(transfers: Sequence[Transfer]) -> str:
    """That there are others beside the one that was described."""
    others = len(transfers) - 1
    return f" (and {others} more message{'s' * (others > 1)})" if others else ""


__all__ = ["Clock", "Executor"]
