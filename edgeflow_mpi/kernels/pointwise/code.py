"""Products of pixels with panels of weights: every sum stays in a register until it is final.

A block of pixels stays in the second-level cache while panel after panel passes; a few pixels
and one panel at a time are multiplied in registers. Pixels that a strided convolution skips, or
whose distance in memory would crowd them into few sets of the caches, are packed first.

Lengths and places are in float32.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from edgeflow_mpi.kernels.llvm.emit import F32, I64, POINTER, Function, Value
from edgeflow_mpi.kernels.llvm.frame import SHARED, Frame
from edgeflow_mpi.kernels.llvm.machine import Machine

UNROLLED: Final = 4
"""Input channels in one turn; their number must be a multiple of it."""

FIELDS: Final = (
    # Addresses, and float32 from one image to the next; no other: address 0. From one pixel to
    # the next, which is more than its channels where these are some of a larger map's.
    "input", "input_image", "out", "out_image", "other", "other_image", "out_pixel", "other_pixel",
    # Maps: images, columns and pixels of a result; from a pixel read to the next along the
    # columns, and along the rows.
    "images", "columns", "pixels", "column_step", "row_step", "channels",
    # Addresses of the weights and of the bias, by panels; the first channel of the last panel;
    # bit patterns of the bounds of the results.
    "weights", "bias", "panels", "last_panel", "low", "high",
    # Pixels of a block, blocks of an image, panels of an item, items of a block.
    "block", "blocks", "share", "shares",
    # Packed pixels: none if 0; address, and from one pixel to the next and from thread to thread.
    "packing", "packed", "packed_pixel", "packed_thread",
    *SHARED,
)  # fmt: skip
ENTRY: Final = "multiply_pixels"


def emit_product(machine: Machine) -> str:
    """A module, as text, with the function :data:`ENTRY` of the address of a frame."""
    module = ir.Module(name="pointwise")
    stage = _emit_stage(module, machine)
    f = Function(module, ENTRY, machine.lanes, [POINTER], inner=False)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read("threads", "parallel", "images", "blocks", "shares")
    frame.run(stage, f.mul(frame.images, frame.blocks, frame.shares))
    f.finish()
    return str(module)


def _emit_pixels(module: Value, machine: Machine, pixels: int, *, residual: bool) -> Value:
    """So many pixels times one panel: pixels, from one to the next, weights, channels, out and
    other, each with float32 from pixel to pixel, bias, bounds."""
    name = f"{'add_' if residual else ''}{pixels}_pixels"
    parameters = [POINTER, I64, POINTER, I64, POINTER, I64, POINTER, I64, POINTER, F32, F32]
    f = Function(module, name, machine.lanes, parameters, inner=True)
    first, step, weights, channels, out, out_step, other, other_step, bias, low, high = f.args
    vectors, lanes = machine.panel_vectors, machine.lanes
    rows = [first]
    for _ in range(1, pixels):
        rows.append(f.at(rows[-1], step))
    # What is added and written at the end comes near meanwhile.
    for t in range(pixels):
        for j in range(vectors):
            if residual:
                f.prefetch(other, f.mul(t, other_step), j * lanes)
            f.prefetch(out, f.mul(t, out_step), j * lanes, write=True)
    with f.reduction(channels, UNROLLED, [f.constant(0)] * (pixels * vectors)) as turn:
        panel = f.at(weights, f.mul(turn.index, machine.panel))
        for k in range(UNROLLED):
            columns = [f.load(panel, (k * vectors + j) * lanes) for j in range(vectors)]
            for t, row in enumerate(rows):
                sample = f.everywhere(row, turn.index, k)
                for j, column in enumerate(columns):
                    place = t * vectors + j
                    turn.sums[place] = f.fma(sample, column, turn.sums[place])
    offsets = [f.load(bias, j * lanes) for j in range(vectors)]
    low, high = f.splat(low), f.splat(high)
    for t in range(pixels):
        for j in range(vectors):
            value = f.builder.fadd(turn.sums[t * vectors + j], offsets[j])
            if residual:
                value = f.builder.fadd(value, f.load(other, j * lanes))
            f.store(f.clamp(value, low, high), out, j * lanes)
        out = f.at(out, out_step)
        if residual:
            other = f.at(other, other_step)
    return f.finish()


def _emit_pack(module: Value, machine: Machine) -> Value:
    """Pixels side by side: of a frame's address, source, first pixel, number, target."""
    parameters = [POINTER, POINTER, I64, I64, POINTER]
    f = Function(module, "pack", machine.lanes, parameters, inner=True)
    frame = Frame(f, f.args[0], FIELDS)
    source, first, number, target = f.args[1:]
    frame.read("columns", "column_step", "row_step", "channels", "packed_pixel")
    last = f.sub(frame.channels, f.lanes)
    with f.loop(number) as index:
        pixel = f.add(first, index)
        row = f.div(pixel, frame.columns)
        column = f.sub(pixel, f.mul(row, frame.columns))
        start = f.at(source, f.mul(row, frame.row_step), f.mul(column, frame.column_step))
        out = f.at(target, f.mul(index, frame.packed_pixel))
        with f.loop(frame.channels, f.lanes) as channel:
            # The last vector overlaps the one before where the channels are no multiple.
            place = f.least(channel, last)
            f.store(f.load(start, place), out, place)
    return f.finish()


