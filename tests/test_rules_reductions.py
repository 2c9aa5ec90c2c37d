"""Reductions over the rows are sums of what every rank has, and nothing gathers the map."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn

from tests.inprocess import build, random_job, relative_error, widened
from tests.rule_checks import FEW, Apply, Image, check_modules, images

Tensor = torch.Tensor
Function = Callable[[Tensor], object]

GLOBAL: dict[str, Function] = {
    "mean": lambda x: x.mean((2, 3)), "mean_keep": lambda x: x.mean((2, 3), keepdim=True),
    "mean_rows": lambda x: x.mean(2), "mean_others": lambda x: x.mean((0, 2)),
    "mean_all": lambda x: x.mean(), "sum_all": lambda x: x.sum(), "max_all": lambda x: x.max(),
    "sum": lambda x: x.sum((1, 2)), "amax": lambda x: x.amax((2, 3)), "min_all": lambda x: x.min(),
    "amin": lambda x: x.amin((2, 3), keepdim=True), "max": lambda x: x.max(3)[0].max(2)[0],
    "min": lambda x: x.min(2, keepdim=True)[0], "norm": lambda x: x.norm(2, (2, 3)),
    "norm_one": lambda x: x.norm(1, 2, keepdim=True), "var": lambda x: x.var((2, 3)),
    "var_biased": lambda x: x.var((2, 3), correction=0, keepdim=True),
    "std": lambda x: x.std((1, 2, 3)), "var_mean": lambda x: torch.var_mean(x, (2, 3)),
    "std_mean": lambda x: torch.std_mean(x, 2, keepdim=True),
    "pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "max_pool": lambda x: F.adaptive_max_pool2d(x, 1),
    "pool_rows": lambda x: F.adaptive_avg_pool2d(x, (1, x.shape[3])),
    "pool_columns": lambda x: F.adaptive_avg_pool2d(x, (x.shape[2], 1)),
    "window": lambda x: F.avg_pool2d(x, x.shape[2:]), "view": lambda x: x.flatten(2).mean(2),
    "view_max": lambda x: x.view(*x.shape[:2], -1).amax(-1),
    "power": lambda x: x.pow(2).mean((2, 3)),
    "two": lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1).relu(),
    "excite": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)) + x.amax((2, 3), True),
    "response": lambda x: x * x.norm(2, (2, 3), keepdim=True) + x,
    "mean_of_pool": lambda x: F.max_pool2d(x, 3, 1, 1).mean((2, 3)),
    "broadcast": lambda x: x - x.mean(2, keepdim=True),
    "rows_and_batch": lambda x: x.mean((0, 1, 2)),
}  # fmt: skip


@FEW
@given(image=images(least=2))
def test_global_reductions(image: Image) -> None:
    check_modules([Apply(function) for function in GLOBAL.values()], image.make())


def norms() -> list[nn.Module]:
    torch.manual_seed(1)
    modules: list[nn.Module] = [
        nn.GroupNorm(2, 4), nn.GroupNorm(4, 4), nn.GroupNorm(1, 4, affine=False),
        nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, affine=True),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4, track_running_stats=False, affine=False),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1)),
    ]  # fmt: skip
    for module in modules:
        for name, parameter in module.named_parameters():
            if name.endswith(("weight", "bias")) and parameter.dim() == 1:
                parameter.data.normal_(1.0, 0.5)
    return modules


@FEW
@given(image=images(least=3))
def test_normalisation_with_the_statistics_of_the_request(image: Image) -> None:
    check_modules(norms(), image.make())


@pytest.mark.parametrize("ndim", [1, 3])
def test_reductions_of_other_maps(ndim: int) -> None:
    image = Image((2, 4, 6, *[3] * (ndim - 1))).make()
    pools = {
        1: (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
        3: (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
    }
    dims = tuple(range(2, ndim + 2))
    modules = [pool(1) for pool in pools[ndim]]
    modules += [Apply(lambda x: x.mean(dims)), Apply(lambda x: x - x.amax(dims, keepdim=True))]
    modules += [nn.GroupNorm(2, 4), (nn.InstanceNorm1d if ndim == 1 else nn.InstanceNorm3d)(4)]
    check_modules(modules, image)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    """Summing squares alone would lose all digits here."""
    image = torch.randn(1, 4, 9, 7) * 0.01 + 300
    model = build(nn.GroupNorm(2, 4), image)
    reference = widened(model.module, image)
    error = relative_error(random_job(model, 3, 0).run(image), reference)
    plain = relative_error((model.module(image).detach(),), reference)
    assert error <= max(1e-5, 4 * plain)


def test_only_one_value_per_channel_travels() -> None:
    """Squeeze and excitation over a divided map: no message holds rows of the map itself."""
    torch.manual_seed(0)
    block = Apply(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)))
    image = torch.randn(1, 4, 8, 5)
    model = build(nn.Sequential(nn.Conv2d(4, 4, 1), block), image)
    (combined,) = [layer for layer in model.graph.layers if layer.combine]
    assert combined.out.size_bytes == 4 * 4
    assert combined.rows == 8
    assert all(layer.splits or layer.out.rows == 1 for layer in model.graph.layers
               if layer.kind == "compute")  # fmt: skip
