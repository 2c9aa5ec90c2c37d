"""The tiles of a convolution in the order in which they are computed, as tables for the code.

At the lower and right edge tiles may have fewer results, and then need only some of the products.
Within a block tiles stand by kind, so that those that need a product are always one run of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edgeflow_mpi.kernels.winograd.blocking import Blocking, even
from edgeflow_mpi.kernels.winograd.variant import Variant

RIGHT, WHOLE, BOTTOM, CORNER = range(4)
"""Kinds: with fewer columns, with all results, with fewer rows, with fewer of both."""
KINDS: Final = 4

BLOCK: Final = ("place", "first_segment", "segments", "right", "whole", "bottom", "corner")
"""The first of its points where they are of several blocks; its segments; tiles of each kind."""
SEGMENT: Final = ("image", "top", "left", "tiles", "kind", "place", "index")
"""Neighbouring tiles of a row, all of a kind: the first result of the first of them, and where it
is among the points, and in its block."""
IN_RIGHT, IN_BOTTOM = 1, 2
"""Bits of a product: tiles with fewer columns, or with fewer rows, need it as well."""


@dataclass(frozen=True)
class Tables:
    """Records of integers, one behind the other: :data:`BLOCK` and :data:`SEGMENT`."""

    blocks: tuple[int, ...]
    segments: tuple[int, ...]


def tables(variant: Variant, images: int, rows: int, columns: int, cut: Blocking) -> Tables:
    """Blocks of tiles of ``images`` maps of so many results, row by row.

    Where ``cut`` has one block for all threads, its chunks are blocks of the table, whose points
    lie one behind the other.
    """
    high, wide = variant.height.results, variant.width.results
    across, down = -(-columns // wide), -(-rows // high)
    tiles = images * down * across
    size = min(cut.block, cut.chunk)
    blocks: list[int] = []
    segments: list[int] = []
    for first in range(0, tiles, size):
        kinds: list[list[tuple[int, int, int, int]]] = [[] for _ in range(KINDS)]
        for row, left, number in _runs(first, min(first + size, tiles), across):
            image, y = divmod(row, down)
            fewer = BOTTOM - WHOLE if rows % high and y == down - 1 else 0
            last = columns % wide != 0 and left + number == across
            whole = number - last
            step = even(whole, cut.segment) if whole else 1
            for begin in range(0, whole, step):
                place = (left + begin) * wide
                kinds[WHOLE + fewer].append((image, y * high, place, min(step, whole - begin)))
            if last:
                kind = CORNER if fewer else RIGHT
                kinds[kind].append((image, y * high, (across - 1) * wide, 1))
        base = first if cut.together else 0
        blocks += (base, len(segments) // len(SEGMENT), sum(map(len, kinds)))
        blocks += (sum(segment[-1] for segment in found) for found in kinds)
        index = 0
        for kind, found in enumerate(kinds):
            for segment in found:
                segments += (*segment, kind, base + index, index)
                index += segment[-1]
    return Tables(tuple(blocks), tuple(segments))


def _runs(first: int, stop: int, across: int) -> Iterator[tuple[int, int, int]]:
    """(row of all, first tile in it, tiles) of a run of tiles."""
    while first < stop:
        row, left = divmod(first, across)
        number = min(across - left, stop - first)
        yield row, left, number
        first += number


def needed_by(variant: Variant, edges: Variant) -> tuple[int, ...]:
    """For every product, whether tiles at the ``edges`` need it: :data:`IN_RIGHT` and such."""
    return tuple(
        IN_BOTTOM * (i in edges.height.kept) + IN_RIGHT * (j in edges.width.kept)
        for i in range(variant.height.products)
        for j in range(variant.width.products)
    )
