"""Interpolation in every mode, up and down, by size and by factor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.rule_checks import FEW, Apply, Image, check_modules, check_needs, images

MODES = {
    1: ["nearest", "nearest-exact", "linear"],
    2: ["nearest", "nearest-exact", "bilinear", "bicubic"],
    3: ["nearest", "nearest-exact", "trilinear"],
}


class Interpolate(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, **self.options)

    def extra_repr(self) -> str:
        return str(self.options)


@st.composite
def resizes(draw: st.DrawFn, ndim: int, image: Image) -> Interpolate:
    options: dict[str, object] = {"mode": draw(st.sampled_from(MODES[ndim]))}
    if str(options["mode"]).endswith(("linear", "cubic")):
        options["align_corners"] = draw(st.booleans())
        # torch's own antialiasing is wrong for a map of one column.
        if ndim == 2 and not options["align_corners"] and image.shape[3] > 1:
            options["antialias"] = draw(st.booleans())
    if draw(st.booleans()):
        options["size"] = [draw(st.integers(1, 2 * size + 3)) for size in image.shape[2:]]
        return Interpolate(**options)
    factors = []
    for size in image.shape[2:]:
        factor = draw(st.sampled_from([2.0, 3.0, 1.5, 2.7, 0.5, 0.4, 1.0]))
        factors.append(factor if size * factor >= 1 else 2.0)
    options["scale_factor"] = factors
    if draw(st.booleans()):
        options["recompute_scale_factor"] = True
    return Interpolate(**options)


@pytest.mark.parametrize("ndim", [1, 2, 3], ids=["1d", "2d", "3d"])
@FEW
@given(data=st.data())
def test_interpolation(ndim: int, data: st.DataObject) -> None:
    image = data.draw(images(ndim, channels=2))
    check_modules([data.draw(resizes(ndim, image)) for _ in range(6)], image.make())


def test_interpolation_reads_no_more_than_it_must() -> None:
    image = Image((1, 2, 7, 3))
    modules = [
        Interpolate(scale_factor=2, mode="nearest"),
        Interpolate(scale_factor=2, mode="bilinear", align_corners=False),
        Interpolate(size=(13, 5), mode="bilinear", align_corners=True),
        Interpolate(size=(3, 3), mode="nearest-exact"),
    ]
    check_needs(check_modules(modules, image.make()), image.make())


def test_one_row_becomes_many() -> None:
    """As where a pooled map is spread over a large one."""
    check_modules(
        [
            Apply(
                lambda x: (
                    F.interpolate(
                        F.adaptive_avg_pool2d(x, 1), (9, 4), mode="bilinear", align_corners=False
                    )
                    + F.interpolate(x, (9, 4), mode="bicubic")
                )
            ),
            Apply(lambda x: F.interpolate(F.adaptive_max_pool2d(x, 1), scale_factor=7)),
        ],
        Image((2, 3, 5, 4)).make(),
    )


def test_float32_rows_are_where_torch_puts_them() -> None:
    """Large factors, where single and double precision could disagree about a source row."""
    image = Image((1, 1, 37, 3), torch.float32)
    modules = [
        Interpolate(size=(rows, 3), mode=mode)
        for rows in (41, 100, 163)
        for mode in ("nearest", "nearest-exact")
    ]
    check_modules(modules, image.make())
