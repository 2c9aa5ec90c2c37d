"""Depthwise convolutions and pools by sliding windows, against plain torch in float64."""

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

if not usable("channelwise"):
    pytest.skip("llvmlite is not installed, or not for this processor", allow_module_level=True)

from edgeflow_mpi.kernels.channelwise.code import Variant, emit_slide
from edgeflow_mpi.kernels.channelwise.windows import Operands, Sliding, Windows, code
from edgeflow_mpi.kernels.llvm.machine import Machine, native
from tests.machine_code import PROCESSORS, Processor, assembly, run_natively

Tensor = torch.Tensor

BOUND = 1e-6
"""Of the largest result: the rounding of sums over a window in float32."""


def machines() -> Iterator[Machine]:
    """This processor, and as if it were one with shorter vectors."""
    machine = native()
    assert machine is not None
    yield machine
    yield replace(machine, lanes=8)
    yield replace(machine, lanes=4, panel_vectors=4)


@pytest.mark.parametrize("machine", [*machines()], ids=lambda machine: f"{machine.lanes}lanes")
@pytest.mark.parametrize("columns", [1, 3, 5])
def test_random_depthwise_convolutions_agree_with_float64(machine: Machine, columns: int) -> None:
    random, done = Random(columns), 0
    while done < 12:
        stride, dilation = random.choice([(1, 1), (2, 1), (1, 2)])
        variant = Variant("depthwise", columns, dilation, stride)
        rows, row_dilation, row_stride = (
            random.randrange(1, 6), random.randrange(1, 3), random.randrange(1, 3),
        )  # fmt: skip
        above, below = random.randrange(rows), random.randrange(rows)
        left, right = random.randrange(columns), random.randrange(columns)
        images, channels = random.choice([1, 1, 3]), machine.lanes + random.randrange(50)
        tensor = maps(
            images, channels, random.randrange(1, 20), random.randrange(1, 24), random, parts=True
        )
        height, width = tensor.shape[2:]
        made_height = (height + above + below - row_dilation * (rows - 1) - 1) // row_stride + 1
        made_width = (width + left + right - dilation * (columns - 1) - 1) // stride + 1
        sliding = Sliding(
            images, channels, height, width, made_height, made_width, above, left,
            rows, row_dilation, row_stride,
        )  # fmt: skip
        if min(made_height, made_width) < 1 or not sliding.every_window_has_rows():
            continue
        weight = torch.randn(channels, 1, rows, columns)
        bias = torch.randn(channels)
        low, high = random.choice([(0.0, math.inf), (0.0, 6.0), (-math.inf, math.inf)])
        expected = F.conv2d(
            F.pad(tensor.double(), (left, right, above, below)), weight.double(), bias.double(),
            (row_stride, stride), 0, (row_dilation, dilation), channels,
        ).clamp(low, high)  # fmt: skip
        operands = Operands(weight.flatten(1).t().contiguous(), bias, low, high)
        run = code(machine, variant)
        assert run is not None
        made = Windows(variant, run, sliding, operands, random.choice([1, 2, 5]))
        result = made.run(tensor)
        assert relative_error([result], [expected]) <= BOUND, sliding
        # Into a part of a larger map: the same values, and nothing beside them.
        around = Surrounded(images, channels, made_height, made_width, random.choice([0, 5]))
        made.into(around.part, tensor)
        assert torch.equal(around.part, result)
        assert around.untouched()
        # Once more, by what needs no Python.
        call = made.bind(around.part, tensor)
        if call is not None:
            around.part.fill_(torch.nan)
            run_natively(call)
            assert torch.equal(around.part, result)
            assert around.untouched()
        done += 1


