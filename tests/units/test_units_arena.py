"""Shared memory against random legal runs of random tables: nothing in use is overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_cases import Case, GraphBuilder, cases

from edgeflow_mpi.graph.wire import with_wire
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.spans import even
from edgeflow_mpi.units.arena import ALIGNMENT_BYTES, Arena, lay_out
from edgeflow_mpi.units.buffers import Buffer, fixed_layers
from edgeflow_mpi.units.precedence import Precedence
from edgeflow_mpi.units.tables import Transfer, UnitTables, local_sources, units_by_layer


class Run:
    """A run of all ranks in which nothing but the rules of the executor is certain.

    Messages move, and are noted, whenever it pleases ``random``; a rank runs the first of the
    units that it knows to be ready.
    """

    def __init__(self, tables: UnitTables, arenas: Mapping[int, Arena], random: Random) -> None:
        self._tables, self._arenas, self._random = tables, arenas, random
        self._done: list[set[int]] = [set() for _ in tables.ranks]
        self._posted: set[Transfer] = set()
        self._sent: set[Transfer] = set()
        self._delivered: set[Transfer] = set()
        self._noted: set[Transfer] = set()

    def play(self) -> None:
        for rank in range(self._tables.size):
            self._post(rank)
        while any(
            len(done) < len(units)
            for done, units in zip(self._done, self._tables.ranks, strict=True)
        ):
            moving = sorted(self._sent & self._posted - self._delivered)
            fresh = sorted(self._delivered - self._noted)
            ready = [(rank, i) for rank in range(self._tables.size) for i in self._ready(rank)[:1]]
            assert moving or fresh or ready, "deadlock"
            kind = self._random.choice([k for k in (moving, fresh, ready) if k])
            chosen = self._random.choice(kind)
            if kind is moving:
                self._delivered.add(chosen)
            elif kind is fresh:
                self._noted.add(chosen)
            else:
                self._run(*chosen)

    def _ready(self, rank: int) -> list[int]:
        units = self._tables.ranks[rank]
        pieces = units_by_layer(units)
        return [
            unit.index
            for unit in units
            if unit.index not in self._done[rank]
            and all(
                source.index in self._done[rank]
                for need in unit.requirements
                for source in local_sources(need, pieces)
            )
            and all(t in self._noted for need in unit.requirements for t in need.transfers)
        ]

    def _run(self, rank: int, index: int) -> None:
        assert set(self._arenas[rank].settled.get(index, ())) <= self._delivered
        for buffer, offset in self._arenas[rank].places:
            if index in buffer.writers:
                self._written(rank, buffer, offset)
        self._done[rank].add(index)
        self._sent.update(self._tables.ranks[rank][index].forwards)
        self._post(rank)

    def _post(self, rank: int) -> None:
        for buffer, offset in self._arenas[rank].places:
            fresh = [t for t in buffer.arrivals if t not in self._posted and self._open(rank, t)]
            if fresh:
                assert not self._sent & {*fresh}, "a message came before its receive was posted"
                self._written(rank, buffer, offset)
        # A tensor and its rows in their wire type have the same arrivals.
        arrivals = {t for buffer, _ in self._arenas[rank].places for t in buffer.arrivals}
        self._posted.update(t for t in arrivals if self._open(rank, t))

    def _open(self, rank: int, transfer: Transfer) -> bool:
        gate = self._arenas[rank].gates.get(transfer)
        if gate is None:
            return True
        passed = set(gate.units) <= self._done[rank]
        assert not passed or set(gate.sends) <= self._delivered
        return passed

    def _written(self, rank: int, buffer: Buffer, offset: int) -> None:
        for other, start in self._arenas[rank].places:
            apart = start >= offset + buffer.size_bytes or offset >= start + other.size_bytes
            if other is not buffer and not apart:
                begun = self._posted & set(other.arrivals) or self._done[rank] & {*other.writers}
                assert not begun or self._is_free(rank, other), (buffer.key, other.key)

    def _is_free(self, rank: int, buffer: Buffer) -> bool:
        used = {*buffer.writers, *buffer.readers} <= self._done[rank]
        return (
            used and self._delivered >= {*buffer.departures} and self._noted >= {*buffer.arrivals}
        )


def arenas_of(case: Case, tables: UnitTables, random: Random | None = None) -> dict[int, Arena]:
    """Arenas in which random tensors, of those that may be, are loose."""
    precedence = Precedence(tables)
    found = {}
    for rank, units in enumerate(tables.ranks):
        free = sorted({unit.layer for unit in units} - fixed_layers(units))
        loose = [name for name in free if random is not None and random.random() < 0.3]
        found[rank] = lay_out(case.graph, tables, rank, precedence, loose)
    return found


@given(case=cases(), seed=st.integers(0, 2**20))
def test_nothing_in_use_is_overwritten(case: Case, seed: int) -> None:
    random = Random(seed)
    pairs = [(name, rank) for name in case.plan.layers for rank in range(case.plan.ranks)]
    first = frozenset(pair for pair in pairs if random.random() < 0.3)
    graph = with_wire(case.graph, random.choice(["fp32", "fp16"]))
    case = Case(graph, replace(case.plan, boundary_first=first))
    tables = case.compile()
    arenas = arenas_of(case, tables, random)
    for _ in range(3):
        Run(tables, arenas, random).play()


def deep(layers: int, ranks: int) -> Case:
    """3×3 convolutions, one behind the other, in even parts."""
    b = GraphBuilder("deep")
    name = b.input(64)
    for i in range(layers):
        name = b.conv(f"c{i}", name, 3, padding=1)
    b.output(name, "y")
    graph = b.graph()
    plans = {
        layer.name: LayerPlan.whole(64, ranks, 0)
        if layer.pinned
        else LayerPlan.split(even(64, ranks))
        for layer in graph.layers
    }
    return Case(graph, Plan("even", ranks, plans, tuple(plans)))


@pytest.mark.parametrize(("ranks", "maps"), [(1, 2), (2, 4), (4, 4)])
def test_a_long_chain_needs_no_more_memory_than_a_short_one(ranks: int, maps: int) -> None:
    """Neighbours are certain to be done with a map three layers later, on one rank with all."""
    case = deep(20, ranks)
    arenas = arenas_of(case, case.compile())
    for rank in range(1, ranks):
        piece = max(buffer.size_bytes for buffer, _ in arenas[rank].places)
        assert arenas[rank].size_bytes <= maps * (piece + ALIGNMENT_BYTES)
    if ranks == 1:
        map_bytes = case.graph.by_name["c0"].out.size_bytes
        assert arenas[0].size_bytes == 2 * map_bytes


def test_every_tensor_has_a_place_of_its_own_where_all_are_kept() -> None:
    case = deep(5, 2)
    tables = case.compile()
    arena = lay_out(case.graph, tables, 1, None)
    ends = sorted((offset, offset + buffer.size_bytes) for buffer, offset in arena.places)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ends))
    assert not arena.gates
    assert not arena.settled


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_order_of_branches_is_certain_where_no_message_can_change_it(ranks: int) -> None:
    b = GraphBuilder("branches")
    both = b.conv("both", b.input(16), 1)
    left, right = b.conv("left", both, 3, padding=1), b.conv("right", both, 1)
    b.output(b.add("sum", left, right), "y")
    graph = b.graph()
    plans = {
        layer.name: LayerPlan.whole(16, ranks, 0)
        if layer.pinned
        else LayerPlan.split(even(16, ranks))
        for layer in graph.layers
    }
    tables = Case(graph, Plan("even", ranks, plans, tuple(plans))).compile()
    index = {unit.layer: unit.index for unit in tables.ranks[ranks - 1]}
    assert index["left"] < index["right"]
    # With two ranks, left waits for a row of the other one's, and right may overtake it.
    certain = Precedence(tables).done(ranks - 1, index["right"]) >> index["left"] & 1
    assert certain == (ranks == 1)
