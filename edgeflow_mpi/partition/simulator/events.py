"""A queue of timed events on flat arrays: a binary heap of (time, key) pairs.

Keys are distinct, so the order in which events leave is a function of the events alone.
"""

from __future__ import annotations

from edgeflow_mpi.partition.simulator.jit import Floats, Ints, inlined


@inlined
def push(times: Floats, keys: Ints, size: int, time_s: float, key: int) -> int:
    """Add an event to a heap of ``size`` events; the new size."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if times[parent] < time_s or (times[parent] == time_s and keys[parent] < key):
            break
        times[at] = times[parent]
        keys[at] = keys[parent]
        at = parent
    times[at] = time_s
    keys[at] = key
    return size + 1


@inlined
def drop_first(times: Floats, keys: Ints, size: int) -> int:
    """Remove the earliest event (at index 0) of a heap of ``size`` events; the new size."""
    size -= 1
    time_s = times[size]
    key = keys[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            times[other] < times[child]
            or (times[other] == times[child] and keys[other] < keys[child])
        ):
            child = other
        if time_s < times[child] or (time_s == times[child] and key < keys[child]):
            break
        times[at] = times[child]
        keys[at] = keys[child]
        at = child
    times[at] = time_s
    keys[at] = key
    return size
