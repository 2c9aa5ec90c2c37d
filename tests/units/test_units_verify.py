"""Every fault that unit tables can have is found, and named for what it is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from itertools import chain as flatten

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from unit_cases import Case, GraphBuilder, cases, chain, make_plan, residual, split_at, squeeze

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.partition.plan import LayerPlan
from edgeflow_mpi.spans import EMPTY, Span
from edgeflow_mpi.units import faults
from edgeflow_mpi.units.dryrun import dry_run
from edgeflow_mpi.units.faults import VerificationError
from edgeflow_mpi.units.tables import (
    Requirement,
    Transfer,
    Unit,
    UnitTables,
    local_sources,
    units_by_layer,
)
from edgeflow_mpi.units.verify import verify_tables


def place_of(tables: UnitTables, layer: str, rank: int) -> int:
    return next(i for i, unit in enumerate(tables.ranks[rank]) if unit.layer == layer)


def with_rank(tables: UnitTables, rank: int, units: list[Unit]) -> UnitTables:
    ranks = (*tables.ranks[:rank], tuple(units), *tables.ranks[rank + 1 :])
    return dataclasses.replace(tables, ranks=ranks)


def changed(tables: UnitTables, layer: str, rank: int, /, **changes: object) -> UnitTables:
    """The tables with fields of one unit replaced; a function is applied to the old value."""
    units = list(tables.ranks[rank])
    i = place_of(tables, layer, rank)
    new = {k: v(getattr(units[i], k)) if callable(v) else v for k, v in changes.items()}
    units[i] = dataclasses.replace(units[i], **new)  # type: ignore[arg-type]
    return with_rank(tables, rank, units)


def renamed(tables: UnitTables, old: Transfer, new: Transfer) -> UnitTables:
    """The tables with one transfer replaced by another at both of its ends."""

    def swap(transfers: tuple[Transfer, ...]) -> tuple[Transfer, ...]:
        return tuple(new if transfer == old else transfer for transfer in transfers)

    for rank, units in enumerate(tables.ranks):
        edited = [
            dataclasses.replace(
                unit,
                forwards=swap(unit.forwards),
                requirements=tuple(
                    dataclasses.replace(requirement, transfers=swap(requirement.transfers))
                    for requirement in unit.requirements
                ),
            )
            for unit in units
        ]
        tables = with_rank(tables, rank, edited)
    return tables


def sends(tables: UnitTables, layer: str, rank: int) -> tuple[Transfer, ...]:
    return tables.ranks[rank][place_of(tables, layer, rank)].forwards


def without(tables: UnitTables, layer: str, rank: int) -> UnitTables:
    units = [unit for unit in tables.ranks[rank] if unit.layer != layer]
    units = [dataclasses.replace(unit, index=i) for i, unit in enumerate(units)]
    return with_rank(tables, rank, units)


def swapped(tables: UnitTables, rank: int, first: str, second: str) -> UnitTables:
    """Two units of a rank in each other's place."""
    units = list(tables.ranks[rank])
    i, j = place_of(tables, first, rank), place_of(tables, second, rank)
    units[i], units[j] = units[j], units[i]
    return with_rank(tables, rank, [dataclasses.replace(u, index=k) for k, u in enumerate(units)])


