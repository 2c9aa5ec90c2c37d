"""Convolutions and pools: every span of rows equals the same rows of the undivided operator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.rule_checks import FEW, Apply, Image, check_modules, check_needs, images

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CHANNELS = 4

Draw = st.DrawFn


def several(draw: Draw, module: object, count: int = 6) -> list[nn.Module]:
    torch.manual_seed(0)
    assert callable(module)
    return [module() for _ in range(draw(st.integers(1, count)))]


@st.composite
def convolutions(draw: Draw, ndim: int) -> tuple[Image, list[nn.Module]]:
    image = draw(images(ndim, channels=CHANNELS))

    def one() -> nn.Module:
        kernel = [draw(st.integers(1, 4)) for _ in range(ndim)]
        dilation = [draw(st.integers(1, 3)) for _ in range(ndim)]
        groups = draw(st.sampled_from([1, 2, CHANNELS]))
        bias = draw(st.booleans())
        if draw(st.integers(0, 3)) == 0:
            return CONVOLUTIONS[ndim - 1](
                CHANNELS, 8, kernel, padding="same", dilation=dilation, groups=groups, bias=bias
            )
        padding = []
        for size, k, d in zip(image.shape[2:], kernel, dilation, strict=True):
            least = max(0, math.ceil((d * (k - 1) + 1 - size) / 2))
            padding.append(draw(st.integers(least, least + 5)))
        stride = [draw(st.integers(1, 5)) for _ in range(ndim)]
        return CONVOLUTIONS[ndim - 1](
            CHANNELS, 8, kernel, stride, padding, dilation, groups, bias=bias
        )

    return image, several(draw, one)


@pytest.mark.parametrize("ndim", [1, 2, 3], ids=["1d", "2d", "3d"])
@FEW
@given(data=st.data())
def test_convolution(ndim: int, data: st.DataObject) -> None:
    image, modules = data.draw(convolutions(ndim))
    check_needs(check_modules(modules, image.make()), image.make())


@st.composite
def transposed(draw: Draw, ndim: int) -> tuple[Image, list[nn.Module]]:
    image = draw(images(ndim, channels=CHANNELS))

    def one() -> nn.Module:
        kernel, stride, padding, extra, dilation = [], [], [], [], []
        for size in image.shape[2:]:
            k, s, d = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
            e = draw(st.integers(0, max(s, d) - 1))
            full = (size - 1) * s + d * (k - 1) + 1 + e
            padding.append(draw(st.integers(0, min((full - 1) // 2, 5))))
            kernel.append(k)
            stride.append(s)
            dilation.append(d)
            extra.append(e)
        groups, bias = draw(st.sampled_from([1, 2, CHANNELS])), draw(st.booleans())
        return TRANSPOSED[ndim - 1](
            CHANNELS, 8, kernel, stride, padding, extra, groups, bias, dilation
        )

    return image, several(draw, one)


@pytest.mark.parametrize("ndim", [1, 2, 3], ids=["1d", "2d", "3d"])
@FEW
@given(data=st.data())
def test_transposed_convolution(ndim: int, data: st.DataObject) -> None:
    image, modules = data.draw(transposed(ndim))
    slack = max(module.dilation[0] for module in modules)
    check_needs(check_modules(modules, image.make()), image.make(), slack=slack)


def test_transposed_convolution_reads_no_more_than_it_must() -> None:
    image = Image((1, CHANNELS, 7, 3))
    modules = [
        nn.ConvTranspose2d(CHANNELS, 2, 2, 2),
        nn.ConvTranspose2d(CHANNELS, 2, 4, 2, 1),
        nn.ConvTranspose2d(CHANNELS, 2, 3, 2, 1, output_padding=1),
        nn.ConvTranspose2d(CHANNELS, 2, 3, 1, 1),
    ]
    check_needs(check_modules(modules, image.make()), image.make())


POOLS = {
    "max": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    "avg": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
}


@st.composite
def pools(draw: Draw, kind: str, ndim: int) -> tuple[Image, list[nn.Module]]:
    image = draw(images(ndim, channels=CHANNELS))

    def one() -> nn.Module:
        kernel, stride, padding, dilation = [], [], [], []
        for size in image.shape[2:]:
            d = draw(st.integers(1, 2)) if kind == "max" else 1
            k = draw(st.integers(1, 4))
            k, d = (k, d) if d * (k - 1) < size else (min(k, size), 1)
            kernel.append(k)
            dilation.append(d)
            padding.append(draw(st.integers(0, k // 2)))
            stride.append(draw(st.integers(1, 4)))
        options: dict[str, object] = {"ceil_mode": draw(st.booleans())}
        if kind == "max":
            options["dilation"] = dilation
        else:
            options["count_include_pad"] = draw(st.booleans())
            if ndim > 1:
                options["divisor_override"] = draw(st.sampled_from([None, 3]))
            if options["ceil_mode"] and not options["count_include_pad"]:
                # The last window of torch's own operator may lie wholly in the padding.
                padding = [0] * ndim if min(image.shape[2:]) >= max(kernel) else padding
        module: nn.Module = POOLS[kind][ndim - 1](kernel, stride, padding, **options)
        return module

    return image, several(draw, one)


@pytest.mark.parametrize("ndim", [1, 2, 3], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("kind", ["max", "avg"])
@FEW
@given(data=st.data())
def test_pool(kind: str, ndim: int, data: st.DataObject) -> None:
    image, modules = data.draw(pools(kind, ndim))
    check_needs(check_modules(modules, image.make()), image.make())


ADAPTIVE = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip


@pytest.mark.parametrize("ndim", [1, 2, 3], ids=["1d", "2d", "3d"])
@FEW
@given(data=st.data())
def test_adaptive_pool(ndim: int, data: st.DataObject) -> None:
    image = data.draw(images(ndim, channels=CHANNELS))
    modules = []
    for kind in (ndim - 1, ndim + 2):
        for _ in range(2):
            sizes = [data.draw(st.integers(1, size + 2)) for size in image.shape[2:]]
            modules.append(ADAPTIVE[kind](sizes))
    check_modules(modules, image.make())


def test_adaptive_pool_reads_no_more_than_it_must() -> None:
    image = Image((1, 2, 11, 5))
    modules = [nn.AdaptiveAvgPool2d((h, 2)) for h in (2, 3, 7, 11, 13)]
    check_needs(check_modules(modules, image.make()), image.make())


def test_pool_of_integers_pads_with_the_smallest() -> None:
    image = torch.randint(-9, -1, (1, 2, 7, 5))
    check_modules([Apply(lambda x: nn.functional.max_pool2d(x, 3, 2, 1))], image)
