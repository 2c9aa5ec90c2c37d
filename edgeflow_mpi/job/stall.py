"""Which rank holds up a job in which nobody gets on.

A rank that waits too long sees only its neighbour, which may be waiting itself. So every rank
that gives up tells all others whom it waits for; whoever follows these answers from rank to
rank ends at one that has none, because it hangs or is gone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from edgeflow_mpi.errors import StallError

_TAG = 9
_POLL_S = 0.01
_SHORTEST_S, _LONGEST_S = 1.0, 10.0


class MessageComm(Protocol):
    """The communicator calls that are used here (an mpi4py ``Intracomm``)."""

    def Get_rank(self) -> int: ...
    def Get_size(self) -> int: ...
    def isend(self, obj: Any, dest: int, tag: int = 0) -> Any: ...
    def iprobe(self, source: int, tag: int) -> bool: ...
    def recv(self, buf: Any = None, source: int = 0, tag: int = 0) -> Any: ...


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
    return f"{sentence}; rank {found} hangs, is gone, or needs more than --timeout for one unit"
