"""The MPI job of one case: every rank runs ``python -m bench.overlap.job --result FILE OPTIONS``.

Rank 0 writes the file. OPTIONS are those of ``python -m edgeflow_mpi.run``. All ranks must be on
one machine, whose one clock they read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeflow_mpi.run import main as run

if TYPE_CHECKING:
    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.job.serve import OpenTransport


def main(argv: Sequence[str]) -> int:
    """Start MPI, measure, and write the result; the exit status of this rank."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--partitioners", required=True)
    mine, options = parser.parse_known_args(argv)

    def job(context: Context, open_transport: OpenTransport) -> int:
        # Late, because it imports torch, which must find the rank's cores settled.
        from bench.overlap.cell import measure_case

        return measure_case(context, open_transport, mine.partitioners.split(","), mine.result)

    return run(options, job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
