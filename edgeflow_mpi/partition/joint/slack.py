"""How late everything may be: the current timeline read backwards."""

from __future__ import annotations

from edgeflow_mpi.partition.simulator.jit import Floats, Ints, inlined, part
from edgeflow_mpi.partition.simulator.problem import Problem
from edgeflow_mpi.partition.simulator.run import NEVER
from edgeflow_mpi.partition.simulator.state import NOBODY, Choice, Scratch


@part
def find_latest(
    problem: Problem,
    choice: Choice,
    work: Scratch,
    latest_s: Floats,
    following: Ints,
    next_piece: Ints,
) -> None:
    """Fill in when each piece must begin at the latest for the makespan to stay what it is.

    The timeline in ``work`` must be a whole one. Every device keeps its order of pieces, and
    every message takes as long as it took, waiting for others included: so the times are
    exact where nothing changes but these, and a good guess elsewhere.

    ``following`` is room for one number a rank.
    """
    n = problem.ranks
    makespan_s = 0.0
    for layer in range(problem.layers):
        if problem.answer[layer]:
            makespan_s = max(makespan_s, work.done_s[3 * layer * n])
    for q in range(len(latest_s)):
        latest_s[q] = NEVER
    for i in range(n):
        following[i] = NOBODY
    for k in range(work.logged[0] - 1, -1, -1):
        q = work.log[k]
        layer, i = q // 3 // n, q // 3 % n
        end_s = makespan_s if problem.answer[layer] else NEVER
        later = following[i]
        while later != NOBODY and problem.leads[layer * problem.layers + later // 3 // n] == 0:
            later = next_piece[later]
        if later != NOBODY:
            end_s = min(end_s, latest_s[later])
        next_piece[q] = following[i]
        following[i] = q
        a, b = work.piece_start[q], work.piece_stop[q]
        end_s = min(end_s, first_need(problem, work, latest_s, layer, i, a, b))
        f = work.sent[layer * n + i]
        while f != NOBODY:
            c, d = work.row_start[f], work.row_stop[f]
            if a <= c and d <= b:
                need_s = first_need(problem, work, latest_s, layer, work.dest[f], c, d)
                end_s = min(end_s, need_s - (work.there_s[f] - work.done_s[q]))
            f = work.sent_next[f]
        latest_s[q] = end_s - (work.done_s[q] - work.began_s[q])


@inlined
def first_need(
    problem: Problem, work: Scratch, latest_s: Floats, layer: int, i: int, start: int, stop: int
) -> float:
    """When rows ``start`` to ``stop`` of ``layer`` must be on rank ``i`` at the latest."""
    n = problem.ranks
    found_s = NEVER
    for k in range(problem.out_at[layer], problem.out_at[layer + 1]):
        w = problem.reader[k] * n + i
        need_at = problem.need_at[problem.reader_edge[k]]
        for q in range(3 * w, 3 * w + work.pieces[w]):
            low = problem.low[need_at + work.piece_start[q]]
            high = problem.high[need_at + work.piece_stop[q] - 1]
            if start < high and low < stop:
                found_s = min(found_s, latest_s[q])
    return found_s
