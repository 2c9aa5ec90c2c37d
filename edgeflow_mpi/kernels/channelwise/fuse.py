"""Steps of a layer that windows over each channel by itself do at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import AveragePool, Convolution, MaxPool, Window
from edgeflow_mpi.graph.types import Step, Weight
from edgeflow_mpi.kernels.channelwise.code import LARGEST, Variant
from edgeflow_mpi.kernels.channelwise.windows import Operands, Sliding, Windows, code
from edgeflow_mpi.kernels.epilogue import epilogue
from edgeflow_mpi.kernels.llvm.machine import native
from edgeflow_mpi.kernels.steps import Fused
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor


def fused_windows(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
) -> Fused | None:
    """Step ``j``, if it is a depthwise convolution (then with bounds behind it) or a pool.

    ``rows`` are the rows that step ``j`` makes.
    """
    call, machine = calls[j], native()
    rule = rule_for(call.step.target)
    if machine is None or not isinstance(rule, Convolution | MaxPool | AveragePool):
        return None
    if rule.axis(call) != 2 or call.out.axis != 2 or call.step.select is not None:
        return None
    operand = call.operands[0]
    if len(operand.shape) != 4 or {operand.dtype, call.out.dtype} != {"float32"}:
        return None
    if operand.shape[1] < machine.lanes or "transpose" in call.step.target:
        return None
    window, last = rule.window(call), j
    if isinstance(rule, Convolution):
        if not _is_depthwise(call):
            return None
        kernel = call.weight("weight")
        assert kernel is not None
        padding, outer = rule.geometry(call, rows)
        variant = Variant(
            "depthwise", kernel.shape[3], call.ints("dilation", 2)[1], call.ints("stride", 2)[1]
        )
        left = padding[1] + outer[0]
        behind = epilogue(steps, calls, j)
        if behind.other is None:
            low, high, last = behind.low, behind.high, behind.last
            operands = _filters(call, weights, low, high)
        else:
            operands = _filters(call, weights)
    else:
        columns = call.ints("kernel_size", 2)[1]
        stride = call.ints("stride", 2)[1] if call.args["stride"] else columns
        left = call.ints("padding", 2)[1]
        if isinstance(rule, MaxPool):
            variant = Variant("max", columns, call.ints("dilation", 2)[1], stride)
            operands = Operands()
        else:
            variant = Variant("average", columns, 1, stride)
            operands = _factors(call, window, rows)
    need = rule.needs(call, rows)[0]
    sliding = Sliding(
        operand.shape[0], operand.shape[1], need.rows, operand.shape[3], rows.rows,
        call.out.shape[3], need.start - window.unclipped(rows)[0], left,
        window.kernel, window.dilation, window.stride,
    )  # fmt: skip
    if variant.columns > LARGEST or not sliding.every_window_has_rows():
        return None
    run = code(machine, variant)
    if run is None:
        return None
    made = Windows(variant, run, sliding, operands, torch.get_num_threads())
    return Fused(made.run, call.step.refs, last, made.into, made.bind)


def _is_depthwise(call: Call) -> bool:
    weight = call.weight("weight")
    assert weight is not None
    channels = call.operands[0].shape[1]
    return weight.shape[:2] == (channels, 1) and call.integer("groups") == channels


def _filters(
    call: Call,
    weights: Mapping[str, Tensor],
    low: float = Operands.low,
    high: float = Operands.high,
) -> Operands:
    """Weights by taps, for a depthwise convolution."""
    weight, bias = call.args["weight"], call.args["bias"]
    assert isinstance(weight, Weight)
    taps = weights[weight.name].detach().flatten(1).t().contiguous()
    offset = weights[bias.name].detach().contiguous() if isinstance(bias, Weight) else None
    return Operands(taps, offset, low, high)


def _factors(call: Call, window: Window, rows: Span) -> Operands:
    """What sums are multiplied with: rows times columns that count, the other way up."""
    across = Window(
        call.ints("kernel_size", 2)[1],
        call.ints("stride", 2)[1] if call.args["stride"] else call.ints("kernel_size", 2)[1],
        1, call.ints("padding", 2)[1],
    )  # fmt: skip
    padded = bool(call.args["count_include_pad"])
    height, width = call.operands[0].shape[2:]
    row_counts = _counts(window, rows, height, padded=padded)
    column_counts = _counts(across, Span(0, call.out.shape[3]), width, padded=padded)
    if call.args.get("divisor_override") is not None:
        row_counts = [call.integer("divisor_override")] * len(row_counts)
        column_counts = [1] * len(column_counts)
    return Operands(
        row_factors=[1 / count for count in row_counts],
        column_factors=[1 / count for count in column_counts],
    )


def _counts(window: Window, places: Span, size: int, *, padded: bool) -> list[int]:
    """Rows (or columns) of each window that count in the divisor."""
    low, high = (-window.before, size + window.before) if padded else (0, size)
    counts = []
    for place in range(places.start, places.stop):
        start = window.stride * place - window.before
        counts.append(min(start + window.kernel, high) - max(start, low))
    return counts
