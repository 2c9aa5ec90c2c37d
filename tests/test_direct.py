"""Direct convolutions of all kinds, against plain torch in float64."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.pixels import with_pixels
from edgeflow_mpi.kernels.buffers import empty
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.kernels.registry import usable
from edgeflow_mpi.spans import Span
from tests.inprocess import build, node_values, random_job, relative_error, tolerance
from tests.maps import Surrounded, maps
from tests.rule_checks import piece, some_spans

if not usable("direct"):
    pytest.skip("llvmlite is not installed, or not for this processor", allow_module_level=True)

from edgeflow_mpi.kernels.direct import convolution
from edgeflow_mpi.kernels.direct.code import emit_convolution
from edgeflow_mpi.kernels.direct.convolution import Convolution, Shape, code, copies, cut
from edgeflow_mpi.kernels.direct.filters import filters
from edgeflow_mpi.kernels.llvm.machine import Machine, native
from tests.machine_code import PROCESSORS, Processor, assembly, run_natively

Tensor = torch.Tensor

BOUND = 1e-7
"""Of the largest result, times the square root of the number of summands: their rounding."""


def machines() -> Iterator[Machine]:
    """This processor, and as if it were one with shorter vectors or fewer registers."""
    machine = native()
    assert machine is not None
    yield machine
    yield replace(machine, lanes=8, panel_tiles=6)
    yield replace(machine, lanes=4, panel_vectors=4, panel_tiles=5)


def check_random_convolution(machine: Machine, channels: int, random: Random) -> bool:
    """One convolution, everything about it by chance; False where there is none."""
    kernel = random.choice([(1, 1), (3, 3), (2, 5), (7, 7), (1, 4)])
    strides = random.choice([(1, 1), (2, 2), (1, 3)])
    dilation = random.choice([(1, 1), (1, 1), (2, 1), (1, 2)])
    above, below = random.randrange(kernel[0]), random.randrange(kernel[0])
    left, right = random.randrange(kernel[1]), random.randrange(kernel[1])
    images, out_channels = random.choice([1, 1, 3]), machine.lanes + random.randrange(90)
    tensor = maps(images, channels, random.randrange(1, 20), random.randrange(6, 24), random)
    height, width = tensor.shape[2:]
    if (
        min(
            height + above + below - dilation[0] * (kernel[0] - 1),
            width + left + right - dilation[1] * (kernel[1] - 1),
        )
        < 1
    ):
        return False
    weight = torch.randn(out_channels, channels, *kernel) / math.sqrt(channels * math.prod(kernel))
    bias = torch.randn(out_channels) if random.random() < 0.5 else None
    padded = F.pad(tensor.double(), (left, right, above, below))
    wide = None if bias is None else bias.double()
    expected = F.conv2d(padded, weight.double(), wide, strides, 0, dilation)
    scale = float(expected.abs().max())
    rows, columns = expected.shape[2:]
    other = None
    if random.random() < 0.5:
        other = maps(images, out_channels, rows, columns, random, parts=True)
    if other is not None:
        expected = expected + other
    low, high = random.choice([(0.0, math.inf), (0.0, 1.0), (-math.inf, math.inf)])
    shape = Shape(
        images, channels, height, width, out_channels, rows, columns, above, left,
        kernel, strides, dilation,
    )  # fmt: skip
    run = code(machine)
    assert run is not None
    threads = random.choice([1, 2, 5])
    made = Convolution(machine, run, filters(weight, bias, machine), shape, low, high, threads)
    result = made.run(tensor, other)
    error = float((result - expected.clamp(low, high)).abs().max())
    assert error <= BOUND * scale * max(20, math.sqrt(weight[0].numel())), shape
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
    return True


@pytest.mark.parametrize("machine", [*machines()], ids=lambda machine: f"{machine.lanes}lanes")
@pytest.mark.parametrize("channels", [3, 21, 512], ids=str)
def test_random_convolutions_agree_with_float64(
    machine: Machine, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(channels)
    assert sum(check_random_convolution(machine, channels, random) for _ in range(12)) > 5
    # Blocks of single rows.
    monkeypatch.setattr(convolution, "BLOCK_BYTES", 1)
    monkeypatch.setattr(convolution, "MOST_BYTES", 1)
    assert sum(check_random_convolution(machine, channels, random) for _ in range(4)) > 0


def test_items_are_enough_for_all_threads_and_blocks_even() -> None:
    for rows, columns, channels, kernel in [(56, 56, 64, 1), (7, 7, 512, 3), (14, 14, 256, 3)]:
        padding = kernel // 2
        shape = Shape(
            1, channels, rows, columns, 256, rows, columns, padding, padding,
            (kernel, kernel), (1, 1), (1, 1),
        )  # fmt: skip
        assert copies(shape) == (kernel > 1)
        for threads in (1, 2, 4):
            weights_bytes = 4 * 256 * channels * kernel**2
            block, share = cut(shape, 4 * columns * channels, weights_bytes, 8, threads)
            blocks = -(-rows // block)
            assert block * blocks - rows < blocks
            assert blocks * -(-8 // share) >= (3 * threads if threads > 1 else 1)


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)
def test_sums_stay_in_the_registers(processor: Processor) -> None:
    """For every kind of processor, whatever this one is: no loop with products stores vectors."""
    made = assembly(processor, emit_convolution(processor.machine))
    blocks = re.split(r"\n(?=\.?L[A-Z]*\d+_\d+:)", made)
    loops = [block for block in blocks if "fmla" in block or "vfmadd" in block]
    assert len(loops) >= 10
    assert not any(re.search(processor.stacked, loop) for loop in loops)


class Blocks(nn.Module):
    """Convolutions that stand at the beginning of networks and between their stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2, padding=3, bias=False)
        self.strided = nn.Conv2d(32, 40, 3, stride=2, padding=1)
        self.thin = nn.Conv2d(40, 19, 1)
        self.dilated = nn.Conv2d(19, 40, 3, padding="same", dilation=2)
        self.even = nn.Conv2d(40, 40, (2, 4), padding="same")
        self.skip = nn.Conv2d(40, 48, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.strided(F.relu6(self.stem(x))))
        x = torch.relu(self.dilated(self.thin(x)) + x)
        return self.skip(F.silu(self.even(x)))


