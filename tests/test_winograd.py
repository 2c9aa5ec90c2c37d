"""Convolutions by minimal filtering: exact matrices, code for several processors, whole layers."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeflow_mpi.graph.types import Layer
from edgeflow_mpi.kernels.buffers import empty
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.kernels.registry import usable
from edgeflow_mpi.spans import Span
from tests.inprocess import Model, build, node_values, random_job, relative_error, tolerance
from tests.maps import Surrounded, maps
from tests.rule_checks import piece, some_spans

if not usable("winograd"):
    pytest.skip("llvmlite is not installed, or not for this processor", allow_module_level=True)

from llvmlite import ir

from edgeflow_mpi.kernels.llvm import objects
from edgeflow_mpi.kernels.llvm.machine import Machine, native
from edgeflow_mpi.kernels.llvm.packed import PackedWeights, packed_weights
from edgeflow_mpi.kernels.winograd.blocking import blocking
from edgeflow_mpi.kernels.winograd.choice import candidates, suited
from edgeflow_mpi.kernels.winograd.compiled import code
from edgeflow_mpi.kernels.winograd.convolution import Convolution, Shape
from edgeflow_mpi.kernels.winograd.gemm import emit_gemm
from edgeflow_mpi.kernels.winograd.points import filtering, part
from edgeflow_mpi.kernels.winograd.variant import Variant
from tests.machine_code import PROCESSORS, Processor, assembly, run_natively

Tensor = torch.Tensor

KERNELS = [(3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (5, 1)]
VARIANTS = [variant for kernel in KERNELS for variant in candidates(kernel)]

BOUND = 8e-6
"""Of the largest result: what a convolution may differ from float64 on random values."""


def machines() -> Iterator[Machine]:
    """This processor, and as if it were one with shorter vectors or fewer registers."""
    machine = native()
    assert machine is not None
    yield machine
    yield replace(machine, lanes=8, panel_tiles=6)
    yield replace(machine, lanes=4, panel_vectors=4, panel_tiles=5)


@dataclass(frozen=True)
class Case:
    """A random convolution, everything about it by chance."""

    shape: Shape
    tensor: Tensor
    weight: Tensor
    bias: Tensor | None
    other: Tensor | None
    low: float
    high: float
    expected: Tensor
    scale: float


def some_case(machine: Machine, kernel: tuple[int, int], random: Random) -> Case:
    channels = machine.lanes + 4 * random.randrange(12)
    out_channels = machine.lanes + random.randrange(70)
    images = random.choice([1, 1, 3])
    above, below = random.randrange(kernel[0]), random.randrange(kernel[0])
    left, right = random.randrange(kernel[1]), random.randrange(kernel[1])
    height = random.randrange(max(1, kernel[0] - above - below), 20)
    width = random.randrange(max(1, kernel[1] - left - right), 24)
    tensor = maps(images, channels, height, width, random)
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    weight = torch.randn(out_channels, channels, *kernel, generator=generator)
    weight /= math.sqrt(weight[0].numel())
    bias = torch.randn(out_channels, generator=generator) if random.random() < 0.5 else None
    padded = F.pad(tensor.double(), (left, right, above, below))
    expected = F.conv2d(padded, weight.double(), None if bias is None else bias.double())
    scale = float(expected.abs().max())
    rows, columns = expected.shape[2:]
    other = None
    if random.random() < 0.5:
        other = maps(images, out_channels, rows, columns, random, parts=True)
    if other is not None:
        expected += other
    low, high = random.choice([(0.0, math.inf), (0.0, 1.0), (-math.inf, math.inf)])
    shape = Shape(images, channels, height, width, out_channels, rows, columns, above, left)
    expected = expected.clamp(low, high)
    return Case(shape, tensor, weight, bias, other, low, high, expected, scale)


def packed(
    weight: Tensor, bias: Tensor | None, variant: Variant, machine: Machine
) -> PackedWeights:
    return packed_weights(weight, bias, variant.filter(), str(variant), machine.panel)


def convolution(case: Case, machine: Machine, variant: Variant, threads: int) -> Convolution:
    edges = variant.at_edges(case.shape.out_height, case.shape.out_width)
    made = code(machine, variant, edges)
    assert made is not None
    weights = packed(case.weight, case.bias, variant, machine)
    return Convolution(machine, variant, made, weights, case.shape, case.low, case.high, threads)


def times(matrix: tuple[tuple[Fraction, ...], ...], values: list[Fraction]) -> list[Fraction]:
    return [sum((c * v for c, v in zip(row, values, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize("kernel_and_results", [(m, r) for r in (3, 5, 7) for m in (2, 4)], ids=str)
def test_filtering_is_exact_in_fractions(kernel_and_results: tuple[int, int]) -> None:
    """All of it, and every part of it with fewer results, by the same transformed filter."""
    results, taps = kernel_and_results
    whole = filtering(results, taps)
    random = Random(results)
    weights = [Fraction(random.randrange(-9, 10)) for _ in range(taps)]
    transformed = times(whole.filter, weights)
    for fewer in range(1, results + 1):
        f = part(whole, fewer)
        assert (f.results, f.products) == (fewer, fewer + taps - 1)
        samples = [Fraction(random.randrange(-9, 10)) for _ in range(f.products)]
        products = [
            transformed[k] * b for k, b in zip(f.kept, times(f.input, samples), strict=True)
        ]
        assert times(f.output, products) == [
            sum(samples[i + k] * weights[k] for k in range(taps)) for i in range(fewer)
        ]


@pytest.mark.parametrize("machine", [*machines()], ids=lambda machine: f"{machine.lanes}lanes")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_random_convolutions_agree_with_float64(variant: Variant, machine: Machine) -> None:
    random = Random(str(variant))
    for _ in range(6):
        case = some_case(machine, (variant.height.taps, variant.width.taps), random)
        made = convolution(case, machine, variant, random.choice([1, 1, 2, 3]))
        result = made.run(case.tensor, case.other)
        assert result.shape == case.expected.shape
        error = float((result - case.expected).abs().max()) / case.scale
        assert error <= BOUND, case.shape
        # Into a part of a larger map: the same values, and nothing beside them.
        images, channels, rows, columns = result.shape
        around = Surrounded(images, channels, rows, columns, random.choice([0, 5]))
        made.into(around.part, case.tensor, case.other)
        assert torch.equal(around.part, result)
        assert around.untouched()
        # Once more, by what needs no Python.
        call = made.bind(around.part, case.tensor, case.other)
        if call is not None:
            around.part.fill_(torch.nan)
            run_natively(call)
            assert torch.equal(around.part, result)
            assert around.untouched()


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)
def test_sums_fit_into_the_registers(processor: Processor) -> None:
    """For every kind of processor, whatever this one is: code is made, and no sum is stored."""
    machine = processor.machine
    module = ir.Module(name="gemm")
    emit_gemm(module, machine, machine.panel_tiles)
    made = assembly(processor, str(module))
    assert made.count("fmla") + made.count("vfmadd") >= 4 * machine.panel_tiles
    loop = made[made.index("LBB0_1:") :]
    assert not re.search(processor.stacked, loop)


def test_blocks_are_worked_off_whatever_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small blocks, several panels, more threads than items: the same to the last bit."""
    machine = native()
    assert machine is not None
    (variant, *_) = candidates((3, 3))
    random = Random(3)
    tensor = maps(2, 64, 23, 41, random)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(112, 64, 3, 3, generator=generator)
    expected = F.conv2d(tensor.double(), weight.double(), padding=1)
    shape = Shape(2, 64, 23, 41, 112, 23, 41, 1, 1)
    weights = packed(weight, None, variant, machine)
    made = code(machine, variant, variant.at_edges(23, 41))
    assert made is not None
    whole = Convolution(machine, variant, made, weights, shape).run(tensor)
    assert relative_error([whole], [expected]) <= BOUND
    for name in ("POINTS_BYTES", "STRIP_BYTES"):
        monkeypatch.setattr(f"edgeflow_mpi.kernels.winograd.blocking.{name}", 1)
    monkeypatch.setattr("edgeflow_mpi.kernels.winograd.blocking.LEAST_TILES", 3)
    for threads in (1, 2, 5):
        small = Convolution(machine, variant, made, weights, shape, threads=threads)
        assert torch.equal(small.run(tensor), whole)


