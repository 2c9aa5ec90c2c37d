"""One prepared product of pixels with channels: a frame, and the memory that it points into."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from functools import cache

import torch

from edgeflow_mpi.kernels.llvm.emit import FLOAT_BYTES
from edgeflow_mpi.kernels.llvm.frame import filled
from edgeflow_mpi.kernels.llvm.machine import Machine
from edgeflow_mpi.kernels.llvm.memory import (
    PAGE,
    dense,
    float_bits,
    gomp_parallel,
    inner_strides,
    off_pages,
    pixel_step,
    scratch,
)
from edgeflow_mpi.kernels.llvm.objects import Entry, loaded
from edgeflow_mpi.kernels.llvm.packed import PackedWeights
from edgeflow_mpi.kernels.native import NativeCall, held_alike
from edgeflow_mpi.kernels.pointwise.code import ENTRY, FIELDS, emit_product

Tensor = torch.Tensor

BLOCK_BYTES = 512 * 1024
"""Pixels of one block: a part of the second-level cache."""
ITEMS_PER_THREAD = 3


@dataclass(frozen=True)
class Pixels:
    """What is multiplied.

    Attributes
    ----------
    images, channels, height, width : int
        The map that is read, as it is held: a span's rows.
    out_channels, out_height, out_width : int
        The map that is made.
    strides : tuple of int
        Rows and columns of the map that is read to each of the map that is made.
    """

    images: int
    channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    strides: tuple[int, int] = (1, 1)


@cache
def code(machine: Machine) -> Entry | None:
    """The code, of the address of a frame; None if LLVM fails."""
    try:
        (entry,) = loaded(machine, "pointwise", lambda: emit_product(machine), [ENTRY])
    except RuntimeError:
        return None
    return Entry(entry)


class Product:
    """``out = clamp(weights @ input + bias + other, low, high)`` pixel by pixel.

    Images may lie apart from each other. The image that is read must be dense, what is added and
    what is made may be some channels of larger maps. It must not be run by two threads at a time,
    since both would write to its frame.
    """

    def __init__(
        self, machine: Machine, run: Entry, weights: PackedWeights,
        pixels: Pixels, low: float = -math.inf, high: float = math.inf, threads: int = 1,
    ) -> None:  # fmt: skip
        self.pixels = pixels
        self._inner = inner_strides(pixels.height, pixels.width, pixels.channels)
        self._out_inner = inner_strides(pixels.out_height, pixels.out_width, pixels.out_channels)
        parallel = gomp_parallel() if threads > 1 else 0
        threads = threads if parallel else 1
        channels, count = pixels.channels, pixels.out_height * pixels.out_width
        block, share = cut(machine, channels, count, pixels.images, weights.panels, threads)
        packing = pixels.strides != (1, 1) or channels % PAGE == 0
        packed_pixel = off_pages(channels, machine.lanes)
        self._scratch = threads * block * packed_pixel if packing else 0
        self._weights, self._code = weights, run
        self._frame = filled(FIELDS, {
            "images": pixels.images, "columns": pixels.out_width, "pixels": count,
            "column_step": pixels.strides[1] * channels,
            "row_step": pixels.strides[0] * pixels.width * channels,
            "channels": channels,
            "weights": weights.values.data_ptr(), "bias": weights.bias.data_ptr(),
            "panels": weights.panels, "last_panel": weights.last_panel,
            "low": float_bits(low), "high": float_bits(high),
            "block": block, "blocks": -(-count // block),
            "share": share, "shares": -(-weights.panels // share),
            "packing": int(packing), "packed_pixel": packed_pixel,
            "packed_thread": block * packed_pixel,
            "threads": threads, "parallel": parallel,
        })  # fmt: skip
        self._address = self._frame.buffer_info()[0]

    def run(self, tensor: Tensor, other: Tensor | None = None) -> Tensor:
        """A new map."""
        made = self.pixels
        size = (made.images, made.out_height, made.out_width, made.out_channels)
        out = torch.empty(size).permute(0, 3, 1, 2)
        self.into(out, tensor, other)
        return out

    def into(self, out: Tensor, tensor: Tensor, other: Tensor | None = None) -> None:
        """Fill ``out``, which shares no memory with an input."""
        inner = self._out_inner
        out_pixel = inner[2] if out.stride()[1:] == inner else pixel_step(out)
        if not out_pixel:
            out.copy_(self.run(tensor, other))
            return
        if tensor.stride()[1:] != self._inner:
            tensor = dense(tensor)
        other_pixel = 0
        if other is not None:
            other_pixel = inner[2] if other.stride()[1:] == inner else pixel_step(other)
            if not other_pixel:
                other = dense(other)
                other_pixel = pixel_step(other)
        _fill(self._frame, out, out_pixel, tensor, other, other_pixel)
        if self._scratch:
            self._frame[_PACKED] = scratch(self._scratch)
        self._code.run(self._address)

    def bind(self, out: Tensor, tensor: Tensor, other: Tensor | None = None) -> NativeCall | None:
        """The call that does what :meth:`into` would."""
        out_pixel = pixel_step(out)
        other_pixel = pixel_step(other) if other is not None else 1
        if not (out_pixel and other_pixel and held_alike(tensor, self._inner)):
            return None
        frame = self._frame[:]
        _fill(frame, out, out_pixel, tensor, other, other_pixel)
        places = {_PACKED: 0} if self._scratch else {}
        return NativeCall(self._code.address, frame, places, self._scratch, self)


def _fill(
    frame: array[int], out: Tensor, out_pixel: int, tensor: Tensor, other: Tensor | None,
    other_pixel: int,
) -> None:  # fmt: skip
    frame[0] = tensor.data_ptr()
    frame[1] = tensor.stride(0)
    frame[2] = out.data_ptr()
    frame[3] = out.stride(0)
    frame[4] = 0
    frame[6] = out_pixel
    if other is not None:
        frame[4] = other.data_ptr()
        frame[5] = other.stride(0)
        frame[7] = other_pixel


_PACKED = FIELDS.index("packed")


def cut(
    machine: Machine, channels: int, pixels: int, images: int, panels: int, threads: int
) -> tuple[int, int]:
    """(pixels of a block, panels of an item): blocks for the caches, items for all threads."""
    block = max(BLOCK_BYTES // (FLOAT_BYTES * channels), 2 * machine.panel_tiles)
    share = panels
    wanted = ITEMS_PER_THREAD * threads if threads > 1 else 1
    while images * -(-pixels // block) * -(-panels // share) < wanted:
        if min(block, pixels) > 4 * machine.panel_tiles:
            block = min(block, pixels) // 2
        elif share > 1:
            share = -(-share // 2)
        else:
            break
    blocks = -(-pixels // block)
    return -(-pixels // blocks), share
