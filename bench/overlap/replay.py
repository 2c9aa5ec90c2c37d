"""How long tables take in a model of time: with the rates of links, with none, without overlap."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Literal

from bench.overlap.account import Wire
from edgeflow_mpi.units.tables import Transfer, UnitTables, local_sources, units_by_layer

Mode = Literal["overlap", "blocking"]
_UNIT, _REACHES, _IS_THERE, _FREE = range(4)


def replay_s(
    tables: UnitTables,
    busy_s: Sequence[Sequence[float]],
    wire: Callable[[Transfer], Wire],
    mode: Mode = "overlap",
) -> float:
    """From the input on rank 0 until rank 0's last unit is done, in seconds.

    Parameters
    ----------
    tables : every rank runs its first ready unit in their order.
    busy_s : what each unit takes, by rank and index.
    wire : what a message's link makes of it; for links that take no time, ``Wire(0, 0)``.
    mode : ``blocking``: a rank runs nothing until its links have carried what it sends.
    """
    return _Replay(tables, busy_s, wire, mode).run()


class _Replay:
    def __init__(
        self,
        tables: UnitTables,
        busy_s: Sequence[Sequence[float]],
        wire: Callable[[Transfer], Wire],
        mode: Mode,
    ) -> None:
        self._tables, self._busy_s, self._wire, self._mode = tables, busy_s, wire, mode
        ranks = tables.size
        self._events: list[tuple[float, int, int, int, Transfer | None]] = []
        self._count = 0
        self._ready: list[list[int]] = [[] for _ in range(ranks)]
        self._running = [False] * ranks
        self._out_free_s, self._in_free_s = [0.0] * ranks, [0.0] * ranks
        self._left: list[list[int]] = []
        self._local: list[list[list[int]]] = []
        self._takers: dict[Transfer, list[tuple[int, int]]] = {}
        for rank, units in enumerate(tables.ranks):
            pieces = units_by_layer(units)
            self._left.append([0] * len(units))
            self._local.append([[] for _ in units])
            for i, unit in enumerate(units):
                taken = {t for need in unit.requirements for t in need.transfers}
                for transfer in taken:
                    self._takers.setdefault(transfer, []).append((rank, i))
                sources = [s for need in unit.requirements for s in local_sources(need, pieces)]
                for source in sources:
                    self._local[rank][source.index].append(i)
                self._left[rank][i] = len(taken) + len(sources)
                if not self._left[rank][i]:
                    heapq.heappush(self._ready[rank], i)

    def run(self) -> float:
        done_s = 0.0
        for rank in range(self._tables.size):
            self._start(rank, 0.0)
        while self._events:
            now_s = self._events[0][0]
            touched = set()
            while self._events and self._events[0][0] == now_s:
                _, _, kind, what, transfer = heapq.heappop(self._events)
                if kind == _UNIT:
                    rank, i = divmod(what, self._widest)
                    self._finish(rank, i, now_s)
                    touched.add(rank)
                    done_s = now_s if rank == 0 else done_s
                elif kind == _FREE:
                    self._running[what] = False
                    touched.add(what)
                else:
                    assert transfer is not None
                    touched |= self._move(kind, transfer, now_s)
            for rank in sorted(touched):
                self._start(rank, now_s)
        return done_s

    @property
    def _widest(self) -> int:
        return max(map(len, self._tables.ranks))

    def _at(self, when_s: float, kind: int, what: int, transfer: Transfer | None = None) -> None:
        self._count += 1
        heapq.heappush(self._events, (when_s, self._count, kind, what, transfer))

    def _start(self, rank: int, now_s: float) -> None:
        if self._running[rank] or not self._ready[rank]:
            return
        i = heapq.heappop(self._ready[rank])
        self._running[rank] = True
        self._at(now_s + self._busy_s[rank][i], _UNIT, rank * self._widest + i)

    def _finish(self, rank: int, i: int, now_s: float) -> None:
        for reader in self._local[rank][i]:
            self._satisfy(rank, reader)
        carried_s = now_s
        for transfer in self._tables.ranks[rank][i].forwards:
            cost = self._wire(transfer)
            begin_s = max(now_s, self._out_free_s[rank])
            self._out_free_s[rank] = begin_s + cost.occupied_s
            self._at(begin_s + cost.latency_s, _REACHES, 0, transfer)
            carried_s = max(carried_s, begin_s + cost.latency_s + cost.occupied_s)
        if self._mode == "blocking" and carried_s > now_s:
            self._at(carried_s, _FREE, rank)
        else:
            self._running[rank] = False

    def _move(self, kind: int, transfer: Transfer, now_s: float) -> set[int]:
        """The ranks that may have something to run now."""
        if kind == _REACHES:
            free_s = max(now_s, self._in_free_s[transfer.dest])
            there_s = free_s + self._wire(transfer).occupied_s
            self._in_free_s[transfer.dest] = there_s
            self._at(there_s, _IS_THERE, 0, transfer)
            return set()
        for rank, i in self._takers.get(transfer, ()):
            self._satisfy(rank, i)
        return {transfer.dest}

    def _satisfy(self, rank: int, i: int) -> None:
        self._left[rank][i] -= 1
        if not self._left[rank][i]:
            heapq.heappush(self._ready[rank], i)
