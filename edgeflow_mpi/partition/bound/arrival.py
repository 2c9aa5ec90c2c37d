"""Layer by layer: when single devices can have spans of rows at the earliest.

For a layer l and rows ``[a, b)`` of it let

* ``E_l[a, b)`` bound from below when some device has computed them all,
* ``A_l[a, b)`` bound from below when some device has them all, computed or received.

``A`` is 0 for inputs. Take a layer whose inputs are bounded, and let
``tau(m) = min_i (c_li + w_li * m)``, for m > 0, be the least time that m rows cost a device.

**Release.** Useful row r cannot be begun before ``rho(r) = max over inputs of A[need(r)]``.

**Computed.** A device that has computed ``[a, b)`` began those of its rows with
``rho >= alpha`` no earlier than alpha, in whatever pieces. And when it began the last piece it
had all that ``[a, b)`` needs. So, for every alpha,

    E[a, b) >= alpha + tau(number of its rows r with rho(r) >= alpha),
    E[a, b) >= max over inputs of A[need([a, b))] + tau(1).

**Existence.** A row exists no earlier than ``E[r, r + 1)``. Moreover, let ``h_y`` be the least
rho of any row of layer y. All rows that ``[a, b)`` depends on, of layers y with ``h_y >= h``,
are computed after h, and what they are worth (:mod:`.work`) is a bound on the time in which
all devices together compute them. With ``cone_y`` for how many useful rows of y ``[a, b)``
depends on, itself included, and ``v_y`` for the worth of one, ``[a, b)`` exists no earlier than

    W[a, b) = max over h of (h + sum over y with h_y >= h of v_y * cone_y([a, b))).

**At hand.** A device that has ``[a, b)`` computed some span ``[u, v)`` of it, perhaps none, and
received the rest, q rows, in messages, each after its rows existed. By the time it has the
last of them, with the least latency and the least time ``beta`` of a row on any link,

* each of them has existed for ``latency + beta``;
* the first existed, and all q then passed through the device's link, or the medium: for
  ``latency + beta * q``;
* of the at most n - 1 devices that they come from, one had computed ``ceil(q / (n - 1))`` of
  them, the last ``latency + beta`` ago.

So A is at least the greater of the latest of these and ``E[u, v)``, for the best ``[u, v)``;
and at least W.

**Undivided layers** are computed as a whole or not at all, wherever. **Summands** are wanted
together; who has not computed all rows receives at least one message from somebody else.

The bound is A of what an answer reads.

**Loose layers**, the last ones of a model, may be divided by channels or by inputs as well
(:mod:`edgeflow_mpi.graph.tail`); see :mod:`.loose`. E and A are then of plans that divide a
layer, and all in front of it, by rows; of other plans there are times of their own. What an
answer reads is there at the lesser of the two. In front of loose layers everything is divided by
rows.

**The last row.** The same with "row r of layer l exists at time 0, on every device, and
whatever does not depend on it existed long before" bounds how much later than r, if r is the
last row of its layer, an answer can be. It is done for all useful rows of l at once: all arrays
have a leading axis for them. Rows that do not depend on r have times of minus infinity and
count nowhere; those that do are called *late*. Without l, all useful rows are late. Where late
rows of a layer have others between them, only the longest run of them is called so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeflow_mpi.partition.bound.case import Case, Edge
from edgeflow_mpi.partition.bound.cones import Cone
from edgeflow_mpi.partition.bound.holding import LONG_AGO, LateRows, earliest_held_s
from edgeflow_mpi.partition.bound.loose import Other, Read, otherwise
from edgeflow_mpi.partition.timeline import Floats, Ints

TABLE_ROWS, TABLE_CELLS = 64, 1 << 16
"""The largest tables of spans; in larger layers only rows and total work are looked at."""
RELEASES = 24
"""How many h are tried for W."""


class Arrivals:
    """The recursion above over all layers of a case.

    Parameters
    ----------
    case : the problem.
    reach : the cones of its layers.
    row_value_s : the worth of one useful row of each layer.
    last : a layer of whose rows, one by one, is asked what happens if it is the last.
    """

    def __init__(
        self, case: Case, reach: Sequence[Cone], row_value_s: Floats, last: int | None = None
    ) -> None:
        self._case = case
        self._reach = reach
        self._row_value_s = row_value_s
        self._last = last
        self._many = 1 if last is None else int(case.count[last])
        self._layers: dict[int, _Layer] = {}
        self._other: dict[int, Other] = {}
        for index in range(len(case.layers)):
            self._visit(index)
            if index in case.loose:
                self._other[index] = self._otherwise(index)

    @property
    def answer_s(self) -> float:
        """The bound on the last answer, for the best last row."""
        best_s = np.full(self._many, LONG_AGO)
        for index, layer in enumerate(self._case.layers):
            if layer.kind == "output":
                for edge in self._case.edges[index]:
                    held_s = self._all_s(edge)
                    if edge.source in self._other:
                        other_s = self._other[edge.source].all_s
                        worth_s = self._work(edge.source, mixed=True).spans_s(*_all(edge))[:, 0]
                        held_s = np.minimum(held_s, np.maximum(other_s, worth_s))
                    best_s = np.maximum(best_s, held_s)
        return max(float(best_s.min(initial=np.inf)), 0.0)

    def _visit(self, index: int) -> None:
        case, layer = self._case, self._case.layers[index]
        useful = case.useful[index]
        if layer.kind == "input" and self._last is None:
            self._layers[index] = _Layer(LateRows.of(useful[None, :], np.zeros((1, layer.rows))))
            return
        if index == self._last:
            late = np.zeros((self._many, layer.rows), dtype=bool)
            late[np.arange(self._many), np.flatnonzero(useful)] = True
            self._layers[index] = _Layer(LateRows.of(late, np.zeros(late.shape)))
            return
        release_s = np.full((self._many, layer.rows), 0.0 if self._last is None else LONG_AGO)
        for edge in case.edges[index]:
            if edge.source in self._layers:
                release_s = np.maximum(release_s, self._held_s(edge.source, edge.low, edge.high))
        late = useful & (release_s > LONG_AGO)
        if not late.any():
            return
        rows = LateRows.of(late, release_s)
        found = self._layers[index] = _Layer(rows)
        found.work = self._work(index)
        exists_s = rows.release_s + case.least_s(index, 1 if layer.divisible else layer.rows)
        exists_s = np.where(rows.late, np.maximum(exists_s, found.work.rows_s), LONG_AGO)
        found.peaks = _peaks(exists_s)
        cells = self._many * (layer.rows + 1) ** 2
        if layer.rows <= TABLE_ROWS and cells <= TABLE_CELLS:
            a, b = np.triu_indices(layer.rows + 1, 1)
            inputs_s, work_s = self._inputs_s(index, a, b), found.work.spans_s(a, b)
            found.table = earliest_held_s(case, index, rows, exists_s, inputs_s, work_s)

    def _otherwise(self, index: int) -> Other:
        """When a loose layer is there that is not divided by rows, or not all in front of it."""
        reads = [
            Read(
                first_s=self._held_s(edge.source, edge.low, edge.high).min(axis=1),
                all_s=self._all_s(edge),
                by_channel=by_channel,
                other=self._other.get(edge.source),
            )
            for edge, by_channel in zip(
                self._case.edges[index], self._case.by_channel[index], strict=True
            )
        ]
        return otherwise(self._case, index, reads)

    def _all_s(self, edge: Edge) -> Floats:
        """When one device has all of what an edge may bring: [last row]."""
        found: Floats = self._held_s(edge.source, *_all(edge))[:, 0]
        return found

    def _inputs_s(self, index: int, a: Ints, b: Ints) -> Floats:
        """When one device has all that spans of a layer need: [last row, k]."""
        found = np.full((self._many, len(a)), LONG_AGO)
        # A span is begun row by row; only where every row is useful are all its needs needed.
        if self._case.useful[index].all():
            for edge in self._case.edges[index]:
                if edge.dense and edge.source in self._layers:
                    held_s = self._held_s(edge.source, edge.low[a], edge.high[b - 1])
                    np.maximum(found, held_s, out=found)
        return found

    def _held_s(self, index: int, a: Ints, b: Ints) -> Floats:
        """A of spans ``[a[k], b[k])``, none empty: [last row, k]."""
        layer = self._layers.get(index)
        if layer is None:
            return np.full((self._many, len(a)), LONG_AGO)
        if layer.table is not None:
            found: Floats = layer.table[:, a, b]
            return found
        # The rows exist, one by one and all together.
        level = np.frexp(b - a)[1] - 1
        both = layer.peaks[level, :, a], layer.peaks[level, :, b - (1 << level)]
        one_by_one_s = np.maximum(*both).T
        some = one_by_one_s > LONG_AGO
        return np.where(some, np.maximum(one_by_one_s, layer.work.spans_s(a, b)), LONG_AGO)

    def _work(self, index: int, *, mixed: bool = False) -> _SharedWork:
        """W of a layer whose own release times are known.

        With ``mixed`` however loose layers are divided.
        """
        chosen = [
            (other, self._layers[other], low, high, self._row_value_s[other])
            for other, (low, high) in self._reach[index].items()
            if other in self._layers
            and other != self._last  # the last row has been computed at time 0
            and self._row_value_s[other] > 0.0
        ]
        shape = self._many, len(chosen), self._case.layers[index].rows
        if not chosen:
            return _SharedWork(np.zeros(shape[:2]), np.zeros(shape), np.zeros(shape))
        release_s = np.full(shape[:2], LONG_AGO)
        before_s, upto_s = np.zeros(shape), np.zeros(shape)
        for k, (other, layer, low, high, value_s) in enumerate(chosen):
            release_s[:, k] = layer.release_s
            if mixed and other in self._other:
                release_s[:, k] = np.minimum(release_s[:, k], self._other[other].first_s)
            before_s[:, k] = value_s * layer.late_before[:, low]
            upto_s[:, k] = value_s * layer.late_before[:, high]
        order = np.argsort(-release_s, axis=1, kind="stable")
        # Some of the h, evenly over the layers: each by itself is a bound.
        some = np.unique(np.linspace(len(chosen) - 1, 0, RELEASES).astype(np.int64))
        return _SharedWork(
            np.take_along_axis(release_s, order, axis=1)[:, some],
            np.take_along_axis(before_s, order[:, :, None], axis=1).cumsum(axis=1)[:, some],
            np.take_along_axis(upto_s, order[:, :, None], axis=1).cumsum(axis=1)[:, some],
        )


class _SharedWork:
    """W: for each last row and each h, in falling order, sums over layers with ``h_y >= h``."""

    def __init__(self, release_s: Floats, before_s: Floats, upto_s: Floats) -> None:
        self._release_s = release_s
        self._before_s = before_s
        self._upto_s = upto_s

    @property
    def rows_s(self) -> Floats:
        """W of single rows: [last row, row]."""
        rows = np.arange(self._before_s.shape[2])
        return self.spans_s(rows, rows + 1)

    def spans_s(self, a: Ints, b: Ints) -> Floats:
        """W of spans ``[a[k], b[k])``: [last row, k]."""
        found = np.full((len(self._release_s), len(a)), LONG_AGO)
        for k in range(self._release_s.shape[1]):
            worth_s = self._upto_s[:, k, b - 1] - self._before_s[:, k, a]
            np.maximum(found, self._release_s[:, k, None] + worth_s, out=found)
        return found


class _Layer:
    """What later layers ask of one: times, and numbers of late rows before each row."""

    def __init__(self, rows: LateRows) -> None:
        late = rows.late
        self.release_s: Floats = np.where(late.any(axis=1), rows.in_order[:, 0], LONG_AGO)
        self.late_before = rows.before
        self.peaks: Floats = _peaks(np.where(late, 0.0, LONG_AGO))
        none = np.zeros((len(late), 0, late.shape[1]))
        self.work = _SharedWork(none[:, :, 0], none, none)
        self.table: Floats | None = None


def _all(edge: Edge) -> tuple[Ints, Ints]:
    """The span of all rows that an edge may bring."""
    return edge.low[:1], edge.high[-1:]


def _peaks(values: Floats) -> Floats:
    """The largest of 2^k values from each place on: [k, last row, place]."""
    levels = [values]
    width = 1
    while 2 * width <= values.shape[1]:
        level = levels[-1].copy()
        level[:, :-width] = np.maximum(levels[-1][:, :-width], levels[-1][:, width:])
        levels.append(level)
        width *= 2
    return np.array(levels)
