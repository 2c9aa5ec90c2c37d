"""Which rows travel and in which pieces units run: trace_flows and pieces_of on arrays."""

from __future__ import annotations

from edgeflow_mpi.partition.simulator.jit import Ints, inlined, part
from edgeflow_mpi.partition.simulator.problem import Problem
from edgeflow_mpi.partition.simulator.state import NOBODY, Choice, Scratch


@inlined
def cut_out(starts: Ints, stops: Ints, count: int, start: int, stop: int) -> int:
    """Remove rows ``start`` to ``stop`` from ``count`` sorted spans; how many are left."""
    kept = 0
    split = False
    for k in range(count):
        a, b = starts[k], stops[k]
        if stop <= a or b <= start:
            starts[kept], stops[kept] = a, b
            kept += 1
            continue
        if a < start:
            starts[kept], stops[kept] = a, start
            kept += 1
            if stop < b:
                # Only one span can hold all of the hole: those after it move up by one.
                split = True
                for j in range(count, kept, -1):
                    starts[j], stops[j] = starts[j - 1], stops[j - 1]
                starts[kept], stops[kept] = stop, b
                break
        elif stop < b:
            starts[kept], stops[kept] = stop, b
            kept += 1
    return count + 1 if split else kept


@part
def find_flows(problem: Problem, choice: Choice, work: Scratch) -> int:
    """Fill in the flows of ``choice``; how many there are, -1 where there is no room for them."""
    n = problem.ranks
    for u in range(problem.layers * n):
        work.sent[u] = NOBODY
        work.got[u] = NOBODY
        work.head[u] = choice.start[u]
        work.tail[u] = choice.stop[u]
    count = 0
    for p in range(problem.layers):
        layer = choice.order[p]
        for dest in range(n):
            a = choice.start[layer * n + dest]
            b = choice.stop[layer * n + dest]
            if b <= a:
                continue
            for e in range(problem.in_at[layer], problem.in_at[layer + 1]):
                low = problem.low[problem.need_at[e] + a]
                high = problem.high[problem.need_at[e] + b - 1]
                there = problem.source[e] * n + dest
                if high <= low or (choice.start[there] <= low and high <= choice.stop[there]):
                    continue
                count = find_missing(problem, choice, work, count, e, layer, dest, low, high)
                if count < 0:
                    return -1
    return count


@inlined
def find_missing(
    problem: Problem,
    choice: Choice,
    work: Scratch,
    count: int,
    edge: int,
    consumer: int,
    dest: int,
    low: int,
    high: int,
) -> int:
    """Add the flows that bring ``dest`` rows ``low`` to ``high`` over ``edge``."""
    n = problem.ranks
    producer = problem.source[edge]
    there = producer * n + dest
    starts, stops = work.gap_start, work.gap_stop
    starts[0], stops[0] = low, high
    gaps = 1
    if choice.start[there] < choice.stop[there]:
        gaps = cut_out(starts, stops, gaps, choice.start[there], choice.stop[there])
    f = work.got[there]
    while f != NOBODY and gaps > 0:
        gaps = cut_out(starts, stops, gaps, work.row_start[f], work.row_stop[f])
        f = work.got_next[f]
    if gaps == 0:
        return count
    cut = producer * (n + 1)
    origin = dest
    while origin > 0 and choice.cut[cut + origin] > starts[0]:
        origin -= 1
    while origin < n and choice.cut[cut + origin] < stops[gaps - 1]:
        for k in range(gaps):
            a = max(starts[k], choice.cut[cut + origin])
            b = min(stops[k], choice.cut[cut + origin + 1])
            if b <= a:
                continue
            if count >= len(work.producer):
                return -1
            add_flow(problem, choice, work, count, producer, consumer, origin, dest, a, b)
            count += 1
        origin += 1
    return count


