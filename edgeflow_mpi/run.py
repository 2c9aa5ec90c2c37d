"""The MPI job: ``mpirun -hostfile edges.txt python -m edgeflow_mpi.run``.

Started without mpirun it is a job of one rank. This module owns MPI's start and end and the
way errors leave: one sentence, from one rank, and a non-zero status of all.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeflow_mpi.cluster.affinity import apply_threads, widen_affinity
from edgeflow_mpi.cluster.mpi_env import configure_mpi_environment, place_in_job
from edgeflow_mpi.errors import EdgeflowError, InputError, RuntimeFailure
from edgeflow_mpi.job.options import Options, parse_options
from edgeflow_mpi.progress import ConsoleProgress, NoProgress, Progress

if TYPE_CHECKING:
    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.job.serve import OpenTransport


def _answer(context: Context, open_transport: OpenTransport) -> int:
    from edgeflow_mpi.job.main import run_job

    return run_job(context, open_transport)


def main(
    argv: Sequence[str] | None = None, job: Callable[[Context, OpenTransport], int] = _answer
) -> int:
    """Run the job on this rank; its exit status.

    Parameters
    ----------
    argv : the job's options; None for the command line's.
    job : what to do between MPI's start and its end. It is called once the rank's cores and
        threads are settled, and must not have imported torch before.
    """
    configure_mpi_environment()
    place = place_in_job()
    options: Options | None = None
    failure: EdgeflowError | None = None
    affinity = None
    try:
        options = parse_options(argv)
        # Before torch is imported: its thread pool is made for the cores it sees then.
        affinity = widen_affinity(place.local_rank, place.local_size, threads=options.threads)
    except InputError as error:
        failure = error
    except SystemExit as done:  # --help, --version: printed by argparse
        return int(done.code or 0)

    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if failure is not None or options is None or affinity is None:
        return _say(failure or InputError("no options"), comm.Get_rank(), status=2)
    apply_threads(affinity.threads)

    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.runtime.mpi import MpiTransport

    progress: Progress = NoProgress()
    if comm.Get_rank() == 0:
        progress = ConsoleProgress(quiet=options.quiet)
    tag_limit = comm.Get_attr(MPI.TAG_UB)
    context = Context(
        options,
        comm,
        affinity,
        progress,
        MPI.Get_library_version().split("\n")[0].split(",")[0].rstrip("\0"),
        tag_limit if isinstance(tag_limit, int) else 32767,
    )
    try:
        return job(context, lambda: MpiTransport(comm))
    except RuntimeFailure as error:
        # Others wait for messages that will not come; the lowest rank that knows speaks.
        time.sleep(min(0.2 * comm.Get_rank(), 2.0))
        _say(error, 0, status=1, who=f"rank {comm.Get_rank()} ({MPI.Get_processor_name()}): ")
        comm.Abort(1)
    except EdgeflowError as error:
        return _say(error, comm.Get_rank(), status=1)
    except KeyboardInterrupt:
        comm.Abort(130)
    except Exception as error:  # noqa: BLE001 (a bug here must not hang the other ranks)
        _say_bug(error, comm.Get_rank())
        comm.Abort(1)
    return 1


def _say(error: EdgeflowError, rank: int, *, status: int, who: str = "") -> int:
    """Print the sentence on rank 0 and return the status."""
    if rank == 0:
        print(f"edgeflow_mpi: {who}{error}", file=sys.stderr, flush=True)
    return status


def _say_bug(error: Exception, rank: int) -> None:
    if os.environ.get("EDGEFLOW_DEBUG"):
        traceback.print_exc()
    place = traceback.extract_tb(error.__traceback__)[-1]
    print(
        f"edgeflow_mpi: rank {rank}: unexpected {type(error).__name__} in {place.name} "
        f"({Path(place.filename).name}:{place.lineno}): {error} "
        "(EDGEFLOW_DEBUG=1 shows the traceback)",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
