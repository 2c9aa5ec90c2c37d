"""Many calls of machine code by one: no Python between them.

A sequence is a table of operations in memory. Its code runs them one after the other, takes the
time of each, and comes back when it has done what it was asked for, when an operation is not for
it, when one says that it cannot be done yet, or after a while.
"""

from __future__ import annotations

import ctypes
import time
from array import array
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Final

from edgeflow_mpi.kernels.llvm.machine import Machine, native
from edgeflow_mpi.kernels.llvm.memory import scratch
from edgeflow_mpi.kernels.llvm.objects import loaded
from edgeflow_mpi.kernels.native import NativeCall

_FIELDS: Final = ("kind", "function", "argument", "started_ns", "ended_ns", "waited_ns")
_WIDTH: Final = len(_FIELDS)
_CLOCK: Final = "clock_gettime(CLOCK_MONOTONIC)"
_LIMIT_NS: Final = 20_000_000
"""Nobody else gets a word in for so long, beside what the last operation takes."""


class Kind(IntEnum):
    """``STOP``: not for machine code. ``CALL``: a function that cannot fail. ``START``, ``WAIT``
    and ``TEST``: MPI's functions for several requests; the last goes on if all are complete, or
    asks again for a while."""

    STOP = 0
    CALL = 1
    START = 2
    WAIT = 3
    TEST = 4


@dataclass(frozen=True)
class Operation:
    """What to do: a call, or a function of MPI with its requests.

    Attributes
    ----------
    kind : Kind
    call : NativeCall or None
        What to do; for MPI its frame is (requests, address of the requests, address of an
        integer for the result, address of as many statuses, nanoseconds for which to ask).
    """

    kind: Kind
    call: NativeCall | None = None


class Sequence:
    """A table of operations in which runs of them can be done at once.

    Times are those of ``time.perf_counter``.
    """

    def __init__(self, run: int, clock: int, operations: Listed[Operation]) -> None:
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self._run = kind(run)
        self._calls = [made.call for made in operations if made.call is not None]
        self._table = array("q", bytes(8 * _WIDTH * (len(operations) + 1)))
        for i, made in enumerate(operations):
            self._table[_WIDTH * i] = made.kind
            if made.call is not None:
                self._table[_WIDTH * i + 1] = made.call.function
                self._table[_WIDTH * i + 2] = made.call.frame.buffer_info()[0]
        self._header = array("q", [self._table.buffer_info()[0], clock, _LIMIT_NS, 0, 0])
        self._address = self._header.buffer_info()[0]
        self._scratch = max((call.scratch_floats for call in self._calls), default=0)
        self._placed = 0

    def run(self, first: int, stop: int) -> int:
        """Do operations ``first`` to ``stop``; the first that was not done.

        Raises
        ------
        RuntimeError
            If MPI says that something is wrong.
        """
        if self._scratch:
            place = scratch(self._scratch)
            if place != self._placed:  # it has grown for somebody else
                self._placed = place
                for call in self._calls:
                    call.place(place)
        done: int = self._run(self._address, first, stop)
        if self._header[3]:
            code, self._header[3] = self._header[3], 0
            raise RuntimeError(f"MPI reports error {code}")
        return done

    def times_s(self, index: int) -> tuple[float, float]:
        """When operation ``index`` began and ended, the last time that it was done."""
        place = _WIDTH * index + 3
        return 1e-9 * self._table[place], 1e-9 * self._table[place + 1]

    def waited_s(self, index: int) -> float:
        """How much of that time passed before a question that was answered by yes."""
        return 1e-9 * self._table[_WIDTH * index + 5]

    def take_waited_s(self) -> float:
        """All that was waited since this was last asked, in vain or not."""
        waited_ns, self._header[4] = self._header[4], 0
        return 1e-9 * waited_ns


def sequence(operations: Listed[Operation]) -> Sequence | None:
    """The operations as a sequence; None where that cannot be."""
    clock, machine = _clock(), native()
    run = _code(machine) if machine is not None and clock else None
    return None if run is None else Sequence(run, clock, operations)


@cache
def _clock() -> int:
    """The address of the clock that Python's is read from; 0 where that is another."""
    if time.get_clock_info("perf_counter").implementation != _CLOCK:
        return 0
    function = ctypes.CDLL(None).clock_gettime
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _code(machine: Machine) -> int | None:
    try:
        (entry,) = loaded(machine, "sequence", lambda: _MODULE, ["run_sequence"])
    except RuntimeError:
        return None
    return entry