@pytest.mark.parametrize("batch", [1, 2])
def test_every_span_of_layers_agrees_with_float64(batch: int) -> None:
    torch.manual_seed(0)
    request = torch.randn(batch, 3, 45, 34, generator=torch.Generator().manual_seed(1))
    model = build(Blocks(), request)
    wide = build(copy.deepcopy(model.module).double(), request.double())
    values, random, done = node_values(wide.program, request.double()), Random(2), set()
    for layer in model.graph.layers:
        if layer.kind != "compute":
            continue
        for rows in some_spans(layer.rows, random):
            kernel = prepare(model.graph, layer, rows, model.weights, model.needs, "direct")
            if kernel.engine != "direct":
                continue
            operands = [
                piece(values[name].float(), model.graph.by_name[name].out, need)
                for name, need in zip(layer.inputs, kernel.needs, strict=True)
            ]
            expected = values[layer.name].narrow(2, rows.start, rows.rows)
            error = float((kernel(*operands) - expected).abs().max())
            assert error <= 30 * BOUND * float(values[layer.name].abs().max()), (layer.name, rows)
            out = empty(layer.out, rows.rows).fill_(float("nan"))
            kernel.write(out, *operands)
            assert torch.equal(out, kernel(*operands))
            done.add(layer.name)
    assert len(done) >= 6
    for ranks in (1, 3):
        expected, bound = tolerance(model.module, request)
        job = random_job(model, ranks, ranks)
        assert relative_error(job.run(request), expected) <= bound


class Head(nn.Module):
    """Linear layers at the end of a network, wide and narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(48, 100)
        self.last = nn.Linear(100, 21, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.wide(x)))


@pytest.mark.parametrize("batch", [1, 3])
def test_linear_layers_agree_with_float64(batch: int) -> None:
    request = torch.randn(batch, 48, generator=torch.Generator().manual_seed(batch))
    model = build(Head(), request)
    expected, bound = tolerance(model.module, request)
    held = {model.graph.inputs[0].name: request}
    for layer in model.graph.layers:
        if layer.kind == "compute":
            rows = Span(0, layer.rows)
            kernel = prepare(model.graph, layer, rows, model.weights, model.needs, "direct")
            assert kernel.engine == "direct"
            held[layer.name] = kernel(*(held[name] for name in layer.inputs))
            for out in (empty(layer.out, layer.rows), torch.empty(200, batch).t()):
                wanted = out[:, : layer.out.shape[1]].fill_(math.nan)
                kernel.write(wanted, *(held[name] for name in layer.inputs))
                assert torch.equal(wanted, held[layer.name])
    (answer,) = model.graph.outputs[0].inputs
    assert relative_error([held[answer]], expected) <= bound


@pytest.mark.parametrize("batch", [1, 2])
def test_pixels_are_normalised_as_by_plain_torch(batch: int) -> None:
    torch.manual_seed(1)
    model = build(nn.Conv2d(3, 32, 3, stride=2, padding=1), torch.randn(batch, 3, 19, 13))
    graph, weights = with_pixels(model.graph, model.weights, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    needs = Needs(graph)
    (layer,) = (layer for layer in graph.layers if layer.kind == "compute")
    generator = torch.Generator().manual_seed(batch)
    image = torch.randint(0, 256, (batch, 3, 19, 13), generator=generator, dtype=torch.uint8)
    for rows in some_spans(layer.rows, Random(batch)):
        kernels = [
            prepare(graph, layer, rows, weights, needs, engine) for engine in ("direct", "aten")
        ]
        assert kernels[0].engine == "direct"
        operand = piece(image, graph.inputs[0].out, kernels[0].needs[0])
        made, expected = (kernel(operand) for kernel in kernels)
        assert relative_error([made], [expected]) <= 20 * BOUND
    # Without weights but one, what is left is the pixel, rounded three times.
    with torch.no_grad():
        for one in (w for name, w in weights.items() if w.dim() == 4):
            one.zero_()[:, 0, 1, 1] = 1
        for one in (w for name, w in weights.items() if w.dim() == 1):
            one.zero_()
    kernels = [
        prepare(graph, layer, Span(0, layer.rows), weights, needs, engine)
        for engine in ("direct", "aten")
    ]
    operand = piece(image, graph.inputs[0].out, kernels[0].needs[0])
    assert torch.equal(kernels[0](operand), kernels[1](operand))
