"""Which cores of its host a rank computes on, and with how many threads.

mpirun binds each of two ranks to one core, and one rank of a host that carries no other to one
core as well; torch then runs a single thread and the rest of the host stays idle.
:func:`widen_affinity` gives every rank its share of the host instead: whole physical cores, one
thread on each.

Call it before torch is imported: the OpenMP runtime looks at the affinity once, when it is
loaded, and makes its threads sleep early if it then sees fewer cores than threads (12 % slower
on small convolutions with 2 threads).

mkl, inside torch, runs one thread wherever it finds the variables of an MPI launcher, bound or
not: :func:`apply_threads` must be called in every rank.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeflow_mpi.cluster.cpus import (
    PhysicalCore,
    find_launcher,
    physical_cores,
    read_cpu_quota,
    read_siblings,
)
from edgeflow_mpi.errors import InputError


@dataclass(frozen=True)
class Affinity:
    """The cores and threads of one rank.

    Attributes
    ----------
    cores
        Logical CPUs that this rank runs on, ascending; empty where the system cannot bind.
    threads
        How many threads its kernels should use; at least 1.
    host_cores
        Logical CPUs of the host that the job may use; ``cores`` is a subset.
    host_threads
        How many threads one rank alone on this host should use.
    shared
        Whether other ranks of the job run on some of ``cores``.
    reason
        How ``threads`` came about, for people.
    """

    cores: tuple[int, ...]
    threads: int
    host_cores: tuple[int, ...]
    host_threads: int
    shared: bool
    reason: str


def widen_affinity(local_rank: int, local_size: int, *, threads: int | None = None) -> Affinity:
    """Run this process on its share of the host's cores, from now on.

    Parameters
    ----------
    local_rank, local_size
        The rank among those on this host, and how many these are.
    threads
        Threads the user asks for; None takes ``OMP_NUM_THREADS``, else one per physical core
        of the share.

    Raises
    ------
    InputError
        When ``threads`` is not positive.
    """
    if threads is not None and threads < 1:
        raise InputError(f"the number of threads must be at least 1, not {threads}")
    usable = _usable_cpus()
    if threads is None:
        threads, why = _threads_from_environment(os.environ), "OMP_NUM_THREADS"
    else:
        why = "--threads"
    affinity = decide_affinity(
        physical_cores(usable, read_siblings(usable)),
        local_rank,
        local_size,
        quota_cores=read_cpu_quota(),
        threads=threads,
        threads_reason=why,
    )
    if not _can_bind():
        return replace(affinity, cores=(), host_cores=(), shared=local_size > 1)
    bind_to(affinity.cores)
    return affinity


def apply_threads(threads: int) -> None:
    """Make torch compute with this many threads in this process."""
    # Here and not above: torch must be loaded after the affinity is set (see the module).
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        # Can be set only once, and not after the pool was used; kernels never use that pool.
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)


def bind_to(cores: Collection[int]) -> None:
    """Bind all threads of this process to these logical CPUs; nothing where that is unknown.

    All threads, not only the calling one: MPI's progress thread and OpenMP's workers may have
    been started under the launcher's binding already.
    """
    if not _can_bind() or not cores:
        return
    os.sched_setaffinity(0, cores)
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # a thread may end meanwhile
                os.sched_setaffinity(int(task.name), cores)


def decide_affinity(
    host: Sequence[PhysicalCore],
    local_rank: int,
    local_size: int,
    *,
    quota_cores: float | None = None,
    threads: int | None = None,
    threads_reason: str = "asked for",
) -> Affinity:
    """The cores and threads of one rank, from what is known about the host.

    Parameters
    ----------
    host
        The physical cores that the job may use on this host.
    local_rank, local_size
        The rank among those on this host, and how many these are.
    quota_cores
        Processor time that the host's container gives, in cores; None when unlimited.
        Such a limit bounds the threads and not the cores: it says how much, not where, and
        other containers that took the same first cores would be in the way.
    threads, threads_reason
        A number of threads that overrides the computed one, and why.
    """
    shares = [share_of_host(host, rank, local_size) for rank in range(local_size)]
    shared = len(host) < local_size
    budget = len(host)
    if quota_cores is not None and math.ceil(quota_cores) < budget:
        budget = max(1, math.ceil(quota_cores))
        limited = f"{budget} cores' worth of time on a host of {len(host)}"
    else:
        limited = f"{len(host)} cores"
    fair = budget // local_size + (local_rank < budget % local_size)
    computed = max(1, min(len(shares[local_rank]), fair))
    if threads is not None:
        reason = threads_reason
    elif local_size == 1:
        reason = f"alone on {limited}"
    elif shared or budget < local_size:
        reason = f"{local_size} ranks share {limited}"
    else:
        reason = f"one of {local_size} ranks on {limited}"
    return Affinity(
        cores=_flatten(shares[local_rank]),
        threads=computed if threads is None else threads,
        host_cores=_flatten(host),
        host_threads=budget if threads is None else threads,
        shared=shared,
        reason=reason,
    )


def share_of_host(
    host: Sequence[PhysicalCore], local_rank: int, local_size: int
) -> tuple[PhysicalCore, ...]:
    """The physical cores of one of ``local_size`` ranks.

    Neighbouring cores, as evenly as possible, one more for the first ranks when it does not
    divide; the whole host for every rank when there are fewer cores than ranks.

    Raises
    ------
    ValueError
        When ``host`` is empty or ``local_rank`` is not below ``local_size``.
    """
    if not host:
        raise ValueError("a host must have a core")
    if not 0 <= local_rank < local_size:
        raise ValueError(f"local rank {local_rank} of {local_size} ranks")
    if len(host) < local_size:
        return tuple(host)
    each, extra = divmod(len(host), local_size)
    start = local_rank * each + min(local_rank, extra)
    return tuple(host[start : start + each + (local_rank < extra)])


def _threads_from_environment(environ: Mapping[str, str]) -> int | None:
    first = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _can_bind() -> bool:
    return hasattr(os, "sched_setaffinity")


def _usable_cpus() -> tuple[int, ...]:
    """What the job may use here: the launcher's CPUs when there is one, else our own."""
    if not _can_bind():
        return tuple(range(os.cpu_count() or 1))
    own = os.sched_getaffinity(0)
    launcher = find_launcher(os.getppid())
    if launcher is not None:
        with contextlib.suppress(OSError):
            return tuple(sorted(own | os.sched_getaffinity(launcher)))
    return tuple(sorted(own))


def _flatten(cores: Sequence[PhysicalCore]) -> tuple[int, ...]:
    return tuple(sorted(cpu for core in cores for cpu in core))
