"""One prepared convolution: a frame, and the memory that it points into."""

from __future__ import annotations

import ctypes
import math
import struct
import threading
from array import array
from dataclasses import dataclass
from functools import cache

import torch

from edgeflow_mpi.kernels.winograd.code import FIELDS, Variant
from edgeflow_mpi.kernels.winograd.compiled import Code
from edgeflow_mpi.kernels.winograd.emit import FLOAT_BYTES, Machine
from edgeflow_mpi.kernels.winograd.packed import PackedWeights, blocking

Tensor = torch.Tensor

_PAGE = 4096 // FLOAT_BYTES


@dataclass(frozen=True)
class Shape:
    """What is convolved.

    Attributes
    ----------
    images, channels, height, width : int
        The map that is read, as it is held: a span's rows.
    out_channels, out_height, out_width : int
        The map that is made.
    above, left : int
        Rows and columns of zeros before the map that is read; those behind it follow.
    """

    images: int
    channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    above: int
    left: int


class Scratch(threading.local):
    """Memory that all convolutions of a thread use in turn, so that it stays in the caches."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)
        self.address = 0

    def reserve(self, size: int) -> int:
        """The address of at least ``size`` float32, at the start of a page."""
        if self._memory.numel() < size + _PAGE:
            self._memory = torch.empty(size + _PAGE)
            address = self._memory.data_ptr()
            self.address = address + -address % (_PAGE * FLOAT_BYTES)
        return self.address


_scratch = Scratch()


class Convolution:
    """``out = clamp(conv(input) + bias + other, low, high)`` on channels-last maps.

    Images may lie apart from each other, but every image must be dense. It must not be run by
    two threads at a time, since both would write to its frame.
    """

    def __init__(
        self, machine: Machine, variant: Variant, code: Code, weights: PackedWeights,
        shape: Shape, low: float = -math.inf, high: float = math.inf, threads: int = 1,
    ) -> None:  # fmt: skip
        self.shape = shape
        self.inner = (1, shape.width * shape.channels, shape.channels)
        self.out_inner = (1, shape.out_width * shape.out_channels, shape.out_channels)
        parallel = _gomp_parallel() if threads > 1 else 0
        threads = threads if parallel else 1
        across = -(-shape.out_width // variant.width.results)
        image = across * -(-shape.out_height // variant.height.results)
        tiles = image * shape.images
        cut = blocking(
            variant, tiles, across, shape.channels, weights.panels,
            weights.values.numel() * FLOAT_BYTES, threads,
        )  # fmt: skip
        # A distance of whole pages between what is used together would crowd it into few sets
        # of the caches.
        points_tile = shape.channels + machine.lanes
        points_product = _off_pages(cut.block * points_tile, machine)
        columns = cut.segment * variant.width.results + variant.width.taps - 1
        strip_row = _off_pages(columns * shape.channels + machine.lanes, machine)
        strips_thread = variant.height.products * strip_row
        products_thread = cut.chunk * variant.products * machine.panel
        self._sizes = (
            threads * strips_thread,
            variant.products * points_product,
            threads * products_thread,
        )
        self._zeros = _zeros(shape.width * shape.channels)
        self._weights, self._code = weights, code
        values = {
            "height": shape.height, "width": shape.width, "channels": shape.channels,
            "out_height": shape.out_height, "out_width": shape.out_width,
            "out_channels": shape.out_channels, "above": shape.above, "left": shape.left,
            "weights": weights.values.data_ptr(), "bias": weights.bias.data_ptr(),
            "panels": weights.panels, "last_panel": weights.last_panel,
            "panel_channels": min(machine.panel, shape.out_channels),
            "low": _bits(low), "high": _bits(high),
            "tiles_across": across, "tiles_image": image, "tiles": tiles,
            "block": cut.block, "segment": cut.segment, "chunk": cut.chunk,
            "strips_thread": strips_thread, "strip_row": strip_row,
            "points_tile": points_tile, "points_product": points_product,
            "products_thread": products_thread, "zeros": self._zeros.data_ptr(),
            "threads": threads, "parallel": parallel, "gemms": code.gemms_address,
        }  # fmt: skip
        self._frame = array("q", (values.get(name, 0) for name in FIELDS))
        self._address = self._frame.buffer_info()[0]
        self._placed = 0

    def run(self, tensor: Tensor, other: Tensor | None = None) -> Tensor:
        """A new map."""
        shape = self.shape
        size = (shape.images, shape.out_height, shape.out_width, shape.out_channels)
        out = torch.empty(size).permute(0, 3, 1, 2)
        self.into(out, tensor, other)
        return out

    def into(self, out: Tensor, tensor: Tensor, other: Tensor | None = None) -> None:
        """Fill ``out``, which shares no memory with an input."""
        if out.stride()[1:] != self.out_inner and _spread(out):
            out.copy_(self.run(tensor, other))
            return
        if tensor.stride()[1:] != self.inner:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        frame = self._frame
        frame[_INPUT] = tensor.data_ptr()
        frame[_INPUT + 1] = tensor.stride(0)
        frame[_INPUT + 2] = out.data_ptr()
        frame[_INPUT + 3] = out.stride(0)
        if other is not None:
            if other.stride()[1:] != self.out_inner:
                other = other.contiguous(memory_format=torch.channels_last)
            frame[_INPUT + 4] = other.data_ptr()
            frame[_INPUT + 5] = other.stride(0)
        else:
            frame[_INPUT + 4] = 0
        scratch = _scratch.reserve(sum(self._sizes))
        if scratch != self._placed:
            self._place(scratch)
        self._code.run(self._address)

    def _place(self, address: int) -> None:
        self._placed = address
        for name, size in zip(("strips", "points", "products"), self._sizes, strict=True):
            self._frame[FIELDS.index(name)] = address
            address += size * FLOAT_BYTES


_INPUT = FIELDS.index("input")


def _spread(tensor: Tensor) -> bool:
    return not tensor.is_contiguous(memory_format=torch.channels_last)


def _off_pages(count: int, machine: Machine) -> int:
    count = -(-count // machine.lanes) * machine.lanes
    return count + machine.lanes if count % _PAGE == 0 else count


def _bits(value: float) -> int:
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return int(bits)


@cache
def _zeros(count: int) -> Tensor:
    return torch.zeros(count)


@cache
def _gomp_parallel() -> int:
    """The address of OpenMP's entry point in the library that torch has loaded; 0 if none.

    Torch's own operators enter there, so its threads are the ones that are used.
    """
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
