"""Units that take as long as on a slower device: the rest of a unit's time is slept.

Messages move meanwhile as they do while a rank computes: by the progress thread.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

from edgeflow_mpi.units.tables import Unit

_PR_SET_TIMERSLACK = 29
_ROOT = hasattr(os, "SCHED_FIFO") and os.geteuid() == 0
_SPIN_S = 80e-6  # a sleeper of this machine wakes up about so much too late


class Pace:
    """Stretches the kernels of one rank.

    Units that follow one another without a pause are timed as one run: each begins when the one
    before should have ended. So what the executor does between them is part of the device's
    overhead, and a sleep that ended late does not add up.

    Parameters
    ----------
    seconds : what a unit is to take.

    Attributes
    ----------
    wanted_s, late_s : what units were to take since the start, and by how much they ended late.
    """

    def __init__(self, seconds: Callable[[Unit], float]) -> None:
        self.wanted_s = self.late_s = 0.0
        self._seconds = seconds
        self._due_s: float | None = None
        fine_timers()

    def rest(self) -> None:
        """The rank has nothing to do: its next unit begins when it is called."""
        self._due_s = None

    def wrap(self, unit: Unit, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """``kernel``, which then takes the unit's time."""
        seconds = self._seconds(unit)

        def paced(*inputs: Any) -> Any:
            begun_s = time.perf_counter() if self._due_s is None else self._due_s
            result = kernel(*inputs)
            due_s = self._due_s = begun_s + seconds
            sleep_until(due_s)
            self.wanted_s += seconds
            self.late_s += time.perf_counter() - due_s
            return result

        return paced


def nap(seconds: float) -> None:
    """Sleep, and have a core at once when it is over, even if all are computing.

    The kernel protects who computes for a slice of 1.4 ms on two cores, by which every unit and
    every message would be late where devices share the cores. Only root may be so urgent.
    """
    if not _ROOT:
        time.sleep(seconds)
        return
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        time.sleep(seconds)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def sleep_until(due_s: float) -> None:
    """Return at ``due_s`` of ``time.perf_counter``, or at once if that is past."""
    left_s = due_s - time.perf_counter()
    if left_s > _SPIN_S:
        nap(left_s - _SPIN_S)
    while time.perf_counter() < due_s:
        os.sched_yield()


def fine_timers() -> None:
    """Let this thread's sleeps end within a microsecond, not the kernel's usual fifty."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
