"""Lines fitted to measurements: exact where they can be, non-negative and finite always."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from edgeflow_mpi.cluster.fit import MAX_BANDWIDTH_BYTES_S, fit_affine, fit_link, fit_share
from edgeflow_mpi.cluster.profile import LayerCost

seconds = st.floats(1e-7, 10.0)
row_points = st.lists(
    st.tuples(st.integers(1, 500), seconds), min_size=1, max_size=6, unique_by=lambda p: p[0]
)


def test_affine_points_are_recovered() -> None:
    cost = fit_affine([(r, 2e-5 + 3e-6 * r) for r in (1, 7, 14, 56)])
    assert cost.fixed_s == pytest.approx(2e-5, rel=1e-9)
    assert cost.per_row_s == pytest.approx(3e-6, rel=1e-9)
    assert [rows for rows, _ in cost.points] == [1, 7, 14, 56]


def test_points_are_sorted_and_repeats_replaced_by_their_median() -> None:
    cost = fit_affine([(8, 8.0), (4, 4.0), (4, 100.0), (4, 3.0)])
    assert cost.points == ((4, 4.0), (8, 8.0))


def test_one_point_is_met_exactly_by_the_slope() -> None:
    cost = fit_affine([(14, 7e-3)])
    assert cost.fixed_s == 0.0
    assert cost.per_row_s == pytest.approx(5e-4)
    assert cost.seconds(14) == pytest.approx(7e-3)


def test_falling_times_give_a_constant_and_superlinear_ones_no_negative_offset() -> None:
    assert fit_affine([(1, 3.0), (2, 2.0), (4, 1.0)]).per_row_s == 0.0
    steep = fit_affine([(1, 1.0), (2, 4.0), (4, 20.0)])
    assert steep.fixed_s == 0.0 and steep.per_row_s > 0


def test_between_measured_rows_times_go_from_one_to_the_next() -> None:
    cost = LayerCost(1.0, 0.5, ((4, 4.0), (8, 5.0), (16, 4.5)))
    assert [cost.measured_seconds(rows) for rows in (0, 4, 6, 8)] == [0.0, 4.0, 4.5, 5.0]
    assert cost.measured_seconds(2) == pytest.approx(2.5), "halfway from what a call costs"
    assert cost.measured_seconds(16) == 5.0, "more rows are never cheaper"
    assert cost.measured_seconds(20) == pytest.approx(7.0)
    assert cost.scaled(2.0).measured_seconds(8) == 10.0
    assert LayerCost(1.0, 0.5).measured_seconds(4) == 3.0, "of a cost that nobody measured"


@given(row_points)
def test_affine_fit_is_the_nonnegative_least_squares_optimum(
    points: list[tuple[int, float]],
) -> None:
    cost = fit_affine(points)
    assert cost.fixed_s >= 0 and cost.per_row_s >= 0
    assert math.isfinite(cost.fixed_s) and math.isfinite(cost.per_row_s)
    # The same problem in scaled unknowns, so that the reference solver is accurate.
    scale = max(t for _, t in points)
    matrix = [[scale / t, scale * x / t / 500] for x, t in points]
    _, best = nnls(matrix, [1.0] * len(points))
    found = math.sqrt(sum(((cost.fixed_s + cost.per_row_s * x - t) / t) ** 2 for x, t in points))
    assert found <= best * (1 + 1e-5) + 1e-6


SIZES = (1, 4096, 65536, 262144, 1048576)


def test_a_clean_link_is_recovered() -> None:
    link = fit_link([(s, 2e-4 + s / 12.5e6) for s in SIZES])
    assert link.latency_s == pytest.approx(2e-4, rel=1e-6)
    assert link.bandwidth_bytes_s == pytest.approx(12.5e6, rel=1e-6)


@pytest.mark.parametrize("spoiled", SIZES)
def test_one_spoiled_size_does_not_bend_a_link(spoiled: int) -> None:
    points = [(s, (2e-4 + s / 12.5e6) * (4 if s == spoiled else 1)) for s in SIZES]
    link = fit_link(points)
    assert link.latency_s == pytest.approx(2e-4, rel=1e-6)
    assert link.bandwidth_bytes_s == pytest.approx(12.5e6, rel=1e-6)


def test_noise_of_a_tenth_moves_a_link_by_about_as_much() -> None:
    rng = random.Random(0)
    points = [(s, (2e-4 + s / 12.5e6) * rng.uniform(0.95, 1.05)) for s in SIZES for _ in range(5)]
    link = fit_link(points)
    assert link.latency_s == pytest.approx(2e-4, rel=0.1)
    assert link.bandwidth_bytes_s == pytest.approx(12.5e6, rel=0.1)


@given(st.lists(st.tuples(st.integers(0, 10**7), seconds), min_size=1, max_size=12))
def test_any_link_has_finite_latency_and_bandwidth(points: list[tuple[int, float]]) -> None:
    link = fit_link(points)
    assert 0 <= link.latency_s < math.inf
    assert 0 < link.bandwidth_bytes_s <= MAX_BANDWIDTH_BYTES_S


@pytest.mark.parametrize(
    "points",
    [[], [(4, 0.0)], [(4, -1.0)], [(4, math.nan)], [(4, math.inf)], [(-1, 1.0)]],
    ids=["none", "zero", "negative", "nan", "inf", "size"],
)
def test_what_is_no_measurement_is_refused(points: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="measure"):
        fit_affine(points)
    with pytest.raises(ValueError, match="measure"):
        fit_link(points)


def test_the_line_of_a_share_is_recovered_and_meets_that_of_the_whole() -> None:
    cost = fit_share([(c, 2e-5 + 1e-6 * c) for c in (64, 128, 256)], 256, 2e-5 + 256e-6)
    assert cost.fixed_s == pytest.approx(2e-5)
    assert cost.seconds(128) == pytest.approx(2e-5 + 128e-6)


@given(row_points, seconds)
def test_shares_are_never_less_work_than_the_whole(
    points: list[tuple[int, float]], whole_s: float
) -> None:
    cost = fit_share(points, 500, whole_s)
    assert min(cost.fixed_s, cost.per_row_s) >= 0.0
    assert cost.seconds(500) == pytest.approx(whole_s)
    for channels in (1, 100, 499):
        assert cost.seconds(channels) >= whole_s * channels / 500 * (1 - 1e-9)
