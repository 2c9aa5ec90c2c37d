"""One rank of ours that answers requests when it is told to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from bench.engines.channel import Channel, Message
from bench.engines.worker import obey
from edgeflow_mpi.cluster.agree import agreed
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.serve import OpenTransport, hand_out_weights, open_session
from edgeflow_mpi.job.setup import (
    Task,
    check_ranks_agree,
    load_task,
    make_profile,
    make_tables,
)
from edgeflow_mpi.units.tables import UnitTables


def serve_orders(context: Context, open_transport: OpenTransport, address: Path) -> int:
    """Set up the plan that the options ask for, then obey; collective.

    Raises
    ------
    EdgeflowError
        The same on all ranks, if the job cannot be set up.
    """
    began_s = time.perf_counter()
    torch.set_grad_enabled(False)
    check_ranks_agree(context)
    task = load_task(context)
    profile = make_profile(context, task)
    tables = make_tables(context, task, profile, None)
    weights = hand_out_weights(context, task, tables, None, {})
    session = open_session(context, task, tables, weights, open_transport)
    requests = task.requests[0].tensors if context.first else ()
    answer = session.run(requests)
    with agreed(context.comm):
        channel = Channel.connect(address)
    hello: Message = {
        "rank": context.rank,
        "pid": os.getpid(),
        "ready_s": time.perf_counter() - began_s,
    }
    if context.first:
        hello |= {"answer": answer.outputs[0].double().ravel().tolist()} | _plan(task, tables)
    channel.send(hello)

    def report() -> Message:
        context.pulse.wait_for_all()  # takes rank 0's signs of life, which pile up otherwise
        clock = session.clock
        spent = {"compute_s": clock.compute_s, "wait_s": clock.wait_s}
        clock.reset()
        return spent

    obey(channel, lambda: session.run(requests), report)
    session.close()
    return 0


def _plan(task: Task, tables: UnitTables) -> Message:
    """What was planned, for the result."""
    computing = {layer.name for layer in task.graph.layers if layer.kind == "compute"}
    units = [unit for units in tables.ranks for unit in units]
    return {
        "partitioner": tables.partitioner,
        "predicted_s": tables.predicted_s,
        "units": [sum(unit.layer in computing for unit in units) for units in tables.ranks],
        "messages": sum(len(unit.forwards) for unit in units),
    }
