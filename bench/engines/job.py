"""Ours as a contender: ``python -m bench.engines.job ADDRESS OPTIONS`` on every rank.

OPTIONS are those of ``python -m edgeflow_mpi.run``. The job is set up as always, answers the
bench's request once, and then every rank takes orders at ADDRESS, so that it sleeps between them.
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
    """Start MPI, set up, obey; the exit status of this rank."""
    address, *options = argv

    def job(context: Context, open_transport: OpenTransport) -> int:
        # Late, because it imports torch, which must find the rank's cores settled.
        from bench.engines.serving import serve_orders

        return serve_orders(context, open_transport, Path(address))

    return run(options, job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
