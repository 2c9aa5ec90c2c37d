"""Windows that slide over a map, every channel by itself, as code.

An item is a row of results. It is made by groups of neighbouring results: for one vector of
channels after the other, the rows of the windows are combined in registers. Which rows of a
window lie in the map is known for a whole row of results; of the columns, those that do not are
read from a constant in place of the map.

Lengths and places are in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from llvmlite import ir

from edgeflow_mpi.kernels.llvm.emit import F32, I64, POINTER, Function, Value
from edgeflow_mpi.kernels.llvm.frame import SHARED, Frame
from edgeflow_mpi.kernels.llvm.machine import Machine

Operation: TypeAlias = Literal["depthwise", "max", "average"]

FIELDS: Final = (
    # Addresses, and float32 from one image to the next, then from one pixel to the next, which is
    # more than its channels where these are some of a larger map's.
    "input", "input_image", "out", "out_image", "input_pixel", "out_pixel",
    # Maps. Above and left: rows and columns of padding.
    "images", "height", "width", "channels", "out_height", "out_width", "above", "left",
    # Windows, along the height: rows, from one to the next, and from window to window.
    "rows", "row_dilation", "row_stride",
    # Addresses: weights, by taps, and bias; factors of rows and of columns of a mean; what stands
    # in columns beside the map. Bit patterns of the bounds of the results.
    "weights", "bias", "row_factors", "column_factors", "outside", "low", "high",
    *SHARED,
)  # fmt: skip
ENTRY: Final = "slide"
LARGEST: Final = 11
"""Columns of a window; its code is written out in full."""


@dataclass(frozen=True)
class Variant:
    """What code is made for: an operation, and its windows along the width.

    Attributes
    ----------
    columns, dilation, stride : int
        Columns of a window, from one to the next, and from window to window.
    """

    operation: Operation
    columns: int
    dilation: int
    stride: int

    @property
    def group(self) -> int:
        """Results that are made at a time."""
        return 4

    def __str__(self) -> str:
        return f"{self.operation} {self.columns} by {self.dilation} every {self.stride}"


def emit_slide(machine: Machine, variant: Variant) -> str:
    """A module, as text, with the function :data:`ENTRY` of the address of a frame."""
    module = ir.Module(name="channelwise")
    stage = _emit_stage(module, machine, variant)
    f = Function(module, ENTRY, machine.lanes, [POINTER], inner=False)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read("threads", "parallel", "images", "out_height")
    frame.run(stage, f.mul(frame.images, frame.out_height))
    f.finish()
    return str(module)


def _emit_group(
    module: Value, machine: Machine, variant: Variant, results: int, *, inside: bool
) -> Value:
    """Some results side by side: of a frame's address, the first row of the map that they read,
    its tap, taps in all, column of the first window, place of the results, factors.

    ``inside``: all columns that the windows read are in the map.
    """
    name = f"{'inside' if inside else 'border'}_{results}"
    f = Function(
        module, name, machine.lanes, [POINTER, POINTER, I64, I64, I64, POINTER, F32, POINTER],
        inner=True,
    )  # fmt: skip
    row, tap, taps, left, out, row_factor, column_factors = f.args[1:]
    b = f.builder
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(
        "width", "channels", "row_dilation", "weights", "bias", "outside", "low", "high",
        "input_pixel", "out_pixel",
    )  # fmt: skip
    low, high = (
        f.splat(b.bitcast(b.trunc(bits, ir.IntType(32)), F32)) for bits in (frame.low, frame.high)
    )
    channels = frame.channels
    row_step = f.mul(frame.row_dilation, frame.width, frame.input_pixel)
    reads = [
        [t * variant.stride + k * variant.dilation for k in range(variant.columns)]
        for t in range(results)
    ]
    columns, steps = {}, {}
    for j in sorted({j for window in reads for j in window}):
        x = f.add(left, j)
        place = f.at(row, f.mul(x, frame.input_pixel))
        steps[j] = row_step
        if not inside:
            there = b.and_(f.less(-1, x), f.less(x, frame.width))
            place = b.select(there, place, f.pointer(frame.outside))
            steps[j] = b.select(there, row_step, f.integer(0))
        columns[j] = place
    weights = f.at(f.pointer(frame.weights), f.mul(tap, variant.columns, channels))
    if variant.operation == "average":
        factors = [
            f.splat(b.fmul(row_factor, b.load(f.at(column_factors, t), typ=F32)))
            for t in range(results)
        ]
    last = f.sub(channels, f.lanes)
    start = f.constant(-math.inf if variant.operation == "max" else 0)
    with f.loop(channels, f.lanes) as index:
        # The last vector overlaps the one before where the channels are no multiple.
        channel = f.least(index, last)
        with f.reduction(taps, 1, [start] * results) as turn:
            if variant.operation == "depthwise":
                row_weights = f.add(f.mul(turn.index, variant.columns, channels), channel)
                filters = [
                    f.load(weights, row_weights, f.mul(k, channels)) for k in range(variant.columns)
                ]
            values = {
                j: f.load(place, f.add(f.mul(turn.index, steps[j]), channel))
                for j, place in columns.items()
            }
            for k in range(variant.columns):
                for t, window in enumerate(reads):
                    value, made = values[window[k]], turn.sums[t]
                    if variant.operation == "depthwise":
                        turn.sums[t] = f.fma(value, filters[k], made)
                    elif variant.operation == "average":
                        turn.sums[t] = b.fadd(made, value)
                    else:
                        turn.sums[t] = f.greatest(made, value)
        for t, made in enumerate(turn.sums):
            if variant.operation == "depthwise":
                made = b.fadd(made, f.load(f.pointer(frame.bias), channel))
                made = f.clamp(made, low, high)
            elif variant.operation == "average":
                made = b.fmul(made, factors[t])
            f.store(made, out, channel, f.mul(t, frame.out_pixel))
    return f.finish()


def _emit_stage(module: Value, machine: Machine, variant: Variant) -> Value:
    """The items: rows of results."""
    most = variant.group
    inner = _emit_group(module, machine, variant, most, inside=True)
    border = _emit_group(module, machine, variant, most, inside=False)
    single = _emit_group(module, machine, variant, 1, inside=False)
    f = Function(module, "stage", machine.lanes, [POINTER], inner=True)
    b = f.builder
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS[: FIELDS.index("threads")], "items")
    reach = (most - 1) * variant.stride + (variant.columns - 1) * variant.dilation
    with frame.taken() as (item, _):
        image = f.div(item, frame.out_height)
        y = f.sub(item, f.mul(image, frame.out_height))
        top = f.sub(f.mul(y, frame.row_stride), frame.above)
        tap = f.ceil_div(f.most(f.sub(0, top), 0), frame.row_dilation)
        end = f.least(frame.rows, f.ceil_div(f.sub(frame.height, top), frame.row_dilation))
        first = f.add(top, f.mul(tap, frame.row_dilation))
        row = f.at(
            f.pointer(frame.input),
            f.mul(image, frame.input_image),
            f.mul(first, frame.width, frame.input_pixel),
        )
        out_row = f.at(
            f.pointer(frame.out),
            f.mul(image, frame.out_image),
            f.mul(y, frame.out_width, frame.out_pixel),
        )
        factor: Value = ir.Constant(F32, 1.0)
        if variant.operation == "average":
            factor = b.load(f.at(f.pointer(frame.row_factors), y), typ=F32)

        def arguments(x: Value) -> list[Value]:
            left = f.sub(f.mul(x, variant.stride), frame.left)
            out = f.at(out_row, f.mul(x, frame.out_pixel))
            factors = f.at(f.pointer(frame.column_factors), x)
            return [f.args[0], row, tap, f.sub(end, tap), left, out, factor, factors]

        with b.if_else(f.less(frame.out_width, most)) as (few, many):
            with few, f.loop(frame.out_width) as x:
                b.call(single, arguments(x))
            with many, f.loop(frame.out_width, most) as index:
                # The last group overlaps the one before where they are no multiple.
                given = arguments(f.least(index, f.sub(frame.out_width, most)))
                left = given[4]
                whole = b.and_(f.less(-1, left), f.less(f.add(left, reach), frame.width))
                with b.if_else(whole) as branches:
                    for branch, group in zip(branches, (inner, border), strict=True):
                        with branch:
                            b.call(group, given)
    return f.finish()
