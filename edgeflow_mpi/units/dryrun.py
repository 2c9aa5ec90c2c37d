"""All ranks run dry in one process, so that a deadlock is an exception and not a hung job.

The rule is the executor's: all receives are posted at the start; a rank runs its first
ready unit in the order of priority; a unit is ready when the inputs that its rank computes
have been computed, and the transfers that it requires have arrived; a unit's transfers leave
when it has run. A transfer arrives only at a receive that names the very same transfer:
nothing is buffered on the way.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edgeflow_mpi.units.faults import DeadlockError, Place, fault_at
from edgeflow_mpi.units.tables import (
    Transfer,
    Unit,
    UnitTables,
    local_sources,
    units_by_layer,
)
from edgeflow_mpi.units.text import transfer_text


@dataclass(frozen=True)
class _Computed:
    """The event that a rank has run its unit number ``index``, of a layer."""

    layer: str
    rank: int
    index: int

    def __str__(self) -> str:
        return f"{self.layer} of its own rank"


_Event: TypeAlias = _Computed | Transfer
_UnitKey: TypeAlias = tuple[int, int]  # rank, position in its table


def dry_run(tables: UnitTables) -> tuple[tuple[Unit, ...], ...]:
    """Units of every rank in the order in which they ran, one unit a rank and step.

    The tables need not have been verified: what has no sender leaves its readers waiting.

    Raises
    ------
    DeadlockError
        Where units are left that nothing will ever make ready. It names one, nearest to the
        root of the matter, what it had got and what it waits for.
    """
    done: list[list[Unit]] = [[] for _ in tables.ranks]
    for rank, position in run_order(tables):
        done[rank].append(tables.ranks[rank][position])
    return tuple(tuple(units) for units in done)


def run_order(tables: UnitTables) -> tuple[tuple[int, int], ...]:
    """(rank, position) of all units in the order of this run; raises as :func:`dry_run` does."""
    run = _Run(tables)
    while run.step():
        pass
    run.check_finished()
    return tuple(run.order)


def dry_run_together(
    tables: UnitTables, in_flight: int, requests: int
) -> tuple[tuple[tuple[int, Unit], ...], ...]:
    """(request, unit) of every rank in the order in which they ran, ``in_flight`` at once.

    The rule is the pipeline's: request n runs in slot n mod ``in_flight``; a rank begins it when
    that slot's request before is done there and all its messages have been taken, and posts its
    receives then; it runs the first ready unit of its oldest request that has one.

    Raises
    ------
    DeadlockError
        Where some units never become ready.
    """
    runs = [_Run(tables) for _ in range(requests)]
    order: list[list[tuple[int, Unit]]] = [[] for _ in tables.ranks]
    begun, done = [0] * tables.size, [0] * tables.size
    # Messages that have left, by request, and are not taken: nothing is buffered on the way.
    held: list[set[Transfer]] = [set() for _ in runs]

    def slot_is_free(rank: int, request: int) -> bool:
        before = request - in_flight
        return before < 0 or all(transfer.source != rank for transfer in held[before])

    def begin(rank: int) -> bool:
        request = begun[rank]
        if request == min(done[rank] + in_flight, requests) or not slot_is_free(rank, request):
            return False
        begun[rank] += 1
        for transfer in sorted(t for t in held[request] if t.dest == rank):
            held[request].remove(transfer)
            runs[request].arrives(transfer)
        return True

    def step(rank: int) -> bool:
        for request in range(done[rank], begun[rank]):
            unit = runs[request].run_first(rank)
            if unit is None:
                continue
            order[rank].append((request, unit))
            for transfer in unit.forwards:
                if begun[transfer.dest] > request:
                    runs[request].arrives(transfer)
                else:
                    held[request].add(transfer)
            while done[rank] < begun[rank] and runs[done[rank]].left[rank] == 0:
                done[rank] += 1
            return True
        return False

    def skip_idle(rank: int) -> bool:
        """A rank without units is done with a request as soon as it has begun."""
        if tables.ranks[rank] or done[rank] == begun[rank]:
            return False
        done[rank] = begun[rank]
        return True

    moved = True
    while moved:
        moved = False
        for rank in range(tables.size):  # each of them, one after the other
            moved |= begin(rank) or step(rank) or skip_idle(rank)
    for run in runs:
        run.check_finished()
    return tuple(tuple(ran) for ran in order)


class _Run:
    """What every unit still misses, and the units of every rank that miss nothing."""

    def __init__(self, tables: UnitTables) -> None:
        self._tables = tables
        self._own = [units_by_layer(units) for units in tables.ranks]
        self._missing: dict[_UnitKey, set[_Event]] = {}
        self._waiting: dict[_Event, list[_UnitKey]] = {}
        self._ready: list[list[int]] = [[] for _ in tables.ranks]
        self.order: list[_UnitKey] = []
        self.left = [len(units) for units in tables.ranks]
        for rank, units in enumerate(tables.ranks):
            for position, unit in enumerate(units):
                self._missing[rank, position] = set(self._events(unit, rank))
                for event in self._missing[rank, position]:
                    self._waiting.setdefault(event, []).append((rank, position))
                if not self._missing[rank, position]:
                    self._ready[rank].append(position)

    def step(self) -> bool:
        """Run one unit on every rank that has a ready one; False where none has."""
        started = [(rank, heapq.heappop(ready)) for rank, ready in enumerate(self._ready) if ready]
        for rank, position in started:
            for transfer in self._run(rank, position).forwards:
                self._happened(transfer)
        return bool(started)

    def run_first(self, rank: int) -> Unit | None:
        """Run the first ready unit of one rank, whose transfers do not arrive by themselves."""
        ready = self._ready[rank]
        return self._run(rank, heapq.heappop(ready)) if ready else None

    def arrives(self, transfer: Transfer) -> None:
        self._happened(transfer)

    def _run(self, rank: int, position: int) -> Unit:
        unit = self._tables.ranks[rank][position]
        self.order.append((rank, position))
        self.left[rank] -= 1
        self._happened(_Computed(unit.layer, rank, unit.index))
        return unit

    def check_finished(self) -> None:
        stuck = [place for place, missing in self._missing.items() if missing]
        if not stuck:
            return
        coming: set[_Event] = set()
        for rank, position in stuck:
            unit = self._tables.ranks[rank][position]
            coming |= {_Computed(unit.layer, rank, unit.index), *unit.forwards}
        # One that misses what no stuck unit will bring is a cause; the others may be victims.
        rank, position = min(stuck, key=lambda place: (self._missing[place] <= coming, *place))
        missing = self._missing[rank, position]
        events = dict.fromkeys(self._events(self._tables.ranks[rank][position], rank))
        arrived = [event for event in events if event not in missing]
        awaited = [event for event in events if event in missing]
        raise fault_at(
            DeadlockError,
            self._tables,
            Place(rank, position),
            f"never becomes ready in the dry run: it had got {_listed(arrived)}, "
            f"but not {_listed(awaited)}; {len(stuck)} of {len(self._missing)} units never run",
        )

    def _happened(self, event: _Event) -> None:
        for rank, position in self._waiting.pop(event, ()):
            self._missing[rank, position].discard(event)
            if not self._missing[rank, position]:
                heapq.heappush(self._ready[rank], position)

    def _events(self, unit: Unit, rank: int) -> Iterator[_Event]:
        for requirement in unit.requirements:
            for source in local_sources(requirement, self._own[rank]):
                yield _Computed(requirement.producer, rank, source.index)
            yield from requirement.transfers


def _listed(events: Sequence[_Event]) -> str:
    words = [transfer_text(e) if isinstance(e, Transfer) else str(e) for e in events]
    return ", ".join(words) or "nothing"
