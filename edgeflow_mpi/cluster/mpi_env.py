"""The MPI settings of a job, made before MPI starts, so that a plain mpirun line is enough.

Open MPI reads parameters from the environment of each process (``OMPI_MCA_<name>``) when MPI
is initialised. :func:`configure_mpi_environment` puts there what the ranks of a job need; it
must be called before ``from mpi4py import MPI``. Other MPI libraries ignore these names.

What each setting is for, with Open MPI 5.0.11 on a 2-core x86-64 machine:

``mpi_yield_when_idle=1``
    A waiting rank gives its core away between polls. Without it two ranks that share a core
    pass a 1 kB message in 4 ms (a scheduler tick), with it in 5 us over shared memory and
    21 us over TCP. Open MPI turns this on by itself when it knows of more ranks than slots, but
    not when a hostfile says ``slots=4`` on two cores (2 ms a message) nor when ranks are bound to
    one core. It costs under a microsecond when every rank has a core of its own.
``btl_tcp_progress_thread=1``, when the job spans several hosts
    TCP otherwise advances only inside MPI calls: 1 MB sent over a 100 Mbit/s link took 84 ms
    *after* both sides had computed for 200 ms, and 0.02 ms with the thread. Latency of small
    messages is the same. On a single host there is no TCP traffic and the thread would only
    take processor time.
``btl_tcp_eager_limit=1048576``, when the job spans several hosts
    A longer message is only announced, and sent when its receiver has asked for it. That question
    queues behind what the receiver itself sends on the same connection: 250 kB each way over
    93.7 Mbit/s took 43.6 ms with the usual limit of 64 kB, as long as one after the other, and
    22.1 ms with this one. Receives are posted early, so that nothing is lost by not asking.
``btl=^ofi``
    Leaves out a transport for one-sided operations that a job never uses; looking for its
    devices takes a second of every start (MPI_Init: 1.1 s with it, 0.1 s without).

What the environment of a rank cannot do, because mpirun itself acts on it:

===================================  =====================================================
``OMPI_ALLOW_RUN_AS_ROOT=1`` with    Root may start a job (containers). Only the environment
``OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1`` of mpirun, or its option ``--allow-run-as-root``; no file
                                     is read for it. mpirun passes it on to its daemons.
``rmaps_default_mapping_policy=      ``mpirun -n 4`` on two cores is refused without it. With
slot:oversubscribe``                 ``:oversubscribe`` alone, ranks are mapped by core, and all
                                     of them to the first host of a hostfile.
``hwloc_default_binding_policy=      A hostfile with ``slots=4`` on two cores is refused
none``                               without it, as four ranks cannot each be bound to a core.
``mca_base_env_list=PATH``           Other hosts look for a bare ``python`` in the PATH of their
                                     login shell; this hands them the PATH of mpirun's host.
===================================  =====================================================

The second and third are read from ``PRTE_MCA_<name>`` in mpirun's environment,
``$HOME/.prte/mca-params.conf`` or ``etc/prte-mca-params.conf`` of the installation; the last
from ``OMPI_MCA_<name>``, ``$HOME/.openmpi/mca-params.conf`` or ``etc/openmpi-mca-params.conf``.
``launch/setup.sh`` writes the ``etc`` files of the Open MPI it installs in ``.venv``, and the
launchers export the rest.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import NamedTuple

_PREFIX = "OMPI_MCA_"
_ALWAYS = {"mpi_yield_when_idle": "1", "btl": "^ofi"}
_PROGRESS = "btl_tcp_progress_thread"
_SEVERAL_HOSTS = {_PROGRESS: "1", "btl_tcp_eager_limit": str(1 << 20)}

PROGRESS_THREAD = _PREFIX + _PROGRESS
"""The variable that says whether messages over TCP move while a rank computes."""

# (rank on this host, ranks on this host, ranks in all), as Open MPI and MPICH's Hydra name them.
_PLACE_VARIABLES = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_SIZE"),
)


class Place(NamedTuple):
    """Where a rank stands, as far as its launcher told it before MPI started."""

    local_rank: int
    local_size: int
    size: int

    @property
    def spans_hosts(self) -> bool:
        """Whether some ranks of the job run on other hosts than this one."""
        return self.size > self.local_size


def configure_mpi_environment(
    environ: MutableMapping[str, str] = os.environ,
    *,
    progress_thread: str = "auto",
    wait: str = "auto",
) -> None:
    """Put the settings of a job where Open MPI will look for them; the user's own win.

    Parameters
    ----------
    environ
        Changed in place. A setting is left alone when it stands there already (mpirun puts
        its ``--mca`` options there) or in the user's ``~/.openmpi/mca-params.conf``.
    progress_thread, wait
        The job's options of these names. What they ask for expressly wins over all else.

    Notes
    -----
    Must be called before MPI is initialised; afterwards it has no effect. The number of hosts
    is judged from the launcher's variables: under a launcher that sets none the job counts as
    a single host.
    """
    settings = _ALWAYS | (_SEVERAL_HOSTS if place_in_job(environ).spans_hosts else {})
    chosen_by_user = _names_in_user_file(environ)
    for name, value in settings.items():
        if name not in chosen_by_user:
            environ.setdefault(_PREFIX + name, value)
    if progress_thread != "auto":
        environ[PROGRESS_THREAD] = "1" if progress_thread == "on" else "0"
    if wait == "spin":
        environ[_PREFIX + "mpi_yield_when_idle"] = "0"


def place_in_job(environ: MutableMapping[str, str] = os.environ) -> Place:
    """What the launcher says about this rank; a job of one rank where it says nothing."""
    for names in _PLACE_VARIABLES:
        values = [environ.get(name, "") for name in names]
        if all(value.isdecimal() for value in values):
            local_rank, local_size, size = map(int, values)
            if local_rank < local_size <= size:
                return Place(local_rank, local_size, size)
    return Place(0, 1, 1)


def _names_in_user_file(environ: MutableMapping[str, str]) -> frozenset[str]:
    home = environ.get("HOME")
    if not home:
        return frozenset()
    try:
        text = (Path(home) / ".openmpi" / "mca-params.conf").read_text(errors="replace")
    except OSError:
        return frozenset()
    lines = (line.split("#", 1)[0] for line in text.splitlines())
    return frozenset(line.split("=", 1)[0].strip() for line in lines if "=" in line)
