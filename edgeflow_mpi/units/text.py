"""Unit tables as text: a person reads and diffs it, and it reads back exactly.

A transfer is written in the very same words where it is sent and where it is taken, so one
search finds both ends, and both read back as one object. Names hold only letters, digits,
``_`` and ``.``. Lines that start with ``#`` and blank lines mean nothing. The last line is
``end``, so a file that was cut short is recognised as such.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import NoReturn

from edgeflow_mpi.errors import PlanError, TableError
from edgeflow_mpi.graph.division import How
from edgeflow_mpi.kernels.names import DEFAULT
from edgeflow_mpi.spans import Span
from edgeflow_mpi.units.tables import Requirement, Transfer, Unit, UnitTables

FORMAT_VERSION = 1

_TITLE = "edgeflow-mpi unit tables, format "
_LEGEND = """\
# One block a rank, its units in the order of their priority. Rows are half-open, start:stop.
#   unit   a layer's rows that are computed; those that are owned; operators; engine, if chosen
#   needs  rows of an input layer that the unit reads; what its rank does not compute itself
#   takes  arrives in these messages: edge, rows, ranks from->to, tag
#   sends  messages that leave when the unit has been computed"""
_DIVIDED = "divided:"
_DIVIDED_LEGEND = """\
# Rows of a layer divided by outputs are its output channels. One divided by inputs adds up the
# summands of the layer NAME.part, whose rows are rows or channels of its input."""
_HEADER = ("model", "fingerprint", "ranks", "partitioner", "predicted_ms")

_NUMBER = r"[0-9]{1,9}"
_SPAN = rf"{_NUMBER}:{_NUMBER}"
_NAME = r"[\w.]+"
_OPERATOR = r"[\w+]+"
_ENGINE = r"[\w-]+"
_TRANSFER = (
    rf"(?P<producer>{_NAME})->(?P<consumer>{_NAME}) rows (?P<rows>{_SPAN}) "
    rf"ranks (?P<source>{_NUMBER})->(?P<dest>{_NUMBER})"
    rf"(?: piece (?P<piece>{_NUMBER}))?(?: slot (?P<slot>{_NUMBER}))? tag (?P<tag>{_NUMBER})"
)


@dataclass(frozen=True)
class _Kind:
    """A kind of line in the body: its form, one of it, and the kinds that may come next."""

    pattern: re.Pattern[str]
    example: str
    followers: tuple[str, ...]


_KINDS = {
    "rank": _Kind(
        re.compile(rf"rank (?P<rank>{_NUMBER})"),
        "rank 0",
        ("rank", "unit", "end"),
    ),
    "unit": _Kind(
        re.compile(
            rf"unit (?P<index>{_NUMBER}) (?P<layer>{_NAME}) "
            rf"rows (?P<rows>{_SPAN}) owned (?P<owned>{_SPAN}) runs (?P<operator>{_OPERATOR})"
            rf"(?: on (?P<engine>{_ENGINE}))?"
        ),
        "unit 3 conv1 rows 0:8 owned 0:7 runs conv2d+relu",
        ("needs", "sends", "unit", "rank", "end"),
    ),
    "needs": _Kind(
        re.compile(rf"needs (?P<producer>{_NAME}) rows (?P<rows>{_SPAN})"),
        "needs conv1 rows 0:9",
        ("takes", "needs", "sends", "unit", "rank", "end"),
    ),
    "takes": _Kind(
        re.compile(f"takes {_TRANSFER}"),
        "takes conv1->conv2 rows 7:9 ranks 1->0 tag 4",
        ("takes", "needs", "sends", "unit", "rank", "end"),
    ),
    "sends": _Kind(
        re.compile(f"sends {_TRANSFER}"),
        "sends conv1->conv2 rows 7:9 ranks 1->0 tag 4",
        ("sends", "unit", "rank", "end"),
    ),
    "end": _Kind(re.compile("end"), "end", ()),
}


