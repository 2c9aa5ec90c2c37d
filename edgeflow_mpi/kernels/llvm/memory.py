"""Memory that computations work in, and the maps that they are given."""

from __future__ import annotations

import ctypes
import struct
import threading
from functools import cache

import torch

from edgeflow_mpi.kernels.large_pages import PAGE_BYTES, on_large_pages
from edgeflow_mpi.kernels.llvm.emit import FLOAT_BYTES

Tensor = torch.Tensor

PAGE = 4096 // FLOAT_BYTES
"""float32 in a page of memory. What lies whole pages apart crowds into few sets of a cache."""


class _Scratch(threading.local):
    """Memory that all computations of a thread use in turn, so that it stays in the caches."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)
        self._address = 0

    def reserve(self, size: int) -> int:
        if self._memory.numel() < size:
            self._memory = on_large_pages(max(size * FLOAT_BYTES, PAGE_BYTES)).view(torch.float32)
            self._address = self._memory.data_ptr()
        return self._address


_scratch = _Scratch()


def scratch(size: int) -> int:
    """The address of at least ``size`` float32, at a large page's start, until the next call."""
    return _scratch.reserve(size)


def off_pages(count: int, lanes: int) -> int:
    """``count`` rounded up to whole vectors, and by one more if that were whole pages."""
    count = -(-count // lanes) * lanes
    return count + lanes if count % PAGE == 0 else count


@cache
def zeros(count: int) -> Tensor:
    """So many zeros, always the same: nobody may write to them."""
    return torch.zeros(count)


def float_bits(value: float) -> int:
    """The bits of a float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return int(bits)


def inner_strides(height: int, width: int, channels: int) -> tuple[int, int, int]:
    """Strides of a dense channels-last image, without that between images."""
    return 1, width * channels, channels


def dense(tensor: Tensor) -> Tensor:
    """Channels-last images without gaps: a copy if need be. Call it where the strides are not
    :func:`inner_strides`; those of a dimension of size one mean nothing, so it may not copy."""
    return tensor.contiguous(memory_format=torch.channels_last)


def pixel_step(tensor: Tensor) -> int:
    """From one pixel to the next, where the channels of a pixel lie in one run and pixels at equal
    distances: in a channels-last image, and in some channels of one. 0 for any other.

    Strides of a dimension of size one mean nothing.
    """
    _, channels, height, width = tensor.shape
    _, channel, row, pixel = tensor.stride()
    if width == 1:
        pixel = row if height > 1 else channels
    even = height == 1 or row == width * pixel
    return pixel if even and pixel >= channels and (channel == 1 or channels == 1) else 0


@cache
def gomp_parallel() -> int:
    """The address of OpenMP's entry point in the library that torch has loaded; 0 if none.

    Torch's own operators enter there, so it is their threads that are used.
    """
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
