"""Engines behind one interface: who makes a kernel, and how another engine joins."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from edgeflow_mpi.cluster.engines import engines_of_ranks
from edgeflow_mpi.errors import InputError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels import names
from edgeflow_mpi.kernels.buffers import empty
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.llvm.available import available
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.kernels.registry import ENGINES, usable_engines
from edgeflow_mpi.spans import Span
from tests.inprocess import build
from tests.profile.profile_cases import on_ranks
from tests.rule_checks import piece

Tensor = torch.Tensor


class NumpyRelu:
    """All that another engine needs: a layer that is one ReLU, by numpy."""

    name = "numpy-relu"

    def available(self) -> bool:
        return True

    def prepare(
        self, graph: Graph, layer: Layer, rows: Span, weights: Mapping[str, Tensor], needs: Needs
    ) -> Kernel | None:
        if [step.target for step in layer.steps] != ["aten.relu.default"]:
            return None

        def into(out: Tensor, x: Tensor) -> None:
            np.maximum(x.numpy(), 0, out=out.numpy())

        def run(x: Tensor) -> Tensor:
            out = torch.empty_like(x)
            into(out, x)
            return out

        held = needs.of(layer.name, rows)
        return Kernel(rows, held, "relu", run, self.name, into)


class Small(nn.Module):
    """A ReLU of its own, and a layer with a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.relu(x)))


IMAGE = torch.randn(1, 4, 9, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "numpy-relu", NumpyRelu())


@pytest.mark.usefixtures("with_numpy")
def test_an_engine_joins_by_one_class_and_does_what_it_can() -> None:
    model = build(Small(), IMAGE)
    first, second = (layer for layer in model.graph.layers if layer.kind == "compute")
    rows = Span(2, 6)
    relu = prepare(model.graph, first, rows, model.weights, model.needs, "numpy-relu")
    conv = prepare(model.graph, second, rows, model.weights, model.needs, "numpy-relu")
    assert relu.engine == "numpy-relu"
    assert conv.engine in usable_engines()[:-1] or usable_engines() == ("aten",)
    held = piece(IMAGE, model.graph.inputs[0].out, rows)
    assert torch.equal(relu(held), held.relu())


@pytest.mark.parametrize("engine", usable_engines())
def test_results_go_where_they_are_wanted(engine: str) -> None:
    model = build(Small(), IMAGE)
    random = Random(1)
    for layer in model.graph.layers:
        if layer.kind != "compute":
            continue
        start = random.randrange(4)
        rows = Span(start, start + 4)
        kernel = prepare(model.graph, layer, rows, model.weights, model.needs, engine)
        operand = piece(IMAGE, model.graph.inputs[0].out, kernel.needs[0])
        out = empty(layer.out, 4).fill_(float("nan"))
        kernel.write(out, operand)
        assert torch.equal(out, kernel(operand))


def test_the_last_engine_is_there_everywhere_and_does_everything() -> None:
    assert list(ENGINES)[-1] == usable_engines()[-1] == "aten"
    model = build(Small(), IMAGE)
    for layer in model.graph.layers:
        if layer.kind == "compute":
            span = Span(0, layer.rows)
            assert ENGINES["aten"].prepare(model.graph, layer, span, model.weights, model.needs)


def test_an_engine_that_is_not_there_is_named() -> None:
    model = build(Small(), IMAGE)
    layer = next(layer for layer in model.graph.layers if layer.kind == "compute")
    with pytest.raises(InputError, match=r"there is no engine 'tpu' \(there are "):
        prepare(model.graph, layer, Span(0, 1), model.weights, model.needs, "tpu")


def test_without_llvmlite_its_engines_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    available.cache_clear()
    monkeypatch.setattr("edgeflow_mpi.kernels.llvm.available.find_spec", lambda _: None)
    try:
        assert not ENGINES["winograd"].available()
        assert not ENGINES["pointwise"].available()
    finally:
        available.cache_clear()


class Tails(nn.Module):
    """Layers that end in what one engine or another does in place, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.thin = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(16, 32, 1)
        self.norm = nn.BatchNorm2d(64)

    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.hardsigmoid(self.thin(x))
        wide = nn.functional.hardswish(self.conv(x)) * gate
        both = torch.relu(self.norm(torch.cat([wide, gate], 1)))
        return nn.functional.max_pool2d(both / (1 + both), 3, 1, 1)


@pytest.mark.parametrize("engine", usable_engines())
def test_layers_of_several_steps_go_where_they_are_wanted(engine: str) -> None:
    image = torch.randn(2, 16, 11, 7, generator=torch.Generator().manual_seed(0))
    model = build(Tails(), image)
    held = {model.graph.inputs[0].name: image}
    in_place, bound = set[str](), set[str]()
    for layer in model.graph.layers:
        if layer.kind != "compute":
            continue
        whole = prepare(model.graph, layer, Span(0, 11), model.weights, model.needs, "aten")
        held[layer.name] = whole(*(held[name] for name in layer.inputs)).clone()
        rows = Span(3, 8)
        kernel = prepare(model.graph, layer, rows, model.weights, model.needs, engine)
        inputs = [
            piece(held[name], model.graph.by_name[name].out, need)
            for name, need in zip(layer.inputs, kernel.needs, strict=True)
        ]
        # The images of a batch lie apart in a buffer that holds more rows.
        buffer = empty(layer.out, 11).fill_(float("nan"))
        kernel.write(buffer[:, :, 3:8], *inputs)
        assert torch.allclose(buffer[:, :, 3:8], held[layer.name][:, :, 3:8], atol=1e-5)
        assert buffer[:, :, :3].isnan().all()
        assert buffer[:, :, 8:].isnan().all()
        call = kernel.bind(buffer[:, :, 3:8], *inputs) if kernel.bind is not None else None
        if call is not None:
            made = buffer[:, :, 3:8].clone()
            buffer.fill_(float("nan"))
            from tests.machine_code import run_natively

            run_natively(call)
            assert torch.equal(buffer[:, :, 3:8], made)
            bound.add(kernel.engine)
            assert kernel.bind is not None
            assert kernel.bind(torch.empty(made.shape), *inputs) is None  # in another order
        if kernel.into is not None and kernel.engine != "channelwise":
            in_place.add(kernel.name.rpartition("+")[2])
    assert ("channelwise" in bound) == (available() and engine != "aten")
    assert "max_pool2d" not in in_place
    assert in_place & {"mul", "relu", "div"} if engine == "aten" else in_place


def test_the_option_offers_the_engines_there_are() -> None:
    assert tuple(ENGINES) == names.ENGINES


class Absent(NumpyRelu):
    """An engine that does not work on this machine."""

    name = "absent"

    def available(self) -> bool:
        return False


def test_ranks_without_an_engine_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "absent", Absent())
    model = build(Small(), IMAGE)
    layer = next(layer for layer in model.graph.layers if layer.kind == "compute")
    kernel = prepare(model.graph, layer, Span(0, 4), model.weights, model.needs, "absent")
    assert kernel.engine in usable_engines()


def test_an_engine_that_no_rank_has_is_refused_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "absent", Absent())
    for outcome in on_ranks(2, lambda comm: engines_of_ranks(comm, "absent")):
        assert isinstance(outcome, InputError)
        assert str(outcome).startswith("engine absent works on no rank: ")
    assert on_ranks(2, lambda comm: engines_of_ranks(comm, "aten")) == [(("aten",), ("aten",))] * 2