def check_ranks(tables: UnitTables, size: int) -> None:
    """Raise PlanError unless the tables are for ``size`` ranks."""
    if tables.size != size:
        raise PlanError(
            f"the plan is for {_counted_ranks(tables.size)}, this job has {size}: start it with "
            f"mpirun -n {tables.size}, or leave the plan out and a new one is made"
        )


def save_tables(tables: UnitTables, path: Path) -> None:
    """Write the text form to a file; raises PlanError where the file cannot be written."""
    text = tables_to_text(tables)
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise PlanError(f"cannot write the plan to {path}: {error.strerror}") from error


def load_tables(path: Path) -> UnitTables:
    """Read a file that :func:`save_tables` wrote; raises PlanError where that fails."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path} is not a saved plan: it is not a text file") from error
    return tables_from_text(text, str(path))


@dataclass(frozen=True)
class Line:
    """One line of a rank's table and what it is about.

    ``position`` is the unit's place in the table; ``part`` is () for the unit itself,
    ("needs", i), ("takes", i, j) or ("sends", i).
    """

    text: str
    position: int
    part: tuple[str | int, ...]


def tables_to_text(tables: UnitTables) -> str:
    """The text form; equal tables have equal text.

    Raises
    ------
    TableError
        Where a name or the predicted time cannot be written.
    """
    if tables.predicted_s is not None and not 0 <= tables.predicted_s < math.inf:
        raise TableError(f"a predicted time of {tables.predicted_s} s cannot be written")
    for unit in chain.from_iterable(tables.ranks):
        if not re.fullmatch(_NAME, unit.layer) or not re.fullmatch(_OPERATOR, unit.operator):
            raise TableError(
                f"layer {_shown(unit.layer)} with operator {_shown(unit.operator)} cannot be "
                "written: use letters, digits, '_' and '.' in names"
            )
        if not re.fullmatch(_ENGINE, unit.engine):
            raise TableError(f"an engine's name cannot be {_shown(unit.engine)}")
    lines = [
        f"{_TITLE}{FORMAT_VERSION}",
        f"model: {_header_text(tables.model)}",
        f"fingerprint: {_header_text(tables.fingerprint)}",
        f"ranks: {tables.size}",
        f"partitioner: {_header_text(tables.partitioner)}",
        f"predicted_ms: {_ms_text(tables.predicted_s)}",
        *(f"{_DIVIDED} {layer} by {how}" for layer, how in tables.division),
        _LEGEND,
        *([_DIVIDED_LEGEND] if tables.division else []),
    ]
    for rank, units in enumerate(tables.ranks):
        lines += ["", f"rank {rank}", *(line.text for line in table_lines(units))]
    return "\n".join([*lines, "", "end", ""])


def table_lines(units: Iterable[Unit]) -> Iterator[Line]:
    """The lines of one rank's table, without its heading."""
    for position, unit in enumerate(units):
        spans = f"rows {unit.rows} owned {unit.owned}"
        engine = "" if unit.engine == DEFAULT else f" on {unit.engine}"
        head = f"unit {unit.index} {unit.layer} {spans} runs {unit.operator}{engine}"
        yield Line(head, position, ())
        for i, requirement in enumerate(unit.requirements):
            needs = f"  needs {requirement.producer} rows {requirement.rows}"
            yield Line(needs, position, ("needs", i))
            for j, transfer in enumerate(requirement.transfers):
                yield Line(f"    takes {transfer_text(transfer)}", position, ("takes", i, j))
        for i, transfer in enumerate(unit.forwards):
            yield Line(f"  sends {transfer_text(transfer)}", position, ("sends", i))


def transfer_text(transfer: Transfer) -> str:
    """A transfer in the words that stand at both of its ends."""
    piece = f" piece {transfer.piece}" if transfer.piece else ""
    slot = f" slot {transfer.slot}" if transfer.slot else ""
    return (
        f"{transfer.producer}->{transfer.consumer} rows {transfer.rows} "
        f"ranks {transfer.source}->{transfer.dest}{piece}{slot} tag {transfer.tag}"
    )