def test_blocks_are_even_and_feed_all_threads() -> None:
    (variant, *_) = candidates((3, 3))
    for threads in (1, 2, 4, 16):
        for tiles, across, channels, panels in [(3136, 56, 64, 2), (16, 4, 512, 16), (1, 1, 16, 1)]:
            weights = variant.products * channels * panels * 32 * 4
            cut = blocking(variant, tiles, across, channels, panels, weights, threads)
            assert 1 <= cut.segment <= cut.block <= tiles
            assert 1 <= cut.chunk <= cut.block
            blocks = -(-tiles // cut.block)
            assert cut.block - tiles // blocks <= 1
            if threads == 1:
                assert cut.chunk == cut.block
            elif cut.block < tiles:
                assert blocks >= 3 * threads
            elif tiles > 1000:
                assert panels * -(-tiles // cut.chunk) >= 3 * threads


def test_what_pays_is_chosen() -> None:
    def chosen(kernel: tuple[int, int], rows: int, columns: int, channels: int) -> str:
        return str(suited(kernel, 1, rows, columns, channels, channels))

    assert chosen((3, 3), 56, 56, 64) == "F(4x4, 3x3)"
    assert chosen((3, 3), 7, 7, 512) == "F(4x2, 3x3)"
    assert chosen((3, 3), 4, 7, 512) == "F(2x2, 3x3)"
    assert chosen((3, 3), 2, 56, 64) == "F(2x4, 3x3)"
    assert chosen((7, 1), 17, 17, 192) == "F(4x1, 7x1)"
    for kernel, rows, columns in [((1, 1), 56, 56), ((3, 3), 1, 1), ((2, 2), 9, 9), ((7, 7), 9, 9)]:
        assert chosen(kernel, rows, columns, 64) == "None"


def test_code_is_kept_and_made_again_where_it_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = native()
    assert machine is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ["gemm_1"]

    def unused() -> str:
        raise AssertionError("what is kept need not be made")

    def emit() -> str:
        module = ir.Module(name="gemm")
        emit_gemm(module, machine, 1)
        return str(module)

    def load(source: Callable[[], str]) -> None:
        (address,) = objects.loaded(machine, "test", source, names)
        assert address

    load(emit)
    (kept,) = tmp_path.rglob("*.o")
    load(unused)
    kept.write_bytes(b"broken")
    load(emit)
    assert kept.stat().st_size > 100


class Blocks(nn.Module):
    """Layers as networks have them: alone, with a ReLU, with a residual sum, and others beside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(32, 48, 3, padding=1)
        self.second = nn.Conv2d(48, 48, 3, padding=1, bias=False)
        self.across = nn.Conv2d(48, 32, (1, 7), padding=(0, 3))
        self.down = nn.Conv2d(32, 40, (7, 1), padding=(3, 0))
        self.strided = nn.Conv2d(40, 32, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.last = nn.Conv2d(32, 64, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        x = F.relu6(self.across(x))
        x = F.silu(self.down(x))
        x = self.grouped(self.strided(x))
        return self.last(x)


def image(batch: int, seed: int) -> Tensor:
    return torch.randn(batch, 32, 21, 26, generator=torch.Generator().manual_seed(seed))


def engines(model: Model) -> dict[str, str]:
    """Which engine does a layer, by the layer's last operator."""
    return {
        layer.name: prepare(
            model.graph, layer, Span(0, layer.rows), model.weights, model.needs
        ).engine
        for layer in model.graph.layers
        if layer.kind == "compute"
    }


@pytest.mark.parametrize("batch", [1, 3])
def test_every_span_of_layers_agrees_with_float64(batch: int) -> None:
    torch.manual_seed(0)
    request = image(batch, 1)
    model = build(Blocks(), request)
    wide = build(copy.deepcopy(model.module).double(), request.double())
    values = node_values(wide.program, request.double())
    random, done = Random(5), 0
    for layer in model.graph.layers:
        if layer.kind == "compute":
            done += check_layer(model, layer, values, random)
    assert done > 50


def check_layer(model: Model, layer: Layer, values: dict[str, Tensor], random: Random) -> int:
    """Spans of a layer that this engine does, against the layer in float64; how many."""
    done = 0
    for rows in some_spans(layer.rows, random):
        kernel = prepare(model.graph, layer, rows, model.weights, model.needs, "winograd")
        if kernel.engine != "winograd":
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
        done += 1
    return done


def test_models_under_random_plans_agree_with_float64() -> None:
    torch.manual_seed(0)
    model = build(Blocks(), image(1, 2))
    made_by = engines(model)
    assert sum(name == "winograd" for name in made_by.values()) >= 5
    for ranks in (1, 3):
        job = random_job(model, ranks, ranks)
        for request in (image(1, 2), image(1, 3)):
            expected, bound = tolerance(model.module, request)
            assert relative_error(job.run(request), expected) <= bound


def test_weights_are_packed_once_for_all_spans_of_a_layer() -> None:
    machine = native()
    assert machine is not None
    (variant, *_) = candidates((3, 3))
    weight = torch.randn(32, 32, 3, 3)
    first = packed(weight, None, variant, machine)
    assert packed(weight, None, variant, machine) is first
    assert packed(weight.clone(), None, variant, machine) is not first
    weight += 1
    changed = packed(weight, None, variant, machine)
    assert changed is not first
    assert not torch.equal(changed.values, first.values)
