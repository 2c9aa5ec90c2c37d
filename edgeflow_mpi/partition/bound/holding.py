"""One layer's table of spans: what one device can have computed or received, and when.

The inequalities are those of :mod:`edgeflow_mpi.partition.bound.arrival`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeflow_mpi.partition.bound.case import Bools, Case
from edgeflow_mpi.partition.simulator import jit
from edgeflow_mpi.partition.simulator.jit import floats, longs
from edgeflow_mpi.partition.timeline import Floats, Ints

LONG_AGO = -np.inf


@dataclass(frozen=True)
class LateRows:
    """The late rows of a layer, ``[first, stop)`` for every last row, and their release times.

    ``release_s[last row, row]`` is minus infinity for rows that are not late.
    """

    first: Ints
    stop: Ints
    release_s: Floats

    @staticmethod
    def of(late: Bools, release_s: Floats) -> LateRows:
        """The longest run of rows that are ``late``; what is counted may be less, never more."""
        rows = np.arange(late.shape[1])
        # How many late rows end at each row.
        run = rows - np.maximum.accumulate(np.where(late, -1, rows), axis=1)
        stop = run.argmax(axis=1) + 1
        first = stop - run.max(axis=1)
        kept = (rows >= first[:, None]) & (rows < stop[:, None])
        return LateRows(first, stop, np.where(kept, release_s, LONG_AGO))

    @property
    def late(self) -> Bools:
        found: Bools = self.release_s > LONG_AGO
        return found

    @property
    def before(self) -> Ints:
        """How many late rows come before each row, and before the end: [last row, row]."""
        rows = np.arange(self.release_s.shape[1] + 1)
        found: Ints = np.clip(rows - self.first[:, None], 0, (self.stop - self.first)[:, None])
        return found

    @property
    def in_order(self) -> Floats:
        """Release times, ascending; infinity in place of rows that are not late."""
        return np.sort(np.where(self.late, self.release_s, np.inf), axis=1)


def earliest_held_s(
    case: Case, index: int, rows: LateRows, exists_s: Floats, inputs_s: Floats, work_s: Floats
) -> Floats:
    """A: when one device has ``[a, b)`` of layer ``index``: [last row, a, b].

    Parameters
    ----------
    exists_s : when each row exists anywhere: [last row, row].
    inputs_s : when one device has all that a span needs, for ``np.triu_indices(rows + 1, 1)``.
    work_s : W of the same spans.
    """
    height = case.layers[index].rows
    a, b = np.triu_indices(height + 1, 1)
    computed_s = np.full((len(exists_s), height + 1, height + 1), LONG_AGO)
    computed_s[:, a, b] = _computed_s(case, index, rows, exists_s, inputs_s)
    held_s = computed_s
    if case.ranks > 1:
        held_s = _held_s(case, index, rows, exists_s, computed_s)
    held_s[:, a, b] = np.maximum(held_s[:, a, b], work_s)
    # Rows that are not late were there before: of a span only its late rows matter.
    first, stop = rows.first[:, None, None], rows.stop[:, None, None]
    start = np.maximum(np.arange(height + 1)[:, None], first)
    end = np.minimum(np.arange(height + 1), stop)
    which = np.arange(len(exists_s))[:, None, None]
    found: Floats = np.where(start < end, held_s[which, start, end], LONG_AGO)
    return found


def _computed_s(
    case: Case, index: int, rows: LateRows, exists_s: Floats, inputs_s: Floats
) -> Floats:
    """E of all spans: [last row, k]."""
    layer = case.layers[index]
    a, b = np.triu_indices(layer.rows + 1, 1)
    some = rows.before[:, b] > rows.before[:, a]
    if not layer.divisible:
        return np.where(some, exists_s.max(axis=1)[:, None], LONG_AGO)
    least_s = case.least_s(index, np.arange(layer.rows + 1))
    found_s = np.where(some, inputs_s + least_s[1], LONG_AGO)
    in_order = rows.in_order
    for place in range(layer.rows):
        alpha = in_order[:, place]
        if np.isinf(alpha).all():
            break
        if place and (alpha == in_order[:, place - 1]).all():
            continue
        released = rows.late & (rows.release_s >= alpha[:, None])
        before = np.pad(released, ((0, 0), (1, 0))).cumsum(axis=1)
        count = before[:, b] - before[:, a]
        np.maximum(found_s, alpha[:, None] + least_s[count], out=found_s, where=count > 0)
    return found_s


def _held_s(case: Case, index: int, rows: LateRows, exists_s: Floats, computed_s: Floats) -> Floats:
    """Computed in part, received in part, whatever is best, of spans of late rows."""
    layer = case.layers[index]
    wait_s, row_s = case.latency_s, layer.out.row_bytes * case.byte_s
    if layer.combine:
        wait_s, row_s = case.latency_s + layer.out.size_bytes * case.byte_s, 0.0
    held_s = _flat(computed_s.copy())
    _share_out(
        longs([len(exists_s), layer.rows, case.ranks - 1]),
        longs(np.concatenate([rows.first, rows.stop])),
        floats([wait_s, row_s]),
        _flat(exists_s),
        _flat(_shares_s(case, index, rows)),
        _flat(computed_s),
        held_s,
    )
    return np.reshape(np.asarray(held_s), computed_s.shape)


def _shares_s(case: Case, index: int, rows: LateRows) -> Floats:
    """When one device has computed any m late rows: [last row, m]."""
    in_order = rows.in_order
    many, height = in_order.shape
    least_s = case.least_s(index, np.arange(height + 1))
    found = np.full((many, height + 1), LONG_AGO)
    for count in range(1, height + 1):
        behind = count - np.arange(count)
        bound_s = (in_order[:, :count] + least_s[behind]).max(axis=1)
        found[:, count] = np.where(np.isfinite(in_order[:, count - 1]), bound_s, LONG_AGO)
    return found


def _flat(values: Floats) -> jit.Floats:
    """An array as compiled code wants it, without a copy where there is any."""
    found: jit.Floats = values.ravel() if jit.COMPILED else values.ravel().tolist()  # type: ignore[assignment]
    return found


@jit.jit
def _share_out(
    sizes: jit.Longs,
    late: jit.Longs,
    times: jit.Floats,
    exists_s: jit.Floats,
    share_s: jit.Floats,
    computed_s: jit.Floats,
    held_s: jit.Floats,
) -> None:
    """Lower ``held_s`` to what receiving some rows at both ends of a span allows."""
    many, rows, senders = sizes[0], sizes[1], sizes[2]
    wait_s, row_s = times[0], times[1]
    width = rows + 1
    for which in range(many):
        first, stop = late[which], late[many + which]
        table, row_at, share_at = which * width * width, which * rows, which * width
        for a in range(first, stop):
            for b in range(a + 1, stop + 1):
                best_s = held_s[table + a * width + b]
                last_above_s, first_above_s = -np.inf, np.inf
                for u in range(a, b + 1):  # rows [a, u) and [v, b) are received
                    if u > a:
                        there_s = exists_s[row_at + u - 1]
                        last_above_s = max(last_above_s, there_s)
                        first_above_s = min(first_above_s, there_s)
                        if last_above_s + row_s + wait_s >= best_s:
                            break
                    last_s, first_s = last_above_s, first_above_s
                    for v in range(b, u - 1, -1):
                        if v < b:
                            there_s = exists_s[row_at + v]
                            last_s = max(last_s, there_s)
                            first_s = min(first_s, there_s)
                        count = b - v + u - a
                        if count == 0:
                            continue
                        sender_s = share_s[share_at + (count + senders - 1) // senders]
                        got_s = max(last_s, sender_s) + row_s
                        got_s = max(got_s, first_s + row_s * count) + wait_s
                        if got_s >= best_s:
                            break
                        if v > u:
                            got_s = max(got_s, computed_s[table + u * width + v])
                        best_s = min(best_s, got_s)
                held_s[table + a * width + b] = best_s
