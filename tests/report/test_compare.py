"""The comparison passes what plain torch could have answered, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeflow_mpi.report.compare import combine, compare_layers, compare_outputs, compare_tensor
from edgeflow_mpi.report.results import Difference, LayerComparison, Verification

WIDE = torch.tensor([[4.0, -8.0, 2.0, 0.5]], dtype=torch.float64)


def plain_with(error: float) -> torch.Tensor:
    """A plain answer whose error, relative to the magnitude of ``WIDE``, is ``error``."""
    plain = WIDE.clone()
    plain[0, 2] += error * 8.0
    return plain


@pytest.mark.parametrize(
    ("error", "plain_error", "tolerance", "passed"),
    [
        pytest.param(0.0, 0.0, 1e-5, True, id="exact"),
        pytest.param(0.9e-5, 0.0, 1e-5, True, id="within the least tolerance"),
        pytest.param(1.1e-5, 0.0, 1e-5, False, id="beyond the least tolerance"),
        pytest.param(1.1e-5, 2e-6, 1e-5, False, id="plain torch too good to raise it"),
        pytest.param(1.1e-4, 3e-5, 1.2e-4, True, id="tolerance follows plain torch"),
        pytest.param(1.3e-4, 3e-5, 1.2e-4, False, id="and ends at four times its error"),
    ],
)
def test_the_rule(error: float, plain_error: float, tolerance: float, passed: bool) -> None:
    got = WIDE.clone()
    got[0, 0] -= error * 8.0
    found = compare_tensor("out", got, WIDE, plain_with(plain_error))
    assert found.rel_err == pytest.approx(error, abs=1e-15)
    assert found.abs_err == pytest.approx(8 * error, abs=1e-15)
    assert found.fp32_err == pytest.approx(plain_error, abs=1e-15)
    assert found.tolerance == pytest.approx(tolerance)
    assert found.passed is passed


def halves(network: nn.Sequential, image: torch.Tensor, halo: int) -> torch.Tensor:
    """The network on the upper and lower half of an image, each with ``halo`` rows more."""
    rows = image.shape[2] // 2
    upper = network(image[:, :, : rows + halo])[:, :, :rows]
    lower = network(image[:, :, rows - halo :])[:, :, halo:]
    return torch.cat((upper, lower), 2)


def test_missing_halo_rows_of_a_real_network_are_caught_and_right_ones_pass() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1)
    ).eval()
    image = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        plain, right, wrong = network(image), halves(network, image, 2), halves(network, image, 1)
        wide = network.double()(image.double())
    good = compare_outputs(["map"], [right], [wide], [plain])
    assert good.passed
    assert good.max_rel_err < 1e-6
    bad = compare_outputs(["map"], [wrong], [wide], [plain])
    assert not bad.passed
    assert bad.max_rel_err > 1e-2
    assert bad.tolerance == 1e-5


def test_a_small_output_is_not_hidden_by_a_large_one() -> None:
    large, small = torch.full((1, 3), 1e6).double(), torch.full((1, 3), 1e-3).double()
    found = compare_outputs(
        ["large", "small"], [large + 1.0, small + 1e-6], [large, small], [large, small]
    )
    assert not found.passed
    assert found.worst.name == "small"
    assert found.max_rel_err == pytest.approx(1e-3)
    assert found.max_abs_err == pytest.approx(1.0)
    assert found.by_name["large"].passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["got", "reference", "both", "everywhere"])
def test_what_is_not_finite_never_passes(value: float, where: str) -> None:
    bad = WIDE.clone()
    bad[0, 1] = value
    got = WIDE if where == "reference" else bad
    reference = WIDE if where == "got" else bad
    found = compare_tensor("out", got, reference, bad if where == "everywhere" else WIDE)
    assert not found.passed
    assert found.fault is not None
    assert "not finite" in found.fault
    assert found.severity == math.inf


def test_plain_torch_that_is_not_finite_earns_no_tolerance() -> None:
    plain = WIDE.clone()
    plain[0, 0] = math.inf
    found = compare_tensor("out", WIDE * (1 + 2e-5), WIDE, plain)
    assert found.tolerance == 1e-5
    assert not found.passed


@pytest.mark.parametrize(
    ("got", "words"),
    [
        pytest.param(torch.zeros(1, 3), "its shape is 1x3, not 1x4", id="shape"),
        pytest.param(torch.zeros(4), "its shape is 4, not 1x4", id="rank"),
        pytest.param(torch.zeros(1, 4, dtype=torch.int64), "its type is torch.int64", id="type"),
    ],
)
def test_shape_and_kind_must_agree(got: torch.Tensor, words: str) -> None:
    found = compare_tensor("out", got, WIDE, WIDE)
    assert not found.passed
    assert found.fault is not None
    assert words in found.fault


@pytest.mark.parametrize(
    ("error", "plain_error", "passed"), [(0.0, 0.0, True), (9e-6, 0, True), (1e-4, 1e-6, False)]
)
def test_a_reference_of_zeros_has_no_magnitude(
    error: float, plain_error: float, passed: bool
) -> None:
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    found = compare_tensor("out", zeros + error, zeros, zeros + plain_error)
    assert found.rel_err == error
    assert found.passed is passed


@pytest.mark.parametrize(
    ("reference", "got"),
    [
        pytest.param([1, 2, 3, 4], [1, 2, 3, 5], id="integers"),
        pytest.param([True, False, True, True], [True, True, True, True], id="booleans"),
    ],
)
def test_integers_and_booleans_are_compared_exactly(reference: list[int], got: list[int]) -> None:
    exact = torch.tensor(reference)
    assert compare_tensor("out", exact, exact, exact).passed
    found = compare_tensor("out", torch.tensor(got), exact, exact)
    assert not found.passed
    assert (found.abs_err, found.rel_err, found.tolerance) == (1.0, 0.25, 0.0)
    assert found.counted


def test_integers_that_plain_torch_gets_wrong_as_well_are_allowed_in_proportion() -> None:
    reference, plain = torch.zeros(100, dtype=torch.int64), torch.zeros(100, dtype=torch.int64)
    plain[0] = 1
    got = torch.zeros(100, dtype=torch.int64)
    got[:4] = 1
    assert compare_tensor("argmax", got, reference, plain).passed
    got[4] = 1
    assert not compare_tensor("argmax", got, reference, plain).passed


def test_complex_numbers_and_empty_tensors() -> None:
    wide = torch.tensor([3 + 4j, 1j], dtype=torch.complex128)
    found = compare_tensor("out", wide.to(torch.complex64) + 5e-4j, wide, wide)
    assert found.rel_err == pytest.approx(1e-4, rel=1e-2)
    assert not found.passed
    empty = torch.zeros(0, 3)
    assert compare_tensor("out", empty, empty.double(), empty).passed


def layers(*values: float) -> dict[str, torch.Tensor]:
    names = ("conv", "relu", "pool", "linear")
    return {n: torch.tensor([v], dtype=torch.float64) for n, v in zip(names, values, strict=False)}


def test_the_first_layer_in_order_that_differs_is_named() -> None:
    exact, plain = layers(1.0, 100.0, 1e-4, 5.0), layers(1.0, 100.0, 1e-4, 5.0)
    got = layers(1.0 + 5e-6, 100.0, 1.001e-4, 9.0)
    found = compare_layers(["conv", "relu", "pool", "linear"], got, exact, plain)
    assert not found.passed
    assert found.first_bad is not None
    assert found.first_bad.name == "pool"
    assert found.first_bad.rel_err == pytest.approx(1e-3)
    assert [d.passed for d in found.differences] == [True, True, False, False]
    backwards = compare_layers(["linear", "pool", "relu", "conv"], got, exact, plain)
    assert backwards.first_bad is not None
    assert backwards.first_bad.name == "linear"


def test_every_layer_has_the_tolerance_of_plain_torch_in_that_layer() -> None:
    exact, plain = layers(1.0, 1.0), layers(1.0, 1.0 + 1e-3)
    found = compare_layers(["conv", "relu"], layers(1.0, 1.0 + 3e-3), exact, plain)
    assert found.passed
    assert found.first_bad is None
    swapped = compare_layers(["conv", "relu"], layers(1.0 + 3e-3, 1.0), exact, plain)
    assert swapped.first_bad is not None
    assert swapped.first_bad.name == "conv"


def test_layers_without_a_counterpart_are_listed_not_passed_over_silently() -> None:
    exact = layers(1.0, 1.0)
    found = compare_layers(["conv", "constant_3", "relu"], layers(1.0, 1.0, 1.0), exact, exact)
    assert [d.name for d in found.differences] == ["conv", "relu"]
    assert found.unmatched == ("constant_3",)


def one(error: float, name: str = "out") -> Difference:
    return Difference(name, error, error, 0.0, 1e-5)


def test_several_requests_count_with_their_worst() -> None:
    parts = [Verification((one(1e-6), one(2e-6, "aux"))), Verification((one(3e-4), one(0, "aux")))]
    both = combine(parts)
    assert both.requests == 2
    assert not both.passed
    assert both.max_rel_err == 3e-4
    assert both.by_name["aux"].rel_err == 2e-6
    assert combine(parts[:1]).passed
    assert both.layers is None


def test_layers_of_several_requests_count_with_their_worst() -> None:
    first = LayerComparison((one(1e-6, "conv"), one(2e-6, "relu")), ("constant",))
    second = LayerComparison((one(1e-7, "conv"), one(2e-3, "relu")), ("constant",))
    both = combine([Verification((one(0),), layers=c) for c in (first, second)])
    assert both.layers is not None
    assert [d.rel_err for d in both.layers.differences] == [1e-6, 2e-3]
    assert both.layers.unmatched == ("constant",)
    assert both.first_bad_layer == "relu"
    assert not both.passed


def test_comparing_nothing_is_not_passing() -> None:
    with pytest.raises(ValueError, match="nothing was compared"):
        compare_outputs([], [], [], [])


@given(
    scale=st.floats(1e-20, 1e20),
    error=st.floats(0, 1),
    plain_error=st.floats(0, 1),
)
def test_the_verdict_does_not_depend_on_the_scale(
    scale: float, error: float, plain_error: float
) -> None:
    got, plain = WIDE.clone(), plain_with(plain_error)
    got[0, 3] += error * 8.0
    found = compare_tensor("out", got * scale, WIDE * scale, plain * scale)
    allowed = max(1e-5, 4 * plain_error)
    if abs(error - allowed) > 1e-9 * max(error, allowed):
        assert found.passed is (error <= allowed)
    assert found.severity == pytest.approx(found.rel_err / found.tolerance)
