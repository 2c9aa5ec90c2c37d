"""Copies of runs that lie at equal distances: some channels of a map, packed or unpacked, or maps
side by side in one.

It takes microseconds. By torch it takes several times that in a request, since code that runs once
between others is in no cache.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Final

import torch
from llvmlite import ir

from edgeflow_mpi.kernels.llvm.emit import I64, POINTER, Function, Value
from edgeflow_mpi.kernels.llvm.frame import Frame, filled
from edgeflow_mpi.kernels.llvm.machine import Machine, native
from edgeflow_mpi.kernels.llvm.memory import pixel_step
from edgeflow_mpi.kernels.llvm.objects import Entry, loaded
from edgeflow_mpi.kernels.native import NativeCall

Tensor = torch.Tensor

FIELDS: Final = (
    # Addresses, and float32 from one run to the next; runs, and their length.
    "source", "source_step", "target", "target_step", "runs", "length",
)  # fmt: skip
ENTRY: Final = "copy_runs"
JOINED: Final = "copy_all_runs"


def emit_copy(machine: Machine) -> str:
    """A module, as text, with the function :data:`ENTRY` of the address of a frame, and
    :data:`JOINED` of that of a number and so many addresses of frames."""
    module = ir.Module(name="runs")
    one = _emit_one(module, machine)
    f = Function(module, JOINED, machine.lanes, [POINTER], inner=False)
    b = f.builder
    with f.loop(b.load(f.args[0], typ=I64)) as index:
        place = b.gep(f.args[0], [f.add(index, 1)], source_etype=I64)
        b.call(one, [f.pointer(b.load(place, typ=I64))])
    f.finish()
    return str(module)


def _emit_one(module: Value, machine: Machine) -> Value:
    f = Function(module, ENTRY, machine.lanes, [POINTER], inner=False)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    source, target = f.pointer(frame.source), f.pointer(frame.target)
    last = f.sub(frame.length, f.lanes)
    with f.loop(frame.runs) as index:
        read = f.at(source, f.mul(index, frame.source_step))
        written = f.at(target, f.mul(index, frame.target_step))
        with f.loop(frame.length, f.lanes) as begin:
            # The last vector overlaps the one before where the length is no multiple.
            place = f.least(begin, last)
            f.store(f.load(read, place), written, place)
    return f.finish()


@cache
def _code(machine: Machine) -> tuple[Entry, Entry] | None:
    try:
        one, joined = loaded(machine, "runs", lambda: emit_copy(machine), [ENTRY, JOINED])
    except RuntimeError:
        return None
    return Entry(one), Entry(joined)


def copy_call(target: Tensor, source: Tensor) -> NativeCall | None:
    """The call that copies what is in ``source`` when it runs into ``target``.

    Both are some channels of a channels-last image in float32. None for any others.
    """
    machine = native()
    if machine is None or target.shape != source.shape or target.dim() != 4:
        return None
    images, channels, height, width = target.shape
    steps = pixel_step(source), pixel_step(target)
    if images != 1 or channels < machine.lanes or not all(steps):
        return None
    if {source.dtype, target.dtype} != {torch.float32}:
        return None
    code = _code(machine)
    if code is None:
        return None
    frame = filled(FIELDS, {
        "source": source.data_ptr(), "source_step": steps[0],
        "target": target.data_ptr(), "target_step": steps[1],
        "runs": height * width, "length": channels,
    })  # fmt: skip
    return NativeCall(code[0].address, frame, keeps=(target, source))


def join_call(target: Tensor, sources: Sequence[Tensor]) -> NativeCall | None:
    """The call that puts the channels of all ``sources``, in their order, into ``target``.

    None where :func:`copy_call` cannot do one of them.
    """
    calls, begin = [], 0
    for source in sources:
        channels = source.shape[1]
        call = copy_call(target.narrow(1, begin, channels), source)
        if call is None:
            return None
        calls.append(call)
        begin += channels
    machine = native()
    code = _code(machine) if machine is not None else None
    if code is None:
        return None
    frame = array("q", [len(calls), *(call.frame.buffer_info()[0] for call in calls)])
    return NativeCall(code[1].address, frame, keeps=calls)


def runner(call: NativeCall) -> Callable[[], object]:
    """Does what a call by :func:`copy_call` or :func:`join_call` is for."""
    machine = native()
    code = _code(machine) if machine is not None else None
    assert code is not None
    (entry,) = (entry for entry in code if entry.address == call.function)
    return partial(_run, entry, call.frame.buffer_info()[0], call)


def _run(entry: Entry, address: int, call: NativeCall) -> None:
    """``call`` is what keeps the memory at ``address``."""
    entry.run(address)
