"""Failures that all ranks learn of: nobody waits for a rank that has given up.

Every stage of set-up that can fail on one rank ends in :func:`agree`, which raises the same
error on all ranks or on none. Work in between must be local: a rank that fails inside a
collective call leaves the others there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from edgeflow_mpi import errors
from edgeflow_mpi.cluster.comm import Communicator, sleeping_barrier
from edgeflow_mpi.errors import ClusterError, EdgeflowError

T = TypeVar("T")


def agree(
    comm: Communicator, error: BaseException | None, *, timeout_s: float | None = None
) -> None:
    """Raise on every rank if any rank brings an error; collective.

    Parameters
    ----------
    comm
        All its ranks must call this.
    error
        What went wrong on this rank, or None. An :class:`EdgeflowError` keeps its class on
        every rank; anything else arrives as a :class:`~edgeflow_mpi.errors.ClusterError`
        whose sentence starts with the exception's own name.
    timeout_s
        Seconds to wait for the other ranks; None waits for ever.

    Raises
    ------
    EdgeflowError
        The error of the lowest rank that has one, the same sentence everywhere. It says
        which rank and host, except for rank 0, where the user looks anyway. On the failing
        rank the original exception is its cause.
    """
    rank = comm.Get_rank()
    verdict = None if error is None else (_kind(error), _sentence(error), socket.gethostname())
    sleeping_barrier(comm, timeout_s=timeout_s)
    verdicts = comm.allgather(verdict)
    for failed, found in enumerate(verdicts):
        if found is None:
            continue
        kind, sentence, host = found
        others = sum(other is not None for other in verdicts) - 1
        if failed:
            sentence = f"rank {failed} ({host}): {sentence}"
        if others and any(other and other[1] != found[1] for other in verdicts):
            sentence += f" ({others} more rank{'s' * (others > 1)} failed too)"
        agreed_error = _class_of(kind)(sentence)
        agreed_error.shared = True
        raise agreed_error from (error if failed == rank else None)


@contextmanager
def agreed(
    comm: Communicator, doing: str = "", *, timeout_s: float | None = None
) -> Iterator[None]:
    """Run the body, then :func:`agree` on how it went; collective.

    The body must make no collective calls. ``KeyboardInterrupt`` and ``SystemExit`` are not
    held back. ``doing`` names the body where a failure that nobody foresaw is reported, as in
    "making the plan failed: ValueError: ...".
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:  # noqa: BLE001 (whatever it is, all ranks must learn of it)
        error = raised
    if doing and error is not None and not isinstance(error, EdgeflowError):
        explained = ClusterError(f"{doing} failed: {_sentence(error)}")
        explained.__cause__ = error
        error = explained
    agree(comm, error, timeout_s=timeout_s)


def broadcast(comm: Communicator, make: Callable[[], T], doing: str = "") -> T:
    """What ``make`` returns on rank 0, on every rank; its failure fails all ranks; collective.

    Other ranks sleep while rank 0 works. The value is pickled: for set-up, not for tensors.
    ``doing`` is as in :func:`agreed`.
    """
    made: T | None = None
    with agreed(comm, doing):
        if comm.Get_rank() == 0:
            made = make()
    shared: T = comm.bcast(made, root=0)
    return shared


def _kind(error: BaseException) -> str:
    """The nearest class that :mod:`edgeflow_mpi.errors` defines, by its name."""
    names = (cls.__name__ for cls in type(error).__mro__ if getattr(errors, cls.__name__, 0) is cls)
    return next(names, "ClusterError")


def _class_of(kind: str) -> type[EdgeflowError]:
    found: type[EdgeflowError] = getattr(errors, kind)
    return found


def _sentence(error: BaseException) -> str:
    """One line, whatever was raised: a foreign exception may carry pages of text."""
    if isinstance(error, EdgeflowError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    if len(first) > 300:
        first = first[:297] + "..."
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
