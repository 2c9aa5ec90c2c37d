"""The MPI job of ``bench.overlap``: how much of the messages' time ranks computed meanwhile.

Every rank runs ``python -m bench.overlap_job RESULTS OPTIONS``; rank 0 writes RESULTS. OPTIONS
are those of ``python -m edgeflow_mpi.run``. All ranks must be on one machine, whose one clock
they read.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeflow_mpi.run import main as run

if TYPE_CHECKING:
    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.job.serve import OpenTransport
    from edgeflow_mpi.units.tables import Transfer, Unit

Trace = Sequence[tuple["Unit", float, float]]
"""A rank's units with their start and end, by the machine's clock."""


@dataclass(frozen=True)
class Overlap:
    """Seconds of one request, summed over all units of all ranks that wait for messages.

    Attributes
    ----------
    transfer_s : float
        What the slowest message of each unit takes by the fit of its link.
    exposed_s : float
        What of it nothing was computed in: from when the rank was free and all messages had
        been sent, until the unit began.
    """

    transfer_s: float
    exposed_s: float

    @property
    def hidden_share(self) -> float:
        """1 where no rank ever waited for a message on its way; below 0 where it took longer."""
        return 1 - self.exposed_s / self.transfer_s if self.transfer_s else 1.0


def overlap(
    traces: Sequence[Trace], message_s: Callable[[Transfer], float], inputs: frozenset[str]
) -> Overlap:
    """From all ranks' traces of one request.

    Messages of ``inputs`` are left out: there is nothing to compute before they are there.
    """
    sent_s: Mapping[Transfer, float] = {
        transfer: end_s
        for trace in traces
        for unit, _, end_s in trace
        for transfer in unit.forwards
    }
    transfer_s = exposed_s = 0.0
    for trace in traces:
        free_s = -float("inf")
        here: set[Transfer] = set()
        for unit, start_s, end_s in sorted(trace, key=lambda item: item[1]):
            taken = {transfer for need in unit.requirements for transfer in need.transfers} - here
            here |= taken
            fly = [transfer for transfer in taken if transfer.producer not in inputs]
            if fly:
                transfer_s += max(message_s(transfer) for transfer in fly)
                last_s = max(sent_s[transfer] for transfer in taken)
                exposed_s += max(start_s - max(free_s, last_s), 0.0)
            free_s = end_s
    return Overlap(transfer_s, exposed_s)


def serve(context: Context, open_transport: OpenTransport, results: Path) -> int:
    """Set up the plan that the options ask for, answer, and write what was seen; collective."""
    # Late, because it imports torch, which must find the rank's cores settled.
    import torch

    from edgeflow_mpi.cluster.agree import agreed
    from edgeflow_mpi.job.serve import hand_out_weights, open_session
    from edgeflow_mpi.job.setup import check_ranks_agree, load_task, make_profile, make_tables
    from edgeflow_mpi.job.waiting import progress_thread
    from edgeflow_mpi.partition.flow import transfer_bytes

    torch.set_grad_enabled(False)
    check_ranks_agree(context)
    task = load_task(context)
    profile = make_profile(context, task)
    tables = make_tables(context, task, profile, None)
    weights = hand_out_weights(context, task, tables, None, {})
    options = context.options
    session = open_session(context, task, tables, weights, open_transport, wait=options.wait)
    graph = session.graph
    inputs = frozenset(layer.name for layer in graph.inputs)

    def message_s(transfer: Transfer) -> float:
        assert profile is not None
        link = profile.links[transfer.source, transfer.dest]
        return link.seconds(transfer_bytes(graph.by_name[transfer.producer], transfer.rows))

    tensors = task.requests[0].tensors if context.first else ()
    latencies_s, found = [], []
    for request in range(options.warmup + options.repeat):
        latency_s = session.run(tensors).latency_s
        context.pulse.wait_for_all()
        traces = context.comm.gather(session.executor.trace(), root=0)
        if traces is not None and request >= options.warmup:
            latencies_s.append(latency_s)
            found.append(overlap(traces, message_s, inputs))
    session.close()
    with agreed(context.comm):
        if context.first:
            text = {
                "model": options.model,
                "ranks": context.size,
                "progress_thread": progress_thread(),
                "latency_ms": 1e3 * statistics.median(latencies_s),
                "transfer_ms": 1e3 * statistics.median(each.transfer_s for each in found),
                "exposed_ms": 1e3 * statistics.median(each.exposed_s for each in found),
                "hidden_share": statistics.median(each.hidden_share for each in found),
            }
            results.write_text(json.dumps(text))
    return 0


def main(argv: Sequence[str]) -> int:
    """Start MPI, answer, and write the results; the exit status of this rank."""
    results, *options = argv

    def job(context: Context, open_transport: OpenTransport) -> int:
        return serve(context, open_transport, Path(results))

    return run(options, job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
