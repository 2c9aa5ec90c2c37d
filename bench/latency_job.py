"""The MPI job of ``bench/latency``: one model on the job's ranks, under several partitioners.

Every rank runs ``python -m bench.latency_job RESULTS PARTITIONER,... OPTIONS``; rank 0 writes
RESULTS. OPTIONS are those of ``python -m edgeflow_mpi.run``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeflow_mpi.run import main as run

if TYPE_CHECKING:
    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.job.serve import OpenTransport


def main(argv: Sequence[str]) -> int:
    """Start MPI, measure, and write the results; the exit status of this rank."""
    results, partitioners, *options = argv

    def job(context: Context, open_transport: OpenTransport) -> int:
        # Late, because it imports torch, which must find the rank's cores settled.
        from bench.latency_cell import measure_cell

        return measure_cell(context, open_transport, partitioners.split(","), Path(results))

    return run(options, job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
