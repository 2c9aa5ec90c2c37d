"""From measured points to the two lines of the cost model: pure functions.

A layer costs ``fixed_s + per_row_s * rows``, a message ``latency_s + size_bytes /
bandwidth``. All four numbers must be non-negative: the planners rely on costs that never
fall when rows are added.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from edgeflow_mpi.cluster.profile import LayerCost, Link

MAX_BANDWIDTH_BYTES_S = 1e12
"""A link whose times do not grow with size is taken to be this fast (no real one is)."""


def fit_affine(points: Sequence[tuple[int, float]]) -> LayerCost:
    """The non-negative line through ``(rows, seconds)`` with the least relative squares.

    Relative residuals, because the planner adds and compares times from one row to a whole
    map: absolute ones would let the largest point alone decide. Measurements at one row
    count only are explained by the slope alone.

    Parameters
    ----------
    points
        At least one; rows at least 1, seconds positive. Repeats at one row count are
        replaced by their median.

    Returns
    -------
    LayerCost
        With ``points`` sorted by rows, one per row count.

    Raises
    ------
    ValueError
        For no points, or points out of range.
    """
    medians = _medians(points, least_size=1)
    offset, slope = _least_relative_squares(medians)
    return LayerCost(offset, slope, tuple(medians))


def fit_share(points: Sequence[tuple[int, float]], channels: int, whole_s: float) -> LayerCost:
    """As :func:`fit_affine`, through ``whole_s`` seconds for all ``channels``.

    So whoever divides a layer by its channels does not come by less work in all than whoever
    computes it whole, which lower bounds rely on.
    """
    medians = _medians(points, least_size=1)
    # With x = c / channels, times are fixed (1 - x) + whole x: one unknown, between 0 and whole.
    parts = [(1 - count / channels, count / channels, seconds) for count, seconds in medians]
    rest = sum((1 - whole_s * x / t) * free / t for free, x, t in parts)
    scale = sum((free / t) ** 2 for free, _, t in parts)
    fixed_s = min(max(rest / scale, 0.0), whole_s) if scale else 0.0
    return LayerCost(fixed_s, (whole_s - fixed_s) / channels, tuple(medians))


def fit_link(points: Sequence[tuple[int, float]]) -> Link:
    """Latency and bandwidth from one-way times of messages of several sizes.

    Least absolute relative deviation instead of squares: one size measured while another
    process had the core must not bend the line. The optimum passes through two of the
    points (or one, with latency or slope 0), so with the few sizes there are it is found by
    trying all.

    Parameters
    ----------
    points
        ``(size_bytes, seconds)``, at least one; seconds positive. Repeats of one size are
        replaced by their median.

    Returns
    -------
    Link
        Latency at least 0, bandwidth positive and at most :data:`MAX_BANDWIDTH_BYTES_S`.

    Raises
    ------
    ValueError
        For no points, or points out of range.
    """
    medians = _medians(points, least_size=0)
    candidates = [(seconds, 0.0) for _, seconds in medians]
    candidates += [(0.0, seconds / size) for size, seconds in medians if size]
    for i, (size_a, seconds_a) in enumerate(medians):
        for size_b, seconds_b in medians[i + 1 :]:
            slope = (seconds_b - seconds_a) / (size_b - size_a)
            candidates.append((seconds_a - slope * size_a, slope))

    def deviation(line: tuple[float, float]) -> float:
        return sum(abs(line[0] + line[1] * size - t) / t for size, t in medians)

    feasible = [line for line in candidates if line[0] >= 0 and line[1] >= 0]
    latency_s, slope = min(feasible, key=lambda line: (deviation(line), line))
    return Link(latency_s, 1.0 / max(slope, 1.0 / MAX_BANDWIDTH_BYTES_S))


def _medians(points: Sequence[tuple[int, float]], *, least_size: int) -> list[tuple[int, float]]:
    """One point per size, the median of its repeats, sorted by size."""
    repeats: dict[int, list[float]] = {}
    for size, seconds in points:
        if size < least_size or not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"not a measurement: {size}, {seconds}")
        repeats.setdefault(size, []).append(seconds)
    if not repeats:
        raise ValueError("nothing was measured")
    return [(size, statistics.median(repeats[size])) for size in sorted(repeats)]


def _least_relative_squares(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Non-negative (c, w) that minimise the sum of ((c + w x - t) / t)^2.

    The problem is convex in two unknowns: either the free optimum is non-negative, or the
    optimum lies on one of the two axes.
    """
    # With a = 1/t and b = x/t the residuals are c a + w b - 1.
    inverse = [1.0 / t for _, t in points]
    ratio = [x / t for x, t in points]
    s_a, s_b = sum(inverse), sum(ratio)
    s_aa = sum(a * a for a in inverse)
    s_bb = sum(b * b for b in ratio)
    s_ab = sum(a * b for a, b in zip(inverse, ratio, strict=True))
    lines = [(0.0, s_b / s_bb)]
    if len(points) > 1:
        lines.append((s_a / s_aa, 0.0))
        determinant = s_aa * s_bb - s_ab * s_ab
        if determinant > 0:
            free = (
                (s_bb * s_a - s_ab * s_b) / determinant,
                (s_aa * s_b - s_ab * s_a) / determinant,
            )
            if min(free) >= 0:
                return free
    return min(
        lines, key=lambda line: sum((line[0] + line[1] * x - t) ** 2 / t**2 for x, t in points)
    )
