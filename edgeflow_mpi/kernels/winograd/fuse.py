"""Steps of a layer that one convolution by minimal filtering does at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import Convolution as ConvolutionRule
from edgeflow_mpi.graph.types import Ref, Step, Var, Weight
from edgeflow_mpi.kernels.steps import Fused
from edgeflow_mpi.kernels.winograd.choice import suited
from edgeflow_mpi.kernels.winograd.compiled import code, native
from edgeflow_mpi.kernels.winograd.convolution import Convolution, Shape
from edgeflow_mpi.kernels.winograd.gemm import UNROLLED
from edgeflow_mpi.kernels.winograd.packed import packed_weights
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
    compiled = code(machine, variant) if variant is not None else None
    if variant is None or compiled is None:
        return None
    bias = weights[bias_arg.name] if isinstance(bias_arg, Weight) else None
    last, refs, low, high = _followers(steps, calls, j)
    packed = packed_weights(weight, bias, variant, machine.panel)
    threads = torch.get_num_threads()
    made = Convolution(machine, variant, compiled, packed, shape, low, high, threads)
    return Fused(made.run, refs, last, made.into)


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


def _followers(
    steps: Sequence[Step], calls: Sequence[Call], j: int
) -> tuple[int, tuple[Ref, ...], float, float]:
    """(last step that is fused, what all of them read, bounds of the results)."""
    last, refs = j, calls[j].step.refs
    step = _only_reader(steps, last)
    if step is not None and step.target == "aten.add.Tensor":
        others = [ref for ref in step.refs if ref != Var(last)]
        kind = _kind(calls[j])
        same = all((s.shape, s.dtype, s.axis) == kind for s in calls[last + 1].operands)
        if len(others) == 1 and same and dict(step.args).get("alpha", 1) == 1:
            refs, last = (*refs, others[0]), last + 1
            step = _only_reader(steps, last)
    if step is not None and len(step.refs) == 1:
        args = dict(step.args)
        if step.target == "aten.relu.default":
            return last + 1, refs, 0.0, math.inf
        if step.target == "aten.hardtanh.default":
            low, high = args["min_val"], args["max_val"]
            if isinstance(low, int | float) and isinstance(high, int | float):
                return last + 1, refs, float(low), float(high)
    return last, refs, -math.inf, math.inf


def _kind(call: Call) -> tuple[object, ...]:
    return call.out.shape, call.out.dtype, call.out.axis


def _only_reader(steps: Sequence[Step], index: int) -> Step | None:
    """The step behind ``index``, if that alone reads it."""
    readers = sum(step.refs.count(Var(index)) for step in steps)
    if index + 1 < len(steps) and readers == 1 and Var(index) in steps[index + 1].refs:
        return steps[index + 1]
    return None
