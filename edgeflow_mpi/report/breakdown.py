"""Where the time of every rank and unit goes (``--breakdown``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Json = dict[str, object]

PARTS = ("kernel", "copy", "requests", "dispatch", "waiting")
_WORDS = {"requests": "messages"}
WORST_UNITS = 12


@dataclass(frozen=True)
class UnitTimes:
    """One unit's milliseconds for one request, by part.

    Attributes
    ----------
    label : str
        Layer, rows and rank.
    operator : str
        What it computes.
    parts_ms : mapping of str to float
        ``kernel``: computing. ``copy``: tensors moved within the rank's memory. ``requests``:
        calls that start messages, or ask for them while there is something to do. ``waiting``:
        nothing to do before it, for want of messages. ``dispatch``: all else. They add up to
        the time from the end of the unit before.
    """

    label: str
    operator: str
    parts_ms: Mapping[str, float]

    @property
    def overhead_ms(self) -> float:
        """Everything but the kernel."""
        return sum(self.parts_ms.values()) - self.parts_ms["kernel"]


@dataclass(frozen=True)
class RankTimes:
    """The units of one rank, in the order of their priority."""

    rank: int
    units: tuple[UnitTimes, ...]

    @property
    def parts_ms(self) -> Mapping[str, float]:
        """Milliseconds by part of all units together."""
        return {part: sum(unit.parts_ms[part] for unit in self.units) for part in PARTS}


def breakdown_rows(
    ranks: Sequence[RankTimes],
) -> tuple[tuple[str, ...], list[tuple[str, ...]], tuple[str, ...], list[tuple[str, ...]]]:
    """Two tables, each as its head and its rows: of the ranks, and of the worst units."""
    words = tuple(_WORDS.get(part, part) for part in PARTS)
    by_rank = [
        (str(rank.rank), *_cells(rank.parts_ms), f"{sum(rank.parts_ms.values()):.2f}",
         _each_us(rank))
        for rank in ranks
    ]  # fmt: skip
    units = sorted(
        (unit for rank in ranks for unit in rank.units),
        key=lambda unit: (-unit.overhead_ms, unit.label),
    )[:WORST_UNITS]
    by_unit = [(unit.label, *_cells(unit.parts_ms)) for unit in units]
    return ("rank", *words, "sum", "a unit's own"), by_rank, ("unit", *words), by_unit


def breakdown_json(ranks: Sequence[RankTimes]) -> list[Json]:
    """All of it, for tools."""
    return [
        {
            "rank": rank.rank,
            **{f"{part}_ms": ms for part, ms in rank.parts_ms.items()},
            "units": [
                {
                    "unit": unit.label,
                    "operator": unit.operator,
                    **{f"{part}_ms": unit.parts_ms[part] for part in PARTS},
                }
                for unit in rank.units
            ],
        }
        for rank in ranks
    ]


def _cells(parts_ms: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(f"{parts_ms[part]:.2f}" for part in PARTS)


def _each_us(rank: RankTimes) -> str:
    """What a unit costs beside its kernel and waiting, on average."""
    parts = rank.parts_ms
    spent_ms = parts["copy"] + parts["requests"] + parts["dispatch"]
    return f"{1e3 * spent_ms / max(len(rank.units), 1):.0f} µs"
