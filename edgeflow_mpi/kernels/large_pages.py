"""Memory that begins with a large page, so that all of it lies on such where Linux gives them.

What a core streams through it fetches faster, and what is meant to stay in a cache stays there:
pages of 4 kB lie wherever there is room, and some layouts crowd into a part of the cache for as
long as the process lives. The allocator of torch asks for large pages
(:mod:`edgeflow_mpi.cluster.pages`), but begins anywhere.
"""

from __future__ import annotations

import math
import threading
from typing import Final

import torch

Tensor = torch.Tensor

PAGE_BYTES: Final = 2 << 20
_BLOCK_BYTES: Final = 8 << 20
_APART_BYTES: Final = 64 * 3
"""What is used together should not begin at the same place of two pages."""


def on_large_pages(size_bytes: int) -> Tensor:
    """So many uninitialised bytes of memory of their own, from the start of a large page on."""
    if size_bytes < PAGE_BYTES // 2:
        return torch.empty(size_bytes, dtype=torch.uint8)
    memory = torch.empty(size_bytes + PAGE_BYTES, dtype=torch.uint8)
    return memory.narrow(0, -memory.data_ptr() % PAGE_BYTES, size_bytes)


class _Block(threading.local):
    """What is left of a block of large pages that small tensors share."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, size_bytes: int) -> Tensor:
        if self._used + size_bytes > self._memory.numel():
            self._memory, self._used = on_large_pages(_BLOCK_BYTES), 0
        taken = self._memory.narrow(0, self._used, size_bytes)
        self._used += -(-size_bytes // 64) * 64 + _APART_BYTES
        return taken


_block = _Block()


def lasting(*shape: int) -> Tensor:
    """An uninitialised float32 tensor that will live long, among others of its kind.

    Small ones share blocks, which are freed with the last of them.
    """
    size_bytes = 4 * math.prod(shape)
    large = size_bytes > _BLOCK_BYTES // 4
    memory = on_large_pages(size_bytes) if large else _block.take(size_bytes)
    return memory.view(torch.float32).view(shape)


__all__ = ["PAGE_BYTES", "lasting", "on_large_pages"]
