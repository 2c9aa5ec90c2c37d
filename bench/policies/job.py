"""The MPI job of one cell: a model on the ranks of an emulated cluster, under all partitioners.

Every rank runs ``python -m bench.policies.job --result FILE --partitioners NAME,... OPTIONS``;
rank 0 writes the file. OPTIONS are those of ``python -m edgeflow_mpi.run``.
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
    parser.add_argument("--turns", type=Path)
    mine, options = parser.parse_known_args(argv)

    def job(context: Context, open_transport: OpenTransport) -> int:
        # Late, because it imports torch, which must find the rank's cores settled.
        from bench.policies.cell import measure_cell

        names = mine.partitioners.split(",")
        return measure_cell(context, open_transport, names, mine.result, mine.turns)

    return run(options, job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
