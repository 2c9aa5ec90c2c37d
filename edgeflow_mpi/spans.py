"""Half-open ranges of rows along a split axis.

A span ``[start, stop)`` with ``start >= stop`` is empty; every empty span equals
:data:`EMPTY`, so that emptiness needs no tolerance anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, order=True)
class Span:
    """Rows ``start <= r < stop`` (global indices unless a name says local).

    Invariants: ``0 <= start``; an empty span must be ``Span(0, 0)``. Use
    :meth:`of` to build one from arithmetic that may cross over.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.stop < self.start or (self.stop == self.start != 0):
            raise ValueError(f"not a span: [{self.start}, {self.stop})")

    @staticmethod
    def of(start: int, stop: int) -> Span:
        """The span ``[start, stop)``, or :data:`EMPTY` where ``stop <= start``."""
        return Span(start, stop) if stop > start else EMPTY

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def __bool__(self) -> bool:
        return self.stop > self.start

    def __contains__(self, other: Span) -> bool:
        """Whether every row of ``other`` is in this span (true of an empty ``other``)."""
        return not other or (self.start <= other.start and other.stop <= self.stop)

    def __and__(self, other: Span) -> Span:
        """Rows in both spans."""
        return Span.of(max(self.start, other.start), min(self.stop, other.stop))

    def hull(self, other: Span) -> Span:
        """The smallest span that contains both; empty spans count for nothing."""
        if not self:
            return other
        if not other:
            return self
        return Span(min(self.start, other.start), max(self.stop, other.stop))

    def minus(self, other: Span) -> tuple[Span, ...]:
        """The non-empty pieces of this span outside ``other``: none, one or two."""
        if not self & other:
            return (self,) if self else ()
        pieces = (Span.of(self.start, other.start), Span.of(other.stop, self.stop))
        return tuple(piece for piece in pieces if piece)

    def shifted(self, offset: int) -> Span:
        """The same rows counted from another origin: global to local with ``-origin``."""
        return Span(self.start + offset, self.stop + offset) if self else EMPTY

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    @staticmethod
    def parse(text: str) -> Span:
        """Read ``"start:stop"``; raises ValueError for anything else."""
        start, colon, stop = text.partition(":")
        if not colon:
            raise ValueError(f"not a span: {text!r}")
        return Span(int(start), int(stop))


EMPTY = Span(0, 0)


def union(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Disjoint, sorted, maximal spans covering exactly the rows of ``spans``."""
    merged: list[Span] = []
    for span in sorted(span for span in spans if span):
        if merged and span.start <= merged[-1].stop:
            merged[-1] = merged[-1].hull(span)
        else:
            merged.append(span)
    return tuple(merged)


def subtract(span: Span, covered: Iterable[Span]) -> tuple[Span, ...]:
    """The rows of ``span`` that no span of ``covered`` holds, as sorted pieces."""
    pieces: tuple[Span, ...] = (span,) if span else ()
    for hole in covered:
        pieces = tuple(rest for piece in pieces for rest in piece.minus(hole))
    return pieces


def from_breakpoints(breakpoints: Sequence[int]) -> tuple[Span, ...]:
    """Spans ``[x_{i-1}, x_i)`` of breakpoints ``x_0 <= x_1 <= ... <= x_n``."""
    return tuple(Span.of(a, b) for a, b in pairwise(breakpoints))


def even(rows: int, parts: int) -> tuple[Span, ...]:
    """``rows`` in ``parts`` spans whose sizes differ by at most one, larger ones first."""
    small, extra = divmod(rows, parts)
    breakpoints = [i * small + min(i, extra) for i in range(parts + 1)]
    return from_breakpoints(breakpoints)
