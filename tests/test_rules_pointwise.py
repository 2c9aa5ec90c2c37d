"""Operators row by row: broadcasting, normalisation, reductions, products, concatenation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.rule_checks import FEW, Apply, Image, check_modules, images

Tensor = torch.Tensor
Function = Callable[[Tensor], object]

UNARY: dict[str, Function] = {
    "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "mish": F.mish,
    "silu": F.silu, "elu": F.elu, "celu": F.celu, "selu": F.selu, "softplus": F.softplus,
    "leaky": lambda x: F.leaky_relu(x, 0.2), "gelu": F.gelu, "tanhshrink": F.tanhshrink,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "log_sigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.1, -1.0), "softsign": F.softsign, "sin": torch.sin,
    "clamp": lambda x: x.clamp(-0.5, 0.5), "pow": lambda x: (x.abs() + 1) ** 1.5,
    "scalars": lambda x: (2 - x) * 3 / 4 + 1, "where": lambda x: torch.where(x > 0, x, -x / 2),
    "masked": lambda x: x.masked_fill(x < 0, 0.5), "dtype": lambda x: x.float().double(),
    "compare": lambda x: x > 0.1, "rsub": lambda x: torch.rsub(x, x, alpha=2),
    "same_operand": lambda x: x * x + x, "glu": lambda x: F.glu(x, 1), "rows_of_one": lambda x: -x,
    "glu_columns": lambda x: F.glu(torch.cat([x, x], 3), 3), "lerp": lambda x: torch.lerp(x, -x, x),
}  # fmt: skip

ALONG_OTHERS: dict[str, Function] = {
    "softmax": lambda x: x.softmax(1), "log_softmax": lambda x: F.log_softmax(x, 3),
    "softmin": lambda x: F.softmin(x, 1), "cumsum": lambda x: x.cumsum(3),
    "mean": lambda x: x.mean(1), "mean_keep": lambda x: x.mean((1, 3), keepdim=True),
    "sum": lambda x: x.sum(-1), "amax": lambda x: x.amax(1, keepdim=True),
    "amin": lambda x: x.amin((1,)), "max": lambda x: x.max(1, keepdim=True)[0],
    "min": lambda x: x.min(3)[0], "argmax": lambda x: x.argmax(1), "argmin": lambda x: x.argmin(3),
    "norm": lambda x: F.normalize(x, dim=1), "lp": lambda x: torch.linalg.vector_norm(x, 3, 1),
    "logsumexp": lambda x: x.logsumexp(1), "var": lambda x: x.var(1, unbiased=False),
    "std": lambda x: x.std(1, keepdim=True), "prod": lambda x: x.prod(1),
    "any": lambda x: (x > 1).any(1), "all": lambda x: (x > -1).all(1, keepdim=True),
    "topk": lambda x: x.topk(2, 1)[0], "sort": lambda x: x.sort(1)[0],
    "roll": lambda x: x.roll(1, 3), "flip": lambda x: x.flip((1, 3)),
    "shuffle": lambda x: F.channel_shuffle(x, 2), "pick": lambda x: x[:, [2, 0, 0]],
    "index_select": lambda x: x.index_select(1, torch.tensor([3, 1])),
    "chunk": lambda x: x.chunk(2, 1), "split": lambda x: x.split([1, 3], 1),
    "unbind": lambda x: x.unbind(1), "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
}  # fmt: skip


FAMILIES = {"unary": UNARY, "along_others": ALONG_OTHERS}


@pytest.mark.parametrize("family", FAMILIES)
@FEW
@given(image=images(least=2))
def test_row_by_row(family: str, image: Image) -> None:
    check_modules([Apply(function) for function in FAMILIES[family].values()], image.make())


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


class Combine(nn.Module):
    """An input with a constant of some shape, on either side, through several operators."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.other = parameter(*shape)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x + self.other, self.other - x, x * self.other * x, torch.atan2(self.other, x)


@FEW
@given(image=images())
def test_constants_broadcast(image: Image) -> None:
    batch, channels, rows, columns = image.shape
    shapes = [
        (), (1,), (1, channels, 1, 1), (channels, 1, 1), (columns,), (rows, 1), (rows, columns),
        (channels, rows, columns), (batch, 1, rows, 1), (batch, channels, rows, columns),
        (1, 1, 1, columns), (batch, 1, 1, 1),
    ]  # fmt: skip
    check_modules([Combine(*shape) for shape in shapes], image.make())


