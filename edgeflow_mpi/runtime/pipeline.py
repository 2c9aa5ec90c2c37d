"""Requests under way at once: each slot has an executor of its own, the oldest request goes first.

Request n runs in slot n mod K, on every rank. A slot's buffers and channels are its own, its
kernels and weights are shared. So a rank that would wait for a message of the oldest request
computes for a younger one, and what is sent for one request cannot be taken for another's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from edgeflow_mpi.runtime.executor import Executor
from edgeflow_mpi.runtime.meter import Meter
from edgeflow_mpi.runtime.waiting import WaitPolicy

Tensor = torch.Tensor


@dataclass(frozen=True)
class Finished:
    """A request all of whose units have run here.

    Attributes
    ----------
    outputs : mapping of str to torch.Tensor
        By output layer, on rank 0; they stay as they are.
    latency_s : float
        From the request's begin until its last unit was done: on rank 0, the latency.
    """

    outputs: Mapping[str, Tensor]
    latency_s: float


class Pipeline:
    """Runs requests through ``executors`` of one table, one request in each at a time.

    Every rank must have as many executors, and run as many requests, as every other.
    """

    def __init__(
        self, executors: Sequence[Executor], policy: WaitPolicy, meter: Meter | None = None
    ) -> None:
        self._executors = tuple(executors)
        self._policy = policy
        self._meter = meter

    def run(self, requests: Sequence[Mapping[str, Tensor]]) -> Iterator[Finished]:
        """Run all of them, and give each when it is done, in their order.

        To be exhausted: it ends when this rank's sends are complete as well.

        Raises
        ------
        RuntimeFailure
            If a unit fails.
        StallError
            If nothing arrives, or is taken, for too long.
        """
        slots, policy = len(self._executors), self._policy
        begun = done = 0
        started_s = [0.0] * slots
        while done < len(requests):
            while begun < min(done + slots, len(requests)) and self._at(begun).sends_complete:
                started_s[begun % slots] = time.perf_counter()
                self._at(begun).begin(requests[begun])
                begun += 1
            active = [self._at(n) for n in range(done, begun)]
            step = active[0].step if len(active) == 1 else partial(_step, active)
            while step():  # nothing else between two units
                policy.alive()
                if active[0].finished:
                    break
            else:
                # A rank without units has finished what it has begun.
                if not (active and active[0].finished):
                    blocked = self._at(begun) if begun < min(done + slots, len(requests)) else None
                    self._wait(active, blocked)
                policy.alive()
            while done < begun and self._at(done).finished:
                latency_s = time.perf_counter() - started_s[done % slots]
                yield Finished(self._at(done).outputs(), latency_s)
                done += 1
        for executor in self._executors:
            self._drain(executor)

    def _at(self, request: int) -> Executor:
        return self._executors[request % len(self._executors)]

    def _drain(self, executor: Executor) -> None:
        self._policy.wait_until(lambda: executor.sends_complete, executor)

    def _wait(self, active: Sequence[Executor], blocked: Executor | None) -> None:
        """Until something has arrived, or the next request's slot is free.

        ``blocked`` is that slot, where the request could begin if its sends were complete.
        """

        def moved() -> bool:
            if blocked is not None and blocked.sends_complete:
                return True
            return any(executor.poll() for executor in active)

        for executor in active:
            executor.rest()
        first = active[0] if active else blocked
        assert first is not None

        def wait() -> float:
            return self._policy.wait_until(moved, first)

        first.clock.wait_s += wait() if self._meter is None else self._meter.waiting(wait)


def _step(active: Sequence[Executor]) -> bool:
    """Units of the oldest request that has a ready one; if it is not the oldest, only one."""
    return any(executor.step(one=place > 0) for place, executor in enumerate(active))
