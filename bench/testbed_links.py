"""How faithful the links of a testbed are: messages of MPI beside latency + bytes / bandwidth.

A job on the hosts of a testbed, as root:

    launch/testbed up CLUSTER.yaml
    launch/testbed run --module bench.testbed_links -- --markdown links.md

All ranks read one clock, as they run on one machine. A message takes from when it is sent until
its rank has taken note of it, and ranks wait as they do in requests of emulated devices.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeflow_mpi.cluster.cluster_file import load_cluster
from edgeflow_mpi.cluster.comm import sleeping_barrier
from edgeflow_mpi.run import main as run
from edgeflow_mpi.runtime.listening import Listener

if TYPE_CHECKING:
    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.job.serve import OpenTransport

SIZES_BYTES = (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000)
_LEAD_S = 0.02
_PAUSE_S = 1e-4
_TAG = 7

Route = tuple[int, int]


@dataclass(frozen=True)
class Pattern:
    """Messages that are sent at once: from whom to whom, and how many share one cable."""

    name: str
    routes: tuple[Route, ...]
    share: int


@dataclass(frozen=True)
class Row:
    """What messages of one size took under one pattern, the last of them, and what they should."""

    pattern: str
    size_bytes: int
    expected_ms: float
    measured_ms: float

    @property
    def excess(self) -> float:
        return self.measured_ms / self.expected_ms - 1


def patterns(ranks: int) -> tuple[Pattern, ...]:
    """One message; a ring of them; one to everybody; everybody's to one."""
    others = range(1, ranks)
    found = [Pattern("one message", ((0, 1),), 1)]
    if ranks > 2:
        ring = tuple((rank, (rank + 1) % ranks) for rank in range(ranks))
        found += [
            Pattern("each to the next", ring, 1),
            Pattern("one to all others", tuple((0, rank) for rank in others), ranks - 1),
            Pattern("all others to one", tuple((rank, 0) for rank in others), ranks - 1),
        ]
    return tuple(found)


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    lines = [
        "| messages | bytes | by the file, ms | measured, ms | off by |",
        "|---|---:|---:|---:|---:|",
    ]
    return lines + [
        f"| {row.pattern} | {row.size_bytes:,} | {row.expected_ms:.2f} | {row.measured_ms:.2f} "
        f"| {row.excess:+.1%} |"
        for row in rows
    ]


def main(argv: Sequence[str]) -> int:
    """Start MPI and measure; the exit status of this rank."""
    mine = _parser().parse_args(argv)

    def job(context: Context, _: OpenTransport) -> int:
        rows = measure(context, mine.emulate, mine.sizes, mine.repeat)
        if context.first:
            text = "\n".join(table(rows))
            print(text)
            if mine.markdown is not None:
                mine.markdown.write_text(f"{text}\n")
        return 0

    return run(["--model", "none", "--emulate", str(mine.emulate)], job)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--emulate", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES_BYTES))
    parser.add_argument("--markdown", type=Path)
    return parser


def measure(context: Context, cluster: Path, sizes_bytes: Sequence[int], repeat: int) -> list[Row]:
    """All patterns with all sizes; collective, the result is rank 0's."""
    comm = context.comm
    links = load_cluster(cluster).links
    listener = Listener(comm.Iprobe)
    rows = []
    for pattern in patterns(context.size):
        for size_bytes in sizes_bytes:
            expected_s = max(
                links[route].latency_s + pattern.share * size_bytes / links[route].bandwidth_bytes_s
                for route in pattern.routes
            )
            if context.first:
                context.progress.update(f"{pattern.name}, {size_bytes} bytes")
            series: list[float] = []
            for turn in range(repeat + 1):
                took_s = _once(comm, pattern.routes, size_bytes, listener)
                if turn:  # the first one opens connections
                    series.append(took_s)
            rows.append(Row(pattern.name, size_bytes, expected_s * 1e3, median(series) * 1e3))
    return rows


def _once(comm: Any, routes: Sequence[Route], size_bytes: int, listener: Listener) -> float:
    """All messages at once; seconds until the last one was taken note of."""
    from edgeflow_mpi.runtime.urgency import urgent

    rank = comm.Get_rank()
    data = np.ones(size_bytes, dtype=np.uint8)
    receives = [
        comm.Irecv(np.empty(size_bytes, dtype=np.uint8), source, _TAG)
        for source, dest in routes
        if dest == rank
    ]
    start_s = comm.bcast(time.perf_counter() + _LEAD_S, root=0)
    listener.look_around()
    # Ranks wait in MPI for one another only while they are not urgent: that spins.
    with urgent():
        while (left_s := start_s - time.perf_counter()) > 0:
            listener.sleep(left_s)
        began_s = time.perf_counter()
        sends = [comm.Isend(data, dest, _TAG) for source, dest in routes if source == rank]
        _wait(receives, listener)
        ended_s = time.perf_counter()
        _wait(sends, listener)
    sleeping_barrier(comm)
    stamps = comm.allgather((began_s if sends else None, ended_s if receives else None))
    began = [float(stamp) for stamp, _ in stamps if stamp is not None]
    ended = [float(stamp) for _, stamp in stamps if stamp is not None]
    return max(ended) - median(began)


def _wait(requests: list[Any], listener: Listener) -> None:
    while not all(request.Test() for request in requests):
        listener.pause(_PAUSE_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
