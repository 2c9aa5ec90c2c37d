"""The discrete events of :mod:`edgeflow_mpi.partition.cost` on arrays."""

from __future__ import annotations

from edgeflow_mpi.partition.simulator.events import drop_first, push
from edgeflow_mpi.partition.simulator.flows import find_flows, lay_out
from edgeflow_mpi.partition.simulator.jit import Floats, inlined, jit, part
from edgeflow_mpi.partition.simulator.problem import Problem
from edgeflow_mpi.partition.simulator.state import NOBODY, Choice, Scratch

NEVER = 1e300
"""The makespan of what was given up."""
NO_ROOM = 2e300
"""The makespan of what has more flows than the scratch has room for."""

# An event's key: position * n + rank in the high bits, what happens in the low ones. A piece
# is done there (0), or of flow f: its sender has handed it over (3 f + 1), it begins to reach
# its receiver (3 f + 2), it is there (3 f + 3).
_SHIFT = 26
_MASK = (1 << _SHIFT) - 1


@jit
def simulate(
    problem: Problem,
    choice: Choice,
    work: Scratch,
    limit_s: float,
    latest_s: Floats,
    settled: int,
) -> float:
    """The makespan of ``choice``; NEVER where it is given up, NO_ROOM where it is not begun.

    It is given up as soon as it is seen to be more than ``limit_s``: a device has too much left
    to do, or a piece q of a layer from position ``settled`` on begins later than ``latest_s[q]``.
    """
    if find_flows(problem, choice, work) < 0:
        return NO_ROOM
    lay_out(problem, choice, work)
    return run_events(problem, choice, work, limit_s, latest_s, settled)


