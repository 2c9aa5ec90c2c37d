"""1×1 convolutions as matrix products: code is made by LLVM, where llvmlite is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import Convolution
from edgeflow_mpi.graph.types import Graph, Layer, Step, Weight
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.epilogue import epilogue
from edgeflow_mpi.kernels.llvm.available import available
from edgeflow_mpi.kernels.steps import Fused, assemble_fused
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor

_LEAST_PIXELS = 4
"""Fewer are a matter of fetching weights, not of multiplying."""


class Pointwise:
    """Layers with a 1×1 convolution."""

    name = "pointwise"

    def available(self) -> bool:
        return available()

    def prepare(
        self, graph: Graph, layer: Layer, rows: Span, weights: Mapping[str, Tensor], needs: Needs
    ) -> Kernel | None:
        return assemble_fused(self.name, graph, layer, rows, weights, needs, fused_product)


def fused_product(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
) -> Fused | None:
    """Step ``j`` with a residual sum and bounds behind it, if ``j`` is a 1×1 convolution.

    ``rows`` are the rows that step ``j`` makes.
    """
    call = calls[j]
    if not _is_pointwise(call):
        return None
    # Loading LLVM takes a tenth of a second: not before there is something to do.
    from edgeflow_mpi.kernels.llvm.machine import native
    from edgeflow_mpi.kernels.llvm.packed import packed_weights
    from edgeflow_mpi.kernels.pointwise.code import UNROLLED
    from edgeflow_mpi.kernels.pointwise.product import Pixels, Product, code

    machine = native()
    run = code(machine) if machine is not None else None
    images, channels, _, width = call.operands[0].shape
    out_channels, out_width = call.out.shape[1], call.out.shape[3]
    if machine is None or run is None or channels % UNROLLED or channels < machine.lanes:
        return None
    if out_channels < machine.panel or images * rows.rows * out_width < _LEAST_PIXELS:
        return None
    weight_arg, bias_arg = call.args["weight"], call.args["bias"]
    assert isinstance(weight_arg, Weight)
    bias = weights[bias_arg.name] if isinstance(bias_arg, Weight) else None
    packed = packed_weights(
        weights[weight_arg.name], bias, torch.ones(1, 1, dtype=torch.float64), "pointwise",
        machine.panel,
    )  # fmt: skip
    rule = rule_for(call.step.target)
    assert rule is not None
    held = rule.needs(call, rows)[0].rows
    strides = call.ints("stride", 2)
    pixels = Pixels(
        images, channels, held, width, out_channels, rows.rows, out_width, (strides[0], strides[1])
    )
    behind = epilogue(steps, calls, j)
    threads = torch.get_num_threads()
    made = Product(machine, run, packed, pixels, behind.low, behind.high, threads)
    return Fused(made.run, behind.refs(call.step.refs), behind.last, made.into, made.bind)


def _is_pointwise(call: Call) -> bool:
    """Whether ``call`` is a 1×1 convolution of one group in float32, without padding."""
    rule = rule_for(call.step.target)
    if not isinstance(rule, Convolution) or rule.ndim != 2:
        return False
    if rule.axis(call) != 2 or call.out.axis != 2:
        return False
    if call.out.dtype != "float32" or call.operands[0].dtype != "float32":
        return False
    weight = call.weight("weight")
    assert weight is not None
    padded = call.args["padding"] not in ("valid", "same") and any(call.ints("padding", 2))
    return weight.shape[2:] == (1, 1) and call.integer("groups") == 1 and not padded
