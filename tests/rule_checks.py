"""Checks of row rules: any span of any layer against the undivided operator in plain torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import nn

from edgeflow_mpi.graph.types import Layer, TensorSpec
from edgeflow_mpi.kernels.buffers import empty
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.spans import Span
from tests.inprocess import (
    Model,
    build,
    node_values,
    plain,
    random_job,
    relative_error,
    tolerance,
)

Tensor = torch.Tensor

FEW = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)
"""Each example captures a program, with several operators in it."""

SPANS_PER_LAYER = 16


@dataclass(frozen=True)
class Image:
    """A random tensor, by what describes it: that is what a failing example shows."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def make(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.shape, generator=generator).to(self.dtype)


@st.composite
def images(
    draw: st.DrawFn, ndim: int = 2, *, channels: int = 4, least: int = 1, most: int = 13
) -> Image:
    """A batched map with a few rows, often an odd number of them or only one."""
    rows = draw(st.integers(least, most if ndim < 3 else min(most, 7)))
    others = [draw(st.integers(least, 5)) for _ in range(ndim - 1)]
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    batch = draw(st.sampled_from([1, 3]))
    return Image((batch, channels, rows, *others), dtype, draw(st.integers(0, 9)))


class Branches(nn.Module):
    """The same inputs through several modules, so that one capture serves them all."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> list[object]:
        return [branch(*inputs) for branch in self.branches]


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        assert callable(self.function)
        return self.function(*inputs)


def piece(tensor: Tensor, spec: TensorSpec, rows: Span) -> Tensor:
    """A copy of some rows in the memory order in which they travel."""
    held = empty(spec, rows.rows)
    return held.copy_(
        tensor if spec.axis is None else tensor.narrow(spec.axis, rows.start, rows.rows)
    )


def some_spans(rows: int, random: Random) -> list[Span]:
    """All spans of a short layer; of a long one those at the borders and some others."""
    spans = [Span(a, b) for a in range(rows) for b in range(a + 1, rows + 1)]
    if len(spans) <= SPANS_PER_LAYER:
        return spans
    kept = [Span(0, rows), Span(0, 1), Span(rows - 1, rows), Span(0, rows - 1), Span(1, rows)]
    return kept + random.sample(spans, SPANS_PER_LAYER - len(kept))


def run_span(model: Model, layer: Layer, rows: Span, values: Mapping[str, Tensor]) -> Tensor:
    """Rows of one layer from exactly the rows of its inputs that it asks for."""
    kernel = prepare(model.graph, layer, rows, model.weights, model.needs)
    operands = []
    for producer, need in zip(layer.inputs, kernel.needs, strict=True):
        made_by = model.graph.by_name[producer]
        spec = made_by.out
        whole = Span(0, spec.rows) if made_by.combine else need
        operands.append(piece(values[producer], spec, whole))
    before = [operand.clone() for operand in operands]
    with torch.no_grad():
        made = kernel(*operands)
    for operand, copy in zip(operands, before, strict=True):
        torch.testing.assert_close(operand, copy, rtol=0, atol=0, equal_nan=True)
    return made.clone()


def combined(model: Model, layer: Layer, values: Mapping[str, Tensor], random: Random) -> Tensor:
    """The combination of the summands of a random tiling of a layer's rows."""
    cuts = sorted({0, layer.rows, *(random.randrange(layer.rows) for _ in range(3))})
    parts = [run_span(model, layer, Span(a, b), values) for a, b in pairwise(cuts)]
    stacked = torch.stack(parts)
    return stacked.amax(0) if layer.combine == "max" else stacked.sum(0)


def check_layers(model: Model, *inputs: Tensor, seed: int = 0) -> None:
    """Every layer on many spans, from the true values of its inputs."""
    random = Random(seed)
    values = node_values(model.program, *inputs)
    wide = all(x.dtype != torch.float32 for x in inputs)
    for layer in model.graph.layers:
        if layer.kind != "compute":
            continue
        if layer.combine:
            values[layer.name] = combined(model, layer, values, random)
            continue
        if not layer.inputs:
            continue
        if layer.name not in values:
            # Written out by capture: what is made of it is compared instead.
            values[layer.name] = run_span(model, layer, Span(0, layer.rows), values)
        spans = some_spans(layer.rows, random) if layer.divisible else [Span(0, layer.rows)]
        expected = values[layer.name]
        assert tuple(expected.shape) == layer.out.shape
        scale = expected.abs().max() if expected.is_floating_point() and expected.numel() else 0
        for rows in spans:
            made = run_span(model, layer, rows, values)
            want = expected
            if layer.out.axis is not None:
                want = expected.narrow(layer.out.axis, rows.start, rows.rows)
            assert made.dtype == want.dtype
            torch.testing.assert_close(
                made,
                want,
                rtol=0,
                atol=float(scale) * (1e-12 if wide else 4e-6),
                msg=lambda text, layer=layer, rows=rows: f"{layer} rows {rows}: {text}",
            )


