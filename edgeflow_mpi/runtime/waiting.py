"""How a rank waits: briefly by yielding its core, then by sleeping, and never for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from edgeflow_mpi.errors import StallError
from edgeflow_mpi.runtime.executor import Executor


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class WaitPolicy:
    """Poll and yield for ``yield_s``, then sleep ``pause_s`` between polls.

    Yielding answers a message within microseconds, but a rank that yields still takes turns
    with one that computes on the same core; sleeping leaves it the core. A rank that has
    seen no progress for ``timeout_s`` gives up. ``alive`` is called again and again, but not
    while a unit runs. ``sleep`` is how to.
    """

    yield_s: float = 0.002
    pause_s: float = 0.00005
    timeout_s: float = 60.0
    alive: Callable[[], None] = _nothing
    sleep: Callable[[float], None] = time.sleep


def run_request(
    executor: Executor, request: Mapping[str, torch.Tensor], policy: WaitPolicy
) -> float:
    """Run one request to its end, the completion of this rank's sends included.

    Returns
    -------
    float
        Seconds until this rank's last unit was done: on rank 0, the latency.

    Raises
    ------
    RuntimeFailure
        If a unit fails.
    StallError
        If nothing arrives, or is taken, for ``policy.timeout_s``.
    """
    started_s = time.perf_counter()
    executor.begin(request)
    while not executor.finished:
        if not executor.step():
            _wait(executor, policy)
        policy.alive()
    finished_s = time.perf_counter()
    _drain(executor, policy)
    return finished_s - started_s


def _wait(executor: Executor, policy: WaitPolicy) -> None:
    started_s = now_s = time.perf_counter()
    while not executor.poll():
        now_s = time.perf_counter()
        _pause(executor, policy, now_s - started_s)
    executor.clock.wait_s += time.perf_counter() - started_s


def _drain(executor: Executor, policy: WaitPolicy) -> None:
    started_s = time.perf_counter()
    while not executor.sends_complete:
        _pause(executor, policy, time.perf_counter() - started_s)


def _pause(executor: Executor, policy: WaitPolicy, waited_s: float) -> None:
    policy.alive()
    if waited_s > policy.timeout_s:
        raise StallError(
            f"no message has moved for {policy.timeout_s:g} s (--timeout): "
            f"{executor.waiting_for()}",
            waits_for=executor.awaited_rank(),
        )
    if waited_s < policy.yield_s:
        os.sched_yield()
    else:
        policy.sleep(policy.pause_s)
