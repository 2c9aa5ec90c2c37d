"""What every rank runs on: host, processor, threads, memory."""

from __future__ import annotations

import os
import platform
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeflow_mpi.cluster.comm import Communicator, sleeping_barrier
from edgeflow_mpi.cluster.profile import Device


def gather_devices(comm: Communicator, threads: int) -> tuple[Device, ...]:
    """The devices of all ranks, in rank order, on every rank; collective.

    Parameters
    ----------
    comm
        All its ranks must call this.
    threads
        How many threads the kernels of this rank use.
    """
    host = socket.gethostname()
    mine = Device(host, threads, host_memory_bytes(), host=host, cpu=cpu_model())
    sleeping_barrier(comm)
    return name_devices(comm.allgather(mine))


def name_devices(found: Sequence[Device]) -> tuple[Device, ...]:
    """Unique names for devices in rank order, and each its share of its host's memory.

    A host that carries one rank gives its own name, one that carries several gives
    ``host/0``, ``host/1``, ... in rank order.
    """
    ranks_on = Counter(device.host for device in found)
    seen: Counter[str] = Counter()
    named: list[Device] = []
    for device in found:
        sharing = ranks_on[device.host]
        name = device.host if sharing == 1 else f"{device.host}/{seen[device.host]}"
        seen[device.host] += 1
        named.append(replace(device, name=name, memory_bytes=device.memory_bytes // sharing))
    return tuple(named)


def host_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that processes like this one may use together: RAM, or a container's limit.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are; a test gives its own.
    """
    limits = [_total_memory_bytes()]
    for controllers, group in _cgroups(root):
        v2 = not controllers
        base = root / "sys/fs/cgroup" if v2 else root / "sys/fs/cgroup/memory"
        name = "memory.max" if v2 else "memory.limit_in_bytes"
        if v2 or "memory" in controllers:
            # Inside a container the path may be that of the host: the mount is the group.
            within = base / group.strip("/")
            for folder in (base, within, *within.parents):
                if base in (folder, *folder.parents):
                    limits += _number_in(folder / name)
    return min(limits)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself, such as ``ARMv7 Processor rev 4 (v7l)``."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    values = {key.strip(): value.strip() for key, _, value in (ln.partition(":") for ln in lines)}
    for key in ("model name", "Model", "Hardware", "cpu model", "uarch"):
        if values.get(key):
            return values[key]
    return platform.processor() or platform.machine()


def _total_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroups(root: Path) -> list[tuple[list[str], str]]:
    """(controllers, path) of every control group of this process; v2 has no controllers."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [
        ([c for c in field[1].split(",") if c], field[2]) for field in fields if len(field) == 3
    ]


def _number_in(file: Path) -> list[int]:
    """The number that ``file`` holds; none where there is no file or no limit (``max``)."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []
