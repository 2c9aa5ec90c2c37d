"""1×1 convolutions as matrix products, against plain torch in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeflow_mpi.kernels.buffers import empty
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.kernels.registry import usable
from edgeflow_mpi.spans import Span
from tests.inprocess import build, node_values, random_job, relative_error, tolerance
from tests.maps import Surrounded, maps
from tests.rule_checks import piece, some_spans

if not usable("pointwise"):
    pytest.skip("llvmlite is not installed, or not for this processor", allow_module_level=True)

from edgeflow_mpi.kernels.llvm.machine import Machine, native
from edgeflow_mpi.kernels.llvm.packed import packed_weights
from edgeflow_mpi.kernels.pointwise.product import Pixels, Product, code, cut
from tests.machine_code import run_natively

Tensor = torch.Tensor

ONE = torch.ones(1, 1, dtype=torch.float64)
BOUND = 3e-6
"""Of the largest result: the rounding of sums over channels in float32."""


def machines() -> Iterator[Machine]:
    """This processor, and as if it were one with shorter vectors or fewer registers."""
    machine = native()
    assert machine is not None
    yield machine
    yield replace(machine, lanes=8, panel_tiles=6)
    yield replace(machine, lanes=4, panel_vectors=4, panel_tiles=5)


@pytest.mark.parametrize("machine", [*machines()], ids=lambda machine: f"{machine.lanes}lanes")
@pytest.mark.parametrize("channels", [20, 64, 1024], ids=str)
def test_random_products_agree_with_float64(machine: Machine, channels: int) -> None:
    random, run = Random(channels), code(machine)
    assert run is not None
    for _ in range(12):
        images, out_channels = random.choice([1, 1, 3]), machine.panel + random.randrange(90)
        height, width = random.randrange(1, 20), random.randrange(1, 24)
        strides = random.choice([(1, 1), (1, 1), (2, 2), (1, 3)])
        tensor = maps(images, channels, height, width, random)
        weight = torch.randn(out_channels, channels, 1, 1) / math.sqrt(channels)
        bias = torch.randn(out_channels) if random.random() < 0.5 else None
        wide = None if bias is None else bias.double()
        expected = F.conv2d(tensor.double(), weight.double(), wide, strides)
        scale = float(expected.abs().max())
        rows, columns = expected.shape[2:]
        adds = random.random() < 0.5
        other = maps(images, out_channels, rows, columns, random, parts=True) if adds else None
        if other is not None:
            expected = expected + other
        low, high = random.choice([(0.0, math.inf), (0.0, 1.0), (-math.inf, math.inf)])
        expected = expected.clamp(low, high)
        pixels = Pixels(images, channels, height, width, out_channels, rows, columns, strides)
        packed = packed_weights(weight, bias, ONE, "pointwise", machine.panel)
        threads = random.choice([1, 2, 5])
        made = Product(machine, run, packed, pixels, low, high, threads)
        result = made.run(tensor, other)
        assert result.shape == expected.shape
        assert float((result - expected).abs().max()) <= BOUND * scale, pixels
        # Into a part of a larger map: the same values, and nothing beside them.
        around = Surrounded(images, out_channels, rows, columns, random.choice([0, 5]))
        made.into(around.part, tensor, other)
        assert torch.equal(around.part, result)
        assert around.untouched()
        # Once more, by what needs no Python.
        call = made.bind(around.part, tensor, other)
        if call is not None:
            around.part.fill_(torch.nan)
            run_natively(call)
            assert torch.equal(around.part, result)
            assert around.untouched()


def test_items_are_enough_for_all_threads_and_blocks_even() -> None:
    machine = native()
    assert machine is not None
    for channels, pixels, panels in [(64, 3136, 8), (2048, 49, 16), (1024, 196, 8)]:
        for threads in (1, 2, 4):
            block, share = cut(machine, channels, pixels, 1, panels, threads)
            blocks = -(-pixels // block)
            assert block - pixels // blocks <= 1
            assert blocks * -(-panels // share) >= (3 * threads if threads > 1 else 1)


class Blocks(nn.Module):
    """A bottleneck with what stands around 1×1 convolutions in networks."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(64, 32, 1, bias=False)
        self.widen = nn.Conv2d(32, 64, 1)
        self.skip = nn.Conv2d(64, 80, 1, stride=2)
        self.small = nn.Conv2d(80, 24, 1)
        self.last = nn.Conv2d(24, 100, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.widen(F.relu6(self.reduce(x))) + x)
        x = F.hardswish(self.skip(x))
        return self.last(self.small(x))


@pytest.mark.parametrize("batch", [1, 2])
def test_every_span_of_layers_agrees_with_float64(batch: int) -> None:
    torch.manual_seed(0)
    request = torch.randn(batch, 64, 13, 9, generator=torch.Generator().manual_seed(1))
    model = build(Blocks(), request)
    wide = build(copy.deepcopy(model.module).double(), request.double())
    values, random, done = node_values(wide.program, request.double()), Random(2), set()
    for layer in model.graph.layers:
        if layer.kind != "compute":
            continue
        for rows in some_spans(layer.rows, random):
            kernel = prepare(model.graph, layer, rows, model.weights, model.needs, "pointwise")
            if kernel.engine != "pointwise":
                continue
            operands = [
                piece(values[name].float(), model.graph.by_name[name].out, need)
                for name, need in zip(layer.inputs, kernel.needs, strict=True)
            ]
            expected = values[layer.name].narrow(2, rows.start, rows.rows)
            error = float((kernel(*operands) - expected).abs().max())
            assert error <= BOUND * float(values[layer.name].abs().max()), (layer.name, rows)
            out = empty(layer.out, rows.rows).fill_(float("nan"))
            kernel.write(out, *operands)
            assert torch.equal(out, kernel(*operands))
            done.add(layer.name)
    assert len(done) >= 4
    for ranks in (1, 3):
        expected, bound = tolerance(model.module, request)
        job = random_job(model, ranks, ranks)
        assert relative_error(job.run(request), expected) <= bound


def test_few_pixels_are_left_to_others() -> None:
    request = torch.randn(1, 64, 1, 3)
    model = build(nn.Conv2d(64, 64, 1), request)
    layer = next(layer for layer in model.graph.layers if layer.kind == "compute")
    kernel = prepare(model.graph, layer, Span(0, 1), model.weights, model.needs, "pointwise")
    assert kernel.engine != "pointwise"
