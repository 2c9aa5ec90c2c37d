"""One contender that is no MPI job: ``python -m bench.engines.worker ADDRESS SYSTEM FOLDER N``.

Loads the model from FOLDER, to run with N threads, answers the bench's request once, reports to
ADDRESS, and from then on does what it is told; between orders it sleeps. It is started bound to
its cores, so that every thread pool sees no others.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bench.engines.adapters import load
from bench.engines.channel import Channel, Message


def main(argv: Sequence[str]) -> int:
    address, system, folder, threads = argv
    began_s = time.perf_counter()
    run = load(system, Path(folder), int(threads))
    request = np.load(Path(folder) / "input.npy")
    answer = run(request)
    ready_s = time.perf_counter() - began_s
    channel = Channel.connect(Path(address))
    values = np.asarray(answer, np.float64).ravel().tolist()
    channel.send({"rank": 0, "answer": values, "ready_s": ready_s})
    obey(channel, lambda: run(request), dict)
    return 0


def obey(channel: Channel, once: Callable[[], object], report: Callable[[], Message]) -> None:
    """Answer requests as ordered until the order is to end.

    Parameters
    ----------
    channel : orders come and replies leave here.
    once : answers one request.
    report : called after the requests of one order; what else to tell about them.
    """
    while (order := channel.receive())["do"] == "run":
        for _ in range(order["warmup"]):
            once()
        report()  # forgets what the untimed requests have added
        times_s = []
        for _ in range(order["requests"]):
            began_s = time.perf_counter()
            once()
            times_s.append(time.perf_counter() - began_s)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        channel.send(
            {"times_s": times_s, "peak_bytes": peak_kb * 1024, "rss_bytes": rss_bytes()} | report()
        )


def rss_bytes() -> int:
    """Memory that this process has in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
