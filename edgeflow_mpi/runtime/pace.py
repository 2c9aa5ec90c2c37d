"""Units that take as long as on a slower device: the rest of a unit's time is slept.

Messages move meanwhile as they do while a rank computes: by the progress thread, or, for ranks
that share the cores of a machine, by a :class:`~edgeflow_mpi.runtime.listening.Listener`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import torch

from edgeflow_mpi.runtime.listening import Listener
from edgeflow_mpi.runtime.urgency import computing
from edgeflow_mpi.units.tables import Unit

Tensor = torch.Tensor

_PR_SET_TIMERSLACK = 29
TOLERANCE = 0.03
_SPIN_S = 30e-6  # a sleeper wakes up about so much too late


class Pace:
    """Stretches the kernels of one rank.

    Units that follow one another without a pause are timed as one run: each begins when the one
    before should have ended. So what the executor does between them is part of the device's
    overhead, and a sleep that ended late does not add up.

    Parameters
    ----------
    seconds : what a unit is to take.
    recall : compute every unit once and have the same result ever after, for requests that are
        all the same. Eight ranks that share two cores and their caches cannot compute for eight
        devices at once; what they can do is to wait and to pass messages. In a request that does
        not count a unit that computes takes what it takes here.
    listener : who sleeps, and lets messages move meanwhile.

    Attributes
    ----------
    wanted_s, late_s : what units were to take since the start, and by how much they ended late.
    units, on_time : how many have run, and how many of them ended late by no more than
        :data:`TOLERANCE` of their time.
    counts : whether units are counted now; only then is the rank more urgent than others.
    """

    def __init__(
        self,
        seconds: Callable[[Unit], float],
        *,
        recall: bool = False,
        listener: Listener | None = None,
    ) -> None:
        self.wanted_s = self.late_s = 0.0
        self.units = self.on_time = 0
        self.counts = True
        self._recall = recall
        self._listener = listener
        self._seconds = seconds
        self._due_s: float | None = None
        fine_timers()

    def begin(self) -> None:
        """Requests are to come, and their messages."""
        if self._listener is not None:
            self._listener.look_around()

    def rest(self) -> None:
        """The rank has nothing to do: its next unit begins when it is called."""
        self._due_s = None

    def wrap(self, unit: Unit, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``kernel``, which then takes the unit's time."""
        seconds = self._seconds(unit)
        kept: list[Tensor] = []

        def paced(*inputs: Tensor) -> Tensor:
            begun_s = time.perf_counter() if self._due_s is None else self._due_s
            if kept:
                result = kept[0]
            else:
                result = computing(kernel, *inputs)
                if self._recall:
                    kept.append(result.clone())
                    if not self.counts:
                        self._due_s = None
                        return result
            due_s = self._due_s = begun_s + seconds
            self._sleep_until(due_s)
            if self.counts:
                self._count(seconds, time.perf_counter() - due_s)
            return result

        return paced

    def _sleep_until(self, due_s: float) -> None:
        """Return at ``due_s`` of ``time.perf_counter``, or at once if that is past."""
        sleep = time.sleep if self._listener is None else self._listener.sleep
        while (left_s := due_s - time.perf_counter()) > _SPIN_S:
            sleep(left_s - _SPIN_S)
        while time.perf_counter() < due_s:
            pass  # yielding would give the core to a rank that computes, for much longer

    def _count(self, seconds: float, late_s: float) -> None:
        self.wanted_s += seconds
        self.late_s += late_s
        self.units += 1
        self.on_time += late_s <= TOLERANCE * seconds


def fine_timers() -> None:
    """Let this thread's sleeps end within a microsecond, not the kernel's usual fifty."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
