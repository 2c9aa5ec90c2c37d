"""Ranks that get on no more are noticed, and found.

Every rank but 0 may have nothing left to do while requests are still under way, and must then
know that rank 0, which needs every answer, is alive: :class:`Pulse`.

A rank that waits too long sees only its neighbour, which may be waiting itself. So every rank
that gives up tells all others whom it waits for; whoever follows these answers from rank to
rank ends at one that has none, because it hangs or is gone: :func:`explain`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from edgeflow_mpi.errors import StallError

_TAG, _PULSE_TAG = 9, 10
_POLL_S, _SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 50e-6, 1e-3
_BEATS = 4
_SHORTEST_S, _LONGEST_S = 1.0, 10.0


class MessageComm(Protocol):
    """The communicator calls that are used here (an mpi4py ``Intracomm``)."""

    def Get_rank(self) -> int: ...
    def Get_size(self) -> int: ...
    def Ibarrier(self) -> Any: ...
    def isend(self, obj: Any, dest: int, tag: int = 0) -> Any: ...
    def iprobe(self, source: int, tag: int) -> bool: ...
    def recv(self, buf: Any = None, source: int = 0, tag: int = 0) -> Any: ...


class Pulse:
    """Signs of life of rank 0, a few in every ``timeout_s``.

    Parameters
    ----------
    comm : all its ranks have one.
    timeout_s : after so long without a sign a rank that waits at the end gives up.
    """

    def __init__(self, comm: MessageComm, timeout_s: float) -> None:
        self._comm = comm
        self._timeout_s = timeout_s
        self._beats = comm.Get_rank() == 0 and comm.Get_size() > 1
        self._last_s = time.monotonic()
        self._sent: list[Any] = []

    def beat(self) -> None:
        """To be called often by a rank that works; does something on rank 0, and seldom."""
        if not self._beats:
            return
        now_s = time.monotonic()
        if now_s - self._last_s < self._timeout_s / _BEATS:
            return
        self._last_s = now_s
        others = range(1, self._comm.Get_size())
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent += [self._comm.isend(None, dest=other, tag=_PULSE_TAG) for other in others]

    def wait_for_all(self) -> None:
        """Return when all ranks have finished what they had begun; collective.

        Raises
        ------
        StallError
            When rank 0 has shown no sign of life for too long, or, on rank 0, when the others
            have not finished so long after it.
        """
        everybody = self._comm.Ibarrier()
        heard_s, pause_s = time.monotonic(), _SHORTEST_PAUSE_S
        while not everybody.Test():
            now_s = time.monotonic()
            if self._hear():
                heard_s = now_s
            if now_s - heard_s > self._timeout_s:
                raise self._stalled()
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        self._hear()

    def _hear(self) -> bool:
        heard = False
        while self._comm.Get_rank() and self._comm.iprobe(source=0, tag=_PULSE_TAG):
            self._comm.recv(source=0, tag=_PULSE_TAG)
            heard = True
        return heard

    def _stalled(self) -> StallError:
        waited = f"for {self._timeout_s:g} s (--timeout)"
        if self._comm.Get_rank():
            return StallError(f"rank 0 has shown no sign of life {waited}", waits_for=0)
        return StallError(f"rank 0 has its answer but has waited for others {waited}")


def patience_s(timeout_s: float) -> float:
    """How long to listen: ranks began to wait, and so give up, at somewhat different times."""
    return min(max(timeout_s / 6, _SHORTEST_S), _LONGEST_S)


def tell_and_listen(comm: MessageComm, error: StallError, listen_s: float) -> dict[int, int | None]:
    """Exchange who waits for whom; rank -> the rank it waits for, this one included.

    Only ranks that have given up as well answer; the others are missing. To be called when
    nothing else will be sent on ``comm`` any more, as the job is about to be aborted.
    """
    rank = comm.Get_rank()
    found: dict[int, int | None] = {rank: error.waits_for}
    others = {other for other in range(comm.Get_size()) if other != rank}
    sending = [comm.isend(error.waits_for, dest=other, tag=_TAG) for other in others]
    deadline_s = time.monotonic() + listen_s
    while others and time.monotonic() < deadline_s:
        for other in tuple(others):
            if comm.iprobe(source=other, tag=_TAG):
                found[other] = comm.recv(source=other, tag=_TAG)
                others.remove(other)
        time.sleep(_POLL_S)
    del sending  # kept until here, as MPI reads from them; whom they do not reach, hangs
    return found


def culprit(waits: Mapping[int, int | None], start: int) -> int | None:
    """The rank at the end of the chain of waiting ranks, if it is not waiting itself.

    None where a rank does not know for whom it waits, or where ranks wait in a circle.
    """
    seen = set()
    rank: int | None = start
    while rank is not None and rank in waits and rank not in seen:
        seen.add(rank)
        rank = waits[rank]
    return None if rank in seen else rank


def explain(waits: Mapping[int, int | None], start: int, sentence: str) -> str:
    """``sentence``, which says what ``start`` waits for, and where to look."""
    found = culprit(waits, start)
    if found is None:
        return f"{sentence}; a message was lost, or the network is down"
    if sentence.startswith(f"rank {found} "):
        return f"{sentence}: it hangs, is gone, or needs more than that for one unit"
    return f"{sentence}; rank {found} hangs, is gone, or needs more than --timeout for one unit"
