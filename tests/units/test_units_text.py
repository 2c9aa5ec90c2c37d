"""The text form of unit tables reads back exactly, and says which line is wrong."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from itertools import chain as flatten
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit_cases import BY_HAND, Case, cases, chain, residual

from edgeflow_mpi.errors import PlanError, TableError
from edgeflow_mpi.units.faults import VerificationError
from edgeflow_mpi.units.tables import UnitTables
from edgeflow_mpi.units.text import (
    check_ranks,
    load_tables,
    save_tables,
    tables_from_text,
    tables_to_text,
)
from edgeflow_mpi.units.verify import verify_tables


@given(case=cases())
@settings(deadline=None)
def test_tables_read_back_exactly(case: Case) -> None:
    tables = case.compile()
    text = tables_to_text(tables)
    assert tables_from_text(text, "plan.txt") == tables
    assert tables_to_text(tables_from_text(text, "plan.txt")) == text


def test_both_ends_read_back_as_one_object() -> None:
    tables = tables_from_text(tables_to_text(residual().compile()), "plan.txt")
    units = list(flatten.from_iterable(tables.ranks))
    sent = {id(t) for unit in units for t in unit.forwards}
    taken = {id(t) for unit in units for r in unit.requirements for t in r.transfers}
    assert sent == taken != set()


@given(
    name=st.text(),
    partitioner=st.text(),
    predicted_s=st.none() | st.floats(0, allow_infinity=False),
)
@example(name="none", partitioner='"', predicted_s=0.1 + 0.2)
@example(name="a  b\n#c", partitioner="\u2028", predicted_s=5e-324)
@example(name="\udc80", partitioner="", predicted_s=-0.0)
@settings(deadline=None)
def test_any_header_reads_back_exactly(
    name: str, partitioner: str, predicted_s: float | None
) -> None:
    tables = dataclasses.replace(
        chain().compile(), model=name, partitioner=partitioner, predicted_s=predicted_s
    )
    text = tables_to_text(tables)
    assert tables_from_text(text, "plan.txt") == tables
    assert text.encode("utf-8").decode("utf-8") == text


def test_pieces_and_slots_are_written_where_they_are_not_the_first() -> None:
    tables = chain().compile()
    unit = tables.ranks[1][0]
    later = dataclasses.replace(unit.forwards[0], piece=2, slot=1)
    units = (dataclasses.replace(unit, forwards=(later,)), *tables.ranks[1][1:])
    tables = dataclasses.replace(tables, ranks=(tables.ranks[0], units))
    text = tables_to_text(tables)
    assert "sends conv1->conv2 rows 5:6 ranks 1->0 piece 2 slot 1 tag 1\n" in text
    assert tables_from_text(text, "plan.txt") == tables


def test_comments_blank_lines_and_spacing_mean_nothing() -> None:
    tables = chain().compile()
    lines = tables_to_text(tables).split("\n")
    sloppy = "\r\n".join(f"   {line.replace(' rows', '   rows')}  \n# note\n" for line in lines)
    assert tables_from_text(sloppy, "plan.txt") == tables


def replacing(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


def until(line: str) -> Callable[[str], str]:
    return lambda text: text[: text.index(line)]


MALFORMED: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda _: "", "plan.txt ends too early: expected 'edgeflow-mpi unit tables"),
    "something else": (
        lambda _: "devices: []\n",
        "plan.txt is not a saved plan: it should start with .*, not with 'devices: ",
    ),
    "later format": (
        replacing("format 1", "format 2"),
        "plan.txt has format '2', but this version of edgeflow-mpi reads format 1",
    ),
    "header cut": (until("ranks:"), "plan.txt ends too early: expected 'ranks: …'"),
    "header missing": (
        replacing("ranks: 2\n", ""),
        "plan.txt, line 4: expected 'ranks: …', found 'partitioner: by_hand'",
    ),
    "header without value": (
        replacing("model: chain", "model:"),
        "plan.txt, line 2: expected 'model: …'",
    ),
    "bad quotes": (
        replacing("model: chain", 'model: "chain'),
        "plan.txt, line 2: '\"chain' is not a text in double quotes",
    ),
    "time not a number": (
        replacing("12.5", "fast"),
        "plan.txt, line 6: predicted_ms must be milliseconds or none, not 'fast'",
    ),
    "time too large": (replacing("12.5", "9" * 400), "plan.txt, line 6: predicted_ms must be"),
    "more ranks promised": (
        replacing("ranks: 2", "ranks: 3"),
        "the header promises 3 ranks, 2 are listed",
    ),
    "rank out of order": (
        replacing("\nrank 1", "\nrank 2"),
        "plan.txt, line 29: expected 'rank 1', found 'rank 2'",
    ),
    "unit before the first rank": (
        replacing("\nrank 0", ""),
        "plan.txt, line 13: expected a line like 'rank 0', found 'unit 0 x rows 0:9 owned",
    ),
    "unknown line": (
        replacing("unit 1 conv1", "item 1 conv1"),
        "plan.txt, line 16: expected a line like .*, found 'item 1 conv1",
    ),
    "needs after sends": (
        replacing("needs x rows 0:6\n", "sends x->conv1 rows 0:1 ranks 0->1 tag 0\nneeds x\n"),
        "plan.txt, line 18: expected a line like .*, found 'needs x'",
    ),
    "malformed unit": (
        replacing("owned 0:5 runs", "owned 0-5 runs"),
        "plan.txt, line 16: expected a line like 'unit 3 conv1 rows 0:8 owned 0:7 runs conv2d",
    ),
    "malformed needs": (
        replacing("needs x rows 0:6", "needs x rows 0:6:7"),
        "plan.txt, line 17: expected a line like 'needs conv1 rows 0:9'",
    ),
    "malformed transfer": (
        replacing("ranks 0->1 tag 0", "ranks 0->1 tag -1"),
        "plan.txt, line 15: expected a line like 'sends conv1->conv2 rows 7:9 ranks 1->0 tag 4'",
    ),
    "malformed name": (replacing("unit 1 conv1", "unit 1 conv-1"), "plan.txt, line 16: expected"),
    "rows reversed": (
        replacing("needs x rows 0:6", "needs x rows 6:0"),
        "plan.txt, line 17: rows 6:0 end before they start",
    ),
    "empty rows elsewhere": (
        replacing("owned 0:5 runs", "owned 3:3 runs"),
        "plan.txt, line 16: rows 3:3 end before they start .no rows are written 0:0.",
    ),
    "number too large": (replacing("unit 1 conv1", "unit 9999999999 conv1"), "plan.txt, line 16"),
    "cut in a block": (until("unit 3"), "plan.txt ends too early: expected .* it was cut short"),
    "end cut off": (until("end\n"), "plan.txt ends too early"),
    "more after the end": (
        lambda text: text + "unit 9",
        "plan.txt, line 4.: nothing may follow 'end', found 'unit 9'",
    ),
}


@pytest.mark.parametrize(("edit", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_text_names_file_and_line(edit: Callable[[str], str], message: str) -> None:
    text = tables_to_text(chain().compile())
    with pytest.raises(PlanError) as caught:
        tables_from_text(edit(text), "plan.txt")
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def mutilated(text: str, draw: st.DrawFn) -> str:
    """The text with characters or lines removed, doubled, replaced or swapped."""
    for _ in range(draw(st.integers(1, 3))):
        lines = text.split("\n")
        i, j = sorted(draw(st.tuples(*[st.integers(0, len(lines) - 1)] * 2)))
        at = draw(st.integers(0, len(text)))
        character = draw(st.characters() | st.sampled_from("0123456789:->. \n"))
        match draw(st.sampled_from(["drop", "double", "swap", "cut", "put", "insert", "delete"])):
            case "drop":
                text = "\n".join(lines[:i] + lines[i + 1 :])
            case "double":
                text = "\n".join(lines[: i + 1] + lines[i:])
            case "swap":
                lines[i], lines[j] = lines[j], lines[i]
                text = "\n".join(lines)
            case "cut":
                text = text[:at]
            case "put":
                text = text[:at] + character + text[at + 1 :]
            case "insert":
                text = text[:at] + character + text[at:]
            case "delete":
                text = text[:at] + text[at + 1 :]
    return text


def content(tables: UnitTables) -> object:
    """All that a run depends on, so not the order of the messages of one unit."""
    return [
        (
            *(unit.index, unit.layer, unit.rows, unit.owned, set(unit.forwards)),
            [(r.producer, r.rows, set(r.transfers)) for r in unit.requirements],
        )
        for units in tables.ranks
        for unit in units
    ]


@pytest.mark.parametrize("make", BY_HAND.values(), ids=BY_HAND)
@given(data=st.data())
@settings(deadline=None)
def test_mutilated_text_is_refused_or_harmless(
    make: Callable[[], Case], data: st.DataObject
) -> None:
    case = make()
    tables = case.compile()
    text = mutilated(tables_to_text(tables), data.draw)
    try:
        read = tables_from_text(text, "plan.txt")
    except PlanError:
        return
    assert tables_from_text(tables_to_text(read), "plan.txt") == read
    try:
        verify_tables(case.graph, case.needs, read)
    except VerificationError:
        return
    # What still passes differs at most in the header, or in the order of lines of one kind.
    assert content(read) == content(tables)


@given(text=st.text())
@settings(deadline=None)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"plan\.txt"):
        tables_from_text(text, "plan.txt")


def test_files_are_written_and_read(tmp_path: Path) -> None:
    tables = residual().compile()
    path = tmp_path / "plan.txt"
    save_tables(tables, path)
    assert load_tables(path) == tables


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read the plan .*none\.txt: No such file"):
        load_tables(tmp_path / "none.txt")
    with pytest.raises(PlanError, match=r"cannot read the plan .*: Is a directory"):
        load_tables(tmp_path)
    binary = tmp_path / "model.pt2"
    binary.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(PlanError, match=r"model\.pt2 is not a saved plan: it is not a text file"):
        load_tables(binary)
    with pytest.raises(PlanError, match=r"cannot write the plan to .*: No such file"):
        save_tables(chain().compile(), tmp_path / "none" / "plan.txt")


@pytest.mark.parametrize(
    "changes",
    [{"predicted_s": float("nan")}, {"predicted_s": float("inf")}, {"predicted_s": -1.0}],
    ids=["nan", "inf", "negative"],
)
def test_times_that_cannot_be_read_are_not_written(changes: dict[str, float]) -> None:
    tables = dataclasses.replace(chain().compile(), **changes)  # type: ignore[arg-type]
    with pytest.raises(TableError, match="predicted time"):
        tables_to_text(tables)


def test_names_that_cannot_be_read_are_not_written() -> None:
    tables = chain().compile()
    odd = dataclasses.replace(tables.ranks[0][0], layer="a b")
    tables = dataclasses.replace(tables, ranks=((odd,), ()))
    with pytest.raises(TableError, match="layer 'a b' with operator 'input' cannot be written"):
        tables_to_text(tables)


def test_a_plan_for_another_number_of_ranks_is_refused() -> None:
    tables = residual().compile()
    check_ranks(tables, 3)
    with pytest.raises(PlanError, match="the plan is for 3 ranks, this job has 4: start it with"):
        check_ranks(tables, 4)
