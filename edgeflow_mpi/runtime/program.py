"""The units of a rank that need no Python, run one after the other by machine code.

A unit's operations lie side by side: ask whether its messages have arrived, unpack them, complete
the sends whose memory it writes to, compute, pack, send; then post the receives whose memory is
free by now. The last is so only where units run in the order of the table, as they do until one has
to wait.
"""

from __future__ import annotations

import ctypes
from array import array
from bisect import bisect_right
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeflow_mpi.kernels.native import NativeCall
from edgeflow_mpi.runtime.transport import NativeRequests

if TYPE_CHECKING:
    from edgeflow_mpi.kernels.llvm.sequence import Kind, Operation, Sequence
    from edgeflow_mpi.runtime.meter import Meter, Part


@dataclass(frozen=True)
class Steps:
    """A unit, as far as machine code must know it. Messages are named by their handles.

    Attributes
    ----------
    calls : tuple of NativeCall, or None
        What it computes; None where Python has to.
    packs : tuple of NativeCall, or None
        What is to be done before it sends; None where Python has to.
    receives : tuple of int
        What must have arrived.
    patience_s : float
        How long machine code may wait for that before Python does.
    watched : bool
        Whether Python must look at what arrives.
    unpacks : tuple of NativeCall
        What is to be done with what has arrived, if not. Doing it again does no harm.
    settled, sends : tuple of int
        Sends to complete before, and to start after it.
    opens : tuple of pairs of tuples of int
        (sends to complete, receives to post then) after it, where units run in order.
    """

    calls: tuple[NativeCall, ...] | None
    packs: tuple[NativeCall, ...] | None
    receives: tuple[int, ...]
    patience_s: float
    watched: bool
    unpacks: tuple[NativeCall, ...]
    settled: tuple[int, ...]
    sends: tuple[int, ...]
    opens: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


class Program:
    """Units of a rank as operations of a :class:`~edgeflow_mpi.kernels.llvm.sequence.Sequence`.

    Attributes
    ----------
    whole : list of bool
        By unit: whether all of it is done here.
    asks : list of bool
        By unit: whether it is found out here if its messages have arrived, or there are none.
    computes : list of bool
        By unit: whether it is computed here.
    """

    def __init__(
        self, code: Sequence, parts: Listed[Part], places: Listed[tuple[int, int, int]],
        whole: list[bool], asks: list[bool], computes: list[bool],
    ) -> None:  # fmt: skip
        self._code = code
        self._parts = parts
        self._starts = [start for start, _, _ in places] + [len(parts)]
        self._places = places
        self.whole = whole
        self.asks, self.computes = asks, computes

    def run(self, first: int, stop: int, *, arrived: bool = False) -> int:
        """Run units in order from ``first``; the first that was not run, at most ``stop``.

        ``arrived`` says that the messages of ``first`` have.
        """
        starts = self._starts
        begin = self._places[first][1] if arrived else starts[first]
        done = self._code.run(begin, starts[stop])
        if done == starts[stop]:
            return stop
        unit = bisect_right(starts, done) - 1
        if done > starts[unit]:  # time was up in the middle of it, its messages may be taken
            self._finish(done, starts[unit + 1])
            unit += 1
        return unit

    def alone(self, unit: int) -> None:
        """Run a unit whose messages have arrived; receives are not posted."""
        _, begin, stop = self._places[unit]
        self._finish(begin, stop)

    compute = alone
    """Of a unit that is not ``whole``: only compute."""

    def _finish(self, begin: int, stop: int) -> None:
        while begin < stop:
            begin = self._code.run(begin, stop)

    def times_s(self, unit: int) -> tuple[float, float]:
        """When a unit began to compute, and when its messages were on their way."""
        _, begin, stop = self._places[unit]
        return self._code.times_s(begin)[0], self._code.times_s(stop - 1)[1]

    def take_waited_s(self) -> float:
        """What of the time since this was last asked was spent on waiting for messages."""
        return self._code.take_waited_s()

    def account(self, unit: int, meter: Meter, *, last: bool, in_order: bool) -> None:
        """Tell ``meter`` what the time of a unit was spent on that was run here."""
        start, begin, stop = self._places[unit]
        ended_s = None
        if in_order:
            stop = self._starts[unit + 1]
        for index in range(start if in_order and self.asks[unit] else begin, stop):
            started_s, ended_s = self._code.times_s(index)
            waited_s = self._code.waited_s(index)
            meter.spent("waiting", waited_s)
            meter.spent(self._parts[index], ended_s - started_s - waited_s)
        meter.close(unit, last=last, ended_s=ended_s if in_order else None)


def program(units: Listed[Steps], requests: NativeRequests | None) -> Program | None:
    """What can be run without Python; None if nothing can."""
    if all(unit.calls is None for unit in units):
        return None
    from edgeflow_mpi.kernels.llvm.sequence import Kind, Operation, sequence

    stop = Operation(Kind.STOP)
    made: list[Operation] = []
    places: list[tuple[int, int, int]] = []
    whole: list[bool] = []
    asks: list[bool] = []
    computing: list[int] = []
    for unit in units:
        messages = unit.settled or unit.sends or unit.opens
        able = unit.calls is not None and unit.packs is not None
        entire = able and not (messages and requests is None)
        found_out = entire and not unit.watched and (requests is not None or not unit.receives)
        start = len(made)
        if not found_out:
            made.append(stop)
        elif unit.receives and requests is not None:
            asked = requests.receives(unit.receives)
            made.append(_request(Kind.TEST, requests, asked, unit.patience_s))
            made += [Operation(Kind.CALL, call) for call in unit.unpacks]
        begin = len(made)
        if entire and unit.settled and requests is not None:
            made.append(_request(Kind.WAIT, requests, requests.sends(unit.settled)))
        for call in unit.calls or ():
            computing.append(len(made))
            made.append(Operation(Kind.CALL, call))
        if entire and unit.packs is not None:
            made += [Operation(Kind.CALL, call) for call in unit.packs]
        if entire and unit.sends and requests is not None:
            made.append(_request(Kind.START, requests, requests.sends(unit.sends)))
        places.append((start, begin, len(made)))
        for sends, receives in unit.opens if entire else ():
            assert requests is not None
            if sends:
                made.append(_request(Kind.WAIT, requests, requests.sends(sends)))
            made.append(_request(Kind.START, requests, requests.receives(receives)))
        whole.append(entire)
        asks.append(found_out)
    code = sequence(made)
    if code is None:
        return None
    parts: list[Part] = ["copy" if one.kind == Kind.CALL else "requests" for one in made]
    for index in computing:
        parts[index] = "kernel"
    computes = [unit.calls is not None for unit in units]
    return Program(code, parts, places, whole, asks, computes)


def _request(
    kind: Kind, requests: NativeRequests, handles: ctypes.Array[ctypes.c_char],
    patience_s: float = 0.0,
) -> Operation:  # fmt: skip
    """A function of MPI for some requests, one after the other in memory."""
    from edgeflow_mpi.kernels.llvm.sequence import Kind, Operation

    count = len(handles) // requests.handle_bytes
    statuses = ctypes.create_string_buffer(count * requests.status_bytes)
    flag = ctypes.c_int()
    function = {
        Kind.START: requests.start_all, Kind.WAIT: requests.wait_all, Kind.TEST: requests.test_all,
    }[kind]  # fmt: skip
    addresses = map(ctypes.addressof, (handles, flag, statuses))
    frame = array("q", [count, *addresses, round(1e9 * patience_s)])
    return Operation(kind, NativeCall(function, frame, keeps=(handles, flag, statuses)))
