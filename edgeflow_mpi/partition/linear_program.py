"""The linear program that stands for a layer's problem around one point.

What it is and why it may is derived in :mod:`edgeflow_mpi.partition.lp`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.partition.timeline import Floats, Ints, LayerProblem

TIE_WEIGHT = 1e-4
"""eps: the weight of the mean finish time beside the largest."""


@dataclass(frozen=True)
class LinearStep:
    """An optimum of the program: fractional breakpoints and the t that it promises there."""

    breakpoints: Floats
    promised_s: float


@dataclass(frozen=True)
class _Affine:
    """Affine functions of the program's variables, one a row."""

    slopes: Floats
    constants: Floats

    def __add__(self, other: _Affine) -> _Affine:
        return _Affine(self.slopes + other.slopes, self.constants + other.constants)

    def __sub__(self, other: _Affine) -> _Affine:
        return _Affine(self.slopes - other.slopes, self.constants - other.constants)

    def __getitem__(self, index: Ints) -> _Affine:
        return _Affine(self.slopes[index], self.constants[index])

    def times(self, factors: Floats) -> _Affine:
        return _Affine(self.slopes * factors[:, None], self.constants * factors)

    def plus(self, constants: Floats) -> _Affine:
        return _Affine(self.slopes, self.constants + constants)


def linear_step(
    problem: LayerProblem, x: Floats, radius: float, *, keep_out: bool
) -> LinearStep | None:
    """Solve the linear program around ``x``; None where it has no better point to offer.

    Parameters
    ----------
    problem : the layer's problem.
    x : k + 1 fractional breakpoints. Devices without rows stay without.
    radius : how far a breakpoint may move, in rows.
    keep_out : whether messages that ``x`` does without must stay out; otherwise the program
        ignores them.

    Raises
    ------
    PlanError
        The solver failed in a way that says nothing about the problem.
    """
    active = np.flatnonzero(np.diff(x) > 1e-6)
    count = len(active)
    unit_s = float(problem.score(x)[0])  # times in units of it: HiGHS's tolerances are absolute
    if count < 2 or unit_s <= 0.0:
        return None
    start, stop, finish, latest = _variables(problem, count)
    work = (stop - start).times(problem.per_row_s[active] / unit_s)
    work = work.plus(problem.fixed_s[active] / unit_s)
    done = work.plus(problem.ready_s[active] / unit_s)
    not_positive = [done - finish, finish - latest, start - stop]
    not_positive += _message_bounds(problem, x, active, unit_s, start, stop, work - finish)
    if keep_out:
        not_positive.append(_absences(problem, x, active, start, stop))

    matrix = np.concatenate([rows.slopes for rows in not_positive])
    bound = -np.concatenate([rows.constants for rows in not_positive])
    size = matrix.shape[1]
    cost = np.zeros(size)
    cost[count - 1 : -1] = TIE_WEIGHT / count
    cost[-1] = 1.0
    least, most = np.zeros(size), np.full(size, np.inf)
    between = x[active[1:]]
    least[: count - 1] = np.maximum(between - radius, 0.0)
    most[: count - 1] = np.minimum(between + radius, float(problem.rows))
    # With no integer variable, milp is the thinnest way to HiGHS's simplex that scipy has.
    result = milp(
        cost, constraints=LinearConstraint(matrix, -np.inf, bound), bounds=Bounds(least, most)
    )
    if not _solved(result.status, result.message):
        return None
    found = _expand(result.x[: count - 1], active, problem)
    return LinearStep(found, float(result.x[-1]) * unit_s)


def _variables(problem: LayerProblem, count: int) -> tuple[_Affine, _Affine, _Affine, _Affine]:
    """Start, stop and finish time of every active device, and t, as affine functions.

    The variables are the count - 1 breakpoints between active devices, their finish times,
    and t.
    """
    size = 2 * count
    place = np.arange(count)
    start, stop, finish, latest = (np.zeros((count, size)) for _ in range(4))
    start[place[1:], place[:-1]] = 1.0
    stop[place[:-1], place[:-1]] = 1.0
    finish[place, count - 1 + place] = 1.0
    latest[:, -1] = 1.0
    nothing, everything = np.zeros(count), np.zeros(count)
    everything[-1] = problem.rows
    return (
        _Affine(start, nothing),
        _Affine(stop, everything),
        _Affine(finish, nothing),
        _Affine(latest, nothing),
    )


