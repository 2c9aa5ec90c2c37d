"""Which engines are measured: those of each rank, or the one that is asked for."""

from __future__ import annotations

from edgeflow_mpi.cluster.comm import Communicator
from edgeflow_mpi.errors import InputError
from edgeflow_mpi.kernels.names import AUTO, PRECISIONS
from edgeflow_mpi.kernels.registry import usable, usable_engines


def engines_of_ranks(
    comm: Communicator, wanted: str = AUTO, precision: str = "fp32"
) -> tuple[tuple[str, ...], ...]:
    """Names of the engines that every rank may use, the same on all ranks; collective.

    Parameters
    ----------
    comm : all its ranks must call this.
    wanted : one engine, or ``auto`` for all that a rank has.
    precision : what ``auto`` may use, a key of :data:`edgeflow_mpi.kernels.names.PRECISIONS`.

    Returns
    -------
    tuple of tuple of str
        By rank; empty for a rank that has not what is wanted, which falls back.

    Raises
    ------
    InputError
        On all ranks, if no rank has what is wanted, or none has the precision.
    """
    auto = wanted == AUTO
    mine = usable_engines(precision) if auto else tuple(filter(usable, (wanted,)))
    found: tuple[tuple[str, ...], ...] = tuple(comm.allgather(mine))
    narrow = PRECISIONS[precision]
    if auto and narrow and not any(set(narrow) & set(engines) for engines in found):
        raise _shared(
            f"--precision {precision}: no rank has a processor and a torch that multiply such "
            "numbers faster than float32"
        )
    if not any(found):
        raise _shared(
            f"engine {wanted} works on no rank: its package is not installed, or these processors "
            f"or this torch cannot run it (on rank 0 there are {', '.join(usable_engines())})"
        )
    return found


def _shared(sentence: str) -> InputError:
    """An error that all ranks raise."""
    error = InputError(sentence)
    error.shared = True
    return error
