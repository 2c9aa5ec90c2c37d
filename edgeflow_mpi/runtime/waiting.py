"""How a rank waits: briefly at the ready, then by giving its core away, and never for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgeflow_mpi.errors import StallError
from edgeflow_mpi.runtime.executor import Executor

_LONGEST_PATIENCE_S = 0.001


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class WaitPolicy:
    """Poll without a pause for ``spin_s``, yield for ``yield_s``, then sleep ``pause_s`` at a time.

    Polling without a pause answers a message soonest and is for who has a core to itself. A
    rank that yields between polls answers within microseconds too, but takes turns with one that
    computes on the same core; sleeping leaves it the core. A rank that has seen no progress for
    ``timeout_s`` gives up, whatever it does meanwhile. ``alive`` is called again and again, but
    not while a unit runs. ``sleep`` is how to.
    """

    spin_s: float = 0.0
    yield_s: float = 0.002
    pause_s: float = 0.00002
    timeout_s: float = 60.0
    alive: Callable[[], None] = _nothing
    sleep: Callable[[float], None] = time.sleep

    @property
    def patience_s(self) -> float:
        """How long machine code may poll: as long as there is no pause, and not for ever."""
        return min(self.spin_s, _LONGEST_PATIENCE_S)

    def wait_until(self, moved: Callable[[], bool], executor: Executor) -> float:
        """Poll ``moved`` until it is true; the seconds that took.

        Raises
        ------
        StallError
            After ``timeout_s``, with what ``executor`` waits for.
        """
        if moved():
            return 0.0
        started_s = time.perf_counter()
        while not moved():
            self._pause(time.perf_counter() - started_s, executor)
        return time.perf_counter() - started_s

    def _pause(self, waited_s: float, executor: Executor) -> None:
        self.alive()
        if waited_s > self.timeout_s:
            raise StallError(
                f"no message has moved for {self.timeout_s:g} s (--timeout): "
                f"{executor.waiting_for()}",
                waits_for=executor.awaited_rank(),
            )
        if waited_s < self.spin_s:
            return
        if waited_s < self.spin_s + self.yield_s:
            os.sched_yield()
        else:
            self.sleep(self.pause_s)
