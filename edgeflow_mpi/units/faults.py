"""What can be wrong with unit tables: one exception class per fault, and how it is shown.

The message of a fault is one sentence, followed by the table of the rank it was found on
with the offending line marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from edgeflow_mpi.errors import TableError
from edgeflow_mpi.units.tables import UnitTables
from edgeflow_mpi.units.text import table_lines

_LINES_SHOWN_WHOLE = 48
_LINES_AROUND = 12


class VerificationError(TableError):
    """Any fault that verification finds."""


class WrongModelError(VerificationError):
    """The tables were made for another graph."""


class UnitIndexError(VerificationError):
    """A unit's index or rank is not its place in the tables."""


class UnknownLayerError(VerificationError):
    """A unit or a transfer names a layer, operator or edge that the graph does not have."""


class DuplicateUnitError(VerificationError):
    """A rank has two units of one layer that compute the same rows, or two summands of it."""


class SpanError(VerificationError):
    """A unit's rows are not rows of its layer, or it owns rows that it does not compute."""


class WholeLayerError(VerificationError):
    """A layer that cannot be divided is computed or owned in part."""


class PinnedLayerError(VerificationError):
    """An input or output layer has a unit on a rank other than 0."""


class OwnershipError(VerificationError):
    """A row of a layer has no owner, or two."""


class SummandError(VerificationError):
    """A summand would be counted twice, or is left out."""


class RanksError(VerificationError):
    """A transfer's ranks do not exist or are the same, or it ends where it should not."""


class ForwardError(VerificationError):
    """A unit sends what it does not own."""


class InputsError(VerificationError):
    """A unit's requirements are not its layer's inputs."""


class NeedsError(VerificationError):
    """A requirement's rows are not those that the row algebra asks for."""


class UnmatchedSendError(VerificationError):
    """A transfer is sent, but its receiver does not take that very transfer."""


class UnmatchedReceiveError(VerificationError):
    """A transfer is taken, but its sender does not send that very transfer."""


class TagError(VerificationError):
    """A tag is outside the limit, or two transfers share their tag or their identity."""


class CoverageError(VerificationError):
    """A row that a unit reads is neither computed on its rank nor arrives."""


class SurplusError(VerificationError):
    """A transfer brings nothing that its reader lacks, or rows are written twice."""


class UnitOrderError(VerificationError):
    """A unit comes before one on the same rank whose rows it reads."""


class DeadlockError(VerificationError):
    """In the dry run of all ranks some units never become ready."""


@dataclass(frozen=True)
class Place:
    """A line of the tables: a unit's, by where it stands (what it says of itself may be wrong).

    ``part`` is () for the unit's own line, ("needs", i), ("takes", i, j) or ("sends", i).
    """

    rank: int
    position: int
    part: tuple[str | int, ...] = ()


Fault = TypeVar("Fault", bound=VerificationError)


def fault_at(kind: type[Fault], tables: UnitTables, place: Place, problem: str) -> Fault:
    """A fault of class ``kind``; ``problem`` is read after the unit's description."""
    unit = tables.ranks[place.rank][place.position]
    sentence = f"rank {place.rank}, unit {place.position} ({unit.layer} rows {unit.rows}) {problem}"
    return kind(f"{sentence}\n{marked_table(tables, place)}")


def marked_table(tables: UnitTables, place: Place) -> str:
    """The table of one rank with a line marked; only that line's surroundings if it is long."""
    lines = list(table_lines(tables.ranks[place.rank]))
    marked = next(
        i
        for i, line in enumerate(lines)
        if (line.position, line.part) == (place.position, place.part)
    )
    first, last = 0, len(lines)
    if len(lines) > _LINES_SHOWN_WHOLE:
        first = max(0, marked - _LINES_AROUND)
        last = min(len(lines), marked + _LINES_AROUND + 1)
    shown = [f"  rank {place.rank}"]
    shown += ["  …"] * (first > 0)
    shown += [f"{'> ' if i == marked else '  '}{lines[i].text}" for i in range(first, last)]
    shown += ["  …"] * (last < len(lines))
    return "\n".join(shown)
