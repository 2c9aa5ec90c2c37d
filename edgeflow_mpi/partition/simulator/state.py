"""The arrays that one evaluation reads (a choice) and those that it works in (a scratch)."""

from __future__ import annotations

from typing import Any, NamedTuple

from edgeflow_mpi.partition.simulator.jit import Floats, Ints, Longs, floats, ints, longs
from edgeflow_mpi.partition.simulator.problem import Problem

NOBODY = -1
"""The end of a linked list, and no cause."""


class Choice(NamedTuple):
    """A plan: what is decided, in arrays.

    ``order[p]`` is the layer at position p and ``position`` the inverse. Rank i owns rows
    ``cut[l * (n + 1) + i]`` to ``cut[l * (n + 1) + i + 1]`` of layer l and computes ``start[l
    * n + i]`` to ``stop[l * n + i]`` (both 0 for nothing); ``first[l * n + i]`` is whether
    its boundary rows go first.
    """

    order: Ints
    position: Ints
    cut: Ints
    start: Ints
    stop: Ints
    first: Ints


class Scratch(NamedTuple):
    """Room for one evaluation; what it leaves there is its timeline.

    A *unit* is u = l * n + i: layer l on rank i. It runs as ``pieces[u]`` pieces q = 3 u,
    3 u + 1, ..., of rows ``piece_start[q]`` to ``piece_stop[q]`` (a piece is what the tables
    call a unit). Flows are numbered in the order in which they are found. ``sent[u]`` is the
    first flow that leaves unit u, ``sent_next`` the one after it; ``got[u]`` the newest flow
    of layer l that reaches rank i, ``got_next`` the one before it.

    ``began_s[q]`` and ``done_s[q]`` are times of pieces, ``left_s[f]`` and ``there_s[f]`` of
    flows. ``log`` lists the pieces in the order in which they began, ``logged[0]`` of them. What
    a piece was held up by until it began is ``piece_cause[q]``: another piece k, or a
    flow f, written as -2 - f, or NOBODY. A flow was held up on leaving by ``leave_cause[f]``
    (the same) and on arriving by the flow ``arrive_cause[f]`` or NOBODY.
    """

    pieces: Ints
    piece_start: Ints
    piece_stop: Ints
    work_s: Floats
    takes: Ints
    waiting: Ints
    began_s: Floats
    done_s: Floats
    piece_cause: Ints
    head: Ints
    tail: Ints
    sent: Ints
    sent_last: Ints
    got: Ints
    producer: Ints
    consumer: Ints
    taken: Ints
    origin: Ints
    dest: Ints
    row_start: Ints
    row_stop: Ints
    sent_next: Ints
    got_next: Ints
    busy_s: Floats
    left_s: Floats
    there_s: Floats
    leave_cause: Ints
    arrive_cause: Ints
    gap_start: Ints
    gap_stop: Ints
    running: Ints
    rest_s: Floats
    out_free_s: Floats
    in_free_s: Floats
    out_last: Ints
    in_last: Ints
    device_last: Ints
    ready: Ints
    ready_count: Ints
    log: Ints
    logged: Ints
    event_s: Floats
    event: Longs


def new_choice(problem: Problem) -> Choice:
    """A choice with every span empty, in the graph's own order."""
    n, layers = problem.ranks, problem.layers
    return Choice(
        order=ints(range(layers)),
        position=ints(range(layers)),
        cut=ints([0] * (layers * (n + 1))),
        start=ints([0] * (layers * n)),
        stop=ints([0] * (layers * n)),
        first=ints([0] * (layers * n)),
    )


def new_scratch(problem: Problem, flows: int) -> Scratch:
    """Room for plans of at most ``flows`` flows."""
    n, units = problem.ranks, problem.layers * problem.ranks
    sizes = {
        "pieces": units, "head": units, "tail": units, "sent": units, "sent_last": units,
        "got": units, "producer": flows, "consumer": flows, "taken": flows, "origin": flows,
        "dest": flows,
        "row_start": flows, "row_stop": flows, "sent_next": flows, "got_next": flows,
        "busy_s": flows, "left_s": flows, "there_s": flows, "leave_cause": flows,
        "arrive_cause": flows,
        "gap_start": flows + 2, "gap_stop": flows + 2, "running": n, "rest_s": n,
        "out_free_s": n + 1, "in_free_s": n, "out_last": n + 1, "in_last": n, "device_last": n,
        "ready": 3 * units, "ready_count": n, "logged": 1, "event_s": n + flows, "event": n + flows,
    }  # fmt: skip

    def room(name: str) -> Any:
        make = floats if name.endswith("_s") else longs if name == "event" else ints
        return make([0] * sizes.get(name, 3 * units))

    return Scratch(*map(room, Scratch._fields))
