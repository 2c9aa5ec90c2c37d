"""Linear layers of whole vectors, as convolutions of a column of pixels.

With one vector everything is a matter of fetching weights: they lie in the order in which they are
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgeflow_mpi.graph.rules import Call
from edgeflow_mpi.graph.types import Step, Weight
from edgeflow_mpi.kernels.direct.convolution import Convolution, Shape, code
from edgeflow_mpi.kernels.direct.filters import filters
from edgeflow_mpi.kernels.epilogue import epilogue
from edgeflow_mpi.kernels.llvm.machine import native
from edgeflow_mpi.kernels.native import NativeCall
from edgeflow_mpi.kernels.steps import Fused
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor


def fused_linear(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
) -> Fused | None:
    """Step ``j`` with bounds behind it, if ``j`` is a linear layer that is not divided."""
    call, machine = calls[j], native()
    if call.step.target != "aten.linear.default" or machine is None or len(call.operands) != 1:
        return None
    weight_arg, bias_arg = call.args["weight"], call.args["bias"]
    operand, out = call.operands[0], call.out
    if not isinstance(weight_arg, Weight) or len(operand.shape) != 2 or 0 in operand.shape:
        return None
    if (operand.axis, out.axis, operand.dtype, out.dtype) != (None, None, "float32", "float32"):
        return None
    count, channels = operand.shape
    out_channels = out.shape[1]
    run = code(machine)
    if run is None or min(channels, out_channels) < machine.lanes:
        return None
    bias = weights[bias_arg.name] if isinstance(bias_arg, Weight) else None
    packed = filters(weights[weight_arg.name][:, :, None, None], bias, machine)
    shape = Shape(
        1, channels, count, 1, out_channels, count, 1, 0, 0, (1, 1), (1, 1), (1, 1)
    )  # fmt: skip
    behind = epilogue(steps, calls, j)
    threads = torch.get_num_threads()
    low, high, last = behind.low, behind.high, behind.last
    if behind.other is not None:
        low, high, last = -torch.inf, torch.inf, j
    made = Convolution(machine, run, packed, shape, low, high, threads)

    def into(result: Tensor, vectors: Tensor) -> None:
        if result.is_contiguous():
            made.into(_column(result), _column(vectors))
        else:
            result.copy_(compute(vectors))

    def compute(vectors: Tensor) -> Tensor:
        result = torch.empty(count, out_channels)
        made.into(_column(result), _column(vectors))
        return result

    def bind(result: Tensor, vectors: Tensor) -> NativeCall | None:
        if not (result.is_contiguous() and vectors.is_contiguous()):
            return None
        return made.bind(_column(result), _column(vectors))

    return Fused(compute, call.step.refs, last, into, bind)


def _column(vectors: Tensor) -> Tensor:
    """Vectors as the pixels of a map with one column."""
    return vectors.reshape(1, vectors.shape[0], 1, vectors.shape[1]).permute(0, 3, 1, 2)
