"""Steps of a layer that one convolution does at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import Convolution as ConvolutionRule
from edgeflow_mpi.graph.types import Step, Weight
from edgeflow_mpi.kernels.direct.convolution import (
    Convolution,
    Shape,
    code,
    copies,
    layout,
)
from edgeflow_mpi.kernels.direct.filters import filters
from edgeflow_mpi.kernels.direct.pixels import fused_pixels
from edgeflow_mpi.kernels.epilogue import epilogue
from edgeflow_mpi.kernels.llvm.machine import native
from edgeflow_mpi.kernels.steps import Fused
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor


def fused_convolution(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
) -> Fused | None:
    """Step ``j`` with a residual sum and bounds behind it, if ``j`` is such a convolution; or the
    normalising of pixels that begins with ``j``.

    ``rows`` are the rows that step ``j`` makes.
    """
    call, machine = calls[j], native()
    if call.step.target == "aten._to_copy.default":
        return fused_pixels(steps, calls, j, rows, weights)
    shape = convolved(call, rows)
    if shape is None or machine is None:
        return None
    # Whole vectors are copied and written.
    if shape.out_channels < machine.lanes or shape.width * shape.channels < machine.lanes:
        return None
    placed = layout(machine, shape, copied=copies(shape))
    if placed.pixel != shape.channels and shape.channels < machine.lanes:
        return None
    run = code(machine)
    if run is None:
        return None
    weight_arg, bias_arg = call.args["weight"], call.args["bias"]
    assert isinstance(weight_arg, Weight)
    bias = weights[bias_arg.name] if isinstance(bias_arg, Weight) else None
    packed = filters(weights[weight_arg.name], bias, machine)
    behind = epilogue(steps, calls, j)
    threads = torch.get_num_threads()
    made = Convolution(machine, run, packed, shape, behind.low, behind.high, threads)
    return Fused(made.run, behind.refs(call.step.refs), behind.last, made.into, made.bind)


def convolved(call: Call, rows: Span) -> Shape | None:
    """What ``call`` convolves for ``rows``, if it has one group, in float32."""
    rule = rule_for(call.step.target)
    if not isinstance(rule, ConvolutionRule) or rule.ndim != 2:
        return None
    if rule.axis(call) != 2 or call.out.axis != 2 or call.integer("groups") != 1:
        return None
    if call.out.dtype != "float32" or call.operands[0].dtype != "float32":
        return None
    weight = call.weight("weight")
    assert weight is not None
    padding, outer = rule.geometry(call, rows)
    need, window = rule.needs(call, rows)[0], rule.window(call)
    images, channels, _, width = call.operands[0].shape
    strides, dilation = call.ints("stride", 2), call.ints("dilation", 2)
    return Shape(
        images, channels, need.rows, width, call.out.shape[1], rows.rows, call.out.shape[3],
        need.start - window.unclipped(rows)[0], padding[1] + outer[0],
        (weight.shape[2], weight.shape[3]), (strides[0], strides[1]), (dilation[0], dilation[1]),
    )  # fmt: skip