def requirement(
    tables: UnitTables, layer: str, rank: int, i: int, /, **changes: object
) -> UnitTables:
    """The tables with fields of one requirement replaced."""

    def edit(requirements: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
        old = requirements[i]
        new = {k: v(getattr(old, k)) if callable(v) else v for k, v in changes.items()}
        edited = dataclasses.replace(old, **new)  # type: ignore[arg-type]
        return (*requirements[:i], edited, *requirements[i + 1 :])

    return changed(tables, layer, rank, requirements=edit)


def sent_as(layer: str, rank: int, i: int = 0, /, **changes: object) -> Callable[..., UnitTables]:
    """A mutation of one transfer at both of its ends."""

    def mutate(tables: UnitTables) -> UnitTables:
        old = sends(tables, layer, rank)[i]
        return renamed(tables, old, dataclasses.replace(old, **changes))  # type: ignore[arg-type]

    return mutate


def one_edge_twice(tables: UnitTables) -> UnitTables:
    """Rows of one message in two messages that have one name and two tags."""
    (whole,) = sends(tables, "conv2", 0)
    first = dataclasses.replace(whole, rows=Span(1, 2))
    second = dataclasses.replace(whole, rows=Span(2, 3), tag=9)
    tables = changed(tables, "conv2", 0, forwards=(first, second))
    return requirement(tables, "conv3", 1, 0, transfers=(first, second))


def extra_send(tables: UnitTables) -> UnitTables:
    """A message properly sent and taken, by a unit that reads none of its rows."""
    spare = Transfer("stem", "block.down", 0, 1, Span(1, 2), tag=77)
    tables = changed(tables, "stem", 0, forwards=lambda old: (*old, spare))
    return requirement(tables, "block.down", 1, 0, transfers=lambda old: (*old, spare))


def rows_twice(tables: UnitTables) -> UnitTables:
    """Rows that arrive on one edge arrive on another as well."""
    carried = sends(tables, "stem", 1)[0]
    again = dataclasses.replace(carried, consumer="block.down", tag=77)
    tables = changed(tables, "stem", 1, forwards=lambda old: (*old, again))
    return requirement(tables, "block.down", 0, 0, transfers=lambda old: (*old, again))


Mutation = Callable[[UnitTables], UnitTables]

FAULTS: dict[str, tuple[Callable[[], Case], Mutation, type[VerificationError], str]] = {
    "another fingerprint": (
        chain,
        lambda t: dataclasses.replace(t, fingerprint="000000000000"),
        faults.WrongModelError,
        "for chain .fingerprint 000000000000., but this model is chain",
    ),
    "index that is not the place": (
        chain,
        lambda t: changed(t, "conv2", 1, index=5),
        faults.UnitIndexError,
        "rank 1, unit 1 .conv2 rows 3:5. calls itself unit 5 of rank 1",
    ),
    "unit of another rank": (
        chain,
        lambda t: changed(t, "conv2", 1, rank=0),
        faults.UnitIndexError,
        "calls itself unit 1 of rank 0",
    ),
    "unknown layer": (
        chain,
        lambda t: changed(t, "conv2", 1, layer="conv9"),
        faults.UnknownLayerError,
        "of a layer that chain does not have",
    ),
    "another operator": (
        chain,
        lambda t: changed(t, "conv2", 1, operator="relu"),
        faults.UnknownLayerError,
        "runs relu, but its layer runs conv2d",
    ),
    "unit twice": (
        chain,
        lambda t: with_rank(
            t, 1, [*t.ranks[1], dataclasses.replace(t.ranks[1][0], index=len(t.ranks[1]))]
        ),
        faults.DuplicateUnitError,
        "same rows of its layer as unit 0",
    ),
    "rows beyond the layer": (
        chain,
        lambda t: changed(t, "conv2", 1, rows=Span(3, 6)),
        faults.SpanError,
        "others than the layer's 0:5",
    ),
    "no rows": (
        chain,
        lambda t: changed(t, "conv2", 1, rows=EMPTY, owned=EMPTY),
        faults.SpanError,
        "computes no rows",
    ),
    "owned rows not computed": (
        chain,
        lambda t: changed(t, "conv2", 1, owned=Span(2, 5)),
        faults.SpanError,
        "owns rows 2:5, which it does not compute",
    ),
    "part of a whole layer": (
        squeeze,
        lambda t: changed(t, "flip", 2, rows=Span(0, 5), owned=Span(0, 5)),
        faults.WholeLayerError,
        "can only be had whole, as rows 0:6",
    ),
    "part of a whole layer owned": (
        squeeze,
        lambda t: changed(t, "flip", 2, owned=Span(0, 5)),
        faults.WholeLayerError,
        "owns rows 0:5",
    ),
    "input on another rank": (
        chain,
        lambda t: with_rank(
            t, 1, [*t.ranks[1], dataclasses.replace(t.ranks[0][0], rank=1, index=len(t.ranks[1]))]
        ),
        faults.PinnedLayerError,
        "is an input of the model, which only rank 0 has",
    ),
    "summand computed twice": (
        squeeze,
        lambda t: changed(t, "pool", 1, rows=Span(2, 5)),
        faults.SummandError,
        "must be computed by its owner alone",
    ),
    "two owners": (
        chain,
        lambda t: changed(t, "conv3", 0, owned=Span(0, 3)),
        faults.OwnershipError,
        "row 2 has another owner",
    ),
    "gap between owners": (
        chain,
        lambda t: changed(t, "conv3", 0, owned=Span(0, 1)),
        faults.OwnershipError,
        "row 1 before them has no owner",
    ),
    "last row without owner": (
        chain,
        lambda t: changed(t, "conv3", 1, owned=Span(2, 4)),
        faults.OwnershipError,
        "row 4 behind them has no owner",
    ),
    "unit missing": (
        chain,
        lambda t: without(t, "conv2", 1),
        faults.OwnershipError,
        "row 3 behind them has no owner",
    ),
    "layer missing": (
        squeeze,
        lambda t: without(without(t, "flip", 2), "flip", 1),
        faults.OwnershipError,
        "rows 0:6 of flip have no owner",
    ),
    "edge that does not exist": (
        chain,
        sent_as("conv1", 1, consumer="conv3"),
        faults.UnknownLayerError,
        "edge that chain does not have",
    ),
    "rank that does not exist": (
        chain,
        sent_as("conv1", 1, dest=2),
        faults.RanksError,
        "only 0 to 1 exist",
    ),
    "message to itself": (
        chain,
        sent_as("conv1", 1, dest=1),
        faults.RanksError,
        "from a rank to itself",
    ),
    "message of another rank": (
        residual,
        sent_as("stem", 1, source=2, dest=0),
        faults.ForwardError,
        "sends what another unit produces",
    ),
    "rows sent that are not owned": (
        chain,
        sent_as("conv1", 1, rows=Span(4, 6)),
        faults.ForwardError,
        "sends rows 4:6, but owns rows 5:9",
    ),
    "no rows sent": (
        chain,
        sent_as("conv1", 1, rows=EMPTY),
        faults.ForwardError,
        "sends rows 0:0",
    ),
    "half a summand": (
        squeeze,
        sent_as("pool", 1, rows=Span(3, 4)),
        faults.ForwardError,
        "of the one summand of its rows 3:5",
    ),
    "tag above the limit": (
        chain,
        sent_as("conv1", 1, tag=32768),
        faults.TagError,
        "tag 32768, but tags are from 0 to 32767",
    ),
    "tag not counted": (chain, sent_as("conv1", 1, tag=-1), faults.TagError, "tag -1"),
    "tag taken": (
        chain,
        lambda t: sent_as("conv2", 1, tag=sends(t, "conv1", 1)[0].tag)(t),
        faults.TagError,
        "tag that is taken between its ranks: conv1->conv2 rows 5:6",
    ),
    "two messages of one name": (
        chain,
        one_edge_twice,
        faults.TagError,
        "two messages of one name",
    ),
    "requirement left out": (
        residual,
        lambda t: changed(t, "block.add", 1, requirements=lambda old: old[:1]),
        faults.InputsError,
        "requires block.conv2, but its layer reads block.conv2, block.down",
    ),
    "requirements in another order": (
        residual,
        lambda t: changed(t, "block.add", 1, requirements=lambda old: old[::-1]),
        faults.InputsError,
        "requires block.down, block.conv2",
    ),
    "too few rows required": (
        chain,
        lambda t: requirement(t, "conv2", 0, 0, rows=Span(0, 5)),
        faults.NeedsError,
        "requires rows 0:5 of conv1, but the rows it needs are 0:6",
    ),
    "rows computed for another need": (
        chain,
        lambda t: changed(t, "conv3", 0, rows=Span(0, 4)),
        faults.NeedsError,
        "requires rows 0:4 of conv2, but the rows it needs are 0:5",
    ),
    "unit before its input": (
        chain,
        lambda t: swapped(t, 0, "conv1", "conv2"),
        faults.UnitOrderError,
        "rank 0, unit 1 .conv2 rows 0:3. comes before unit 2 of its rank, which computes conv1",
    ),
    "message for another rank": (
        residual,
        lambda t: requirement(
            t, "block.conv1", 0, 0, transfers=lambda _: sends(t, "stem", 1)[-1:]
        ),
        faults.RanksError,
        "does not bring stem to its rank",
    ),
    "receive left out": (
        chain,
        lambda t: requirement(t, "conv2", 0, 0, transfers=()),
        faults.UnmatchedSendError,
        "rank 1, unit 0 .conv1 rows 5:9. sends a message that conv2 on rank 0 does not take",
    ),
    "send left out": (
        chain,
        lambda t: changed(t, "conv1", 1, forwards=()),
        faults.UnmatchedReceiveError,
        "rank 0, unit 2 .conv2 rows 0:3. waits for a message that rank 1 does not send",
    ),
    "another tag where it is taken": (
        chain,
        lambda t: requirement(
            t, "conv2", 0, 0, transfers=lambda old: (dataclasses.replace(old[0], tag=30),)
        ),
        faults.UnmatchedReceiveError,
        "at the other end it is conv1->conv2 rows 5:6 ranks 1->0 tag 1",
    ),
    "other rows where it is sent": (
        chain,
        lambda t: changed(
            t, "conv1", 1, forwards=lambda old: (dataclasses.replace(old[0], rows=Span(6, 7)),)
        ),
        faults.UnmatchedReceiveError,
        "at the other end it is conv1->conv2 rows 6:7",
    ),
    "rows shifted at both ends": (
        chain,
        sent_as("conv1", 1, rows=Span(6, 7)),
        faults.SurplusError,
        "waits for rows 6:7, of which it reads none",
    ),
    "rows shrunk at both ends": (
        chain,
        sent_as("x", 0, rows=Span(5, 9)),
        faults.CoverageError,
        "reads rows 4:5 of x, which are neither computed on its rank nor arrive",
    ),
    "summand left out": (
        squeeze,
        lambda t: requirement(
            changed(t, "pool", 2, forwards=lambda old: old[1:]),
            "gate", 0, 0, transfers=lambda old: old[:1],
        ),
        faults.SummandError,
        "rank 0, unit 3 .gate rows 0:1. lacks the summand of rows 5:6 of pool",
    ),
    "summand counted twice": (
        squeeze,
        lambda t: requirement(t, "gate", 0, 0, transfers=lambda old: (*old, old[0])),
        faults.SurplusError,
        "takes one message twice",
    ),
    "rows that the rank has": (
        chain,
        sent_as("conv3", 1, rows=Span(2, 5)),
        faults.SurplusError,
        "takes rows 2:3, which its rank computes itself",
    ),
    "rows that are not read": (
        residual,
        extra_send,
        faults.SurplusError,
        "waits for rows 1:2, of which it reads none",
    ),
    "rows that arrive twice": (
        residual,
        rows_twice,
        faults.SurplusError,
        "takes rows 2:4 of stem that another message brings to its rank: stem->block.",
    ),
    "shared message left out by the unit it is named for": (
        residual,
        lambda t: requirement(t, "block.conv1", 0, 0, transfers=()),
        faults.UnmatchedSendError,
        "sends a message that block.conv1 on rank 0 does not take",
    ),
    "shared message left out by another unit": (
        residual,
        lambda t: requirement(t, "block.down", 0, 0, transfers=()),
        faults.CoverageError,
        "reads rows 2:3 of stem, which are neither computed on its rank nor arrive",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "mutate", "kind", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_found(
    make: Callable[[], Case], mutate: Mutation, kind: type[VerificationError], message: str
) -> None:
    case = make()
    tables = case.compile()
    verify_tables(case.graph, case.needs, tables)
    with pytest.raises(VerificationError) as caught:
        verify_tables(case.graph, case.needs, mutate(tables))
    assert type(caught.value) is kind, caught.value
    assert re.search(message, str(caught.value).split("\n")[0]), caught.value


def test_every_fault_has_a_case() -> None:
    covered = {kind for _, _, kind, _ in FAULTS.values()} | {faults.DeadlockError}
    assert covered == set(VerificationError.__subclasses__())


def test_the_offending_line_is_marked() -> None:
    case = chain()
    tables = requirement(case.compile(), "conv2", 0, 0, rows=Span(0, 5))
    with pytest.raises(faults.NeedsError) as caught:
        verify_tables(case.graph, case.needs, tables)
    sentence, heading, *table = str(caught.value).split("\n")
    assert sentence.startswith("rank 0, unit 2 (conv2 rows 0:3) requires")
    assert heading == "  rank 0"
    assert [line for line in table if line.startswith(">")] == [">   needs conv1 rows 0:5"]
    assert sum(line.lstrip("> ").startswith("unit ") for line in table) == 5


def test_only_the_surroundings_are_shown_of_a_long_table() -> None:
    b = GraphBuilder("long")
    name = b.input(4)
    for i in range(60):
        name = b.conv(f"c{i}", name, kernel=1)
    b.output(name)
    case = Case(b.graph(), make_plan(b.graph(), 1, {}))
    tables = changed(case.compile(), "c30", 0, owned=Span(0, 3))
    with pytest.raises(faults.OwnershipError) as caught:
        verify_tables(case.graph, case.needs, tables)
    shown = str(caught.value).split("\n")[1:]
    assert shown[1] == shown[-1] == "  …"
    assert "> unit 31 c30 rows 0:4 owned 0:3 runs conv2d" in shown
    assert len(shown) < 40


def test_a_lower_tag_limit_is_respected() -> None:
    case = residual()
    tables = case.compile()
    verify_tables(case.graph, case.needs, tables, tag_limit=6)
    with pytest.raises(faults.TagError, match="tag 6, but tags are from 0 to 5"):
        verify_tables(case.graph, case.needs, tables, tag_limit=5)


def test_the_dry_run_runs_the_first_ready_unit_of_every_rank() -> None:
    ran = dry_run(residual().compile())
    assert [unit.layer for unit in ran[2]] == [
        "stem", "block.conv1", "block.conv2", "block.add",
    ]  # fmt: skip
    # On rank 1 the rows of block.conv1 are still on their way when block.down is ready.
    assert [unit.layer for unit in ran[1]] == [
        "stem", "block.down", "block.conv2", "block.add",
    ]  # fmt: skip


def test_a_circle_of_messages_is_a_deadlock() -> None:
    there = Transfer("a", "b", 0, 1, Span(0, 1), tag=0)
    back = Transfer("b", "a", 1, 0, Span(0, 1), tag=0)
    whole = Span(0, 1)
    a = Unit(0, "a", 0, whole, whole, (Requirement("b", whole, (back,)),), (there,), "relu")
    b = Unit(0, "b", 1, whole, whole, (Requirement("a", whole, (there,)),), (back,), "relu")
    tables = UnitTables("circle", "0" * 12, "by_hand", None, ((a,), (b,)))
    with pytest.raises(faults.DeadlockError) as caught:
        dry_run(tables)
    assert str(caught.value).split("\n")[0] == (
        "rank 0, unit 0 (a rows 0:1) never becomes ready in the dry run: it had got nothing, "
        "but not b->a rows 0:1 ranks 1->0 tag 0; 2 of 2 units never run"
    )


def test_a_deadlock_names_the_unit_where_it_starts() -> None:
    tables = changed(residual().compile(), "stem", 2, forwards=())
    with pytest.raises(faults.DeadlockError) as caught:
        dry_run(tables)
    assert str(caught.value).split("\n")[0] == (
        "rank 1, unit 2 (block.down rows 2:4) never becomes ready in the dry run: it had got "
        "stem of its own rank, but not stem->block.down rows 5:7 ranks 2->1 tag 2; "
        "4 of 15 units never run"
    )


def test_units_on_one_rank_that_wait_for_each_other_are_a_deadlock() -> None:
    whole = Span(0, 1)
    a = Unit(0, "a", 0, whole, whole, (Requirement("b", whole, ()),), (), "relu")
    b = Unit(1, "b", 0, whole, whole, (Requirement("a", whole, ()),), (), "relu")
    with pytest.raises(faults.DeadlockError, match=r"a rows 0:1.* but not b of its own rank"):
        dry_run(UnitTables("circle", "0" * 12, "by_hand", None, ((a, b),)))


def mutated(tables: UnitTables, draw: st.DrawFn) -> UnitTables:
    """The tables with one thing changed that makes them wrong."""
    units = list(flatten.from_iterable(tables.ranks))
    unit = draw(st.sampled_from(units))
    place = (unit.layer, unit.rank)
    kinds = ["remove", "enlarge", "shrink", "index"]
    kinds += ["drop send", "shift", "tag", "tag one end", "ends"] * bool(unit.forwards)
    required = [i for i, r in enumerate(unit.requirements) if r.transfers]
    kinds += ["drop receive", "duplicate receive"] * bool(required)
    kind = draw(st.sampled_from(kinds))
    if kind == "remove":
        assume(unit.owned or _is_read(tables, unit))
        return without(tables, *place)
    if kind == "enlarge":
        return changed(tables, *place, owned=Span(unit.owned.start, unit.owned.stop + 1))
    if kind == "shrink":
        assume(unit.owned)
        return changed(tables, *place, owned=Span.of(unit.owned.start, unit.owned.stop - 1))
    if kind == "index":
        return changed(tables, *place, index=unit.index + 1)
    if kind in ("drop receive", "duplicate receive"):
        i = draw(st.sampled_from(required))
        received = unit.requirements[i].transfers
        j = draw(st.integers(0, len(received) - 1))
        fewer, more = (*received[:j], *received[j + 1 :]), (*received, received[j])
        return requirement(tables, *place, i, transfers=more if kind[1] == "u" else fewer)
    j = draw(st.integers(0, len(unit.forwards) - 1))
    old = unit.forwards[j]
    rest = (*unit.forwards[:j], *unit.forwards[j + 1 :])
    if kind == "drop send":
        return changed(tables, *place, forwards=rest)
    if kind == "tag one end":
        new = dataclasses.replace(old, tag=old.tag + 1)
        return changed(tables, *place, forwards=(*rest, new))
    if kind == "tag":
        same_ends = [
            t for u in units for t in u.forwards
            if (t.source, t.dest) == (old.source, old.dest) and t != old
        ]  # fmt: skip
        assume(same_ends)
        return renamed(tables, old, dataclasses.replace(old, tag=same_ends[0].tag))
    if kind == "ends":
        return renamed(tables, old, dataclasses.replace(old, source=old.dest, dest=old.source))
    shift = draw(st.sampled_from([-1, 1]))
    assume(old.rows.start + shift >= 0)
    moved = dataclasses.replace(old, rows=old.rows.shifted(shift))
    return renamed(tables, old, moved)


def _is_read(tables: UnitTables, unit: Unit) -> bool:
    """Whether another unit of the rank reads what ``unit`` computes."""
    return any(
        r.producer == unit.layer and r.rows & unit.rows
        for other in tables.ranks[unit.rank]
        for r in other.requirements
    )


@given(case=cases(), data=st.data())
@settings(deadline=None)
def test_no_mutation_of_any_tables_passes(case: Case, data: st.DataObject) -> None:
    tables = case.compile()
    mutant = mutated(tables, data.draw)
    with pytest.raises(VerificationError):
        verify_tables(case.graph, case.needs, mutant)


@given(case=cases(), data=st.data())
@settings(deadline=None)
def test_units_may_change_places_only_where_neither_reads_the_other(
    case: Case, data: st.DataObject
) -> None:
    tables = case.compile()
    rank = data.draw(st.integers(0, tables.size - 1))
    assume(len(tables.ranks[rank]) > 1)
    i = data.draw(st.integers(0, len(tables.ranks[rank]) - 2))
    first, second = tables.ranks[rank][i : i + 2]
    mutant = swapped(tables, rank, first.layer, second.layer)
    pieces = units_by_layer(tables.ranks[rank])
    # A rank's rows of an input may all be others' to read.
    if any(first in local_sources(need, pieces) for need in second.requirements):
        with pytest.raises(faults.UnitOrderError):
            verify_tables(case.graph, case.needs, mutant)
    else:
        verify_tables(case.graph, case.needs, mutant)


def test_tables_of_a_large_network_are_verified_in_one_pass() -> None:
    """A thousand units: the needs of a layer are asked for once a unit, not more."""
    b = GraphBuilder("large")
    name = b.input(64)
    for i in range(120):
        name = b.conv(f"c{i}", name, kernel=3, padding=1)
    b.output(name)
    spans = {f"c{i}": split_at(*range(0, 65, 8)) for i in range(120)}
    case = Case(b.graph(), make_plan(b.graph(), 8, spans))
    tables = case.compile()
    assert sum(map(len, tables.ranks)) == 962

    class CountingNeeds(Needs):
        asked = 0

        def of(self, layer_name: str, rows: Span) -> tuple[Span, ...]:
            self.asked += 1
            return super().of(layer_name, rows)

    needs = CountingNeeds(case.graph)
    verify_tables(case.graph, needs, tables)
    assert needs.asked == 962


def test_a_replica_that_owns_nothing_passes() -> None:
    case = squeeze()
    plan = dataclasses.replace(
        case.plan,
        layers={**case.plan.layers, "flip": LayerPlan.whole(6, 3, 1, frozenset({0, 2}))},
    )
    case = dataclasses.replace(case, plan=plan)
    tables = case.compile()
    verify_tables(case.graph, case.needs, tables)
    assert tables.ranks[0][-1].requirements[0].transfers == ()