_MODULE: Final = """
define internal i64 @now(ptr %clock, ptr %time) nounwind {
  %known = call i32 %clock(i32 1, ptr %time)
  %seconds = load i64, ptr %time
  %rest = getelementptr i64, ptr %time, i64 1
  %ns = load i64, ptr %rest
  %whole = mul i64 %seconds, 1000000000
  %sum = add i64 %whole, %ns
  ret i64 %sum
}

; header: address of the table, clock, most nanoseconds; written: error of MPI, nanoseconds waited
; -> the first operation that was not done
define i64 @run_sequence(ptr %header, i64 %first, i64 %stop) nounwind {
entry:
  %time = alloca [2 x i64]
  %table = load ptr, ptr %header
  %clock.at = getelementptr i64, ptr %header, i64 1
  %clock = load ptr, ptr %clock.at
  %limit.at = getelementptr i64, ptr %header, i64 2
  %limit = load i64, ptr %limit.at
  %error.at = getelementptr i64, ptr %header, i64 3
  %begun = call i64 @now(ptr %clock, ptr %time)
  %until = add i64 %begun, %limit
  br label %head

head:
  %index = phi i64 [ %first, %entry ], [ %next, %going ]
  %started = phi i64 [ %begun, %entry ], [ %ended, %going ]
  %more = icmp slt i64 %index, %stop
  br i1 %more, label %look, label %leave

look:
  %place = mul i64 %index, 6
  %row = getelementptr i64, ptr %table, i64 %place
  %kind = load i64, ptr %row
  %function.at = getelementptr i64, ptr %row, i64 1
  %function = load ptr, ptr %function.at
  %argument.at = getelementptr i64, ptr %row, i64 2
  %argument = load ptr, ptr %argument.at
  switch i64 %kind, label %leave [
    i64 1, label %compute
    i64 2, label %start
    i64 3, label %wait
    i64 4, label %test
  ]

compute:
  call void %function(ptr %argument)
  br label %done

start:
  %start.count64 = load i64, ptr %argument
  %start.count = trunc i64 %start.count64 to i32
  %start.requests.at = getelementptr i64, ptr %argument, i64 1
  %start.requests = load ptr, ptr %start.requests.at
  %start.error = call i32 %function(i32 %start.count, ptr %start.requests)
  br label %check

wait:
  %wait.count64 = load i64, ptr %argument
  %wait.count = trunc i64 %wait.count64 to i32
  %wait.requests.at = getelementptr i64, ptr %argument, i64 1
  %wait.requests = load ptr, ptr %wait.requests.at
  %wait.statuses.at = getelementptr i64, ptr %argument, i64 3
  %wait.statuses = load ptr, ptr %wait.statuses.at
  %wait.error = call i32 %function(i32 %wait.count, ptr %wait.requests, ptr %wait.statuses)
  br label %check

test:
  %test.count64 = load i64, ptr %argument
  %test.count = trunc i64 %test.count64 to i32
  %test.requests.at = getelementptr i64, ptr %argument, i64 1
  %test.requests = load ptr, ptr %test.requests.at
  %test.flag.at = getelementptr i64, ptr %argument, i64 2
  %test.flag.in = load ptr, ptr %test.flag.at
  %test.statuses.at = getelementptr i64, ptr %argument, i64 3
  %test.statuses = load ptr, ptr %test.statuses.at
  %test.patience.at = getelementptr i64, ptr %argument, i64 4
  %test.patience = load i64, ptr %test.patience.at
  %test.until = add i64 %started, %test.patience
  br label %ask

ask:
  %asked = phi i64 [ %started, %test ], [ %again, %unready ]
  %test.error = call i32 %function(i32 %test.count, ptr %test.requests, ptr %test.flag.in, \
ptr %test.statuses)
  %test.flag = load i32, ptr %test.flag.in
  %test.whole = icmp ne i32 %test.flag, 0
  %test.wrong = icmp ne i32 %test.error, 0
  %test.over = or i1 %test.whole, %test.wrong
  br i1 %test.over, label %asked.enough, label %unready

unready:
  %again = call i64 @now(ptr %clock, ptr %time)
  %patient = icmp slt i64 %again, %test.until
  br i1 %patient, label %ask, label %asked.enough

asked.enough:
  %waited.until = phi i64 [ %asked, %ask ], [ %again, %unready ]
  %waited = sub i64 %waited.until, %started
  %waited.at = getelementptr i64, ptr %row, i64 5
  store i64 %waited, ptr %waited.at
  %waited.all.at = getelementptr i64, ptr %header, i64 4
  %waited.before = load i64, ptr %waited.all.at
  %waited.all = add i64 %waited.before, %waited
  store i64 %waited.all, ptr %waited.all.at
  br label %check

check:
  %error = phi i32 [ %start.error, %start ], [ %wait.error, %wait ], [ %test.error, %asked.enough ]
  %whole = phi i1 [ true, %start ], [ true, %wait ], [ %test.whole, %asked.enough ]
  %right = icmp eq i32 %error, 0
  br i1 %right, label %unless, label %wrong

wrong:
  %wide = sext i32 %error to i64
  store i64 %wide, ptr %error.at
  br label %leave

unless:
  br i1 %whole, label %done, label %leave

done:
  %ended = call i64 @now(ptr %clock, ptr %time)
  %started.at = getelementptr i64, ptr %row, i64 3
  store i64 %started, ptr %started.at
  %ended.at = getelementptr i64, ptr %row, i64 4
  store i64 %ended, ptr %ended.at
  %next = add i64 %index, 1
  %late = icmp sgt i64 %ended, %until
  br i1 %late, label %full, label %going

going:
  br label %head

full:
  br label %leave

leave:
  %result = phi i64 [ %index, %head ], [ %index, %look ], [ %index, %wrong ], \
[ %index, %unless ], [ %next, %full ]
  ret i64 %result
}
"""
