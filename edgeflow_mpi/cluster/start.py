"""When the job was started: its time begins with the command, not with the first line of Python."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from edgeflow_mpi.cluster.cpus import find_launcher

BEGAN_VARIABLE = "EDGEFLOW_BEGAN_S"
"""Seconds from the machine's start to the command's, where the launcher's process is older."""

_PROC = Path("/proc")
_START_TIME = 19  # among the fields of /proc/PID/stat behind the program's name


@dataclass(frozen=True)
class Start:
    """Moments of ``time.monotonic``: the start of the launcher, and of this process.

    The first is never later than the second, and the same without a launcher. On hosts other
    than mpirun's the launcher is its daemon there.
    """

    command_s: float
    process_s: float


def find_start(proc: Path = _PROC) -> Start:
    """The start of this process and its launcher; now, where the system does not tell."""
    now_s = time.monotonic()
    process_s = now_s - (process_age_s(os.getpid(), proc) or 0.0)
    launcher = find_launcher(os.getppid(), proc)
    age_s = None if launcher is None else process_age_s(launcher, proc)
    if age_s is not None:
        with contextlib.suppress(ValueError, AttributeError):  # not told, or no such clock
            began_s = float(os.environ.get(BEGAN_VARIABLE, ""))
            age_s = min(age_s, max(time.clock_gettime(time.CLOCK_BOOTTIME) - began_s, 0.0))
    return Start(process_s if age_s is None else min(now_s - age_s, process_s), process_s)


def process_age_s(pid: int, proc: Path = _PROC) -> float | None:
    """Seconds since a process started, to the kernel's 10 ms; None where nobody tells.

    References
    ----------
    .. [1] Linux manual page proc_pid_stat(5), ``starttime``.
    """
    try:
        # "pid (program) state ...", where the program may contain anything.
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started_s, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return None
