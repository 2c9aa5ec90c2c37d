"""The MPI job of ``bench.steady``: thousands of requests, with each rank's memory on the way.

Every rank runs ``python -m bench.steady_job RESULTS REQUESTS OPTIONS``; rank 0 writes RESULTS.
OPTIONS are those of ``python -m edgeflow_mpi.run``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeflow_mpi.run import main as run

if TYPE_CHECKING:
    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.job.serve import OpenTransport

BLOCKS = 40
"""Requests are answered in so many blocks; between two of them the memory is read."""


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def serve(context: Context, open_transport: OpenTransport, results: Path, requests: int) -> int:
    """Set up the plan that the options ask for, answer, and write what was seen; collective."""
    # Late, because it imports torch, which must find the rank's cores settled.
    import torch

    from edgeflow_mpi.cluster.agree import agreed
    from edgeflow_mpi.job.serve import hand_out_weights, open_session
    from edgeflow_mpi.job.setup import check_ranks_agree, load_task, make_profile, make_tables

    torch.set_grad_enabled(False)
    check_ranks_agree(context)
    task = load_task(context)
    profile = make_profile(context, task)
    tables = make_tables(context, task, profile, None)
    weights = hand_out_weights(context, task, tables, None, {})
    options = context.options
    session = open_session(
        context, task, tables, weights, open_transport,
        in_flight=options.in_flight, wait=options.wait,
    )  # fmt: skip
    tensors = task.requests[0].tensors if context.first else ()
    block = max(requests // BLOCKS, 1)
    medians_ms: list[float] = []
    memory_bytes: list[int] = []
    with context.progress.step(f"{requests} requests"):
        for done in range(0, requests, block):
            count = min(block, requests - done)
            latencies_s = [answer.latency_s for answer in session.run_all([tensors] * count)]
            context.pulse.wait_for_all()
            medians_ms.append(1e3 * statistics.median(latencies_s))
            memory_bytes.append(resident_bytes())
            context.progress.update(f"request {done + count}: {medians_ms[-1]:.1f} ms")
    session.close()
    everybodys = context.comm.gather(memory_bytes, root=0)
    with agreed(context.comm):
        if context.first:
            found = {
                "model": options.model,
                "ranks": context.size,
                "requests": requests,
                "block": block,
                "median_ms": medians_ms,
                "resident_bytes": everybodys,
            }
            results.write_text(json.dumps(found))
    return 0


def main(argv: Sequence[str]) -> int:
    """Start MPI, answer, and write the results; the exit status of this rank."""
    results, requests, *options = argv

    def job(context: Context, open_transport: OpenTransport) -> int:
        return serve(context, open_transport, Path(results), int(requests))

    return run(options, job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
