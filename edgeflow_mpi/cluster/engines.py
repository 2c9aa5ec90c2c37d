"""Which engines are measured: those of each rank, or the one that is asked for."""

from __future__ import annotations

from edgeflow_mpi.cluster.comm import Communicator
from edgeflow_mpi.errors import InputError
from edgeflow_mpi.kernels.names import AUTO
from edgeflow_mpi.kernels.registry import usable, usable_engines


def engines_of_ranks(comm: Communicator, wanted: str = AUTO) -> tuple[tuple[str, ...], ...]:
    """Names of the engines that every rank may use, the same on all ranks; collective.

    Parameters
    ----------
    comm : all its ranks must call this.
    wanted : one engine, or ``auto`` for all that a rank has.

    Returns
    -------
    tuple of tuple of str
        By rank; empty for a rank that has not what is wanted, which falls back.

    Raises
    ------
    InputError
        On all ranks, if no rank has what is wanted.
    """
    mine = usable_engines() if wanted == AUTO else tuple(filter(usable, (wanted,)))
    found = tuple(comm.allgather(mine))
    if not any(found):
        error = InputError(
            f"engine {wanted} works on no rank: its package is not installed, or these processors "
            f"or this torch cannot run it (on rank 0 there are {', '.join(usable_engines())})"
        )
        error.shared = True
        raise error
    return found