@FEW
@given(image=images(), data=st.data())
def test_operands_broadcast(image: Image, data: st.DataObject) -> None:
    """Both operands come from the request: one of them lacks rows, columns or channels."""
    x = image.make()
    keep = data.draw(st.sets(st.integers(0, 3), min_size=1, max_size=4))
    other = x[tuple(slice(None) if dim in keep else slice(0, 1) for dim in range(4))].clone()
    functions = [lambda a, b: a + b, lambda a, b: b * a - b, lambda a, b: torch.maximum(b, a) / 2]
    check_modules([Apply(function) for function in functions], x, other, splits=None)


def test_a_map_that_gains_rows_by_broadcasting() -> None:
    column, row = torch.randn(2, 3, 7, 1).double(), torch.randn(2, 3, 1, 5).double()
    check_modules([Apply(lambda a, b: a + b), Apply(lambda a, b: (b - a) * b)], column, row)


class ChannelsLast(nn.Module):
    """Applies a module to the map with its channels last."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> object:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@FEW
@given(image=images(channels=4), dims=st.sampled_from([1, 2]))
def test_normalisation(image: Image, dims: int) -> None:
    torch.manual_seed(0)
    shape = image.shape
    norm = nn.BatchNorm2d(4)
    norm.running_mean.copy_(torch.randn(4))
    norm.running_var.copy_(torch.rand(4) + 0.5)
    layer = nn.LayerNorm(shape[3:]) if dims == 1 else nn.LayerNorm((shape[1],))
    layer.weight.data.copy_(torch.randn(layer.weight.shape))
    wrapped = layer if dims == 1 else ChannelsLast(layer)
    modules = [
        norm, nn.BatchNorm2d(4, affine=False), wrapped, nn.LocalResponseNorm(3), nn.PReLU(4),
        nn.PReLU(), nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.Identity(),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU6()),
    ]  # fmt: skip
    check_modules(modules, image.make(), splits=True)


@FEW
@given(image=images(least=2))
def test_products_over_the_last_dimension(image: Image) -> None:
    torch.manual_seed(0)
    columns = image.shape[3]

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = parameter(columns, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    modules = [
        nn.Linear(columns, 4),
        nn.Linear(columns, 2, bias=False),
        Product(),
        ChannelsLast(nn.Linear(4, 6)),
    ]
    check_modules(modules, image.make())


class WithCoordinates(nn.Module):
    """Concatenates two constant channels that tell where a pixel is."""

    def __init__(self, rows: int, columns: int, batch: int) -> None:
        super().__init__()
        down = torch.linspace(-1, 1, rows).reshape(1, 1, rows, 1).expand(batch, 1, rows, columns)
        right = torch.linspace(-1, 1, columns).expand(batch, 1, rows, columns)
        self.register_buffer("where", torch.cat([down, right], 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.where], 1)


@FEW
@given(image=images(least=2))
def test_concatenation(image: Image) -> None:
    batch, _, rows, columns = image.shape
    functions = [
        lambda x: torch.cat([x, x * 2, x], 1), lambda x: torch.cat([x, -x], 3),
        lambda x: torch.cat([x, x.relu()], 0), lambda x: torch.stack([x, -x], 1),
        lambda x: torch.stack([x, -x], 2), lambda x: torch.stack([x, x], -1),
        lambda x: torch.cat([x, x.mean((2, 3), keepdim=True).expand(-1, -1, rows, columns)], 1),
        lambda x: torch.cat([x.amax((2, 3), keepdim=True).repeat(1, 1, rows, columns), x], 1),
        lambda x: torch.hstack([x, x]),
    ]  # fmt: skip
    modules = [*(Apply(f) for f in functions), WithCoordinates(rows, columns, batch)]
    check_modules(modules, image.make())


@FEW
@given(image=images(least=2))
def test_concatenation_of_rows(image: Image) -> None:
    check_modules(
        [Apply(lambda x: torch.cat([x, -x], 2)), Apply(lambda x: torch.cat([x[:, :, 1:], x], 2))],
        image.make(),
        splits=None,
    )
