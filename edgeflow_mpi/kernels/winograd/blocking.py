"""How the tiles of a convolution are cut into blocks, and these into items."""

from __future__ import annotations

from dataclasses import dataclass

from edgeflow_mpi.kernels.winograd.code import Variant

POINTS_BYTES = 512 * 1024
"""Transformed tiles of one thread's block: a part of the second-level cache."""
LARGE_BYTES = 4 * 1024 * 1024
"""Weights beyond this come from far away for every block, and want blocks of more tiles."""
LEAST_TILES, LEAST_TILES_LARGE = 24, 48
STRIP_BYTES = 256 * 1024
"""Rows of one segment, transformed along the height."""


@dataclass(frozen=True)
class Blocking:
    """How a convolution's tiles are cut: into blocks, and these into items of either stage.

    Attributes
    ----------
    block : int
        Tiles of one block.
    segment : int
        Tiles of one item of the first stage.
    chunk : int
        Tiles of one item of the second stage, which is a panel of so many tiles.
    """

    block: int
    segment: int
    chunk: int


def blocking(
    variant: Variant, tiles: int, across: int, channels: int, panels: int, weights_bytes: int,
    threads: int,
) -> Blocking:  # fmt: skip
    """Blocks that stay in the caches, and items enough for all threads.

    Parameters
    ----------
    tiles, across : of the whole convolution, and of one row.
    channels, panels : input channels, and panels of output channels.
    """
    least = LEAST_TILES_LARGE if weights_bytes > LARGE_BYTES else LEAST_TILES
    block = max(least, POINTS_BYTES // (4 * variant.products * channels)) * threads
    block = _even(tiles, block)
    columns = STRIP_BYTES // (4 * variant.height.products * channels) - variant.width.taps + 1
    segment = _even(min(across, block), max(1, columns // variant.width.results))
    if threads > 1:
        segment = min(segment, _even(block, -(-block // (3 * threads))))
    chunks = 1
    while threads > 1 and panels * chunks < 3 * threads and block // (chunks + 1) >= LEAST_TILES:
        chunks += 1
    return Blocking(block, segment, -(-block // chunks))


def _even(total: int, most: int) -> int:
    """The size of as few parts as possible, none above ``most``, all about equal."""
    parts = -(-total // most)
    return -(-total // parts)