def _emit_stage(module: Value, machine: Machine) -> Value:
    """The items: a block of pixels of an image, times a share of the panels."""
    most = machine.panel_tiles
    multiply = {
        (pixels, residual): _emit_pixels(module, machine, pixels, residual=residual)
        for pixels in range(1, most + 1)
        for residual in (False, True)
    }
    pack = _emit_pack(module, machine)
    f = Function(module, "stage", machine.lanes, [POINTER], inner=True)
    b = f.builder
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS[: FIELDS.index("threads")], "items")
    low, high = (b.bitcast(b.trunc(bits, ir.IntType(32)), F32) for bits in (frame.low, frame.high))
    residual = b.icmp_signed("!=", frame.other, f.integer(0))
    packing = b.icmp_signed("!=", frame.packing, f.integer(0))
    step = b.select(packing, frame.packed_pixel, frame.column_step)
    with frame.taken() as (item, thread):
        block = f.div(item, frame.shares)
        image = f.div(block, frame.blocks)
        first = f.mul(f.sub(block, f.mul(image, frame.blocks)), frame.block)
        number = f.least(frame.block, f.sub(frame.pixels, first))
        source = f.at(f.pointer(frame.input), f.mul(image, frame.input_image))
        packed = f.at(f.pointer(frame.packed), f.mul(thread, frame.packed_thread))
        with b.if_then(packing):
            b.call(pack, [f.args[0], source, first, number, packed])
        pixels = b.select(packing, packed, f.at(source, f.mul(first, frame.column_step)))
        out, other = (
            f.at(f.pointer(start), f.mul(image, image_step), f.mul(first, pixel_step))
            for start, image_step, pixel_step in (
                (frame.out, frame.out_image, frame.out_pixel),
                (frame.other, frame.other_image, frame.other_pixel),
            )
        )
        # As even as possible: a few pixels alone are slow.
        groups = f.ceil_div(number, most)
        size = f.div(number, groups)
        larger = f.sub(number, f.mul(size, groups))
        share = f.sub(item, f.mul(block, frame.shares))
        begin = f.mul(share, frame.share)
        panels = f.least(frame.share, f.sub(frame.panels, begin))
        with f.loop(panels) as index, f.loop(groups) as group:
            panel = f.add(begin, index)
            channel = f.least(f.mul(panel, machine.panel), frame.last_panel)
            weights = f.at(f.pointer(frame.weights), f.mul(panel, frame.channels, machine.panel))
            pixel = f.add(f.mul(group, size), f.least(group, larger))
            count = f.add(size, b.zext(f.less(group, larger), I64))
            arguments = [
                f.at(pixels, f.mul(pixel, step)), step, weights, frame.channels,
                f.at(out, f.mul(pixel, frame.out_pixel), channel), frame.out_pixel,
                f.at(other, f.mul(pixel, frame.other_pixel), channel), frame.other_pixel,
                f.at(f.pointer(frame.bias), channel), low, high,
            ]  # fmt: skip
            done = b.append_basic_block("multiplied")
            which = f.add(f.mul(count, 2), b.zext(residual, I64))
            switch = b.switch(which, done)
            for (several, adding), function in multiply.items():
                case = b.append_basic_block("case")
                switch.add_case(f.integer(2 * several + adding), case)
                b.position_at_end(case)
                b.call(function, arguments)
                b.branch(done)
            b.position_at_end(done)
    return f.finish()
