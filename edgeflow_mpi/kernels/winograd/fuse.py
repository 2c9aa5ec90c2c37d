"""Steps of a layer that one convolution by minimal filtering does at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import Convolution as ConvolutionRule
from edgeflow_mpi.graph.types import Step, Weight
from edgeflow_mpi.kernels.epilogue import epilogue
from edgeflow_mpi.kernels.llvm.machine import native
from edgeflow_mpi.kernels.llvm.packed import packed_weights
from edgeflow_mpi.kernels.steps import Fused
from edgeflow_mpi.kernels.winograd.choice import suited
from edgeflow_mpi.kernels.winograd.compiled import code
from edgeflow_mpi.kernels.winograd.convolution import Convolution, Shape
from edgeflow_mpi.kernels.winograd.gemm import UNROLLED
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor


def fused_convolution(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
) -> Fused | None:
    """Step ``j`` with a residual sum and bounds behind it, if ``j`` is such a convolution.

    ``rows`` are the rows that step ``j`` makes.
    """
    call, machine = calls[j], native()
    shape = convolved(call, rows)
    if shape is None or machine is None:
        return None
    if min(shape.channels, shape.out_channels) < machine.lanes or shape.channels % UNROLLED:
        return None
    weight_arg, bias_arg = call.args["weight"], call.args["bias"]
    assert isinstance(weight_arg, Weight)
    weight = weights[weight_arg.name]
    height, width = weight.shape[2:]
    variant = suited(
        (height, width), shape.images, shape.out_height, shape.out_width,
        shape.channels, shape.out_channels,
    )  # fmt: skip
    if variant is None:
        return None
    compiled = code(machine, variant, variant.at_edges(shape.out_height, shape.out_width))
    if compiled is None:
        return None
    bias = weights[bias_arg.name] if isinstance(bias_arg, Weight) else None
    behind = epilogue(steps, calls, j)
    packed = packed_weights(weight, bias, variant.filter(), str(variant), machine.panel)
    threads = torch.get_num_threads()
    made = Convolution(machine, variant, compiled, packed, shape, behind.low, behind.high, threads)
    return Fused(made.run, behind.refs(call.step.refs), behind.last, made.into, made.bind)


def convolved(call: Call, rows: Span) -> Shape | None:
    """What ``call`` convolves for ``rows``, if it is plain: stride 1, one group, float32."""
    rule = rule_for(call.step.target)
    if not isinstance(rule, ConvolutionRule) or rule.ndim != 2:
        return None
    if rule.axis(call) != 2 or call.out.axis != 2:
        return None
    if call.out.dtype != "float32" or call.operands[0].dtype != "float32":
        return None
    weight = call.weight("weight")
    assert weight is not None
    plain = (call.ints("stride", 2), call.ints("dilation", 2)) == ((1, 1), (1, 1))
    if not plain or call.integer("groups") != 1:
        return None
    padding, outer = rule.geometry(call, rows)
    above, left = padding[0] + outer[-2], padding[1] + outer[0]
    right = padding[1] + outer[1]
    held = rule.needs(call, rows)[0].rows
    below = padding[0] + outer[-1]
    height, width = weight.shape[2:]
    # A window that lies in the padding altogether reads nothing of the map.
    if not (min(above, below) >= 0 and max(above, below) < height):
        return None
    if not (min(left, right) >= 0 and max(left, right) < width):
        return None
    images, channels, _, columns = call.operands[0].shape
    out_channels, out_width = call.out.shape[1], call.out.shape[3]
    return Shape(images, channels, held, columns, out_channels, rows.rows, out_width, above, left)