@inlined
def add_flow(
    problem: Problem,
    choice: Choice,
    work: Scratch,
    f: int,
    producer: int,
    consumer: int,
    origin: int,
    dest: int,
    a: int,
    b: int,
) -> None:
    """Write down flow ``f``: rows ``a`` to ``b``."""
    n = problem.ranks
    u = producer * n + origin
    work.producer[f] = producer
    work.consumer[f] = consumer
    work.taken[f] = 0
    work.origin[f] = origin
    work.dest[f] = dest
    work.row_start[f] = a
    work.row_stop[f] = b
    work.sent_next[f] = NOBODY
    if work.sent[u] == NOBODY:
        work.sent[u] = f
    else:
        work.sent_next[work.sent_last[u]] = f
    work.sent_last[u] = f
    work.got_next[f] = work.got[producer * n + dest]
    work.got[producer * n + dest] = f
    size = problem.message_bytes[producer] + problem.row_bytes[producer] * (b - a)
    work.busy_s[f] = size / problem.bandwidth[origin * n + dest]
    # A flow belongs to the end of its unit that it is nearer to.
    if a - choice.start[u] <= choice.stop[u] - b:
        work.head[u] = max(work.head[u], b)
    else:
        work.tail[u] = min(work.tail[u], a)


@inlined
def lay_out(problem: Problem, choice: Choice, work: Scratch) -> None:
    """Pieces of all units, what they cost and how many things they wait for."""
    n = problem.ranks
    for i in range(n):
        work.rest_s[i] = 0.0
        work.ready_count[i] = 0
    for p in range(problem.layers):
        layer = choice.order[p]
        for i in range(n):
            u = layer * n + i
            a, b = choice.start[u], choice.stop[u]
            if b <= a:
                work.pieces[u] = 0
                continue
            q = 3 * u
            head, tail = work.head[u], work.tail[u]
            if (
                choice.first[u]
                and problem.sends_early[layer]
                and work.sent[u] != NOBODY
                and head < tail
            ):
                if a < head:
                    work.piece_start[q], work.piece_stop[q] = a, head
                    q += 1
                if tail < b:
                    work.piece_start[q], work.piece_stop[q] = tail, b
                    q += 1
                a, b = head, tail
            work.piece_start[q], work.piece_stop[q] = a, b
            work.pieces[u] = q + 1 - 3 * u
            for k in range(3 * u, q + 1):
                count_waits(problem, work, layer, i, k)
                if work.waiting[k] == 0:
                    work.ready[i * 3 * problem.layers + work.ready_count[i]] = p * 3 + k - 3 * u
                    work.ready_count[i] += 1
                    work.piece_cause[k] = NOBODY
                    work.began_s[k] = 0.0


@inlined
def count_waits(problem: Problem, work: Scratch, layer: int, i: int, q: int) -> None:
    """How many pieces and flows piece ``q`` of ``layer`` on rank ``i`` waits for; its cost."""
    n = problem.ranks
    a, b = work.piece_start[q], work.piece_stop[q]
    work_s = problem.work_s[problem.work_at[layer * n + i] + b - a]
    work.work_s[q] = work_s
    count = 0
    takes = 0
    cpu = problem.message_cpu_s[i] > 0.0
    for e in range(problem.in_at[layer], problem.in_at[layer + 1]):
        low = problem.low[problem.need_at[e] + a]
        high = problem.high[problem.need_at[e] + b - 1]
        if high <= low:
            continue
        v = problem.source[e] * n + i
        for k in range(3 * v, 3 * v + work.pieces[v]):
            if work.piece_start[k] < high and low < work.piece_stop[k]:
                count += 1
        f = work.got[v]
        while f != NOBODY:
            if work.row_start[f] < high and low < work.row_stop[f]:
                count += 1
                if cpu and work.consumer[f] == layer and work.taken[f] == 0:
                    # The first piece that reads a message takes it in.
                    takes += 1
                    work.taken[f] = 1
            f = work.got_next[f]
    work.waiting[q] = count
    work.takes[q] = takes
    work.rest_s[i] += work_s + takes * problem.message_cpu_s[i]
