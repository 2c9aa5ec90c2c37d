"""Which minimal filtering suits a convolution, if any: by counting what each has to multiply."""

from __future__ import annotations

from itertools import product

from edgeflow_mpi.kernels.winograd.points import filtering
from edgeflow_mpi.kernels.winograd.variant import Variant

# Results of a tile by taps. More results need fewer products and err more, and twice over where
# both dimensions are filtered: F(6, 3) would save another tenth and err four times as much.
_ALONG_ONE: dict[int, tuple[int, ...]] = {3: (4, 2), 5: (4, 2), 7: (4, 2)}
_ALONG_BOTH: dict[int, tuple[int, ...]] = {3: (4, 2), 5: (2,)}

FEW = 7
"""So many tiles take as long as one: weights that are used seldom take longer to fetch."""
TRANSFORMS = 10
"""Transforming a tile costs as much as multiplying it with so many more channels."""
GAIN = 1.1
"""What must be expected for leaving the direct way, which needs less memory."""


def candidates(kernel: tuple[int, int]) -> tuple[Variant, ...]:
    """The variants for a filter of this height and width."""
    if min(kernel) == 1:
        known: dict[int, tuple[int, ...]] = {**_ALONG_ONE, 1: (1,)}
    else:
        known = _ALONG_BOTH
    choices = [known.get(taps, ()) for taps in kernel]
    if max(kernel) == 1:
        return ()
    return tuple(
        Variant(filtering(high, kernel[0]), filtering(wide, kernel[1]))
        for high, wide in product(*choices)
    )


def suited(
    kernel: tuple[int, int], images: int, rows: int, columns: int, channels: int, out_channels: int
) -> Variant | None:
    """The variant with the least work for so many results, if that is clearly less than direct.

    Work is counted in products of all input with all output channels. Of equals it is the variant
    with the fewest weights.
    """
    best, least = None, kernel[0] * kernel[1] * max(images * rows * columns, FEW) / GAIN
    for variant in sorted(candidates(kernel), key=lambda variant: variant.products):
        share = TRANSFORMS * (1 / channels + 1 / out_channels)
        work = _products(variant, images, rows, columns) * (1 + share)
        if work < least:
            best, least = variant, work
    return best


def _products(variant: Variant, images: int, rows: int, columns: int) -> int:
    """Products of all tiles; those at the edges need fewer."""
    edges = variant.at_edges(rows, columns)
    down, across = rows // variant.height.results, columns // variant.width.results
    more_down = rows % variant.height.results != 0
    more_across = columns % variant.width.results != 0
    kept_down, kept_across = edges.height.products, edges.width.products
    high, wide = variant.height.products, variant.width.products
    total = 0
    for products_down, tiles_down in ((kept_down, down + more_down), (high - kept_down, down)):
        for products_across, tiles_across in (
            (kept_across, across + more_across),
            (wide - kept_across, across),
        ):
            tiles = images * tiles_down * tiles_across
            total += products_down * products_across * max(tiles, FEW)
    return total
