"""Maps side by side in one: a concatenation along the channels.

It is but a copy. By torch it takes several times that in a request, since code that runs once
between others is in no cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgeflow_mpi.graph.rules import Call
from edgeflow_mpi.graph.types import In, Step
from edgeflow_mpi.kernels.llvm.machine import native
from edgeflow_mpi.kernels.llvm.runs import join_call, runner
from edgeflow_mpi.kernels.native import NativeCall
from edgeflow_mpi.kernels.steps import Fused
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor

_CHANNELS = (1, -3)


def fused_join(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
) -> Fused | None:
    """Step ``j``, if it puts maps, divided by rows, side by side along their channels."""
    call, machine = calls[j], native()
    out, refs = call.out, call.step.refs
    if machine is None or call.weights or call.args["dim"] not in _CHANNELS or out.axis != 2:
        return None
    specs = (*call.operands, out)
    if any(spec.dtype != "float32" or len(spec.shape) != 4 for spec in specs):
        return None
    if any(spec.axis != 2 or spec.shape[1] < machine.lanes for spec in specs):
        return None
    if out.shape[1] != sum(spec.shape[1] for spec in call.operands):
        return None
    if out.shape[0] != 1 or not all(isinstance(ref, In) for ref in refs):
        return None

    def compute(*tensors: Tensor) -> Tensor:
        return torch.cat(tensors, 1)

    def into(target: Tensor, *tensors: Tensor) -> None:
        made = join_call(target, tensors)
        if made is None:
            torch.cat(tensors, 1, out=target)
        else:
            runner(made)()

    def bind(target: Tensor, *tensors: Tensor) -> NativeCall | None:
        return join_call(target, tensors)

    return Fused(compute, refs, j, into, bind)
