"""One convolution as code: results a few at a time, all their sums in registers.

A block is some rows of results. The rows that it reads are copied first where the map is padded,
with zeros beside them. Then, for one panel of output channels after the other, groups of results
are summed: over runs of float32 that lie side by side in memory, at the same distances from every
result's first one.

Lengths and places are in float32.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from edgeflow_mpi.kernels.llvm.emit import F32, I64, POINTER, Function, Value
from edgeflow_mpi.kernels.llvm.frame import SHARED, Frame
from edgeflow_mpi.kernels.llvm.machine import Machine

FIELDS: Final = (
    # Addresses, and float32 from one image to the next; no other: address 0. From one pixel to
    # the next, which is more than its channels where these are some of a larger map's.
    "input", "input_image", "out", "out_image", "other", "other_image", "out_pixel", "other_pixel",
    # The map that is read, and rows and columns of padding before it.
    "images", "height", "width", "channels", "above", "left",
    # The map that is made.
    "out_height", "out_width",
    # From a result's first float32 to that of the next in its row, and in its column; the number
    # of runs, their length, and the address of their distances from there.
    "column_step", "row_step", "runs", "run_length", "offsets",
    # Addresses of the weights and of the bias; vectors of output channels, and the first channel
    # of the last one; bit patterns of the bounds of the results.
    "weights", "bias", "vectors", "last_vector", "low", "high",
    # Rows of a block, blocks of an image, panels of an item, items of a block.
    "block", "blocks", "share", "shares",
    # Copied rows: none if 0; rows of the map from block to block, and that one block reads;
    # columns of a copied row, from one to the next, and from row to row; addresses, and from
    # thread to thread.
    "copying", "block_step", "reach", "columns", "pixel", "copied_row", "copied", "copied_thread",
    *SHARED,
)  # fmt: skip
ENTRY: Final = "convolve"


def widths(machine: Machine, vectors: int) -> tuple[int, ...]:
    """Numbers of results of which so many vectors are summed at a time, largest first."""
    sums = machine.panel_tiles * machine.panel_vectors
    # AVX-512 multiplies with a float32 in memory; elsewhere it needs a register of its own.
    most = sums // vectors if machine.lanes == 16 else min(sums // vectors, sums * 2 // 3)
    sizes = [most]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] * 2 // 3) if sizes[-1] > 3 else sizes[-1] - 1)
    return tuple(sizes)


def emit_convolution(machine: Machine) -> str:
    """A module, as text, with the function :data:`ENTRY` of the address of a frame."""
    module = ir.Module(name="direct")
    stage = _emit_stage(module, machine)
    f = Function(module, ENTRY, machine.lanes, [POINTER], inner=False)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read("threads", "parallel", "images", "blocks", "shares")
    frame.run(stage, f.mul(frame.images, frame.blocks, frame.shares))
    f.finish()
    return str(module)


def _emit_group(module: Value, machine: Machine, results: int, vectors: int) -> Value:
    """So many results of so many vectors: of a frame's address, a row's start, the first result's
    column, weights, place of the results, other, bias, place of the last vector."""
    name = f"{results}_results_{vectors}_vectors"
    parameters = [POINTER, POINTER, I64, POINTER, POINTER, POINTER, POINTER, I64]
    f = Function(module, name, machine.lanes, parameters, inner=True)
    row, column, weights, out, other, bias, last = f.args[1:]
    b, lanes = f.builder, machine.lanes
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(
        "column_step", "row_step", "out_width", "runs", "run_length", "offsets",
        "out_pixel", "other_pixel", "low", "high",
    )  # fmt: skip
    starts = []
    for t in range(results):
        starts.append(f.at(row, f.mul(column, frame.column_step)))
        if t + 1 < results:
            column = f.add(column, 1)
            end = f.less(column, frame.out_width)
            column = b.select(end, column, f.integer(0))
            row = b.select(end, row, f.at(row, frame.row_step))
    places = [f.integer(j * lanes) for j in range(vectors - 1)] + [last]
    # What is written at the end comes near meanwhile.
    for t in range(results):
        for place in places:
            f.prefetch(out, f.mul(t, frame.out_pixel), place, write=True)
    offsets = [f.load(bias, place) for place in places]
    sums = [offset for _ in range(results) for offset in offsets]
    width = vectors * lanes
    with f.reduction(frame.runs, 1, sums) as outer:
        offset = b.load(b.gep(f.pointer(frame.offsets), [outer.index], source_etype=I64), typ=I64)
        panel = f.at(weights, f.mul(outer.index, frame.run_length, width))
        # Unrolled, loads are drawn forward until there are no registers left for them.
        with f.reduction(frame.run_length, 1, outer.sums) as turn:
            place = f.add(offset, turn.index)
            row_weights = f.at(panel, f.mul(turn.index, width))
            columns = [f.load(row_weights, j * lanes) for j in range(vectors)]
            for t, start in enumerate(starts):
                sample = f.everywhere(start, place)
                for j, values in enumerate(columns):
                    i = t * vectors + j
                    turn.sums[i] = f.fma(sample, values, turn.sums[i])
        outer.sums = turn.sums
    sums = outer.sums
    # What is added is read in one branch, so that there is one loop for both cases.
    before, adding, done = (b.block, b.append_basic_block("add"), b.append_basic_block("added"))
    b.cbranch(b.icmp_signed("!=", frame.other, f.integer(0)), adding, done)
    b.position_at_end(adding)
    added = [
        b.fadd(value, f.load(other, f.mul(i // vectors, frame.other_pixel), places[i % vectors]))
        for i, value in enumerate(sums)
    ]
    b.branch(done)
    b.position_at_end(done)
    totals = []
    for value, more in zip(sums, added, strict=True):
        phi = b.phi(f.vector)
        phi.add_incoming(value, before)
        phi.add_incoming(more, adding)
        totals.append(phi)
    low, high = (
        f.splat(b.bitcast(b.trunc(bits, ir.IntType(32)), F32)) for bits in (frame.low, frame.high)
    )
    for i, value in enumerate(totals):
        where = f.mul(i // vectors, frame.out_pixel)
        f.store(f.clamp(value, low, high), out, where, places[i % vectors])
    return f.finish()


def _emit_copy(module: Value, machine: Machine) -> Value:
    """Rows of the map between zeros: of a frame's address, source, its first row, target."""
    f = Function(module, "copy", machine.lanes, [POINTER, POINTER, I64, POINTER], inner=True)
    source, first, target = f.args[1:]
    b = f.builder
    frame = Frame(f, f.args[0], FIELDS)
    frame.read("height", "width", "channels", "left", "reach", "columns", "pixel", "copied_row")
    row_length = f.mul(frame.width, frame.channels)
    # Columns that lie side by side are copied as one piece.
    together = b.icmp_signed("==", frame.pixel, frame.channels)
    pieces = b.select(together, f.integer(1), frame.width)
    length = b.select(together, row_length, frame.channels)
    last = f.sub(length, f.lanes)
    before = f.mul(frame.left, frame.pixel)
    behind = f.add(before, f.mul(frame.width, frame.pixel))
    after = f.sub(f.mul(frame.columns, frame.pixel), behind)
    with f.loop(frame.reach) as index:
        y = f.add(first, index)
        out = f.at(target, f.mul(index, frame.copied_row))
        there = b.and_(f.less(-1, y), f.less(y, frame.height))
        with b.if_else(there) as (inside, outside):
            with inside:
                # Zeros first: whole vectors of them, which what is inside then covers.
                for place, zeros in ((0, before), (behind, after)):
                    with f.loop(zeros, f.lanes) as i:
                        f.store(f.constant(0), out, place, i)
                start = f.at(source, f.mul(y, row_length))
                with f.loop(pieces) as piece:
                    read = f.at(start, f.mul(piece, length))
                    written = f.at(out, before, f.mul(piece, frame.pixel))
                    with f.loop(length, f.lanes) as i:
                        place = f.least(i, last)
                        f.store(f.load(read, place), written, place)
            with outside, f.loop(f.mul(frame.columns, frame.pixel), f.lanes) as i:
                f.store(f.constant(0), out, i)
    return f.finish()


