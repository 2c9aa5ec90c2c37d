"""Engines that other packages or narrower types bring, against plain torch, span by span."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeflow_mpi.cluster.engines import engines_of_ranks
from edgeflow_mpi.cluster.profile import LayerCost, Link, Profile
from edgeflow_mpi.errors import InputError
from edgeflow_mpi.job.options import parse_options
from edgeflow_mpi.kernels import registry
from edgeflow_mpi.kernels.names import NARROW, PRECISIONS
from edgeflow_mpi.kernels.prepare import attempt, prepare
from edgeflow_mpi.kernels.registry import error_bound, usable, usable_engines
from edgeflow_mpi.partition.engines import with_engines
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.spans import Span
from tests.inprocess import build
from tests.profile.profile_cases import on_ranks
from tests.rule_checks import piece

Tensor = torch.Tensor


class Block(nn.Module):
    """A convolution with what may follow it, on 9 rows and 7 columns."""

    def __init__(self, tail: str, **geometry: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, **geometry)  # type: ignore[arg-type]
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if "sum" in self.tail:
            y = y + 0.5 * self.conv(x.flip(3))
        if "relu6" in self.tail:
            return nn.functional.relu6(y)
        return torch.relu(y) if "relu" in self.tail else y


CASES = {
    "plain": Block("", kernel_size=3, padding=1),
    "relu": Block("relu", kernel_size=3, padding=1, bias=False),
    "sum-relu": Block("sum relu", kernel_size=3, padding=1),
    "strided": Block("relu6", kernel_size=3, stride=2, padding=1),
    "wide": Block("sum", kernel_size=(1, 5), padding=(0, 2)),
    "tall": Block("relu", kernel_size=(5, 1), padding=(2, 0)),
    "same": Block("relu", kernel_size=(4, 2), padding="same"),
    "dilated": Block("", kernel_size=3, padding=2, dilation=2),
    "pointwise": Block("sum relu6", kernel_size=1),
}
IMAGE = torch.randn(1, 8, 9, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["ncnn", "onednn-bf16"])
def test_every_span_is_that_of_plain_torch(engine: str, case: str) -> None:
    if not usable(engine):
        pytest.skip(f"{engine} does not work on this machine")
    torch.manual_seed(0)
    model = build(CASES[case], IMAGE)
    held = {model.graph.inputs[0].name: IMAGE}
    computed = 0
    for layer in model.graph.layers:
        if layer.kind != "compute":
            continue
        rows = Span(0, layer.rows)
        plain = prepare(model.graph, layer, rows, model.weights, model.needs, "aten")
        held[layer.name] = plain(*(held[name] for name in layer.inputs)).clone()
        for start in range(layer.rows):
            for stop in {start + 1, (start + layer.rows) // 2 + 1, layer.rows}:
                span = Span(start, max(stop, start + 1))
                kernel = attempt(model.graph, layer, span, model.weights, model.needs, engine)
                if kernel is None:
                    continue
                made = kernel(
                    *(
                        piece(held[name], model.graph.by_name[name].out, need)
                        for name, need in zip(layer.inputs, kernel.needs, strict=True)
                    )
                )
                assert made.dtype == torch.float32
                expected = held[layer.name][:, :, span.start : span.stop]
                assert made.shape == expected.shape
                scale = float(held[layer.name].abs().max())
                error = float((made - expected).abs().max()) / scale
                assert error <= error_bound(engine)
                computed += 1
    assert computed


def test_narrow_engines_compute_only_where_they_are_asked_for() -> None:
    assert not set(NARROW) & set(usable_engines())
    for name in usable_engines():
        assert error_bound(name) == 1e-5
    for engine, precision in NARROW.items():
        assert engine in PRECISIONS[precision]
        assert error_bound(engine) > 1e-3
        assert (engine in usable_engines(precision)) == usable(engine)


def test_a_precision_that_no_rank_has_is_refused_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "usable", lambda name: name not in NARROW)
    for outcome in on_ranks(2, lambda comm: engines_of_ranks(comm, precision="bf16")):
        assert isinstance(outcome, InputError)
        assert str(outcome).startswith("--precision bf16: no rank has a processor")


def test_a_profile_of_another_precision_does_not_narrow_a_plan() -> None:
    model = build(CASES["relu"], IMAGE)
    layers = {layer.name: LayerPlan.whole(layer.rows, 1, 0) for layer in model.graph.layers}
    plan = Plan("by hand", 1, layers, tuple(layers))
    cost = LayerCost(0.0, 1.0, ((9, 9.0),), ("onednn-bf16",))
    costs = {model.graph.signatures[name]: cost for name in layers}
    profile = Profile("m", "f", (), (costs,), dict[tuple[int, int], Link]())
    assert with_engines(model.graph, profile, plan).engines == {}
    narrow = with_engines(model.graph, profile, plan, precision="bf16").engines
    assert set(narrow.values()) == {"onednn-bf16"}


@pytest.mark.parametrize("other", [["--engine", "aten"], ["--plan", "plan.txt"]], ids=str)
def test_a_precision_needs_a_choice_of_engines(other: list[str]) -> None:
    with pytest.raises(InputError, match="--precision is about choosing among engines"):
        parse_options(["--precision", "bf16", *other])
