"""What rows depend on, and what depends on them, through all layers between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from edgeflow_mpi.partition.bound.case import Case
from edgeflow_mpi.partition.timeline import Floats, Ints

Cone: TypeAlias = Mapping[int, tuple[Ints, Ints]]
"""Layer -> (low, high): row r depends on its rows ``[low[r], high[r])``, and on more, maybe.

Both are non-decreasing, and consecutive rows leave nothing out between theirs, so that rows
``[a, b)`` depend on ``[low[a], high[b - 1])``.
"""


def cones(case: Case) -> list[Cone]:
    """The cone of every layer, itself included.

    Edges that are not dense are left out, and where two ways from one layer to another depend
    on different parts of it, one of them is: a cone may be too small, never too large.
    """
    found: list[Cone] = []
    for index, layer in enumerate(case.layers):
        rows = np.arange(layer.rows)
        cone = {index: (rows, rows + 1)}
        for edge in case.edges[index]:
            if not edge.dense:
                continue
            for other, (low, high) in found[edge.source].items():
                way = low[edge.low], high[edge.high - 1]
                cone[other] = _both(cone[other], way) if other in cone else way
        found.append(cone)
    return found


def _both(one: tuple[Ints, Ints], other: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """The rows of two ways together, or those of the wider where they are apart."""
    if (np.maximum(one[0], other[0]) <= np.minimum(one[1], other[1])).all():
        return np.minimum(one[0], other[0]), np.maximum(one[1], other[1])
    widths = [int((high - low).sum()) for low, high in (one, other)]
    return one if widths[0] >= widths[1] else other


def least_rest_s(case: Case) -> list[Floats]:
    """For every row of every layer, the longest way of computations from it to an answer.

    Each layer on the way is computed for one row (an undivided one as a whole) by the device
    that is fastest at it, and nothing travels.
    """
    found: list[Floats] = [np.zeros(layer.rows) for layer in case.layers]
    for index in range(len(case.layers) - 1, -1, -1):
        layer = case.layers[index]
        seconds = float(case.least_s(index, 1 if layer.divisible else layer.rows))
        through_s = np.where(case.useful[index], found[index] + seconds, 0.0)
        if not layer.divisible and layer.rows:
            through_s = np.full(layer.rows, through_s.max())
        for edge in case.edges[index]:
            rest_s = found[edge.source]
            for row in range(layer.rows):
                part = rest_s[edge.low[row] : edge.high[row]]
                np.maximum(part, through_s[row], out=part)
    return found