def _emit_stage(module: Value, machine: Machine) -> Value:
    """The items: a block of results of an image, times a share of the panels."""
    most = machine.panel_vectors
    groups = {
        vectors: {
            results: _emit_group(module, machine, results, vectors)
            for results in widths(machine, vectors)
        }
        for vectors in range(1, most + 1)
    }
    copy = _emit_copy(module, machine)
    f = Function(module, "stage", machine.lanes, [POINTER], inner=True)
    b = f.builder
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS[: FIELDS.index("threads")], "items")
    copying = b.icmp_signed("!=", frame.copying, f.integer(0))
    panel_row = f.mul(frame.runs, frame.run_length, f.lanes)
    with frame.taken() as (item, thread):
        block = f.div(item, frame.shares)
        image = f.div(block, frame.blocks)
        y = f.mul(f.sub(block, f.mul(image, frame.blocks)), frame.block)
        rows = f.least(frame.block, f.sub(frame.out_height, y))
        source = f.at(f.pointer(frame.input), f.mul(image, frame.input_image))
        copied = f.at(f.pointer(frame.copied), f.mul(thread, frame.copied_thread))
        first = f.sub(f.mul(f.div(y, frame.block), frame.block_step), frame.above)
        with b.if_then(copying):
            b.call(copy, [f.args[0], source, first, copied])
        start = b.select(copying, copied, f.at(source, f.mul(y, frame.row_step)))
        number = f.mul(rows, frame.out_width)
        pixels = f.mul(y, frame.out_width)
        out, other = (
            f.at(f.pointer(start), f.mul(image, image_step), f.mul(pixels, pixel_step))
            for start, image_step, pixel_step in (
                (frame.out, frame.out_image, frame.out_pixel),
                (frame.other, frame.other_image, frame.other_pixel),
            )
        )
        share = f.sub(item, f.mul(block, frame.shares))
        begin = f.mul(share, frame.share)
        panels = f.ceil_div(frame.vectors, most)
        with f.loop(f.least(frame.share, f.sub(panels, begin))) as index:
            panel = f.add(begin, index)
            vector = f.mul(panel, most)
            vectors = f.least(most, f.sub(frame.vectors, vector))
            # The last vector may overlap the one before; if it is the only one it is the first.
            final = f.sub(f.add(vector, vectors), 1)
            channel = f.least(f.mul(vector, f.lanes), frame.last_vector)
            last = f.sub(f.least(f.mul(final, f.lanes), frame.last_vector), channel)
            weights = f.at(f.pointer(frame.weights), f.mul(vector, panel_row))
            bias = f.at(f.pointer(frame.bias), channel)
            done = b.append_basic_block("panel_done")
            which = b.switch(vectors, done)
            for count, sizes in groups.items():
                case = b.append_basic_block("vectors")
                which.add_case(f.integer(count), case)
                b.position_at_end(case)
                places = start, weights, channel, out, other, bias, last
                _emit_groups(f, frame, sizes, number, places)
                b.branch(done)
            b.position_at_end(done)
    return f.finish()


def _emit_groups(
    f: Function, frame: Frame, sizes: dict[int, Value], number: Value, places: tuple[Value, ...]
) -> None:
    """All results of a block, by groups of the largest size that there is: the last overlaps the
    one before where they are no multiple."""
    b = f.builder
    start, weights, channel, out, other, bias, last = places
    after = b.append_basic_block("groups_done")
    for size, group in sizes.items():
        fits, smaller = b.append_basic_block("fits"), b.append_basic_block("smaller")
        b.cbranch(f.less(number, size), smaller, fits)
        b.position_at_end(fits)
        with f.loop(number, size) as index:
            pixel = f.least(index, f.sub(number, size))
            row = f.div(pixel, frame.out_width)
            column = f.sub(pixel, f.mul(row, frame.out_width))
            b.call(group, [
                f.args[0], f.at(start, f.mul(row, frame.row_step)), column, weights,
                f.at(out, f.mul(pixel, frame.out_pixel), channel),
                f.at(other, f.mul(pixel, frame.other_pixel), channel), bias, last,
            ])  # fmt: skip
        b.branch(after)
        b.position_at_end(smaller)
    b.branch(after)
    b.position_at_end(after)
