"""Ranks that have a core the moment they need one, for devices that share the cores of a machine.

The kernel protects who computes for a slice of some milliseconds. A rank that wakes up, or that
gives its core away for a moment, may come back a slice too late, and so may the thread that moves
its messages, while another rank computes. Real devices do not share cores, so during a request
everything but computing is more urgent than computing, and all of it than whatever else the
machine does. Ranks that compute take turns by whole kernels, which are short beside the time
that their devices take.

Only root may do so, in some containers not even root; then nothing is changed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_COMPUTING, _ALERT, _MESSENGER = 1, 2, 3


@contextmanager
def urgent() -> Iterator[None]:
    """This process comes before all others for a while, its messages before it."""
    if not _set(0, _ALERT):
        yield
        return
    others = _other_threads()
    for thread in others:
        _set(thread, _MESSENGER)
    try:
        yield
    finally:
        for thread in (0, *others):
            _set(thread, 0)


def computing(kernel: Callable[..., T], *inputs: object) -> T:
    """What ``kernel`` returns; while it runs, ranks that are :func:`urgent` come first."""
    if os.sched_getscheduler(0) != os.SCHED_FIFO:
        return kernel(*inputs)
    _set(0, _COMPUTING)
    try:
        return kernel(*inputs)
    finally:
        _set(0, _ALERT)


def _other_threads() -> list[int]:
    mine = threading.get_native_id()
    try:
        threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    except OSError:
        return []
    return [thread for thread in threads if thread != mine]


def _set(thread: int, priority: int) -> bool:
    """Whether it could be done; 0 is for no priority at all."""
    if not hasattr(os, "SCHED_FIFO"):
        return False
    try:
        policy = os.SCHED_FIFO if priority else os.SCHED_OTHER
        os.sched_setscheduler(thread, policy, os.sched_param(priority))
    except OSError:
        return False
    return True
