"""8-bit pixels to float32, scaled and shifted by channel: the beginning of a layer that reads them.

Row after row in one pass, rounded as by three operators one after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Final

import torch
from llvmlite import ir

from edgeflow_mpi.graph.rules import Call
from edgeflow_mpi.graph.types import Step, Symbol, Var, Weight
from edgeflow_mpi.kernels.llvm.emit import POINTER, Function, Value
from edgeflow_mpi.kernels.llvm.frame import SHARED, Frame, filled
from edgeflow_mpi.kernels.llvm.machine import Machine, native
from edgeflow_mpi.kernels.llvm.memory import inner_strides
from edgeflow_mpi.kernels.llvm.objects import loaded
from edgeflow_mpi.kernels.steps import Fused
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor

FIELDS: Final = (
    # Addresses, and elements from one image to the next.
    "input", "input_image", "out", "out_image",
    # Images, their rows, and elements of a row; addresses of what a row is multiplied with, and
    # of what is added.
    "images", "rows", "row", "scale", "shift",
    *SHARED,
)  # fmt: skip
ENTRY: Final = "normalise"


def emit_normalise(machine: Machine) -> str:
    """A module, as text, with the function :data:`ENTRY` of the address of a frame."""
    module = ir.Module(name="pixels")
    f = Function(module, ENTRY, machine.lanes, [POINTER], inner=False)
    b = f.builder
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS[: FIELDS.index("threads")])
    last = f.sub(frame.row, f.lanes)
    scale, shift = f.pointer(frame.scale), f.pointer(frame.shift)
    pixels = ir.VectorType(ir.IntType(8), machine.lanes)
    with f.loop(frame.images) as image, f.loop(frame.rows) as y:
        start = f.mul(y, frame.row)
        source = f.add(f.mul(image, frame.input_image), start)
        target = f.add(f.mul(image, frame.out_image), start)
        with f.loop(frame.row, f.lanes) as index:
            # The last vector overlaps the one before where the row is no multiple.
            place = f.least(index, last)
            value: Value = b.load(f.pointer(f.add(frame.input, source, place)), typ=pixels)
            value.align = 1
            value = b.fmul(b.uitofp(value, f.vector), f.load(scale, place))
            value = b.fadd(value, f.load(shift, place))
            f.store(value, f.pointer(frame.out), target, place)
    f.finish()
    return str(module)


@cache
def code(machine: Machine) -> Callable[[int], None] | None:
    """The code, of the address of a frame; None if LLVM fails."""
    try:
        (entry,) = loaded(machine, "pixels", lambda: emit_normalise(machine), [ENTRY])
    except RuntimeError:
        return None
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)


def fused_pixels(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
) -> Fused | None:
    """Step ``j`` and the two behind it, if they convert pixels, scale and shift them.

    ``rows`` are the rows that step ``j`` makes.
    """
    machine = native()
    if machine is None or j + 2 >= len(steps) or not _normalises(steps, calls, j):
        return None
    images, channels, _, width = calls[j].operands[0].shape
    run = code(machine)
    if run is None or width * channels < machine.lanes:
        return None
    factors = []
    for step in steps[j + 1 : j + 3]:
        weight = weights[step.weights[0]].flatten()
        if weight.numel() != channels or weight.dtype != torch.float32:
            return None
        factors.append(weight.detach().repeat(width))
    inner = inner_strides(rows.rows, width, channels)
    frame = filled(FIELDS, {
        "images": images, "rows": rows.rows, "row": width * channels,
        "out_image": rows.rows * width * channels,
        "scale": factors[0].data_ptr(), "shift": factors[1].data_ptr(),
    })  # fmt: skip
    address = frame.buffer_info()[0]
    size = (images, rows.rows, width, channels)

    def compute(tensor: Tensor, kept: Sequence[Tensor] = factors) -> Tensor:
        if tensor.stride()[1:] != inner:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        out = torch.empty(size)
        frame[0] = tensor.data_ptr()
        frame[1] = tensor.stride(0)
        frame[2] = out.data_ptr()
        run(address)
        return out.permute(0, 3, 1, 2)

    return Fused(compute, calls[j].step.refs, j + 2)


def _normalises(steps: Sequence[Step], calls: Sequence[Call], j: int) -> bool:
    """Whether a conversion from 8-bit pixels is followed by a product and a sum by channel."""
    convert, scale, shift = steps[j : j + 3]
    call = calls[j]
    operand = call.operands[0]
    args = dict(convert.args)
    others = {name: value for name, value in args.items() if name not in ("self", "dtype")}
    if convert.target != "aten._to_copy.default" or any(others.values()):
        return False
    if args.get("dtype") != Symbol("dtype", "float32") or operand.dtype != "uint8":
        return False
    if len(operand.shape) != 4 or (operand.axis, call.out.axis) != (2, 2):
        return False
    shape = (operand.shape[1], 1, 1)
    for at, (step, target) in enumerate(
        [(scale, "aten.mul.Tensor"), (shift, "aten.add.Tensor")], start=j
    ):
        given = dict(step.args)
        readers = sum(other.refs.count(Var(at)) for other in steps)
        if step.target != target or step.refs != (Var(at),) or readers != 1:
            return False
        if given["self"] != Var(at) or not isinstance(given["other"], Weight):
            return False
        if given.get("alpha", 1) != 1 or step.out.shape != operand.shape:
            return False
        if calls[at + 1].weights[given["other"].name].shape != shape:
            return False
    return True
