"""Activations that travel in a narrower type: fewer bytes, and an error of its own size."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from edgeflow_mpi.graph.capture import capture
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.pixels import takes_pixels, with_pixels
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.graph.wire import with_wire
from edgeflow_mpi.model.exporting import decompose, export_module
from edgeflow_mpi.model.images import IMAGENET, normalised
from edgeflow_mpi.partition.flow import trace_flows
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.report.compare import compare_tensor
from edgeflow_mpi.runtime.executor import Executor
from edgeflow_mpi.runtime.memory import MemoryNetwork
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.verify import verify_tables

RANKS = 3


class Net(torch.nn.Module):
    """A strided and a padded convolution, a residual sum and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.stem(x))
        second = torch.relu(self.body(first) + first)
        return torch.as_tensor(self.head(second.mean((2, 3))))


def captured(batch: int) -> tuple[torch.nn.Module, Graph, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = Net().eval()
    program = decompose(export_module(module, (torch.zeros(batch, 3, 23, 17),), "net"), "net")
    graph, weights = capture(program, "net", ["output"])
    return module, graph, weights


def run(graph: Graph, weights: dict[str, torch.Tensor], x: torch.Tensor, seed: int) -> torch.Tensor:
    """All ranks in one process under a random plan, twice, so that buffers are used again."""
    needs = Needs(graph)
    tables = compile_tables(graph, needs, random_plan(graph, needs, RANKS, random.Random(seed)))
    verify_tables(graph, needs, tables)
    network = MemoryNetwork(RANKS, late=random.Random(seed))
    ranks = [
        Executor(graph, needs, tables, rank, weights, network.transport(rank))
        for rank in range(RANKS)
    ]
    for tensor in (torch.zeros_like(x), x):
        for rank, executor in enumerate(ranks):
            executor.begin({"x": tensor} if rank == 0 else {})
        while not all(executor.finished for executor in ranks):
            stepped = any(executor.step() for executor in ranks)
            assert stepped or network.moving, "deadlock"
    return ranks[0].outputs()["output0"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("wire", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_narrow_activations_cost_their_own_rounding(
    wire: str, dtype: torch.dtype, batch: int
) -> None:
    module, graph, weights = captured(batch)
    torch.manual_seed(1)
    x = torch.randn(batch, 3, 23, 17)
    with torch.no_grad():
        plain = module(x)
        wide = module.double()(x.double())
        module.float()
        rounded = False
        for seed in range(6):
            got = run(with_wire(graph, wire), weights, x, seed)
            assert compare_tensor("output", got, wide, plain, dtype).passed
            exact = compare_tensor("output", got, wide, plain)
            rounded = rounded or not exact.passed
    assert rounded, "no plan sent anything that the narrow type changes"


def test_narrow_activations_halve_the_bytes_of_activations_only() -> None:
    _, graph, _ = captured(1)
    needs = Needs(graph)
    plan = random_plan(graph, needs, RANKS, random.Random(4))
    narrow = with_wire(graph, "fp16")
    for flow in trace_flows(graph, needs, plan).flows:
        before = flow.size_bytes(graph.by_name[flow.producer])
        after = flow.size_bytes(narrow.by_name[flow.producer])
        producer = graph.by_name[flow.producer]
        whole = producer.kind == "input" or producer.combine is not None
        assert after == (before if whole else before // 2)
    assert narrow.fingerprint != graph.fingerprint
    assert with_wire(graph, "fp32") is graph


@pytest.mark.parametrize("batch", [1, 2])
def test_pixels_give_the_answer_of_the_normalised_image(batch: int) -> None:
    module, graph, weights = captured(batch)
    assert takes_pixels(graph)
    served, more = with_pixels(graph, weights, IMAGENET.mean, IMAGENET.std)
    torch.manual_seed(2)
    pixels = torch.randint(0, 256, (batch, 3, 23, 17), dtype=torch.uint8)
    image = normalised(pixels, IMAGENET)
    with torch.no_grad():
        plain = module(image)
        wide = module.double()(image.double())
        for seed in range(6):
            got = run(served, more, pixels, seed)
            assert compare_tensor("output", got, wide, plain).passed
    assert served.inputs[0].out.row_bytes * 4 == graph.inputs[0].out.row_bytes


def test_pixels_are_not_for_what_is_no_single_image() -> None:
    _, graph, _ = captured(1)
    (image,) = graph.inputs
    other = replace(image, out=replace(image.out, dtype="float64"))
    layers = tuple(other if layer is image else layer for layer in graph.layers)
    assert not takes_pixels(replace(graph, layers=layers))
