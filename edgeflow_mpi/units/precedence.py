"""What has happened before a unit can run, however fast ranks and messages are.

Three things are certain of any run of unit tables. A unit runs after those that it reads. It runs
after the units of other ranks that send what it requires. And, as a rank runs its *first* ready
unit, it runs after every unit of higher priority that required nothing but messages which have
been taken note of by then. What follows from these, and nothing else, is here; so whoever relies
on it needs no dependency beside those that there are anyway.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeflow_mpi.units.dryrun import run_order
from edgeflow_mpi.units.tables import Transfer, Unit, UnitTables, local_sources, units_by_layer


class Precedence:
    """The certain order of the units of verified tables.

    Sets of units of one rank are integers, in which bit i stands for the unit with index i.
    """

    def __init__(self, tables: UnitTables) -> None:
        self._first: list[int] = []
        self._sender: dict[Transfer, int] = {}
        self._takers: dict[Transfer, int] = {}
        self._masks: list[int] = []
        count = 0
        for units in tables.ranks:
            self._first.append(count)
            self._masks.append((1 << len(units)) - 1)
            for unit in units:
                for transfer in unit.forwards:
                    self._sender[transfer] = count + unit.index
                for need in unit.requirements:
                    for transfer in need.transfers:
                        taken = self._takers.get(transfer, 0)
                        self._takers[transfer] = taken | 1 << (count + unit.index)
            count += len(units)
        self._before = [0] * count
        self._find(tables)

    def _find(self, tables: UnitTables) -> None:
        pieces = [units_by_layer(units) for units in tables.ranks]
        places = [_transfer_places(units) for units in tables.ranks]
        # Messages of a rank, as bits: required by a unit or by what it is computed from; and
        # surely noted when it runs.
        own: list[list[int]] = [[0] * len(units) for units in tables.ranks]
        required: list[list[int]] = [[0] * len(units) for units in tables.ranks]
        seen = [0] * len(tables.ranks)
        for rank, index in run_order(tables):
            unit, first, mine = tables.ranks[rank][index], self._first[rank], own[rank]
            before = 0
            for need in unit.requirements:
                for source in local_sources(need, pieces[rank]):
                    before |= self._before[first + source.index] | 1 << (first + source.index)
                    required[rank][index] |= required[rank][source.index]
                for transfer in need.transfers:
                    sender = self._sender[transfer]
                    before |= self._before[sender] | 1 << sender
                    mine[index] |= 1 << places[rank][transfer]
            required[rank][index] |= mine[index]
            noted = mine[index]
            for other in _bits(before >> first & self._masks[rank]):
                noted |= mine[other]
            earlier = (1 << index) - 1 & seen[rank]
            for other in _bits_down(earlier & ~(before >> first)):
                if before >> (first + other) & 1 or required[rank][other] & ~noted:
                    continue
                added = (self._before[first + other] | 1 << (first + other)) & ~before
                before |= added
                for new in _bits(added >> first & self._masks[rank]):
                    noted |= mine[new]
            self._before[first + index] = before
            seen[rank] |= 1 << index

    def done(self, rank: int, index: int) -> int:
        """The units of ``rank`` that have run before its unit ``index`` can begin."""
        return self._before[self._first[rank] + index] >> self._first[rank] & self._masks[rank]

    def done_at_send(self, transfer: Transfer) -> int:
        """The units of the receiving rank that have run before ``transfer`` can be sent."""
        before, dest = self._before[self._sender[transfer]], transfer.dest
        return before >> self._first[dest] & self._masks[dest]

    def delivered(self, transfer: Transfer, rank: int, index: int) -> bool:
        """Whether ``transfer`` has arrived before unit ``index`` of ``rank`` can begin."""
        return bool(self._before[self._first[rank] + index] & self._takers.get(transfer, 0))


def _transfer_places(units: tuple[Unit, ...]) -> dict[Transfer, int]:
    transfers = (t for unit in units for need in unit.requirements for t in need.transfers)
    return {transfer: place for place, transfer in enumerate(dict.fromkeys(transfers))}


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _bits_down(mask: int) -> Iterator[int]:
    while mask:
        highest = mask.bit_length() - 1
        yield highest
        mask ^= 1 << highest
