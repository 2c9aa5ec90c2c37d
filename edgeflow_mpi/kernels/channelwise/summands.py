"""What is left of a global mean where rows are divided: sums over all pixels that are held, then
one factor.

Both take microseconds. By torch they take a hundred in a request, since code that runs once between
others is in no cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.rules import Call
from edgeflow_mpi.graph.types import Graph, Layer, Step, Var
from edgeflow_mpi.kernels.channelwise.code import LARGEST, Variant
from edgeflow_mpi.kernels.channelwise.windows import Operands, Sliding, Windows, code
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.llvm.machine import native
from edgeflow_mpi.kernels.native import NativeCall
from edgeflow_mpi.kernels.steps import Fused
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor

_ALL = ({2, 3}, {-1, -2})


def summand(graph: Graph, layer: Layer, rows: Span, needs: Needs, engine: str) -> Kernel | None:
    """The kernel of a layer that sums the pixels of its rows, or of all, for every channel."""
    (step, *others), (operand, *_) = layer.steps, graph.input_specs(layer)
    args, held = dict(step.args), needs.of(layer.name, rows)
    dims, machine = args.get("dim"), native()
    summed = rows if layer.combine else Span(0, operand.rows)
    if others or machine is None or layer.combine not in (None, "sum") or held != (summed,):
        return None
    if step.target != "aten.sum.dim_IntList" or args["dtype"] is not None or not args["keepdim"]:
        return None
    if not isinstance(dims, tuple) or set(dims) not in _ALL or operand.axis != 2:
        return None
    if len(operand.shape) != 4 or {operand.dtype, layer.out.dtype} != {"float32"}:
        return None
    images, channels, _, width = operand.shape
    if channels < machine.lanes or not 0 < width <= LARGEST:
        return None
    made = _sums(images, channels, summed.rows, width, 1.0)
    if made is None:
        return None
    return Kernel(rows, held, "sum", made.run, engine, made.into, made.bind)


def fused_factor(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
) -> Fused | None:
    """Step ``j``, if it multiplies one pixel by a number, with its new shape behind it."""
    call, machine = calls[j], native()
    if call.step.target != "aten.mul.Scalar" or j + 2 != len(steps) or machine is None:
        return None
    factor, operand, behind = call.args["other"], call.operands[0], steps[j + 1]
    if not isinstance(factor, int | float) or {operand.dtype, call.out.dtype} != {"float32"}:
        return None
    images, channels = behind.out.shape if len(behind.out.shape) == 2 else (0, 0)
    if behind.target != "aten.reshape.default" or behind.refs != (Var(j),):
        return None
    if operand.shape != (images, channels, 1, 1) or channels < machine.lanes:
        return None
    made = _sums(images, channels, 1, 1, float(factor))
    if made is None:
        return None

    def compute(tensor: Tensor) -> Tensor:
        return made.run(tensor).view(images, channels)

    def into(out: Tensor, tensor: Tensor) -> None:
        if out.is_contiguous():
            made.into(out.view(images, channels, 1, 1), tensor)
        else:
            out.copy_(compute(tensor))

    def bind(out: Tensor, tensor: Tensor) -> NativeCall | None:
        if not out.is_contiguous():
            return None
        return made.bind(out.view(images, channels, 1, 1), tensor)

    return Fused(compute, call.step.refs, j + 1, into, bind)


def _sums(images: int, channels: int, height: int, width: int, factor: float) -> Windows | None:
    """The sum of all pixels, times a factor: one window."""
    machine, variant = native(), Variant("average", width, 1, 1)
    run = code(machine, variant) if machine is not None else None
    if run is None:
        return None
    sliding = Sliding(images, channels, height, width, 1, 1, 0, 0, height, 1, 1)
    operands = Operands(row_factors=[factor], column_factors=[1.0])
    return Windows(variant, run, sliding, operands, threads=1)