def tables_from_text(text: str, where: str) -> UnitTables:
    """Read what :func:`tables_to_text` wrote; ``where`` names the file in messages.

    The result is what the text says: only ``verify_tables`` finds out whether that makes
    sense.

    Raises
    ------
    PlanError
        At the first line that is malformed or out of place, with its number.
    """
    return _Reader(text, where).read()


@dataclass
class _Draft:
    """A unit whose lines are still being read."""

    index: int
    layer: str
    rows: Span
    owned: Span
    operator: str
    engine: str
    requirements: list[tuple[str, Span, list[Transfer]]] = field(default_factory=list)
    forwards: list[Transfer] = field(default_factory=list)

    def unit(self, rank: int) -> Unit:
        return Unit(
            index=self.index,
            layer=self.layer,
            rank=rank,
            rows=self.rows,
            owned=self.owned,
            requirements=tuple(
                Requirement(producer, rows, tuple(transfers))
                for producer, rows, transfers in self.requirements
            ),
            forwards=tuple(self.forwards),
            operator=self.operator,
            engine=self.engine,
        )


class _Reader:
    """Goes through the lines once, so that every message can name the line it is at."""

    def __init__(self, text: str, where: str) -> None:
        numbered = enumerate((line.strip() for line in text.split("\n")), start=1)
        self._lines = [(n, line) for n, line in numbered if line and not line.startswith("#")]
        self._next_line = 0
        self._where = where
        self._transfers: dict[Transfer, Transfer] = {}

    def read(self) -> UnitTables:
        self._read_title()
        header = {key: self._read_header(key) for key in _HEADER}
        predicted_s = self._seconds(header["predicted_ms"])
        division = tuple(self._read_division())
        blocks = self._read_body()
        if header["ranks"] != str(len(blocks)):
            self._fail(f"the header promises {header['ranks']} ranks, {len(blocks)} are listed")
        return UnitTables(
            model=header["model"],
            fingerprint=header["fingerprint"],
            partitioner=header["partitioner"],
            predicted_s=predicted_s,
            ranks=tuple(
                tuple(draft.unit(rank) for draft in drafts) for rank, drafts in enumerate(blocks)
            ),
            division=division,
        )

    def _read_division(self) -> Iterator[tuple[str, How]]:
        while self._next_line < len(self._lines):
            if not self._lines[self._next_line][1].startswith(_DIVIDED):
                return
            line = self._take("")
            match = re.fullmatch(rf"{_DIVIDED}\s+({_NAME})\s+by\s+(outputs|inputs)", line)
            if match is None:
                self._fail(
                    f"expected a line like '{_DIVIDED} conv1 by outputs', found {_shown(line)}"
                )
            yield match[1], "outputs" if match[2] == "outputs" else "inputs"

    def _read_title(self) -> None:
        line = self._take(f"'{_TITLE}{FORMAT_VERSION}'")
        if not line.startswith(_TITLE):
            raise PlanError(
                f"{self._where} is not a saved plan: it should start with "
                f"'{_TITLE}{FORMAT_VERSION}', not with {_shown(line)}"
            )
        version = line.removeprefix(_TITLE)
        if version != str(FORMAT_VERSION):
            raise PlanError(
                f"{self._where} has format {_shown(version)}, but this version of edgeflow-mpi "
                f"reads format {FORMAT_VERSION}: save the plan again with this version"
            )

    def _read_header(self, key: str) -> str:
        line = self._take(f"'{key}: …'")
        found, _, value = line.partition(":")
        value = value.strip()
        if found != key or not value:
            self._fail(f"expected '{key}: …', found {_shown(line)}")
        if not value.startswith('"'):
            return value
        try:
            unquoted = json.loads(value)
        except ValueError:
            unquoted = None
        if not isinstance(unquoted, str):
            self._fail(f"{_shown(value)} is not a text in double quotes")
        return unquoted

    def _seconds(self, text: str) -> float | None:
        if text == "none":
            return None
        # Digits and exponent read in one go are rounded once: the exact inverse of _ms_text.
        seconds = float(f"{text}e-3") if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else math.inf
        if not math.isfinite(seconds):
            self._fail(f"predicted_ms must be milliseconds or none, not {_shown(text)}")
        return seconds

    def _read_body(self) -> list[list[_Draft]]:
        blocks: list[list[_Draft]] = []
        allowed: tuple[str, ...] = ("rank",)
        while allowed:
            expected = " or ".join(f"'{_KINDS[kind].example}'" for kind in allowed)
            line = " ".join(self._take(expected).split())
            name = line.partition(" ")[0]
            if name not in allowed:
                self._fail(f"expected a line like {expected}, found {_shown(line)}")
            kind = _KINDS[name]
            match = kind.pattern.fullmatch(line)
            if match is None:
                self._fail(f"expected a line like '{kind.example}', found {_shown(line)}")
            self._add(name, match, blocks)
            allowed = kind.followers
        if self._next_line < len(self._lines):
            line = self._take("")
            self._fail(f"nothing may follow 'end', found {_shown(line)}")
        return blocks

    def _add(self, name: str, match: re.Match[str], blocks: list[list[_Draft]]) -> None:
        if name == "rank":
            if int(match["rank"]) != len(blocks):
                self._fail(f"expected 'rank {len(blocks)}', found {_shown(match[0])}")
            blocks.append([])
        elif name == "unit":
            rows, owned = self._span(match["rows"]), self._span(match["owned"])
            engine = match["engine"] or DEFAULT
            draft = _Draft(
                int(match["index"]), match["layer"], rows, owned, match["operator"], engine
            )
            blocks[-1].append(draft)
        elif name == "needs":
            needed = (match["producer"], self._span(match["rows"]), list[Transfer]())
            blocks[-1][-1].requirements.append(needed)
        elif name == "takes":
            blocks[-1][-1].requirements[-1][2].append(self._transfer(match))
        elif name == "sends":
            blocks[-1][-1].forwards.append(self._transfer(match))

    def _transfer(self, match: re.Match[str]) -> Transfer:
        transfer = Transfer(
            producer=match["producer"],
            consumer=match["consumer"],
            source=int(match["source"]),
            dest=int(match["dest"]),
            rows=self._span(match["rows"]),
            piece=int(match["piece"] or 0),
            slot=int(match["slot"] or 0),
            tag=int(match["tag"]),
        )
        return self._transfers.setdefault(transfer, transfer)

    def _span(self, text: str) -> Span:
        try:
            return Span.parse(text)
        except ValueError:
            self._fail(f"rows {text} end before they start (no rows are written 0:0)")

    def _take(self, expected: str) -> str:
        if self._next_line == len(self._lines):
            raise PlanError(
                f"{self._where} ends too early: expected {expected}; "
                "it was cut short, save the plan again"
            )
        self._next_line += 1
        return self._lines[self._next_line - 1][1]

    def _fail(self, problem: str) -> NoReturn:
        raise PlanError(f"{self._where}, line {self._lines[self._next_line - 1][0]}: {problem}")


def _header_text(value: str) -> str:
    """The value as it is where that reads back, or else in JSON's quotes."""
    plain = re.fullmatch(r"[\w.:/+-]+( [\w.:/+-]+)*", value)
    return value if plain else json.dumps(value)


def _ms_text(seconds: float | None) -> str:
    """Milliseconds in plain digits that read back to exactly the same seconds."""
    return "none" if seconds is None else f"{Decimal(repr(abs(float(seconds)))).scaleb(3):f}"


def _counted_ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


def _shown(text: str) -> str:
    """The text in quotes, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "…")
