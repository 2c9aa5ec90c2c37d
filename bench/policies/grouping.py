"""Which plans are loaded beside each other, so that all fit into the machine's memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def groups(sizes_bytes: Sequence[int], room_bytes: int) -> tuple[tuple[int, ...], ...]:
    """Indices of plans, group by group; each has its turn in one group, the first in all.

    So every plan is measured in turn with the first one. A group has at least one other plan,
    whatever the room.
    """
    if len(sizes_bytes) < 2:
        return ((0,),) if sizes_bytes else ()
    found: list[list[int]] = []
    left_bytes = 0
    for index, size_bytes in enumerate(sizes_bytes[1:], 1):
        if not found or size_bytes > left_bytes:
            found.append([0])
            left_bytes = room_bytes - sizes_bytes[0]
        found[-1].append(index)
        left_bytes -= size_bytes
    return tuple(map(tuple, found))


def free_memory_bytes(meminfo: Path = _MEMINFO) -> int:
    """What new processes can have; 0 where that is not known."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return 0
