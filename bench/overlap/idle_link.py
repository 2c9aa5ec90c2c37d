"""What a message takes between two ranks that have slept, over whatever joins them here.

A profile measures links with messages that follow one another. Between ranks that stand for slower
devices both ends sleep before a message, and within one machine most of what it takes is to wake
up: some 0.1 ms, where a message in a row takes 0.02 ms.
"""

from __future__ import annotations

import time
from statistics import median

import torch

from edgeflow_mpi.cluster.fit import fit_link
from edgeflow_mpi.cluster.profile import Link
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.serve import OpenTransport
from edgeflow_mpi.runtime.transport import Region
from edgeflow_mpi.runtime.urgency import urgent
from edgeflow_mpi.spans import Span
from edgeflow_mpi.units.tables import Transfer

_SIZES_BYTES = (64, 4096, 16384, 32768, 60000)
_TIMES = 9
_REST_S = 0.003
_LOOK_S = 20e-6


def idle_link(context: Context, open_transport: OpenTransport) -> Link:
    """The link from rank 0 to rank 1, by the clock that they share; collective."""
    transport = open_transport()
    handles = []
    memories = [torch.zeros(size, dtype=torch.uint8) for size in _SIZES_BYTES]
    if context.rank < 2:
        open_channel = transport.open_receive if context.rank else transport.open_send
        for tag, size in enumerate(_SIZES_BYTES):
            transfer = Transfer("", "", 0, 1, Span(0, 1), tag=tag)
            handles.append(open_channel(transfer, Region(memories[tag], 1, size, size)))
    points = []
    with urgent():
        for place, size in enumerate(_SIZES_BYTES):
            took_s = []
            for _ in range(_TIMES):
                if context.rank == 1:
                    transport.start_receives((handles[place],))
                context.pulse.wait_for_all()
                at_s = 0.0
                if context.rank == 0:
                    time.sleep(_REST_S)
                    at_s = time.perf_counter()
                    transport.start_sends((handles[place],))
                    while not transport.sends_complete():
                        time.sleep(_LOOK_S)
                elif context.rank == 1:
                    while not transport.arrived((handles[place],)):
                        time.sleep(_LOOK_S)
                    at_s = time.perf_counter()
                context.pulse.wait_for_all()  # which sleeps, unlike what follows
                moments_s = context.comm.allgather(at_s)
                took_s.append(moments_s[1] - moments_s[0])
            points.append((size, median(took_s)))
    transport.close()
    return fit_link(points)
