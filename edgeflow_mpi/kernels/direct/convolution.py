"""One prepared convolution: a frame, and the memory that it points into."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from functools import cache

import torch

from edgeflow_mpi.kernels.direct.code import ENTRY, FIELDS, emit_convolution
from edgeflow_mpi.kernels.direct.filters import Filters
from edgeflow_mpi.kernels.llvm.emit import FLOAT_BYTES
from edgeflow_mpi.kernels.llvm.frame import filled
from edgeflow_mpi.kernels.llvm.machine import Machine
from edgeflow_mpi.kernels.llvm.map_code import MapCode
from edgeflow_mpi.kernels.llvm.memory import (
    PAGE,
    float_bits,
    gomp_parallel,
    off_pages,
)
from edgeflow_mpi.kernels.llvm.objects import Entry, loaded

Tensor = torch.Tensor

BLOCK_BYTES = 256 * 1024
"""What a block reads of the map, where weights are few; as much as weights where they are more,
since they are read again for every block, but no more than a part of the second-level cache."""
MOST_BYTES = 640 * 1024
ITEMS_PER_THREAD = 3


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
    kernel, strides, dilation : tuple of int
        Along height and width.
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
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]

    def reach(self, results: int, axis: int) -> int:
        """Rows (axis 0) or columns (1) that so many results read, padding included."""
        taps = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (results - 1) * self.strides[axis] + taps

    @property
    def padded(self) -> bool:
        """Whether anything beside the map is read."""
        below = self.reach(self.out_height, 0) - self.above - self.height
        right = self.reach(self.out_width, 1) - self.left - self.width
        return max(self.above, self.left, below, right) > 0


@dataclass(frozen=True)
class Layout:
    """How a block's rows lie in memory, in float32: from one column to the next, and from row to
    row; and the runs of a result, by their distances from its first float32."""

    pixel: int
    row: int
    offsets: tuple[int, ...]
    run: int


def layout(machine: Machine, shape: Shape, *, copied: bool) -> Layout:
    """Taps that lie side by side make one run. Where results read what is whole pages apart,
    copied columns are moved away from each other, since they would crowd into few sets of the
    caches."""
    channels = shape.channels
    pixel, columns = channels, shape.width
    if copied:
        columns = max(shape.reach(shape.out_width, 1), shape.left + shape.width)
        if shape.strides[1] * channels % (PAGE // 2) == 0:
            pixel = channels + machine.lanes
    row = columns * pixel
    if copied:
        row = off_pages(row + machine.lanes, machine.lanes)
    joined = pixel == channels and shape.dilation[1] == 1
    places = range(1) if joined else range(shape.kernel[1])
    offsets = tuple(
        k * shape.dilation[0] * row + j * shape.dilation[1] * pixel
        for k in range(shape.kernel[0])
        for j in places
    )
    return Layout(pixel, row, offsets, channels * (shape.kernel[1] if joined else 1))


@cache
def code(machine: Machine) -> Entry | None:
    """The code, of the address of a frame; None if LLVM fails."""
    try:
        (entry,) = loaded(machine, "direct", lambda: emit_convolution(machine), [ENTRY])
    except RuntimeError:
        return None
    return Entry(entry)


class Convolution(MapCode):
    """``out = clamp(conv(input) + bias + other, low, high)`` on channels-last maps.

    See :class:`MapCode` for how maps may lie.
    """

    def __init__(
        self, machine: Machine, run: Entry, weights: Filters, shape: Shape,
        low: float = -math.inf, high: float = math.inf, threads: int = 1,
    ) -> None:  # fmt: skip
        parallel = gomp_parallel() if threads > 1 else 0
        threads = threads if parallel else 1
        copied = copies(shape)
        placed = layout(machine, shape, copied=copied)
        row_bytes = FLOAT_BYTES * placed.row * shape.strides[0]
        panels = -(-weights.vectors // machine.panel_vectors)
        block, share = cut(
            shape, row_bytes, weights.values.numel() * FLOAT_BYTES, panels, threads
        )  # fmt: skip
        reach = shape.reach(block, 0)
        copied_thread = reach * placed.row + machine.lanes
        self._weights = weights
        self._offsets = array("q", placed.offsets)
        frame = filled(FIELDS, {
            "images": shape.images, "height": shape.height, "width": shape.width,
            "channels": shape.channels, "above": shape.above, "left": shape.left,
            "out_height": shape.out_height, "out_width": shape.out_width,
            "column_step": shape.strides[1] * placed.pixel,
            "row_step": shape.strides[0] * placed.row,
            "runs": len(placed.offsets), "run_length": placed.run,
            "offsets": self._offsets.buffer_info()[0],
            "weights": weights.values.data_ptr(), "bias": weights.bias.data_ptr(),
            "vectors": weights.vectors, "last_vector": weights.last_vector,
            "low": float_bits(low), "high": float_bits(high),
            "block": block, "blocks": -(-shape.out_height // block),
            "share": share, "shares": -(-panels // share),
            "copying": int(copied), "block_step": block * shape.strides[0], "reach": reach,
            "columns": max(shape.reach(shape.out_width, 1), shape.left + shape.width),
            "pixel": placed.pixel, "copied_row": placed.row, "copied_thread": copied_thread,
            "threads": threads, "parallel": parallel,
        })  # fmt: skip
        super().__init__(
            run, frame, (shape.images, shape.height, shape.width, shape.channels),
            (shape.images, shape.out_height, shape.out_width, shape.out_channels),
            threads * copied_thread if copied else 0, _COPIED,
        )  # fmt: skip


_COPIED = FIELDS.index("copied")


def copies(shape: Shape) -> bool:
    """Whether rows are copied: where they are padded, or columns whole pages apart are read."""
    return shape.padded or shape.strides[1] * shape.channels % PAGE == 0


def cut(
    shape: Shape, row_bytes: int, weights_bytes: int, panels: int, threads: int
) -> tuple[int, int]:
    """(rows of a block, panels of an item): blocks for the caches, items for all threads."""
    most = max(BLOCK_BYTES, min(weights_bytes, MOST_BYTES))
    block = min(max(1, most // row_bytes), shape.out_height)
    share = panels
    wanted = ITEMS_PER_THREAD * threads if threads > 1 else 1
    while shape.images * -(-shape.out_height // block) * -(-panels // share) < wanted:
        if block > 1:
            block = -(-block // 2)
        elif share > 1:
            share = -(-share // 2)
        else:
            break
    blocks = -(-shape.out_height // block)
    return -(-shape.out_height // blocks), share
