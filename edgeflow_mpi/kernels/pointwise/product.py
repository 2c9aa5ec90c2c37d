"""One prepared product of pixels with channels: a frame, and the memory that it points into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

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
from edgeflow_mpi.kernels.llvm.packed import PackedWeights
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


class Product(MapCode):
    """``out = clamp(weights @ input + bias + other, low, high)`` pixel by pixel.

    See :class:`MapCode` for how maps may lie.
    """

    def __init__(
        self, machine: Machine, run: Entry, weights: PackedWeights,
        pixels: Pixels, low: float = -math.inf, high: float = math.inf, threads: int = 1,
    ) -> None:  # fmt: skip
        parallel = gomp_parallel() if threads > 1 else 0
        threads = threads if parallel else 1
        channels, count = pixels.channels, pixels.out_height * pixels.out_width
        block, share = cut(machine, channels, count, pixels.images, weights.panels, threads)
        packing = pixels.strides != (1, 1) or channels % PAGE == 0
        packed_pixel = off_pages(channels, machine.lanes)
        self._weights = weights
        frame = filled(FIELDS, {
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
        super().__init__(
            run, frame, (pixels.images, pixels.height, pixels.width, channels),
            (pixels.images, pixels.out_height, pixels.out_width, pixels.out_channels),
            threads * block * packed_pixel if packing else 0, _PACKED,
        )  # fmt: skip


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
