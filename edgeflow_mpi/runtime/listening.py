"""Sleep that ends when a message moves, for ranks that stand for slower devices.

Such a rank sleeps for most of a unit's time, and while it waits. In place of a thread that moves
its messages meanwhile, and of looking every 100 us whether one has come, it sleeps *on its
connections*: the kernel wakes it when there is something to read, it lets MPI read that, and
sleeps on. Eight ranks on two cores have no time to spare for more.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable
from pathlib import Path

_LONGEST_S = 0.002  # what connections do not tell (a new one, room to write) is seen after this
_DESCRIPTORS = Path("/proc/self/fd")


class Listener:
    """Sleeps until there is something for MPI to do.

    Parameters
    ----------
    progress : lets MPI do what there is to do.
    connections : finds the descriptors of the connections to other hosts.
    """

    def __init__(
        self,
        progress: Callable[[], object],
        connections: Callable[[], list[int]] | None = None,
    ) -> None:
        self._progress = progress
        self._find = connections or tcp_connections
        self._connections: list[int] = []

    def look_around(self) -> None:
        """Find the connections; new ones are made when ranks first talk to each other."""
        self._connections = self._find()

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until something has moved, or might have."""
        select.select(self._connections, (), (), min(seconds, _LONGEST_S))
        self._progress()

    def pause(self, seconds: float) -> None:
        """Sleep until something has moved; where no connection can tell, for ``seconds``."""
        self.sleep(_LONGEST_S if self._connections else seconds)


def tcp_connections() -> list[int]:
    """Descriptors of this process's connections to other hosts."""
    return [number for number in _numbers() if _goes_elsewhere(number)]


def _goes_elsewhere(number: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return False
        connection = socket.socket(fileno=number)
    except OSError:
        return False
    try:
        if (connection.family, connection.type) != (socket.AF_INET, socket.SOCK_STREAM):
            return False
        return bool(connection.getsockname()[0] != connection.getpeername()[0])
    except OSError:
        return False
    finally:
        connection.detach()  # it is MPI's to close


def _numbers() -> list[int]:
    try:
        return sorted(int(one.name) for one in _DESCRIPTORS.iterdir())
    except OSError:
        return []
