"""What must pass between rank 0, which holds the input and wants the answer, and the others.

Others can only compute rows whose inputs they have. For an edge from layer p to layer m let
``mu`` be such that any q useful rows of m need at least ``mu * q`` rows of p between them. Up
to some time T let rank 0 have computed ``x_l`` of the ``N_l`` useful rows of layer l, and the
others, among them, ``y_l`` (no row counted twice on one side); let ``s_l`` of its rows have
come from rank 0 to some other, and ``r_l`` from another to rank 0. Then

    y_p + s_p >= mu * y_m,   x_p + r_p >= mu * x_m     for all edges,
    sum_l x_l * (c_l0 / N_l + w_l0) <= T,
    sum_l y_l * min_i lambda_i * (c_li / N_l + w_li) <= T,    i > 0, weights of sum 1,
    sum_l s_l * bytes_l / (fastest link from 0) <= T,         and likewise to 0,

or, on a shared medium, one sum for both directions. (Of q <= N rows that a device computes, c
is at least ``c * q / N``; how weights add up devices, see :mod:`.work`.) Inputs are on rank 0
only.

If T is the makespan, ``x_l + y_l >= N_l`` besides, and what answers read is on rank 0. The
least T of this linear program is a bound. Where links are slow it says what distributing costs
at least; where they are very slow, that rank 0 is better off alone.

If T is when certain rows exist, ``x_l + y_l`` is at least the number of rows of layer l that
they depend on. That bounds when they can exist.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from edgeflow_mpi.partition.bound.case import Case, Edge
from edgeflow_mpi.partition.timeline import Floats, Ints

SLACK = 1e-6
"""By how much, relatively, the solver's optimum is trusted less."""

_X, _Y, _S, _R = range(4)


class Exchange:
    """The linear program, for any rows that must exist.

    Parameters
    ----------
    case : with at least two ranks.
    weights : of all ranks; only their proportions among the others matter.
    """

    def __init__(self, case: Case, weights: Floats) -> None:
        self._case = case
        self._spread = [
            [_spread(case, index, edge) for edge in case.edges[index]]
            for index in range(len(case.layers))
        ]
        per_row_s = case.fixed_s / np.maximum(case.count, 1)[:, None] + case.row_s
        self._alone_s = per_row_s[:, 0]
        others = weights[1:] if weights[1:].sum() > 0.0 else np.ones(case.ranks - 1)
        self._others_s = (per_row_s[:, 1:] * (others / others.sum())).min(axis=1)
        size_bytes = [0 if layer.combine else layer.out.row_bytes for layer in case.layers]
        self._send_s = np.array(size_bytes) / case.rate_bytes_s(source=0)
        self._return_s = np.array(size_bytes) / case.rate_bytes_s(dest=0)

    def makespan_s(self) -> float:
        """A bound on the makespan."""
        return self._least_s(self._case.count, answers=True)

    def least_s(self, rows: Ints) -> float:
        """A bound on when ``rows[l]`` useful rows of every layer l exist."""
        return self._least_s(rows, answers=False)

    def _least_s(self, rows: Ints, *, answers: bool) -> float:
        case = self._case
        layers = [index for index in range(len(case.layers)) if rows[index]]
        place = {layer: 4 * k for k, layer in enumerate(layers)}
        latest = 4 * len(layers)
        unit_s = float((self._alone_s * rows).sum())
        if unit_s <= 0.0:
            return 0.0
        program = _Program(latest + 1)
        for index in layers:
            layer, at = case.layers[index], place[index]
            most = float(case.count[index])
            program.most[[at + _X, at + _Y]] = most, 0.0 if layer.pinned else most
            if layer.pinned:
                program.least[at + _X] = rows[index]
            else:
                program.at_least([(at + _X, 1.0), (at + _Y, 1.0)], float(rows[index]))
            if layer.kind == "output" and not answers:
                continue
            for edge, mu in zip(case.edges[index], self._spread[index], strict=True):
                if mu > 0.0 and edge.source in place:
                    source = place[edge.source]
                    for made, moved in ((_X, _R), (_Y, _S)):
                        program.at_least(
                            [(source + made, 1.0), (source + moved, 1.0), (at + made, -mu)]
                        )
        sums = [[(self._alone_s, _X)], [(self._others_s, _Y)]]
        lines = [(self._send_s, _S), (self._return_s, _R)]
        sums += [lines] if case.shared else [[line] for line in lines]
        for terms in sums:
            spent = [
                (place[index] + what, -float(seconds[index]) / unit_s)
                for seconds, what in terms
                for index in layers
            ]
            program.at_least([(latest, 1.0), *spent])
        return program.minimum(latest) * unit_s * (1.0 - SLACK)


class _Program:
    """A linear program with variables of at least 0, written one inequality at a time."""

    def __init__(self, size: int) -> None:
        self.least = np.zeros(size)
        self.most = np.full(size, np.inf)
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._factors: list[float] = []
        self._bounds: list[float] = []

    def at_least(self, terms: list[tuple[int, float]], bound: float = 0.0) -> None:
        for column, factor in terms:
            self._rows.append(len(self._bounds))
            self._columns.append(column)
            self._factors.append(-factor)
        self._bounds.append(-bound)

    def minimum(self, variable: int) -> float:
        """The least value of a variable; 0, which bounds nothing, if HiGHS cannot say."""
        cost = np.zeros(len(self.least))
        cost[variable] = 1.0
        shape = len(self._bounds), len(cost)
        matrix = sparse.csr_array((self._factors, (self._rows, self._columns)), shape=shape)
        result = linprog(
            cost,
            A_ub=matrix,
            b_ub=self._bounds,
            bounds=np.column_stack([self.least, self.most]),
            method="highs",
        )
        return float(result.fun) if result.status == 0 else 0.0


def _spread(case: Case, reader: int, edge: Edge) -> float:
    """mu: any q useful rows of ``reader`` need at least mu * q rows of the edge's source."""
    rows = np.flatnonzero(case.useful[reader])
    low, high = edge.low[rows], edge.high[rows]
    if case.layers[edge.source].combine or not len(rows) or not (low < high).all():
        return 0.0  # one summand may stand for any number of rows
    if not case.layers[reader].divisible:
        return float(high.max() - low.min()) / len(rows)
    for mu in range(int((high - low).min()), 0, -1):
        if _disjoint(low, high, mu):
            return float(mu)
    # Every row of the source serves so many at most.
    change = np.zeros(case.layers[edge.source].rows + 1, dtype=np.int64)
    np.add.at(change, low, 1)
    np.add.at(change, high, -1)
    return 1.0 / int(np.cumsum(change).max())


def _disjoint(low: Ints, high: Ints, count: int) -> bool:
    """Whether every ``[low[r], high[r])`` can have ``count`` rows to itself: first come."""
    at = 0
    for first, last in zip(low.tolist(), high.tolist(), strict=True):
        at = max(at, first) + count
        if at > last:
            return False
    return True
