"""Latency and bandwidth of every directed link, measured with messages between two ranks.

One direction of one pair at a time: the sender sends messages of growing size, the receiver
acknowledges each with one byte, all others sleep. Clocks of two hosts cannot be compared, so
what is timed is there and back on the sender's clock; the way back of the acknowledgement is
taken to be half of a one-byte round trip, which makes latency the mean of both directions
and bandwidth that of one.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from edgeflow_mpi.cluster.agree import agree
from edgeflow_mpi.cluster.comm import PointToPoint, Request, sleeping_barrier
from edgeflow_mpi.cluster.fit import fit_link
from edgeflow_mpi.cluster.profile import Link
from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.progress import Progress

SIZES_BYTES = (1, 4096, 16384, 65536, 262144, 1048576)
_ALWAYS = 2  # sizes that are measured however slow the link is: a line needs two points
_WARMUP = 2
_REPEATS = 15
_FEWEST_REPEATS = 3

_HEADER_TAG, _PAYLOAD_TAG, _REPLY_TAG = 0, 1, 2


def measure_links(
    comm: PointToPoint,
    *,
    names: Sequence[str],
    progress: Progress,
    budget_s: float = 3.0,
    timeout_s: float = 20.0,
) -> Mapping[tuple[int, int], Link]:
    """Measure every ordered pair of ranks; collective, the same result on every rank.

    Parameters
    ----------
    comm
        All its ranks must call this, with nothing else under way on it.
    names
        Of the ranks' devices, for progress and complaints.
    progress
        Told which pair is being measured.
    budget_s
        Seconds that all pairs together may take, shared evenly; a pair gets from 20 ms to
        0.5 s, so that many ranks, or links slower than about 1 Mbit/s, take longer.
    timeout_s
        Seconds within which any single message must arrive.

    Raises
    ------
    ClusterError
        On all ranks that can still be reached, naming the pair, when a message does not
        arrive in time.
    """
    rank, size = comm.Get_rank(), comm.Get_size()
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    pair_budget_s = min(max(budget_s / max(len(pairs), 1), 0.02), 0.5)
    measured: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for count, (i, j) in enumerate(pairs, 1):
        progress.update(f"link {count} of {len(pairs)}: {names[i]} to {names[j]}")
        error: Exception | None = None
        channel = _Channel(comm, i, j, names, timeout_s)
        try:
            if rank == i:
                measured[i, j] = _send_all(channel, pair_budget_s)
            elif rank == j:
                _receive_all(channel)
        except Exception as raised:  # noqa: BLE001 (whatever it is, all ranks must learn of it)
            error = raised
        agree(comm, error, timeout_s=3 * timeout_s)
    sleeping_barrier(comm, timeout_s=timeout_s)
    together = {pair: points for part in comm.allgather(measured) for pair, points in part.items()}
    return {pair: fit_link(together[pair]) for pair in pairs}


def one_way(round_trips: Mapping[int, Sequence[float]]) -> list[tuple[int, float]]:
    """``(size_bytes, seconds)`` one way, from seconds there and back per message size.

    The smallest size stands for the acknowledgement, whose way back is taken off.
    """
    medians = {size: statistics.median(times) for size, times in sorted(round_trips.items())}
    back_s = min(medians.values()) / 2
    return [(size, seconds - back_s) for size, seconds in medians.items()]


class _Channel:
    """Messages between two ranks, waited for as the runtime waits, up to a deadline."""

    def __init__(
        self, comm: PointToPoint, sender: int, receiver: int, names: Sequence[str], timeout_s: float
    ) -> None:
        self._comm, self._sender, self._receiver = comm, sender, receiver
        self._names, self._timeout_s = names, timeout_s

    def send(self, buffer: np.ndarray, tag: int) -> Request:
        return self._comm.Isend(buffer, self._peer, tag)

    def receive(self, buffer: np.ndarray, tag: int) -> Request:
        return self._comm.Irecv(buffer, self._peer, tag)

    def wait(self, request: Request) -> None:
        """Test and yield the core in turn, like the runtime, until the request is done."""
        deadline_s = time.monotonic() + self._timeout_s
        while not request.Test():
            os.sched_yield()
            if time.monotonic() > deadline_s:
                ends = [f"rank {r} ({self._names[r]})" for r in (self._sender, self._receiver)]
                raise ClusterError(
                    f"no message came through between {ends[0]} and {ends[1]} within "
                    f"{self._timeout_s:g} s: check the network between them"
                )

    @property
    def _peer(self) -> int:
        here = self._comm.Get_rank()
        return self._receiver if here == self._sender else self._sender


def _send_all(channel: _Channel, budget_s: float) -> list[tuple[int, float]]:
    """The sender's side: one series a size, until the next would exceed the budget."""
    started_s = time.perf_counter()
    round_trips: dict[int, list[float]] = {}
    for index, size_bytes in enumerate(SIZES_BYTES):
        repeats = _REPEATS
        if round_trips:
            last_bytes = SIZES_BYTES[index - 1]
            # Up to a page a message costs latency only; from there at most in proportion.
            growth = size_bytes / max(last_bytes, 4096)
            expected_s = growth * statistics.median(round_trips[last_bytes])
            left_s = budget_s - (time.perf_counter() - started_s)
            affordable = int(left_s / expected_s) - _WARMUP
            if affordable < _FEWEST_REPEATS and index >= _ALWAYS:
                break
            repeats = min(max(affordable, _FEWEST_REPEATS), _REPEATS)
        round_trips[size_bytes] = _send_series(channel, size_bytes, repeats)
    header = np.array([0, 0], dtype=np.int64)
    channel.wait(channel.send(header, _HEADER_TAG))
    return one_way(round_trips)


def _send_series(channel: _Channel, size_bytes: int, repeats: int) -> list[float]:
    """Seconds there and back of ``repeats`` messages, after a warm-up."""
    header = np.array([size_bytes, _WARMUP + repeats], dtype=np.int64)
    payload = np.ones(size_bytes, dtype=np.uint8)
    reply = np.empty(1, dtype=np.uint8)
    ready = channel.receive(reply, _REPLY_TAG)
    channel.wait(channel.send(header, _HEADER_TAG))
    channel.wait(ready)
    times_s: list[float] = []
    for _ in range(_WARMUP + repeats):
        answered = channel.receive(reply, _REPLY_TAG)
        started_s = time.perf_counter()
        sent = channel.send(payload, _PAYLOAD_TAG)
        channel.wait(answered)
        times_s.append(time.perf_counter() - started_s)
        channel.wait(sent)
    return times_s[_WARMUP:]


def _receive_all(channel: _Channel) -> None:
    """The receiver's side: a receive is posted before the message it is for is sent."""
    header = np.empty(2, dtype=np.int64)
    reply = np.ones(1, dtype=np.uint8)
    while True:
        channel.wait(channel.receive(header, _HEADER_TAG))
        size_bytes, repeats = (int(number) for number in header)
        if not repeats:
            return
        payload = np.empty(size_bytes, dtype=np.uint8)
        arriving = channel.receive(payload, _PAYLOAD_TAG)
        channel.wait(channel.send(reply, _REPLY_TAG))
        for left in reversed(range(repeats)):
            channel.wait(arriving)
            if left:
                arriving = channel.receive(payload, _PAYLOAD_TAG)
            channel.wait(channel.send(reply, _REPLY_TAG))
