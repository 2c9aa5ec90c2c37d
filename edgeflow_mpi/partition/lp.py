r"""EdgeFlow's progressive linear program, as we read it.

**The problem.** Layers are planned in topological order. For layer l the breakpoints
``0 = x_0 <= x_1 <= ... <= x_k = H`` are sought that minimise the latest finish time over
devices, with all predecessors fixed (the seed's formula, and what it leaves out, stand in
:mod:`edgeflow_mpi.partition.timeline`):

    min_x max_i T_i(x_{i-1}, x_i)
    T_i(a, b) = max(ready_i, max over messages s with p_s > 0 of base_s + rate_s * p_s)
                + c_i + w_i * (b - a)
    p_s(a, b) = min(high_s(b), stop_s) - max(low_s(a), start_s)

Message s brings rows of one producer from one sender, who can give ``[start_s, stop_s)``;
``[low_s(a), high_s(b))`` are the rows that ``[a, b)`` needs. This is an integer program, and
it is neither linear nor convex: p_s is concave in x, and a message costs ``base_s`` as soon
as one row is needed.

**The linear programs.** ``low`` and ``high`` are replaced by their tangents. Then p_s is the
least of four linear functions,

    full   stop_s - start_s       the rank needs all that the sender has
    left   stop_s - low_s(a)      its need begins inside
    right  high_s(b) - start_s    its need ends inside
    inner  high_s(b) - low_s(a)   its need lies inside

and any one of them bounds p_s from above. At the current point we take for every message
with p_s > 0 the piece that is least there, leave the others out, and solve

    min_{x, t, tau}  t + eps * mean(tau)
    s.t.  tau_i <= t                                       for every i with rows
          tau_i >= ready_i + c_i + w_i (x_i - x_{i-1})
          tau_i >= base_s + rate_s * piece_s + c_i + w_i (x_i - x_{i-1})
          x_{i-1} <= x_i,   |x_i - current x_i| <= radius

by HiGHS. A step is kept only if the *true* objective is better there. Otherwise the same is
solved with the senders that were left out kept out (linear constraints ``high <= start`` or
``low >= stop``), and if that fails too, with a smaller radius. The optimum of the relaxed
problem is rounded to integers by several thresholds (a breakpoint goes up where its fraction
exceeds it), the best rounding is improved by moving one breakpoint, or a run of them, by 1, 2,
4, ... rows, or by giving a device's rows to its neighbours, and the best integer point under
the true objective wins. Ties in the largest finish time go to the smaller sum over the devices.

The search starts from shares proportional to speed, from the breakpoints of each producer
scaled to this layer, from each device alone, and from the rows that would balance the finish
times of the m earliest devices without communication, for every m; the linear programs run
from the best two.

**What is guaranteed.** The result is never worse, in the true objective of its layer, than
any of the starts. With linear needs, while no message leaves or joins, every linear program
restricts the true problem (all pieces bound p_s from above), so its optimum is feasible for
it and no step goes uphill: the sequence is the convex-concave procedure and stops at a
stationary point, not always at the best one: where one more message costs much, the sequence
can be trapped. Nothing is guaranteed across layers: the next layer takes what this one left,
and an optimum for one may be a poor start for the other.

References
----------
.. [1] C. Hu and B. Li, "Distributed Inference with Deep Learning Models across Heterogeneous
   Edge Devices", IEEE INFOCOM 2022: the layer problem, and that it is approximated by a
   linear program. How, is our own.
.. [2] A. L. Yuille and A. Rangarajan, "The concave-convex procedure", Neural Computation
   15(4), 2003.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.baselines import speed_shares
from edgeflow_mpi.partition.linear_program import linear_step
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.partition.progressive import plan_progressively
from edgeflow_mpi.partition.timeline import Floats, Ints, LayerProblem, Timeline

STARTS = 2
"""From how many starts the linear programs run."""
STEPS = 6
"""Steps taken from one start at most."""
GAIN = 1e-3
"""Steps that gain less than this share end the search from a start."""


def lp(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """Progressive sequential linear programming; see the module for what that means."""
    return plan_progressively("lp", _policy, graph, needs, profile, ranks)


def _policy(timeline: Timeline, layer: Layer, ranks: Sequence[int]) -> tuple[int, ...]:
    problem = timeline.problem(layer, ranks)
    starts = [speed_shares(timeline, layer, ranks), *scaled_breakpoints(timeline, layer, ranks)]
    best = solve_layer(problem, starts)
    return tuple(int(x) for x in best)


def solve_layer(problem: LayerProblem, starts: Iterable[Sequence[int]]) -> Ints:
    """The best integer breakpoints found, never worse than any of ``starts``.

    Parameters
    ----------
    problem : the layer's problem.
    starts : integer breakpoints, k + 1 each; more are added.

    Returns
    -------
    array of k + 1 integers

    Raises
    ------
    PlanError
        The solver failed in a way that says nothing about the problem.
    """
    floor_s, _ = balance(problem, np.arange(problem.ranks))
    points = [*starts, *_on_fewer(problem)]
    candidates = np.unique(np.array(points, dtype=np.int64), axis=0)
    scores = problem.score(candidates)
    order = np.lexsort((scores[:, 1], scores[:, 0]))
    best, best_score = candidates[order[0]], scores[order[0]]
    for index in order[:STARTS]:
        if best_score[0] <= floor_s * (1.0 + GAIN):
            break
        relaxed = _descend(problem, candidates[index].astype(np.float64))
        rounded = np.array([_round(x, cut) for x in relaxed for cut in CUTS])
        found, score = _polish(problem, *_best(problem, rounded))
        if tuple(score) < tuple(best_score):
            best, best_score = found, score
    return _polish(problem, best, best_score)[0]


CUTS = tuple(i / 8 for i in range(8))


def balance(problem: LayerProblem, among: Ints) -> tuple[float, Floats]:
    """The least T for which all rows fit if no rows had to travel, and breakpoints for it.

    Only positions ``among`` (not empty) get rows, and of those only ones that can start before T.
    For all positions together T bounds the problem's optimum from below.
    """
    start_s = (problem.ready_s + problem.fixed_s)[among]
    rows_per_s = 1.0 / np.maximum(problem.per_row_s[among], 1e-12)
    order = np.argsort(start_s, kind="stable")
    # With the m earliest devices at work, T is where their rows add up. T falls with m as long
    # as the m-th starts before it.
    speed = np.cumsum(rows_per_s[order])
    level_s = (problem.rows + np.cumsum((start_s * rows_per_s)[order])) / speed
    best_s = float(level_s.min())
    counts = np.zeros(problem.ranks)
    counts[among] = np.maximum(best_s - start_s, 0.0) * rows_per_s
    x = np.concatenate([[0.0], np.cumsum(counts)])
    x *= problem.rows / x[-1]
    x[-1] = problem.rows
    return best_s, np.minimum(x, float(problem.rows))


def scaled_breakpoints(
    timeline: Timeline, layer: Layer, ranks: Sequence[int]
) -> list[tuple[int, ...]]:
    """Breakpoints of each divided producer, scaled to the rows of ``layer``."""
    found = []
    for name in layer.inputs:
        producer = timeline.graph.by_name[name]
        owned = timeline.plans[name].owned
        if not producer.splits or sum(owned[rank].rows for rank in ranks) != producer.rows:
            continue
        at, x = 0, [0]
        for rank in ranks:
            at += owned[rank].rows
            x.append((2 * at * layer.rows + producer.rows) // (2 * producer.rows))
        found.append(tuple(x))
    return found


def _on_fewer(problem: LayerProblem) -> list[Ints]:
    """All rows on each device alone, and balanced over the m that would then be earliest."""
    k = problem.ranks
    alone = np.array([[0] * (i + 1) + [problem.rows] * (k - i) for i in range(k)])
    earliest = np.argsort(problem.score(alone)[:, 0], kind="stable")
    balanced = [
        _round(balance(problem, np.sort(earliest[:count]))[1], 0.5) for count in range(2, k + 1)
    ]
    return [*alone, *balanced]


def _round(x: Floats, cut: float) -> Ints:
    """Breakpoints go up where their fraction exceeds ``cut``; order is kept."""
    return np.ceil(x - cut - 1e-9).clip(0, x[-1]).astype(np.int64)


def _best(problem: LayerProblem, points: Ints) -> tuple[Ints, Floats]:
    scores = problem.score(points)
    index = np.lexsort((scores[:, 1], scores[:, 0]))[0]
    return points[index], scores[index]


def _polish(problem: LayerProblem, x: Ints, score: Floats) -> tuple[Ints, Floats]:
    """Take the best neighbour of ``x`` while one is better."""
    for _ in range(4 * problem.ranks):
        candidates = best_neighbours(problem, x)
        if not len(candidates):
            break
        found, found_score = _best(problem, candidates)
        if tuple(found_score) >= tuple(score):
            break
        x, score = found, found_score
    return x, score


def best_neighbours(problem: LayerProblem, x: Ints) -> Ints:
    """Breakpoints next to ``x`` that may be the best by :meth:`LayerProblem.score`, few of them.

    Neighbours are runs of breakpoints moved by 1, 2, 4, ... rows, and points where one device
    has none. A moved run changes three kinds of spans: that before it loses or wins rows at its
    end, that behind it at its start, those inside move. With the finish times of all three
    kinds, each device's by itself, every run's score follows by running maxima and sums.
    """
    k, rows = problem.ranks, problem.rows
    if k < 2:
        return np.empty((0, k + 1), dtype=np.int64)
    powers = [1 << power for power in range(max(rows.bit_length() - 2, 1))]
    by = np.array([step * sign for step in powers for sign in (1, -1)])[:, None]
    a, b = x[:-1], x[1:]
    low, high = (a + by).clip(0, rows), (b + by).clip(0, rows)
    stays_s = problem.spans_finish_s(a, b)
    ends_s, starts_s = problem.spans_finish_s(a, high), problem.spans_finish_s(low, b)
    inner_s = problem.spans_finish_s(low, high)

    first, last = _runs(k)
    before_s, behind_s = np.zeros(k + 1), np.zeros(k + 1)
    before_s[1:] = np.maximum.accumulate(stays_s)
    behind_s[:-1] = np.maximum.accumulate(stays_s[::-1])[::-1]
    latest_s = np.maximum(before_s[first - 1], behind_s[last + 1])
    latest_s = np.maximum(latest_s, np.maximum(ends_s[:, first - 1], starts_s[:, last]))
    latest_s = np.maximum(latest_s, _run_maxima(inner_s)[:, first, last])
    valid = (x[first] + by >= x[first - 1]) & (x[last] + by <= x[last + 1])
    latest_s = np.where(valid, latest_s, np.inf)

    stays_s, ends_s, starts_s, inner_s = (
        np.where(done_s > 0.0, done_s, problem.free_s)
        for done_s in (stays_s, ends_s, starts_s, inner_s)
    )
    before_s[1:] = np.cumsum(stays_s)
    inside_s = np.zeros((len(by), k + 1))
    inside_s[:, 1:] = np.cumsum(inner_s, axis=1)
    sum_s = before_s[first - 1] + before_s[-1] - before_s[last + 1]
    sum_s = sum_s + ends_s[:, first - 1] + starts_s[:, last]
    sum_s = sum_s + inside_s[:, last] - inside_s[:, first]

    least = latest_s <= latest_s.min()
    # These sums are rounded otherwise than those of the score, so that all the near ones count.
    near = least & (sum_s <= sum_s[least].min() * (1 + 1e-9))
    step, run = np.nonzero(near & valid)
    moved = np.tile(x, (len(step), 1))
    place = np.arange(k + 1)
    inside = (place >= first[run, None]) & (place <= last[run, None])
    return np.concatenate([np.where(inside, moved + by[step], moved), _given_away(x)])


def _run_maxima(values: Floats) -> Floats:
    """``found[d, f, l]`` is the largest of ``values[d, f:l]``; 0 where f = l."""
    count, k = values.shape
    found = np.zeros((count, k + 1, k + 1))
    for f in range(k):
        np.maximum.accumulate(values[:, f:], axis=1, out=found[:, f, f + 1 :])
    return found


def _given_away(x: Ints) -> Ints:
    """Points where one device has no rows: its neighbour below or above takes them."""
    k = len(x) - 1
    left, right = np.tile(x, (k - 1, 1)), np.tile(x, (k - 1, 1))
    inner = np.arange(1, k)
    left[inner - 1, inner] = x[inner + 1]  # the device after breakpoint i gives all to the left
    right[inner - 1, inner] = x[inner - 1]  # the device before it gives all to the right
    return np.concatenate([left, right])


@lru_cache
def _runs(k: int) -> tuple[Ints, Ints]:
    """The first and the last inner breakpoint of every run of them."""
    runs = [(first, last) for first in range(1, k) for last in range(first, k)]
    first, last = np.array(runs, dtype=np.int64).T
    return first, last


def _descend(problem: LayerProblem, x: Floats) -> list[Floats]:
    """Fractional points met by sequential linear programming from ``x``.

    Keeping senders out and shrinking the radius only raise a program's optimum, so the search
    ends as soon as one promises too little.
    """
    value_s = float(problem.score(x)[0])
    met = [x]
    radius = problem.rows / 2
    for _ in range(STEPS):
        enough_s = value_s * (1.0 - GAIN)
        for keep_out in (False, True):
            step = linear_step(problem, x, radius, keep_out=keep_out)
            if step is None or step.promised_s >= enough_s:
                return met
            met.append(step.breakpoints)
            reached_s = float(problem.score(step.breakpoints)[0])
            if reached_s < enough_s:
                x, value_s = step.breakpoints, reached_s
                break
        else:
            radius /= 4
            if radius < 0.5:
                break
    return met
