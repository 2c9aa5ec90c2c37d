"""How the ranks of a job wait for messages: what the user asks for, or what suits the machines."""

from __future__ import annotations

import math
import os

from edgeflow_mpi.cluster.mpi_env import PROGRESS_THREAD, place_in_job
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.runtime.listening import Listener
from edgeflow_mpi.runtime.pace import fine_timers
from edgeflow_mpi.runtime.waiting import WaitPolicy

_SPIN_S = 0.0002
"""A rank with a core of its own polls so long at first: most halos arrive within it."""
_YIELD_S = 0.002
_PACED_PAUSE_S = 100e-6
"""Where no connection tells of messages. Ranks that look more often leave the cores no time."""


def wait_policy(context: Context, strategy: str, *, listener: Listener | None = None) -> WaitPolicy:
    """How this rank waits under ``strategy``, one of those of ``--wait``.

    Parameters
    ----------
    listener : of a rank that stands for a slower device; such ranks share cores, are urgent
        (:mod:`edgeflow_mpi.runtime.urgency`), and sleep whatever the strategy: one that polled
        would let none of the others run.

    Notes
    -----
    Whatever ``auto`` begins with, in the end it sleeps: a rank that has nothing to do for long
    leaves its core to who computes, and to the progress thread of its own process.
    """
    fine_timers()
    if listener is not None:
        return WaitPolicy(
            yield_s=0.0,
            pause_s=_PACED_PAUSE_S,
            timeout_s=context.options.timeout_s,
            alive=context.pulse.beat,
            sleep=listener.pause,
        )
    spin_s = yield_s = 0.0
    if strategy == "spin":
        spin_s = math.inf
    elif strategy == "yield":
        yield_s = math.inf
    elif strategy == "auto":
        spins = not context.affinity.shared and not place_in_job().spans_hosts
        spin_s, yield_s = _SPIN_S if spins else 0.0, _YIELD_S
    return WaitPolicy(
        spin_s=spin_s,
        yield_s=yield_s,
        timeout_s=context.options.timeout_s,
        alive=context.pulse.beat,
    )


def progress_thread() -> bool:
    """Whether messages over TCP move while this rank computes (Open MPI)."""
    return os.environ.get(PROGRESS_THREAD) == "1"


def describe(policy: WaitPolicy) -> str:
    """What a rank does while it waits, in a few words."""
    parts = []
    if policy.spin_s:
        parts.append(f"polls{_for(policy.spin_s)}")
    if policy.yield_s and policy.spin_s < math.inf:
        parts.append(f"yields its core{_for(policy.yield_s)}")
    if max(policy.spin_s, policy.yield_s) < math.inf:
        parts.append(f"sleeps {policy.pause_s * 1e6:.0f} µs at a time")
    return ", then ".join(parts)


def _for(seconds: float) -> str:
    return f" for {seconds * 1e3:g} ms" if seconds < math.inf else ""