class Blocks(nn.Module):
    """Depthwise convolutions and pools as networks have them, and others beside."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(40, 40, 3, padding=1, groups=40, bias=False)
        self.strided = nn.Conv2d(40, 40, 5, stride=2, padding=2, groups=40)
        self.dilated = nn.Conv2d(40, 40, 3, padding="same", dilation=2, groups=40)
        self.grouped = nn.Conv2d(40, 40, 3, padding=1, groups=20)
        self.ceiled = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.mean = nn.AvgPool2d(3, 1, padding=1)
        self.borderless = nn.AvgPool2d((3, 2), 2, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.same(x))
        x = F.max_pool2d(x, 3, 1, 1) + self.mean(x)
        x = F.silu(self.strided(x))
        x = torch.relu(self.dilated(x) + x)
        x = self.ceiled(self.grouped(x))
        return F.avg_pool2d(self.borderless(x), 2, 1, divisor_override=3)


@pytest.mark.parametrize("batch", [1, 2])
def test_every_span_of_layers_agrees_with_float64(batch: int) -> None:
    torch.manual_seed(0)
    request = torch.randn(batch, 40, 23, 18, generator=torch.Generator().manual_seed(1))
    model = build(Blocks(), request)
    wide = build(copy.deepcopy(model.module).double(), request.double())
    values, random, done = node_values(wide.program, request.double()), Random(2), set()
    for layer in model.graph.layers:
        if layer.kind != "compute":
            continue
        for rows in some_spans(layer.rows, random):
            kernel = prepare(model.graph, layer, rows, model.weights, model.needs, "channelwise")
            if kernel.engine != "channelwise":
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
    assert len(done) >= 7
    for ranks in (1, 3):
        expected, bound = tolerance(model.module, request)
        job = random_job(model, ranks, ranks)
        assert relative_error(job.run(request), expected) <= bound


class Mean(nn.Module):
    """The end of most networks: a mean over all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(F.adaptive_avg_pool2d(torch.relu(x), 1), 1)


@pytest.mark.parametrize("batch", [1, 3])
def test_means_over_divided_rows_agree_with_float64(batch: int) -> None:
    request = torch.randn(batch, 24, 9, 7, generator=torch.Generator().manual_seed(batch))
    model = build(Mean(), request)
    expected, bound = tolerance(model.module, request)
    done = [
        prepare(model.graph, layer, rows, model.weights, model.needs, "channelwise").engine
        for layer in model.graph.layers
        if layer.kind == "compute" and "relu" not in layer.name
        for rows in (Span(0, layer.rows), Span(0, 1))
    ]
    assert done == ["channelwise"] * 4
    for ranks in (1, 2, 4):
        job = random_job(model, ranks, ranks)
        assert relative_error(job.run(request), expected) <= bound


class Branches(nn.Module):
    """The end of a block of Inception's: maps side by side."""

    def forward(self, x: Tensor) -> Tensor:
        branches = F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 1, 1), F.max_pool2d(x, 1)
        return F.max_pool2d(torch.cat([*branches, branches[0]], -3), 3, 2)


def test_maps_are_put_side_by_side() -> None:
    request = torch.randn(1, 20, 13, 9, generator=torch.Generator().manual_seed(3))
    model = build(Branches(), request)
    layer = next(layer for layer in model.graph.layers if "cat" in layer.name)
    for rows in some_spans(layer.rows, Random(4)):
        kernel = prepare(model.graph, layer, rows, model.weights, model.needs, "channelwise")
        operands = [torch.randn(1, 20, rows.rows, 9) for _ in layer.inputs]
        held = [one.contiguous(memory_format=torch.channels_last) for one in operands]
        out = empty(layer.out, rows.rows)
        kernel.write(out, *held)
        assert kernel.engine == "channelwise" and kernel.bind is not None
        assert kernel.bind(out, *held) is not None
        assert torch.equal(out, kernel(*held))
    expected, bound = tolerance(model.module, request)
    for ranks in (1, 2, 3):
        job = random_job(model, ranks, ranks)
        assert relative_error(job.run(request), expected) <= bound


def test_a_pool_of_what_is_not_a_number_is_not_a_number() -> None:
    """As in plain torch, wherever in its window it stands, and whatever else does."""
    request = torch.full((1, 16, 6, 9), -math.inf)
    request[0, :, 1, 1] = 4.0
    request[0, 0, 3, 4] = math.nan
    request[0, 1, 0, 0] = math.inf
    model = build(nn.MaxPool2d(3, 1, 1), request)
    layer = next(layer for layer in model.graph.layers if layer.kind == "compute")
    kernel = prepare(model.graph, layer, Span(0, 6), model.weights, model.needs, "channelwise")
    assert kernel.engine == "channelwise"
    tensor = request.contiguous(memory_format=torch.channels_last)
    assert torch.equal(kernel(tensor).isnan(), F.max_pool2d(request, 3, 1, 1).isnan())
    made, expected = kernel(tensor).nan_to_num(7.0), F.max_pool2d(request, 3, 1, 1)
    assert torch.equal(made, expected.nan_to_num(7.0))


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)
def test_code_is_made_for_every_kind_of_processor(processor: Processor) -> None:
    """With as many multiplications as the groups have taps and results."""
    variant = Variant("depthwise", 3, 1, 1)
    made = assembly(processor, emit_slide(processor.machine, variant))
    products = variant.columns * (2 * variant.group + 1)
    assert made.count("fmla") + made.count("vfmadd") >= products
