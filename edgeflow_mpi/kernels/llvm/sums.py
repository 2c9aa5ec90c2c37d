"""The sum of vectors that lie anywhere: summands of several ranks."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
from llvmlite import ir

from edgeflow_mpi.kernels.llvm.emit import I64, POINTER, Function
from edgeflow_mpi.kernels.llvm.machine import Machine, native
from edgeflow_mpi.kernels.llvm.objects import loaded
from edgeflow_mpi.kernels.native import NativeCall

Tensor = torch.Tensor

ENTRY: Final = "add_vectors"


def emit_sum(machine: Machine) -> str:
    """A module, as text, with the function :data:`ENTRY` of an address: of the target, the
    length, the number of vectors beside the first, and the addresses of all."""
    module = ir.Module(name="sums")
    f = Function(module, ENTRY, machine.lanes, [POINTER], inner=False)
    b = f.builder

    def word(*places: int | ir.Value) -> ir.Value:
        return b.load(b.gep(f.args[0], [f.add(*places)], source_etype=I64), typ=I64)

    target, length, others, first = f.pointer(word(0)), word(1), word(2), f.pointer(word(3))
    last = f.sub(length, f.lanes)
    with f.loop(length, f.lanes) as begin:
        # The last vector overlaps the one before where the length is no multiple.
        place = f.least(begin, last)
        with f.reduction(others, 1, [f.load(first, place)]) as turn:
            another = f.pointer(word(turn.index, 4))
            turn.sums[0] = b.fadd(turn.sums[0], f.load(another, place))
        f.store(turn.sums[0], target, place)
    f.finish()
    return str(module)


@cache
def _code(machine: Machine) -> int | None:
    try:
        (entry,) = loaded(machine, "sums", lambda: emit_sum(machine), [ENTRY])
    except RuntimeError:
        return None
    return entry


def sum_call(target: Tensor, parts: Sequence[Tensor]) -> NativeCall | None:
    """The call that adds ``parts``, two or more, from front to back.

    All lie in one run and in the same order, in float32. None for any others.
    """
    machine = native()
    if machine is None or len(parts) < 2 or target.numel() < machine.lanes:
        return None
    if any(part.shape != target.shape or not _alike(part, target) for part in parts):
        return None
    code = _code(machine)
    if code is None:
        return None
    addresses = [part.data_ptr() for part in parts]
    frame = array("q", [target.data_ptr(), target.numel(), len(parts) - 1, *addresses])
    return NativeCall(code, frame, keeps=(target, tuple(parts)))


def _alike(part: Tensor, target: Tensor) -> bool:
    dense = part.is_contiguous() and target.is_contiguous()
    return dense and part.dtype == target.dtype == torch.float32
