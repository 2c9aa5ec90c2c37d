"""Graph and plan become unit tables: by hand, against golden files, and for random cases."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_cases import BY_HAND, Case, cases, chain, graphs, reads_of, residual, squeeze

from edgeflow_mpi.errors import PlanError, TableError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.spans import EMPTY, Span
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.dryrun import dry_run
from edgeflow_mpi.units.tables import Transfer, Unit, UnitTables
from edgeflow_mpi.units.text import tables_from_text, tables_to_text
from edgeflow_mpi.units.verify import verify_tables

GOLDEN = Path(__file__).parent.parent / "golden"
UPDATE_VARIABLE = "EDGEFLOW_UPDATE_GOLDEN"


def unit_of(tables: UnitTables, layer: str, rank: int) -> Unit:
    (unit,) = [unit for unit in tables.ranks[rank] if unit.layer == layer]
    return unit


@pytest.mark.parametrize("make", BY_HAND.values(), ids=BY_HAND)
def test_golden_tables(make: Callable[[], Case]) -> None:
    """Tables of tiny graphs are as reviewed; ``EDGEFLOW_UPDATE_GOLDEN=1`` writes them anew."""
    case = make()
    tables = case.compile()
    verify_tables(case.graph, case.needs, tables)
    text = tables_to_text(tables)
    path = GOLDEN / f"units_{case.graph.name}.txt"
    if os.environ.get(UPDATE_VARIABLE):
        path.write_text(text, encoding="utf-8", newline="\n")
    assert text == path.read_text(encoding="utf-8")
    assert tables_from_text(text, str(path)) == tables


def test_halo_rows_travel_in_both_directions() -> None:
    tables = chain().compile()
    up = unit_of(tables, "conv2", 0).requirements[0]
    down = unit_of(tables, "conv2", 1).requirements[0]
    assert (up.rows, [t.rows for t in up.transfers]) == (Span(0, 6), [Span(5, 6)])
    assert (down.rows, down.transfers) == (Span(5, 9), ())
    assert unit_of(tables, "conv1", 1).forwards == up.transfers


def test_recomputed_rows_are_owned_and_sent_by_their_owner_only() -> None:
    tables = chain().compile()
    first = unit_of(tables, "conv3", 0)
    assert (first.rows, first.owned) == (Span(0, 3), Span(0, 2))
    (gathered,) = unit_of(tables, "y", 0).requirements
    assert gathered.rows == Span(0, 5)
    assert [(t.source, t.rows) for t in gathered.transfers] == [(1, Span(3, 5))]


def test_both_ends_hold_the_very_same_transfer() -> None:
    tables = residual().compile()
    sent = {id(t) for units in tables.ranks for unit in units for t in unit.forwards}
    taken = {
        id(t)
        for units in tables.ranks
        for unit in units
        for requirement in unit.requirements
        for t in requirement.transfers
    }
    assert sent == taken != set()


def test_ranks_without_rows_have_no_unit() -> None:
    tables = residual().compile()
    layers = {unit.layer for unit in tables.ranks[1]}
    assert "block.conv1" not in layers
    assert "block.down" in layers
    assert [unit.index for unit in tables.ranks[1]] == list(range(len(tables.ranks[1])))


def test_every_owner_sends_its_summand_to_every_reader() -> None:
    tables = squeeze().compile()
    for rank in range(3):
        (summands,) = unit_of(tables, "gate", rank).requirements
        assert summands.rows == Span(0, 6)
        owners = {t.source: t.rows for t in summands.transfers}
        everyone = {0: Span(0, 3), 1: Span(3, 5), 2: Span(5, 6)}
        assert owners == {i: rows for i, rows in everyone.items() if i != rank}


def test_replicas_need_no_transfer_of_what_they_computed() -> None:
    tables = squeeze().compile()
    for rank in range(3):
        features, gate = unit_of(tables, "scale", rank).requirements
        assert (gate.rows, gate.transfers) == (Span(0, 1), ())
        assert features.transfers == ()
    (answer,) = unit_of(tables, "y", 0).requirements
    assert [(t.source, t.rows) for t in answer.transfers] == [(2, Span(0, 6))]
    assert unit_of(tables, "flip", 1).owned == EMPTY
    assert unit_of(tables, "flip", 1).forwards == ()


def test_tags_count_edges_in_graph_order() -> None:
    case = residual()
    tables = case.compile()
    position = {layer.name: i for i, layer in enumerate(case.graph.layers)}
    edges = {
        t.tag: (position[t.producer], position[t.consumer], t.piece)
        for units in tables.ranks
        for unit in units
        for t in unit.forwards
    }
    assert sorted(edges) == list(range(len(edges)))
    assert [edges[tag] for tag in sorted(edges)] == sorted(edges.values())


def test_too_many_tags_are_refused() -> None:
    case = residual()
    tables = case.compile()
    most = max(t.tag for units in tables.ranks for unit in units for t in unit.forwards)
    assert compile_tables(case.graph, case.needs, case.plan, tag_limit=most) == tables
    with pytest.raises(TableError, match=f"on {most + 1} edges.* only {most} different tags"):
        compile_tables(case.graph, case.needs, case.plan, tag_limit=most - 1)


def test_a_broken_plan_is_refused() -> None:
    case = chain()
    plan = dataclasses.replace(case.plan, order=case.plan.order[::-1])
    with pytest.raises(PlanError, match="comes before its input"):
        compile_tables(case.graph, case.needs, plan)


@given(case=cases())
@settings(deadline=None)
def test_every_plan_compiles_to_tables_that_pass(case: Case) -> None:
    tables = case.compile()
    verify_tables(case.graph, case.needs, tables)
    assert tables == case.compile()
    ran = dry_run(tables)
    assert [sorted(units, key=lambda u: u.index) for units in ran] == [*map(list, tables.ranks)]


@given(graph=graphs(), ranks=st.integers(1, 8), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_random_plans_of_the_package_compile_as_well(graph: Graph, ranks: int, seed: int) -> None:
    needs = Needs(graph)
    plan = random_plan(graph, needs, ranks, Random(seed))
    tables = compile_tables(graph, needs, plan)
    verify_tables(graph, needs, tables)
    assert tables.size == ranks
    assert sum(unit.owned.rows for units in tables.ranks for unit in units) == sum(
        layer.rows for layer in graph.layers
    )


@given(case=cases())
@settings(deadline=None)
def test_tables_move_every_row_to_where_it_is_read(case: Case) -> None:
    tables = case.compile()
    expected = _rows_of_one_rank(case)
    for rank, held in enumerate(_rows_of_all_ranks(case, tables)):
        for layer, rows in held.items():
            assert rows == {row: expected[layer][row] for row in rows}, (layer, rank)
    answers = [layer.name for layer in case.graph.outputs]
    held_by_first = _rows_of_all_ranks(case, tables)[0]
    assert all(held_by_first[name] == expected[name] for name in answers)


Rows = dict[int, int]


def _row_value(case: Case, layer: str, row: int, read: Callable[[str, Span], object]) -> int:
    """A number that depends on every input row that ``row`` needs and on nothing else."""
    inputs = case.graph.by_name[layer].inputs
    needed = zip(inputs, reads_of(case, layer, row), strict=True)
    return hash((layer, row, tuple(read(producer, span) for producer, span in needed)))


def _rows_of_one_rank(case: Case) -> dict[str, Rows]:
    """Layer -> row -> its value, or that of its part of the sum, computed undivided."""
    values: dict[str, Rows] = {}

    def read(producer: str, span: Span) -> object:
        rows = [values[producer][row] for row in range(span.start, span.stop)]
        return sum(rows) if case.graph.by_name[producer].combine else tuple(rows)

    for layer in case.graph.layers:
        values[layer.name] = {
            row: _row_value(case, layer.name, row, read) for row in range(layer.rows)
        }
    return values


def _rows_of_all_ranks(case: Case, tables: UnitTables) -> list[dict[str, Rows]]:
    """Per rank: layer -> row -> value, each rank reading only what it computed or was sent.

    A summand arrives as one number: it is kept at the first of its rows, the others hold 0.
    """
    memory: list[dict[str, Rows]] = [{} for _ in tables.ranks]
    posted: dict[Transfer, object] = {}
    combined = {layer.name for layer in case.graph.layers if layer.combine}
    left = [list(units) for units in tables.ranks]
    computed: list[dict[str, Rows]] = [{} for _ in tables.ranks]

    def run(unit: Unit) -> None:
        for requirement in unit.requirements:
            held = memory[unit.rank].setdefault(requirement.producer, {})
            for transfer in requirement.transfers:
                held |= posted[transfer]  # type: ignore[operator]

        def read(producer: str, span: Span) -> object:
            held = memory[unit.rank].get(producer, {})
            rows = [held[row] for row in range(span.start, span.stop)]
            return sum(rows) if producer in combined else tuple(rows)

        values = {
            row: _row_value(case, unit.layer, row, read)
            for row in range(unit.rows.start, unit.rows.stop)
        }
        computed[unit.rank][unit.layer] = values
        memory[unit.rank].setdefault(unit.layer, {}).update(values)
        for transfer in unit.forwards:
            rows = range(transfer.rows.start, transfer.rows.stop)
            sent = {row: values[row] for row in rows}
            if unit.layer in combined:
                total = sum(sent.values())
                sent = dict.fromkeys(rows, 0) | {rows.start: total}
            posted[transfer] = sent

    while any(left):
        ready = [
            (rank, unit)
            for rank, units in enumerate(left)
            for unit in units[:1]
            if all(t in posted for r in unit.requirements for t in r.transfers)
        ]
        assert ready, "in their own order, some unit is always ready"
        for rank, unit in ready:
            run(unit)
            left[rank].pop(0)
    return computed
