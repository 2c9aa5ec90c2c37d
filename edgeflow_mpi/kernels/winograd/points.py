"""Minimal filtering F(m, r): interpolation points and the matrices that follow from them.

``y = A^T [(G g) * (B^T d)]`` gives m results of the filter g with r taps over m + r - 1
samples d, where * is the product of equal places. Matrices are exact fractions.

The points decide the rounding error. They are 0, infinity, and pairs p, -p: a pair shares its
multiplications, and fractions of small powers of two are exact in float32. Among those, the
pairs chosen keep the root mean square of the error small, which with independent roundings is
proportional to that over a of sum_i A_ai^2 |B_i|^2 |G_i|^2. F(4, 3) then errs by 1.1e-6 of the
largest result in two dimensions; with the usual points 0, 1, -1, 2, -2 it is 2.7e-6.

At the edges of a map fewer results are wanted than a tile has. F(m', r) with m' < m needs
m' + r - 1 products, and may take them at some of the points of F(m, r): what differs in the
transformed filter is a factor per product, which the samples can take over. So the transformed
filter is the same to the last bit, with some products left out.

References
----------
.. [1] B. Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution
       for deep neural networks", ACM TOMS 46(4), 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations

Matrix = tuple[tuple[Fraction, ...], ...]

_PAIRS: dict[int, tuple[Fraction, ...]] = {
    1: (),
    4: (Fraction(1),),
    6: (Fraction(11, 16), Fraction(3, 2)),
    8: (Fraction(1, 2), Fraction(1), Fraction(2)),
    10: (Fraction(7, 16), Fraction(13, 16), Fraction(5, 4), Fraction(39, 16)),
}
"""Positive halves of the pairs, by the number of products m + r - 1."""


@dataclass(frozen=True)
class Filtering:
    """F(m, r) along one dimension. F(1, 1) does nothing, for filters of width 1.

    Attributes
    ----------
    results : int
        m, the results of one tile.
    taps : int
        r, the width of the filter.
    pairs : tuple of Fraction
        The positive points p; the points are 0, p_0, -p_0, p_1, -p_1, ..., infinity.
    output, filter, input : tuple of rows of Fraction
        A^T (m × n), G (n × r) and B^T (n × n), n = m + r - 1, a row of G and B^T per point.
        Rows of B^T of a pair differ in the sign of their odd columns only.
    kept : tuple of int
        Which products of the filtering that this is a part of these are; all of its own if none.
    """

    results: int
    taps: int
    pairs: tuple[Fraction, ...]
    output: Matrix
    filter: Matrix
    input: Matrix
    kept: tuple[int, ...]

    @property
    def zero(self) -> bool:
        """Whether 0 is among the points, which an even number of products has."""
        return self.products % 2 == 0

    @property
    def products(self) -> int:
        """n, the multiplications of one tile, and the samples that it reads."""
        return self.results + self.taps - 1


@cache
def filtering(results: int, taps: int) -> Filtering:
    """F(results, taps), whose number of products must be 1, 4, 6, 8 or 10."""
    count = results + taps - 1
    if count == 1:
        one: Matrix = ((Fraction(1),),)
        return Filtering(1, 1, (), one, one, one, (0,))
    pairs = _PAIRS[count]
    points = [Fraction(0), *(sign * p for p in pairs for sign in (1, -1))]
    output = tuple((*(p**i for p in points), Fraction(i == results - 1)) for i in range(results))
    rows: list[tuple[Fraction, ...]] = []
    filters: list[tuple[Fraction, ...]] = []
    for k, p in enumerate(points):
        others = points[:k] + points[k + 1 :]
        row, scale = _product(others), Fraction(1)
        for other in others:
            scale *= p - other
        # The row of -p is that of p with odd columns negated, up to a sign that G takes over.
        if k and k % 2 == 0:
            mirrored = [c if column % 2 == 0 else -c for column, c in enumerate(rows[-1])][:-1]
            if mirrored != row:
                row, scale = mirrored, -scale
        rows.append((*row, Fraction(0)))
        filters.append(tuple(p**i / scale for i in range(taps)))
    rows.append(tuple(_product(points)))
    filters.append(tuple(Fraction(i == taps - 1) for i in range(taps)))
    kept = tuple(range(count))
    return Filtering(results, taps, pairs, output, tuple(filters), tuple(rows), kept)


@cache
def part(whole: Filtering, results: int) -> Filtering:
    """F(results, taps) by some of the products of ``whole``, with the same transformed filter.

    Pairs stay together. Of what is possible it is the one with the smallest error.
    """
    if results == whole.results:
        return whole
    count = (results + whole.taps - 2) // 2
    choices = (_part(whole, results, chosen) for chosen in combinations(whole.pairs, count))
    return min(choices, key=_error)


def _part(whole: Filtering, results: int, pairs: tuple[Fraction, ...]) -> Filtering:
    zero = (results + whole.taps) % 2 == 1
    points = [Fraction(0)] * zero + [sign * p for p in pairs for sign in (1, -1)]
    every = [Fraction(0), *(sign * p for p in whole.pairs for sign in (1, -1))]
    kept = (*(every.index(p) for p in points), whole.products - 1)
    rows: list[tuple[Fraction, ...]] = []
    for k, p in enumerate(points):
        others = points[:k] + points[k + 1 :]
        factor = 1 / whole.filter[kept[k]][0]
        for other in others:
            factor /= p - other
        rows.append((*(factor * c for c in _product(others)), Fraction(0)))
    rows.append(tuple(_product(points)))
    output = tuple((*(p**i for p in points), Fraction(i == results - 1)) for i in range(results))
    filters = tuple(whole.filter[k] for k in kept)
    return Filtering(results, whole.taps, pairs, output, filters, tuple(rows), kept)


def _error(f: Filtering) -> float:
    """The square of the error, but for a factor."""
    sizes = [
        float(sum(c * c for c in read)) * float(sum(c * c for c in taps))
        for read, taps in zip(f.input, f.filter, strict=True)
    ]
    return sum(float(a * a) * size for row in f.output
               for a, size in zip(row, sizes, strict=True))  # fmt: skip


def _product(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the monic polynomial with these roots, lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients
