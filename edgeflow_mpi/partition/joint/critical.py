"""The chain of events that a makespan is made of, and chance."""

from __future__ import annotations

from typing import NamedTuple

from edgeflow_mpi.partition.simulator.jit import Ints, Longs, inlined, part
from edgeflow_mpi.partition.simulator.problem import Problem
from edgeflow_mpi.partition.simulator.state import NOBODY, Scratch


class Path(NamedTuple):
    """The last chain that was followed, from its end.

    Step k < ``length[0]`` is a piece of ``layer[k]`` on ``rank[k]`` (``sender[k]`` is NOBODY),
    or a message of ``layer[k]`` from ``sender[k]`` to ``rank[k]``, read by ``reader[k]``.
    """

    layer: Ints
    rank: Ints
    sender: Ints
    reader: Ints
    length: Ints


@part
def follow(problem: Problem, work: Scratch, path: Path) -> None:
    """Write down what held up the last answer of the timeline in ``work``, back to the start."""
    n = problem.ranks
    at = NOBODY
    last_s = -1.0
    for layer in range(problem.layers):
        q = 3 * layer * n
        if problem.answer[layer] and work.done_s[q] > last_s:
            at = q
            last_s = work.done_s[q]
    count = 0
    leaving = False
    while at != NOBODY and count < len(path.layer):
        if at >= 0:
            u = at // 3
            path.layer[count] = u // n
            path.rank[count] = u % n
            path.sender[count] = NOBODY
            count += 1
            at = work.piece_cause[at]
            leaving = False
            continue
        f = -2 - at
        path.layer[count] = work.producer[f]
        path.rank[count] = work.dest[f]
        path.sender[count] = work.origin[f]
        path.reader[count] = work.consumer[f]
        count += 1
        if not leaving and work.arrive_cause[f] != NOBODY:
            at = -2 - work.arrive_cause[f]
        else:
            at = work.leave_cause[f]
            leaving = True
    path.length[0] = count


@inlined
def draw(chance: Longs, bound: int) -> int:
    """A number from 0 to ``bound`` - 1.

    L'Ecuyer's combined generator of 1988: no product leaves 64 bits, so that it is the same
    in plain Python.
    """
    chance[0] = chance[0] * 40014 % 2147483563
    chance[1] = chance[1] * 40692 % 2147483399
    return (chance[0] - chance[1]) % 2147483562 % bound
