"""What set-up and measurement ask of a communicator, and how they wait on one.

The communicator is always an argument. mpi4py's ``Comm`` fits these protocols as it is, and
so does a small fake in a test, so that nothing here imports MPI.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from edgeflow_mpi.errors import ClusterError


class Request(Protocol):
    """A nonblocking operation under way."""

    def Test(self) -> bool: ...


class Communicator(Protocol):
    """The collective calls of set-up: all ranks must make the same ones in the same order."""

    def Get_rank(self) -> int: ...
    def Get_size(self) -> int: ...
    def Ibarrier(self) -> Request: ...
    def allgather(self, sendobj: Any, /) -> list[Any]: ...
    def bcast(self, obj: Any, /, root: int = 0) -> Any: ...


class PointToPoint(Communicator, Protocol):
    """A communicator that also carries messages from and into buffers."""

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Request: ...
    def Irecv(self, buf: Any, source: int, tag: int) -> Request: ...


def sleep_until(done: Callable[[], bool], *, timeout_s: float | None, failure: str) -> None:
    """Poll ``done`` with growing sleeps until it is true.

    Set-up waits must not spin: ranks may share cores with the rank that still works, and a
    waiting one would slow down what is being waited for, or measured. Polls are apart by a fiftieth
    of the time waited so far, but 50 microseconds at least and 20 milliseconds at most.

    Parameters
    ----------
    done
        Whether the wait is over; must make MPI progress, as ``Request.Test`` does.
    timeout_s
        Seconds after which to give up; None waits for ever.
    failure
        The sentence that is raised then.

    Raises
    ------
    ClusterError
        When ``timeout_s`` has passed.
    """
    started_s = time.monotonic()
    while not done():
        waited_s = time.monotonic() - started_s
        if timeout_s is not None and waited_s > timeout_s:
            raise ClusterError(failure)
        time.sleep(min(max(waited_s / 50, 50e-6), 20e-3))


def sleeping_barrier(comm: Communicator, *, timeout_s: float | None = None) -> None:
    """Return once every rank has called this; waits without using a core.

    Raises
    ------
    ClusterError
        When some rank has not come within ``timeout_s`` seconds.
    """
    sleep_until(
        comm.Ibarrier().Test,
        timeout_s=timeout_s,
        failure=f"a rank did not respond within {timeout_s or 0:g} s, "
        "so it has failed or its network is down",
    )