def _message_bounds(
    problem: LayerProblem,
    x: Floats,
    active: Ints,
    unit_s: float,
    start: _Affine,
    stop: _Affine,
    work_less_finish: _Affine,
) -> list[_Affine]:
    """``base + rate * piece + work - finish`` of every message that ``x`` causes."""
    low, high = problem.needed(x[:-1], x[1:])
    overlap = np.minimum(high, problem.stop) - np.maximum(low, problem.start)
    i, s, d = _messages(problem, overlap > 1e-9, active)
    low_slope, high_slope = _slopes(problem, x)
    from_low = np.where(low[i, s] > problem.start[i, s], low_slope[i, s], 0.0)
    from_high = np.where(high[i, s] < problem.stop[i, s], high_slope[i, s], 0.0)
    piece = (stop[d].plus(-x[i + 1]).times(from_high) - start[d].plus(-x[i]).times(from_low)).plus(
        overlap[i, s]
    )
    arrival = piece.times(problem.row_s[i, s] / unit_s).plus(problem.base_s[i, s] / unit_s)
    return [arrival + work_less_finish[d]]


def _absences(
    problem: LayerProblem, x: Floats, active: Ints, start: _Affine, stop: _Affine
) -> _Affine:
    """``high(stop) - first row`` or ``last row - low(start)`` of every message left out."""
    low, high = problem.needed(x[:-1], x[1:])
    overlap = np.minimum(high, problem.stop) - np.maximum(low, problem.start)
    i, s, d = _messages(problem, overlap <= 1e-9, active)
    low_slope, high_slope = _slopes(problem, x)
    below = stop[d].plus(-x[i + 1]).times(high_slope[i, s]).plus((high - problem.start)[i, s])
    above = start[d].plus(-x[i]).times(-low_slope[i, s]).plus((problem.stop - low)[i, s])
    ends_before = (problem.start >= high)[i, s]
    return _Affine(
        np.where(ends_before[:, None], below.slopes, above.slopes),
        np.where(ends_before, below.constants, above.constants),
    )


def _messages(
    problem: LayerProblem, chosen: np.ndarray[tuple[int, int], np.dtype[np.bool_]], active: Ints
) -> tuple[Ints, Ints, Ints]:
    """Device, message and place among the active devices of all ``chosen`` real messages."""
    place = np.full(problem.ranks, -1)
    place[active] = np.arange(len(active))
    i, s = np.nonzero(chosen & (problem.stop > problem.start) & (place >= 0)[:, None])
    return i, s, place[i]


def _slopes(problem: LayerProblem, x: Floats) -> tuple[Floats, Floats]:
    """Needed rows per row by which a span's start and stop move: [k, s] each.

    Central differences over several rows, since needs of resized maps are staircases.
    """
    reach = max(2.0, problem.rows / 16)
    below, above = np.maximum(x - reach, 0.0), np.minimum(x + reach, float(problem.rows))
    low_below, high_below = problem.needed(below[:-1], below[1:])
    low_above, high_above = problem.needed(above[:-1], above[1:])
    run = (above - below)[:, None]
    return (low_above - low_below) / run[:-1], (high_above - high_below) / run[1:]


def _expand(between: Floats, active: Ints, problem: LayerProblem) -> Floats:
    """Breakpoints of all devices from those between active ones."""
    edges = np.concatenate([[0.0], between, [float(problem.rows)]])
    place = np.searchsorted(active, np.arange(problem.ranks + 1), side="left")
    found: Floats = np.maximum.accumulate(edges[place].clip(0.0, problem.rows))
    return found


def _solved(status: int, message: str) -> bool:
    """Whether HiGHS found an optimum.

    At its limit (1) there is no step to take. The program is feasible (2), since the point
    it is made around satisfies it, but for rounding errors: no step either. It is bounded
    (3), since t is at least every finish time and breakpoints have bounds. Anything else is
    a failure of the solver.
    """
    if status == 0:
        return True
    if status in (1, 2):
        return False
    raise PlanError(
        f"HiGHS could not solve the linear program of a layer ({message}): check the profile "
        "for extreme times, or choose another --partitioner"
    )
