"""One layer's table of spans: what one device can have computed or received, and when.

The inequalities are those of :mod:`edgeflow_mpi.partition.bound.arrival`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from edgeflow_mpi.partition.bound.case import Bools, Case
from edgeflow_mpi.partition.timeline import Floats, Ints

LONG_AGO = -np.inf


class LateRows:
    """The late rows of a layer and their release times, for every last row: [last row, row].

    Rows that are not late have a release time of minus infinity.
    """

    def __init__(self, late: Bools, release_s: Floats) -> None:
        self.late = late
        self.release_s = release_s
        self._before: Ints = np.pad(late, ((0, 0), (1, 0))).cumsum(axis=1)

    def count(self, a: Ints, b: Ints) -> Ints:
        """How many rows of ``[a[k], b[k])`` are late: [last row, k]."""
        found: Ints = self._before[:, b] - self._before[:, a]
        return found

    @cached_property
    def in_order(self) -> Floats:
        """Release times, ascending; infinity for rows that are not late comes last."""
        return np.sort(np.where(self.late, self.release_s, np.inf), axis=1)


def earliest_held_s(
    case: Case, index: int, rows: LateRows, exists_s: Floats, inputs_s: Floats
) -> Floats:
    """When one device has ``[a, b)`` of layer ``index``, work of others apart: [last row, a, b].

    Parameters
    ----------
    exists_s : when each row exists anywhere: [last row, row].
    inputs_s : when one device has all that a span needs, for ``np.triu_indices(rows + 1, 1)``.
    """
    layer = case.layers[index]
    a, b = np.triu_indices(layer.rows + 1, 1)
    shape = len(exists_s), layer.rows + 1, layer.rows + 1
    computed_s = np.full(shape, LONG_AGO)
    computed_s[:, a, b] = _computed_s(case, index, rows, exists_s, inputs_s)
    if case.ranks == 1:
        return computed_s
    received = _Received(case, index, rows, exists_s)
    held_s = computed_s.copy()
    whole = np.flatnonzero(b - a == layer.rows)
    for count in range(1, layer.rows + 1):
        # Spans of which ``count`` rows or more can come from others; summands come together.
        chosen = whole if layer.combine else np.flatnonzero(b - a >= count)
        start, stop = a[chosen], b[chosen]
        best_s = held_s[:, start, stop]
        if (received.least_s(count)[:, None] >= best_s).all():
            break
        for above in range(count + 1):
            u, v = start + above, stop - (count - above)
            there_s = np.maximum(computed_s[:, u, v], received.latest_s(start, u, v, stop))
            best_s = np.minimum(best_s, there_s)
        held_s[:, start, stop] = best_s
    return held_s


def _computed_s(
    case: Case, index: int, rows: LateRows, exists_s: Floats, inputs_s: Floats
) -> Floats:
    """E of all spans: [last row, k]."""
    layer = case.layers[index]
    a, b = np.triu_indices(layer.rows + 1, 1)
    some = rows.count(a, b) > 0
    if not layer.divisible:
        return np.where(some, exists_s.max(axis=1)[:, None], LONG_AGO)
    found_s = np.where(some, inputs_s + case.least_s(index, 1), LONG_AGO)
    for place in range(layer.rows):
        alpha = rows.in_order[:, place]
        if np.isinf(alpha).all():
            break
        if place and (alpha == rows.in_order[:, place - 1]).all():
            continue
        released = rows.late & (rows.release_s >= alpha[:, None])
        later = LateRows(released, rows.release_s).count(a, b)
        bound_s = alpha[:, None] + case.least_s(index, later)
        found_s = np.maximum(found_s, np.where(later > 0, bound_s, LONG_AGO))
    return found_s


class _Received:
    """When rows of a layer can have come from other devices."""

    def __init__(self, case: Case, index: int, rows: LateRows, exists_s: Floats) -> None:
        layer = case.layers[index]
        height = layer.rows
        self._rows = rows
        self._senders = case.ranks - 1
        self._latency_s = case.latency_s
        if layer.combine:
            self._latency_s += layer.out.size_bytes * case.byte_s
        self._row_s = 0.0 if layer.combine else layer.out.row_bytes * case.byte_s
        existing = np.where(rows.late, exists_s, np.inf)
        self._first_s: Floats = existing.min(axis=1)
        # The latest and the first of every span.
        shape = len(exists_s), height + 1, height + 1
        self._latest, self._earliest = np.full(shape, LONG_AGO), np.full(shape, np.inf)
        for width in range(1, height + 1):
            start = np.arange(height - width + 1)
            here, before = (
                (slice(None), start, start + width),
                (slice(None), start, start + width - 1),
            )
            last = start + width - 1
            self._latest[here] = np.maximum(self._latest[before], exists_s[:, last])
            self._earliest[here] = np.minimum(self._earliest[before], existing[:, last])
        # When one device has computed any m late rows.
        self._any_s = np.full((len(exists_s), height + 1), LONG_AGO)
        for count in range(1, height + 1):
            behind = count - np.arange(count)
            bound_s = (rows.in_order[:, :count] + case.least_s(index, behind)).max(axis=1)
            enough = np.isfinite(rows.in_order[:, count - 1])
            self._any_s[:, count] = np.where(enough, bound_s, LONG_AGO)

    def least_s(self, count: int) -> Floats:
        """A bound for any ``count`` rows, for every last row."""
        if not self._rows.late.all():
            return np.full(len(self._first_s), LONG_AGO)
        bound_s: Floats = self._first_s + self._latency_s + self._row_s * count
        return bound_s

    def latest_s(self, start: Ints, u: Ints, v: Ints, stop: Ints) -> Floats:
        """When the last of rows ``[start[k], u[k])`` and ``[v[k], stop[k])`` has come."""
        count = self._rows.count(start, u) + self._rows.count(v, stop)
        latest_s = np.maximum(self._latest[:, start, u], self._latest[:, v, stop])
        earliest_s = np.minimum(self._earliest[:, start, u], self._earliest[:, v, stop])
        share = -(-count // self._senders)
        most_s = np.take_along_axis(self._any_s, share, axis=1)
        row_s = self._row_s
        bound_s = np.maximum(np.maximum(latest_s, most_s) + row_s, earliest_s + row_s * count)
        return np.where(count > 0, bound_s + self._latency_s, LONG_AGO)
