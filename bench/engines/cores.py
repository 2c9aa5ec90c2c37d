"""Whether the cores are all there: a virtual machine's may be hyperthreads that share a core.

A guest is not told. For seconds at a time two of its cores are the two threads of a single one, or
one of them is a thread whose core works for somebody else as well; they do little more than half
then. Latencies of such a spell tell about the spell. So there is a look at all cores before and
after every burst of requests, by arithmetic that fits into a core's own cache, and a burst between
two looks of which one found a core slow is repeated, whoever's it is.

``python -m bench.engines.cores CORE`` does that arithmetic on one core, once for each line that it
reads, and prints how often a second it could.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bench.mpirun import ROOT
from edgeflow_mpi.errors import EdgeflowError

T = TypeVar("T")

ALL_THERE = 0.85
"""Of the best rate of a core that was seen: clock rates vary by less, shared cores by more."""
PATIENCE_S = 240.0
"""For waiting until cores are there, and for bursts that do not count, of one model."""

_FIRST_LOOKS = 25
_LOOK_S, _PAUSE_S = 0.02, 0.1
_SIZE = 96


@dataclass
class Bursts:
    """How many count, how many more did not, and how many count although a core was slow."""

    counted: int = 0
    repeated: int = 0
    disturbed: int = 0


class Watch:
    """Bursts that count only where no core was slow before or after.

    Parameters
    ----------
    look : measures all cores at once; their rates, in any unit.
    patience_s : to be spent on waiting and on repetition; after that everything counts.
    """

    def __init__(self, look: Callable[[], Sequence[float]], patience_s: float = PATIENCE_S) -> None:
        self.bursts = Bursts()
        self._look = look
        self._left_s = patience_s
        self._best: Sequence[float] = look()
        for _ in range(_FIRST_LOOKS):
            self.all_there()

    def all_there(self) -> bool:
        """Look at the cores."""
        rates = self._look()
        self._best = [max(pair) for pair in zip(rates, self._best, strict=True)]
        return all(rate >= ALL_THERE * best for rate, best in zip(rates, self._best, strict=True))

    def undisturbed(self, burst: Callable[[], T]) -> T:
        """What ``burst`` returned when it was called last; it is called again where it must be."""
        while True:
            began_s = time.monotonic()
            fine = self.all_there()
            while not fine and time.monotonic() - began_s < self._left_s:
                time.sleep(_PAUSE_S)
                fine = self.all_there()
            waited_s = time.monotonic() - began_s
            found = burst()
            fine = fine and self.all_there()
            self._left_s -= waited_s if fine else time.monotonic() - began_s
            if fine or self._left_s <= 0:
                self.bursts.counted += 1
                self.bursts.disturbed += not fine
                return found
            self.bursts.repeated += 1


@contextlib.contextmanager
def lookouts(cores: Sequence[int]) -> Iterator[Callable[[], Sequence[float]]]:
    """A sleeping process on each of these cores; a call has all of them measure at once.

    Raises
    ------
    EdgeflowError
        If one of them is gone.
    """
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "MKL", "OMP")}
    with contextlib.ExitStack() as stack:
        processes = []
        for core in cores:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.engines.cores", str(core)],
                cwd=ROOT, env=os.environ | threads, text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            stack.enter_context(process)  # closes pipes, and waits for its end
            stack.callback(process.kill)
            processes.append(process)

        def look() -> Sequence[float]:
            try:
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.write("\n")
                return [float(process.stdout.readline()) for process in processes if process.stdout]
            except (OSError, ValueError):
                raise EdgeflowError(
                    "a process that looks at the cores has ended; run the command again, "
                    "finished models are kept"
                ) from None

        yield look


def main(core: int) -> None:
    """Measure when asked to, until nobody can ask any more."""
    os.sched_setaffinity(0, {core})
    one, other = np.ones((2, _SIZE, _SIZE), np.float32)
    product = np.empty_like(one)
    for _ in sys.stdin:
        done, began_s = 0, time.perf_counter()
        while (passed_s := time.perf_counter() - began_s) < _LOOK_S:
            np.matmul(one, other, out=product)
            done += 1
        print(done / passed_s, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(int(sys.argv[1]))
