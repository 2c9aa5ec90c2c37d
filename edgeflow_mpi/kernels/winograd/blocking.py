"""How the tiles of a convolution are cut into blocks, and these into items."""

from __future__ import annotations

from dataclasses import dataclass

from edgeflow_mpi.kernels.winograd.variant import Variant

POINTS_BYTES = 512 * 1024
"""Transformed tiles of one thread's block: a part of the second-level cache."""
LARGE_BYTES = 4 * 1024 * 1024
"""Weights beyond this come from far away for every block, and want blocks of more tiles."""
LEAST_TILES, LEAST_TILES_LARGE = 24, 100
ITEMS_PER_THREAD = 3
STRIP_BYTES = 256 * 1024
"""Rows of one segment, transformed along the height."""


@dataclass(frozen=True)
class Blocking:
    """How a convolution's tiles are cut.

    Attributes
    ----------
    block : int
        Tiles of one block. Fewer than all: every block is done by one thread. All: the threads
        do it together.
    segment : int
        Tiles whose first step is done at a time.
    chunk : int
        Tiles whose second step is done at a time, a panel of them.
    together : bool
        Whether all threads do one block.
    """

    block: int
    segment: int
    chunk: int
    together: bool = False


def blocking(
    variant: Variant, tiles: int, across: int, channels: int, panels: int, weights_bytes: int,
    threads: int,
) -> Blocking:  # fmt: skip
    """Blocks that stay in the caches, and enough of them, or of their parts, for all threads.

    Parameters
    ----------
    tiles, across : of the whole convolution, and of one row.
    channels, panels : input channels, and panels of output channels.
    """
    least = LEAST_TILES_LARGE if weights_bytes > LARGE_BYTES else LEAST_TILES
    block = even(tiles, max(least, POINTS_BYTES // (4 * variant.products * channels)))
    columns = STRIP_BYTES // (4 * variant.height.products * channels) - variant.width.taps + 1
    segment = even(min(across, block), max(1, columns // variant.width.results))
    wanted = ITEMS_PER_THREAD * threads
    if threads == 1 or -(-tiles // block) >= wanted:
        return Blocking(block, segment, block)
    segment = min(segment, even(tiles, -(-tiles // wanted)))
    chunks = 1
    while panels * chunks < wanted and tiles // (chunks + 1) >= LEAST_TILES:
        chunks += 1
    return Blocking(tiles, segment, -(-tiles // chunks), together=True)


def even(total: int, most: int) -> int:
    """The size of as few parts as possible, none above ``most``, all about equal."""
    parts = -(-total // most)
    return -(-total // parts)
