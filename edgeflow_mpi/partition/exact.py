r"""The seed's layer problem solved exactly, over integers, by bisection and greed.

**The problem** is that of :mod:`edgeflow_mpi.partition.lp`: with all predecessors fixed, find
breakpoints ``0 = x_0 <= x_1 <= ... <= x_k = H`` that minimise ``max_i T_i(x_{i-1}, x_i)``,
where ``T_i(a, b)`` is when device i would finish rows ``[a, b)``
(:class:`~edgeflow_mpi.partition.timeline.LayerProblem`) and an empty span counts nothing.
Integer programs are hard in general; this one is not.

**Lemma 1.** For ``a < b``, ``T_i(a, b)`` does not decrease when b grows nor when a shrinks.
*Proof.* A wider span needs, of every producer, a superset of the rows (``low`` and ``high``
are non-decreasing), so every overlap ``p_s`` is at least as large, no message that was needed
becomes needless, and rates, fixed costs and costs per row are at least 0. []

**Lemma 2.** For a bound T let ``g_i(a)`` be the largest ``b <= H`` with ``b = a`` or
``T_i(a, b) <= T``, and ``R_0 = 0, R_i = g_i(R_{i-1})``. There are breakpoints with all finish
times at most T if and only if ``R_k = H``.
*Proof.* If ``R_k = H``, the R_i are such breakpoints. Conversely let x be such breakpoints; we
show ``x_i <= R_i`` by induction, so that ``H = x_k <= R_k``. If ``x_i <= R_{i-1}`` it is clear,
as ``R_{i-1} <= R_i``. Otherwise ``x_{i-1} <= R_{i-1} < x_i``, and by Lemma 1
``T_i(R_{i-1}, x_i) <= T_i(x_{i-1}, x_i) <= T``, so ``g_i(R_{i-1}) >= x_i``. []

By Lemma 1 ``g_i`` is found by binary search. The optimum is the least T that passes the test
of Lemma 2, and it is one of the finitely many values ``T_i(a, b)``. We keep ``lower <=
optimum <= upper``, upper being the largest finish time of some breakpoints, and test a T
between them.

* If T passes, the largest finish time of the R_i is at most T and becomes the new ``upper``.
* If it fails, no T' passes that is less than ``min_i T_i(R_{i-1}, R_i + 1)`` over all i with
  ``R_i < H``, because up to there every binary search, and so every R_i, comes out the same.
  That minimum becomes the new ``lower``. It is greater than T.

Both bounds move on to attained values, so the search ends, with ``lower >= upper``, at the
optimum itself and not near it; halving makes it fast. As every operation in T_i rounds
monotonically, all of this holds for floating-point finish times too, to the last bit.

**The tie-break.** This fixes the largest finish time only, while the layers that follow see
all spans. Of all breakpoints that attain it we take those with the least sum over devices of
the times at which they are free afterwards (the finish time, or ``free_i`` for an empty span),
which is what :meth:`LayerProblem.score` compares second. That is a shortest path: with
``s_i(b)`` the least sum for the first i devices and ``x_i = b``,

    s_i(b) = min over a of s_{i-1}(a) + (free_i if a = b else T_i(a, b)),  T_i(a, b) <= optimum,

where only ``L_i <= x_i <= R_i`` need be looked at, L being made like R from the other end. Of
equal sums the one with the least ``x_{k-1}`` wins, then with the least ``x_{k-2}``, and so on.

**What is guaranteed.** The best largest finish time that any breakpoints of this layer can
have, devices in rank order, under the seed's formula. Nothing is guaranteed across layers.

References
----------
.. [1] C. Hu and B. Li, "Distributed Inference with Deep Learning Models across Heterogeneous
   Edge Devices", IEEE INFOCOM 2022: the layer problem. The solution is our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.partition.progressive import plan_progressively
from edgeflow_mpi.partition.simulator.jit import Floats, Longs, floats, jit, longs
from edgeflow_mpi.partition.timeline import Ints, LayerProblem, Timeline


def exact(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """Every divided layer at the optimum of its own problem; see the module."""
    return plan_progressively("exact", _policy, graph, needs, profile, ranks)


def _policy(timeline: Timeline, layer: Layer, ranks: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(x) for x in solve_exactly(timeline.problem(layer, ranks)))


def solve_exactly(problem: LayerProblem) -> Ints:
    """The optimal breakpoints, ties broken as the module says: k + 1 integers."""
    k, rows = problem.ranks, problem.rows
    costs = floats(
        np.concatenate([problem.fixed_s, problem.per_row_s, problem.free_s, problem.ready_s])
    )
    messages = floats(np.concatenate([problem.base_s.ravel(), problem.row_s.ravel()]))
    regions = longs(
        np.concatenate(
            [problem.producer.ravel() * (rows + 1), problem.start.ravel(), problem.stop.ravel()]
        )
    )
    low, high = longs(problem.low.ravel()), longs(problem.high.ravel())
    sizes = longs([k, rows, problem.start.shape[1]])
    found = longs(np.zeros(2 * (k + 1)))
    latest_s = _least_maximum(sizes, costs, messages, regions, low, high, found)
    cells = (k + 1) * (rows + 1)
    _least_sum(
        sizes, costs, messages, regions, low, high,
        latest_s, found, floats(np.zeros(cells)), longs(np.zeros(cells)),
    )  # fmt: skip
    return np.array(found[: k + 1], dtype=np.int64)


# What follows is compiled. ``sizes`` are the numbers of devices, of rows, and of places for
# messages of a device; the other arrays are those of LayerProblem, one behind the other.


@jit
def _finish_s(
    i: int, a: int, b: int, sizes: Longs, costs: Floats, messages: Floats, regions: Longs,
    low: Longs, high: Longs,
) -> float:  # fmt: skip
    """T_i(a, b) for a < b: the same operations as in LayerProblem.finish_s."""
    k, places = sizes[0], sizes[2]
    count = k * places
    start_s = costs[3 * k + i]
    for s in range(i * places, (i + 1) * places):
        table = regions[s]
        first = max(low[table + a], regions[count + s])
        last = min(high[table + b], regions[2 * count + s])
        if last > first:
            there_s = messages[s] + messages[count + s] * (last - first)
            start_s = max(start_s, there_s)
    return start_s + costs[i] + costs[k + i] * (b - a)


@jit
def _reach(
    i: int, a: int, bound_s: float, sizes: Longs, costs: Floats, messages: Floats,
    regions: Longs, low: Longs, high: Longs,
) -> int:  # fmt: skip
    """g_i(a): where the rows end that device i can finish by ``bound_s`` from row a on."""
    fits, fails = a, sizes[1] + 1
    while fails - fits > 1:
        b = (fits + fails) // 2
        if _finish_s(i, a, b, sizes, costs, messages, regions, low, high) <= bound_s:
            fits = b
        else:
            fails = b
    return fits


@jit
def _reach_back(
    i: int, b: int, bound_s: float, sizes: Longs, costs: Floats, messages: Floats,
    regions: Longs, low: Longs, high: Longs,
) -> int:  # fmt: skip
    """Where the rows begin that device i can finish by ``bound_s`` up to row b."""
    fits, fails = b, -1
    while fits - fails > 1:
        a = (fits + fails) // 2
        if _finish_s(i, a, b, sizes, costs, messages, regions, low, high) <= bound_s:
            fits = a
        else:
            fails = a
    return fits


@jit
def _least_maximum(
    sizes: Longs, costs: Floats, messages: Floats, regions: Longs, low: Longs, high: Longs,
    found: Longs,
) -> float:  # fmt: skip
    """The optimum; ``found[i]`` becomes R_i of it, and the rest of ``found`` L_i."""
    k, rows = sizes[0], sizes[1]
    upper_s = _finish_s(0, 0, rows, sizes, costs, messages, regions, low, high)
    for i in range(1, k):
        alone_s = _finish_s(i, 0, rows, sizes, costs, messages, regions, low, high)
        upper_s = min(upper_s, alone_s)
    lower_s = 0.0
    while lower_s < upper_s:
        bound_s = lower_s + (upper_s - lower_s) / 2
        if bound_s >= upper_s:
            bound_s = lower_s
        attained_s, next_s, a = 0.0, np.inf, 0
        for i in range(k):
            b = _reach(i, a, bound_s, sizes, costs, messages, regions, low, high)
            if b > a:
                done_s = _finish_s(i, a, b, sizes, costs, messages, regions, low, high)
                attained_s = max(attained_s, done_s)
            if b < rows:
                more_s = _finish_s(i, a, b + 1, sizes, costs, messages, regions, low, high)
                next_s = min(next_s, more_s)
            a = b
        if a == rows:
            upper_s = attained_s
        else:
            lower_s = next_s
    found[0] = 0
    found[2 * k + 1] = rows
    for i in range(k):
        found[i + 1] = _reach(i, found[i], upper_s, sizes, costs, messages, regions, low, high)
    for i in range(k - 1, -1, -1):
        found[k + 1 + i] = _reach_back(
            i, found[k + 2 + i], upper_s, sizes, costs, messages, regions, low, high
        )
    return upper_s


@jit
def _least_sum(
    sizes: Longs, costs: Floats, messages: Floats, regions: Longs, low: Longs, high: Longs,
    bound_s: float, found: Longs, sums: Floats, came_from: Longs,
) -> None:  # fmt: skip
    """The breakpoints of the least sum with all finish times at most ``bound_s``.

    ``found`` gives R_i and L_i, and takes the breakpoints in place of R_i. ``sums`` and
    ``came_from`` are room for s_i(b) and for the a that it comes from.
    """
    k, rows = sizes[0], sizes[1]
    width = rows + 1
    for i in range(k):
        first_a, last_a = found[k + 1 + i], found[i]
        for b in range(found[k + 2 + i], found[i + 1] + 1):
            least_s, best = np.inf, -1
            # From the right: once device i cannot take [a, b), it cannot take any more either.
            for a in range(min(b, last_a), first_a - 1, -1):
                after_s = costs[2 * k + i]
                if a < b:
                    after_s = _finish_s(i, a, b, sizes, costs, messages, regions, low, high)
                    if after_s > bound_s:
                        break
                before_s = sums[i * width + a] if i > 0 else 0.0
                if before_s + after_s <= least_s:
                    least_s = before_s + after_s
                    best = a
            sums[(i + 1) * width + b] = least_s
            came_from[(i + 1) * width + b] = best
    b = rows
    for i in range(k, 0, -1):
        found[i] = b
        b = came_from[i * width + b]