@part
def run_events(
    problem: Problem,
    choice: Choice,
    work: Scratch,
    limit_s: float,
    latest_s: Floats,
    settled: int,
) -> float:
    """Run what :func:`lay_out` has prepared until all answers are there."""
    n = problem.ranks
    answers = 0
    for layer in range(problem.layers):
        answers += problem.answer[layer]
    for i in range(n):
        work.running[i] = NOBODY
        work.in_free_s[i] = 0.0
        work.in_last[i] = NOBODY
        work.device_last[i] = NOBODY
    for i in range(n + 1):
        work.out_free_s[i] = 0.0
        work.out_last[i] = NOBODY
    work.logged[0] = 0
    size = 0
    for i in range(n):
        if work.ready_count[i] > 0:
            size = start_next(problem, choice, work, i, 0.0, size)
    while size > 0:
        now_s = work.event_s[0]
        alone = NOBODY  # the rank that may start something now, if it is the only one
        several = False
        while size > 0 and work.event_s[0] == now_s:
            key = work.event[0]
            size = drop_first(work.event_s, work.event, size)
            what = key & _MASK
            place = key >> _SHIFT
            i = place % n
            if what == 0:
                layer = choice.order[place // n]
                q = work.running[i]
                work.done_s[q] = now_s
                a, b = work.piece_start[q], work.piece_stop[q]
                satisfy(problem, choice, work, layer, i, a, b, now_s, q)
                size = send_all(problem, choice, work, layer, i, q, now_s, size)
                answers -= problem.answer[layer]
            elif what % 3 == 1:
                size = hand_over(problem, choice, work, (what - 1) // 3, now_s, size)
            elif what % 3 == 2:
                size = reach(problem, choice, work, (what - 2) // 3, now_s, size)
                continue
            else:
                f = (what - 3) // 3
                a, b = work.row_start[f], work.row_stop[f]
                satisfy(problem, choice, work, work.producer[f], i, a, b, now_s, -2 - f)
            several = several or alone not in (NOBODY, i)
            alone = i
        if answers == 0:
            return now_s
        if alone != NOBODY:
            for i in range(0 if several else alone, n if several else alone + 1):
                if work.running[i] != NOBODY or work.ready_count[i] == 0:
                    continue
                if now_s + work.rest_s[i] > limit_s:
                    return NEVER
                size = start_next(problem, choice, work, i, now_s, size)
                q = work.running[i]
                late = now_s > latest_s[q]
                if late and choice.position[q // (3 * n)] >= settled:
                    return NEVER
    return NEVER


@inlined
def satisfy(
    problem: Problem,
    choice: Choice,
    work: Scratch,
    layer: int,
    i: int,
    start: int,
    stop: int,
    now_s: float,
    cause: int,
) -> None:
    """Rows ``start`` to ``stop`` of ``layer`` are on rank ``i``: who waits for them?"""
    n = problem.ranks
    for k in range(problem.out_at[layer], problem.out_at[layer + 1]):
        reader = problem.reader[k]
        w = reader * n + i
        need_at = problem.need_at[problem.reader_edge[k]]
        for q in range(3 * w, 3 * w + work.pieces[w]):
            low = problem.low[need_at + work.piece_start[q]]
            high = problem.high[need_at + work.piece_stop[q] - 1]
            if start < high and low < stop:
                work.waiting[q] -= 1
                if work.waiting[q] == 0:
                    at = i * 3 * problem.layers + work.ready_count[i]
                    work.ready[at] = 3 * choice.position[reader] + q - 3 * w
                    work.ready_count[i] += 1
                    work.began_s[q] = now_s
                    work.piece_cause[q] = cause


@inlined
def start_next(
    problem: Problem, choice: Choice, work: Scratch, i: int, now_s: float, size: int
) -> int:
    """Let rank ``i``, which is free, start the first of its ready pieces."""
    count = work.ready_count[i]
    base = i * 3 * problem.layers
    best = base
    for k in range(base + 1, base + count):
        if work.ready[k] < work.ready[best]:
            best = k
    entry = work.ready[best]
    work.ready[best] = work.ready[base + count - 1]
    work.ready_count[i] = count - 1
    place = entry // 3 * problem.ranks + i
    q = 3 * (choice.order[entry // 3] * problem.ranks + i) + entry % 3
    work_s = work.work_s[q]
    if work.takes[q] > 0:
        work_s += work.takes[q] * problem.message_cpu_s[i]
    if work.began_s[q] < now_s:
        work.piece_cause[q] = work.device_last[i]
    work.began_s[q] = now_s
    work.rest_s[i] -= work_s
    work.running[i] = q
    work.device_last[i] = q
    work.log[work.logged[0]] = q
    work.logged[0] += 1
    return push(work.event_s, work.event, size, now_s + work_s, place << _SHIFT)


@inlined
def send_all(
    problem: Problem,
    choice: Choice,
    work: Scratch,
    layer: int,
    i: int,
    q: int,
    now_s: float,
    size: int,
) -> int:
    """Piece ``q`` is done: send what leaves of it, and free the device."""
    f = next_sent(work, q, work.sent[layer * problem.ranks + i])
    if problem.message_cpu_s[i] > 0.0 and f != NOBODY:
        place = choice.position[layer] * problem.ranks + i
        after_s = now_s + problem.message_cpu_s[i]
        return push(work.event_s, work.event, size, after_s, (place << _SHIFT) + 3 * f + 1)
    work.running[i] = NOBODY
    while f != NOBODY:
        size = send(problem, choice, work, f, q, now_s, size)
        f = next_sent(work, q, work.sent_next[f])
    return size


@inlined
def next_sent(work: Scratch, q: int, f: int) -> int:
    """The first flow, from ``f`` on in its list, whose rows are in piece ``q``."""
    while f != NOBODY and (
        work.row_start[f] < work.piece_start[q] or work.piece_stop[q] < work.row_stop[f]
    ):
        f = work.sent_next[f]
    return f


@inlined
def hand_over(
    problem: Problem, choice: Choice, work: Scratch, f: int, now_s: float, size: int
) -> int:
    """The sender's processor is done with flow ``f``: on to the next one, or to other work."""
    i = work.origin[f]
    q = work.running[i]
    size = send(problem, choice, work, f, q, now_s, size)
    following = next_sent(work, q, work.sent_next[f])
    if following == NOBODY:
        work.running[i] = NOBODY
        return size
    place = choice.position[work.producer[f]] * problem.ranks + i
    after_s = now_s + problem.message_cpu_s[i]
    return push(work.event_s, work.event, size, after_s, (place << _SHIFT) + 3 * following + 1)


@inlined
def send(
    problem: Problem, choice: Choice, work: Scratch, f: int, q: int, now_s: float, size: int
) -> int:
    """Flow ``f`` of piece ``q`` queues at its sender, or for the one medium."""
    n = problem.ranks
    origin, dest = work.origin[f], work.dest[f]
    side = n if problem.shared else origin
    left_s = now_s
    work.leave_cause[f] = q
    work.arrive_cause[f] = NOBODY
    if work.out_free_s[side] > now_s:
        left_s = work.out_free_s[side]
        work.leave_cause[f] = -2 - work.out_last[side]
    work.left_s[f] = left_s
    work.out_free_s[side] = left_s + work.busy_s[f]
    work.out_last[side] = f
    at_s = left_s + problem.latency_s[origin * n + dest]
    what = 3 * f + 2
    if problem.shared:
        at_s += work.busy_s[f]
        work.there_s[f] = at_s
        what += 1
    place = choice.position[work.producer[f]] * n + dest
    return push(work.event_s, work.event, size, at_s, (place << _SHIFT) + what)


@inlined
def reach(problem: Problem, choice: Choice, work: Scratch, f: int, now_s: float, size: int) -> int:
    """Flow ``f`` begins to reach its receiver, and queues there."""
    dest = work.dest[f]
    begin_s = now_s
    if work.in_free_s[dest] > now_s:
        begin_s = work.in_free_s[dest]
        work.arrive_cause[f] = work.in_last[dest]
    work.there_s[f] = begin_s + work.busy_s[f]
    work.in_free_s[dest] = work.there_s[f]
    work.in_last[dest] = f
    place = choice.position[work.producer[f]] * problem.ranks + dest
    return push(work.event_s, work.event, size, work.there_s[f], (place << _SHIFT) + 3 * f + 3)
