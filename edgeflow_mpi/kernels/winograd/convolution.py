"""One prepared convolution: a frame, and the memory that it points into."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import torch

from edgeflow_mpi.kernels.llvm.emit import FLOAT_BYTES
from edgeflow_mpi.kernels.llvm.frame import filled
from edgeflow_mpi.kernels.llvm.machine import Machine
from edgeflow_mpi.kernels.llvm.memory import (
    dense,
    float_bits,
    gomp_parallel,
    inner_strides,
    off_pages,
    pixel_step,
    scratch,
    zeros,
)
from edgeflow_mpi.kernels.llvm.packed import PackedWeights
from edgeflow_mpi.kernels.native import NativeCall, held_alike
from edgeflow_mpi.kernels.winograd.blocking import blocking
from edgeflow_mpi.kernels.winograd.code import FIELDS
from edgeflow_mpi.kernels.winograd.compiled import Code
from edgeflow_mpi.kernels.winograd.tables import BLOCK, SEGMENT, needed_by, tables
from edgeflow_mpi.kernels.winograd.variant import Variant

Tensor = torch.Tensor


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


class Convolution:
    """``out = clamp(conv(input) + bias + other, low, high)`` on channels-last maps.

    Images may lie apart from each other. The image that is read must be dense, what is added and
    what is made may be some channels of larger maps. It must not be run by two threads at a time,
    since both would write to its frame.
    """

    def __init__(
        self, machine: Machine, variant: Variant, code: Code, weights: PackedWeights,
        shape: Shape, low: float = -math.inf, high: float = math.inf, threads: int = 1,
    ) -> None:  # fmt: skip
        self.shape = shape
        self.inner = inner_strides(shape.height, shape.width, shape.channels)
        self.out_inner = inner_strides(shape.out_height, shape.out_width, shape.out_channels)
        parallel = gomp_parallel() if threads > 1 else 0
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
        points_product = off_pages(cut.block * points_tile, machine.lanes)
        points_thread = variant.products * points_product
        columns = cut.segment * variant.width.results + variant.width.taps - 1
        strip_row = off_pages(columns * shape.channels + machine.lanes, machine.lanes)
        strips_thread = variant.height.products * strip_row
        products_thread = cut.chunk * variant.products * machine.panel
        self._sizes = (
            threads * strips_thread,
            points_thread * (1 if cut.together else threads),
            threads * products_thread,
        )
        starts = (0, self._sizes[0], self._sizes[0] + self._sizes[1])
        self._offsets = {
            FIELDS.index(name): start * FLOAT_BYTES
            for name, start in zip(("strips", "points", "products"), starts, strict=True)
        }
        self._zeros = zeros(shape.width * shape.channels)
        self._weights, self._code = weights, code
        edges = variant.at_edges(shape.out_height, shape.out_width)
        made = tables(variant, shape.images, shape.out_height, shape.out_width, cut)
        self._tables = [
            array("q", table) for table in (made.blocks, made.segments, needed_by(variant, edges))
        ]
        blocks, segments, needed = (table.buffer_info()[0] for table in self._tables)
        values = {
            "height": shape.height, "width": shape.width, "channels": shape.channels,
            "out_width": shape.out_width,
            "above": shape.above, "left": shape.left,
            "weights": weights.values.data_ptr(), "bias": weights.bias.data_ptr(),
            "panels": weights.panels, "last_panel": weights.last_panel,
            "panel_channels": min(machine.panel, shape.out_channels),
            "low": float_bits(low), "high": float_bits(high),
            "product_count": variant.products, "needed_by": needed,
            "blocks": blocks, "block_count": len(made.blocks) // len(BLOCK),
            "segments": segments, "segment_count": len(made.segments) // len(SEGMENT),
            "together": cut.together,
            "strips_thread": strips_thread, "strip_row": strip_row,
            "points_thread": points_thread, "points_tile": points_tile,
            "points_product": points_product,
            "products_thread": products_thread, "zeros": self._zeros.data_ptr(),
            "gemms": code.gemms_address, "reads": code.reads.buffer_info()[0],
            "writes": code.writes.buffer_info()[0],
            "threads": threads, "parallel": parallel,
        }  # fmt: skip
        self._frame = filled(FIELDS, values)
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
        inner = self.out_inner
        out_pixel = inner[2] if out.stride()[1:] == inner else pixel_step(out)
        if not out_pixel:
            out.copy_(self.run(tensor, other))
            return
        if tensor.stride()[1:] != self.inner:
            tensor = dense(tensor)
        other_pixel = 0
        if other is not None:
            other_pixel = inner[2] if other.stride()[1:] == inner else pixel_step(other)
            if not other_pixel:
                other = dense(other)
                other_pixel = pixel_step(other)
        _fill(self._frame, out, out_pixel, tensor, other, other_pixel)
        place = scratch(sum(self._sizes))
        if place != self._placed:
            self._placed = place
            for index, offset in self._offsets.items():
                self._frame[index] = place + offset
        self._code.run(self._address)

    def bind(self, out: Tensor, tensor: Tensor, other: Tensor | None = None) -> NativeCall | None:
        """The call that does what :meth:`into` would."""
        out_pixel = pixel_step(out)
        other_pixel = pixel_step(other) if other is not None else 1
        if not (out_pixel and other_pixel and held_alike(tensor, self.inner)):
            return None
        frame = self._frame[:]
        _fill(frame, out, out_pixel, tensor, other, other_pixel)
        return NativeCall(self._code.address, frame, self._offsets, sum(self._sizes), self)


def _fill(
    frame: array[int], out: Tensor, out_pixel: int, tensor: Tensor, other: Tensor | None,
    other_pixel: int,
) -> None:  # fmt: skip
    frame[_INPUT] = tensor.data_ptr()
    frame[_INPUT + 1] = tensor.stride(0)
    frame[_INPUT + 2] = out.data_ptr()
    frame[_INPUT + 3] = out.stride(0)
    frame[_INPUT + 4] = 0
    frame[_INPUT + 6] = out_pixel
    if other is not None:
        frame[_INPUT + 4] = other.data_ptr()
        frame[_INPUT + 5] = other.stride(0)
        frame[_INPUT + 7] = other_pixel


_INPUT = FIELDS.index("input")