def check_ranks(
    model: Model, *inputs: Tensor, ranks: Sequence[int] = (2, 5), seed: int = 0
) -> None:
    """The whole model under random plans, twice, with two requests."""
    others = tuple(x.flip(0) * 0.5 if x.is_floating_point() else x for x in inputs)
    expected, bound = tolerance(model.module, *inputs)
    expected_others, bound_others = tolerance(model.module, *others)
    for count in ranks:
        job = random_job(model, count, seed)
        assert relative_error(job.run(*inputs), expected) <= bound
        assert relative_error(job.run(*others), expected_others) <= bound_others


def gathers(model: Model, layer: Layer) -> bool:
    """Whether a layer needs more than one row of a divided tensor to be in one place."""
    if layer.kind != "compute" or layer.combine:
        return False
    reads = [model.graph.by_name[name] for name in layer.inputs]
    maps = any(producer.out.rows > 1 and not producer.combine for producer in reads)
    return maps and (not layer.divisible or layer.out.axis is None)


def check_modules(
    modules: Sequence[nn.Module], *inputs: Tensor, splits: bool | None = True, seed: int = 0
) -> Model:
    """Capture modules over the same inputs and check spans, ranks and divisibility.

    ``splits`` tells whether no layer may gather rows, or the answers' layers must; None is for
    both kinds.
    """
    double = inputs[0].dtype == torch.float64
    module = Branches(modules).to(torch.float64) if double else Branches(modules)
    model = build(module, *inputs)
    if splits is not None:
        for layer in model.graph.layers:
            if splits:
                assert not gathers(model, layer), f"{layer.name} ({layer.steps[0].target}) gathers"
        for answer in model.graph.outputs:
            producer = model.graph.by_name[answer.inputs[0]]
            if not splits and producer.kind == "compute":
                assert not producer.splits, f"{producer.name} splits"
    check_layers(model, *inputs, seed=seed)
    check_ranks(model, *inputs, seed=seed)
    return model


def rows_read(model: Model, *inputs: Tensor) -> dict[str, np.ndarray]:
    """Which rows of the first input every layer that reads it alone depends on, by trying.

    Returns, by layer name, a boolean array (rows of the layer, rows of the input): a row of
    the input is changed by a lot, and the plain program tells which rows of a result change.
    """
    source = model.graph.inputs[0]
    assert source.out.axis is not None
    before = node_values(model.program, *inputs)
    direct = [
        layer
        for layer in model.graph.layers
        if layer.kind == "compute" and layer.inputs == (source.name,) and layer.out.axis is not None
    ]
    found = {layer.name: np.zeros((layer.rows, source.rows), dtype=bool) for layer in direct}
    for row in range(source.rows):
        changed = inputs[0].clone()
        changed.narrow(source.out.axis, row, 1).add_(100 + torch.rand(1).item())
        after = node_values(model.program, changed, *inputs[1:])
        for layer in direct:
            axis = layer.out.axis
            assert axis is not None
            differs = (before[layer.name] != after[layer.name]).movedim(axis, 0)
            found[layer.name][:, row] = differs.reshape(layer.rows, -1).any(1).numpy()
    return found


def check_needs(model: Model, *inputs: Tensor, slack: int = 0) -> None:
    """No row outside a need is read, and both ends of a need are read but for ``slack`` rows.

    Needs grow with the rows that are asked for, so of every row the tightest need is that of
    all rows behind it, at the start, and of all rows before it, at the end.
    """
    for name, read in rows_read(model, *inputs).items():
        if not read.any():
            continue  # along another dimension, every window lies in the padding
        ((low, high),) = model.needs.table(name)
        assert (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all()
        assert (low < high).all()
        first = np.where(read.any(1), read.argmax(1), read.shape[1])
        last = np.where(read.any(1), read.shape[1] - read[:, ::-1].argmax(1), 0)
        lowest = np.minimum.accumulate(first[::-1])[::-1]
        highest = np.maximum.accumulate(last)
        assert (low <= lowest).all() and (highest <= high).all(), name
        # A window that lies wholly in the padding needs one row all the same.
        lowest, highest = np.minimum(lowest, high - 1), np.maximum(highest, low + 1)
        assert (lowest - low <= slack).all() and (high - highest <= slack).all(), name


__all__ = [
    "FEW", "Apply", "Branches", "Image", "build", "check_layers", "check_modules", "check_needs",
    "check_ranks", "gathers", "images", "plain",
]  # fmt: skip
