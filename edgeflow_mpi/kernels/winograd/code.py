"""One convolution as code: tiles are transformed, multiplied and transformed back, in blocks.

A block of tiles is done in two steps. The first reads the map, segment by segment: first along the
height, from rows to a strip of as many rows as there are products, with zeros beside it where the
map is padded; then along the width, from the strip to the points of every tile. The second takes
a panel of output channels: all products of all tiles of the block with that panel, then back to
results, with bias, residual sum and bounds, straight into the map. Where there are many blocks,
every thread does some of them by itself. Where there is one, all threads do its first step
together, then the second, in chunks.

Everything a convolution depends on stands in a *frame* of 64-bit integers, :data:`FIELDS`, and in
:mod:`~edgeflow_mpi.kernels.winograd.tables`. Lengths and places are in float32, unless a name says
otherwise. What depends on the variant is in :mod:`~edgeflow_mpi.kernels.winograd.tiles`: this code
is the same for all.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from edgeflow_mpi.kernels.llvm.emit import I64, POINTER, Function, Value
from edgeflow_mpi.kernels.llvm.frame import SHARED, Frame
from edgeflow_mpi.kernels.llvm.machine import Machine
from edgeflow_mpi.kernels.winograd.tables import BLOCK, IN_BOTTOM, IN_RIGHT, KINDS, SEGMENT

FIELDS: Final = (
    # Addresses, and float32 from one image to the next; no other: address 0. From one pixel to
    # the next, which is more than its channels where these are some of a larger map's.
    "input", "input_image", "out", "out_image", "other", "other_image", "out_pixel", "other_pixel",
    # Maps. Above and left: rows and columns of padding.
    "height", "width", "channels", "out_width", "above", "left",
    # Addresses of transformed weights and of the bias, by panels; the first channel of the last
    # panel; channels of a panel that are written; bit patterns of the bounds of the results.
    "weights", "bias", "panels", "last_panel", "panel_channels", "low", "high",
    # Products of a tile; the address of what says of each which tiles at the edges need it.
    "product_count", "needed_by",
    # Tables of blocks and segments: addresses, and their number. Whether threads do all blocks'
    # first step together, then the second.
    "blocks", "block_count", "segments", "segment_count", "together",
    # Scratch memory: addresses, and float32 from thread to thread, from row to row of a strip, and
    # from tile to tile and product to product of the points. A row of zeros.
    "strips", "strips_thread", "strip_row", "points", "points_thread",
    "points_tile", "points_product",
    "products", "products_thread", "zeros",
    # Addresses of tables of functions: gemm by tiles; by kinds of tiles to points, and to results
    # without and with a residual sum.
    "gemms", "reads", "writes",
    *SHARED,
)  # fmt: skip
ENTRY: Final = "convolve"

_READ = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, POINTER])
_WRITE = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, I64, POINTER])
_GEMM = ir.FunctionType(ir.VoidType(), [POINTER, I64, POINTER, POINTER, I64, I64])


def emit_convolution(machine: Machine) -> str:
    """A module, as text, with the function :data:`ENTRY` of the address of a frame."""
    module = ir.Module(name="winograd")
    multiply = _emit_multiply(module, machine)
    blocks = _emit_blocks(module, machine, multiply)
    shared = (
        _emit_shared_read(module, machine),
        _emit_shared_multiply(module, machine, multiply),
    )
    f = Function(module, ENTRY, machine.lanes, [POINTER], inner=False)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    b = f.builder
    with b.if_else(f.less(0, frame.together)) as (together, each):
        with together:
            chunks = f.mul(frame.block_count, frame.panels)
            for stage, items in zip(shared, (frame.segment_count, chunks), strict=True):
                frame.run(stage, items)
        with each:
            frame.run(blocks, frame.block_count)
    f.finish()
    return str(module)


def _record(f: Function, table: Value, index: Value, fields: tuple[str, ...]) -> Frame:
    """A record of a table, which is read like a frame."""
    start = f.builder.gep(f.pointer(table), [f.mul(index, len(fields))], source_etype=I64)
    record = Frame(f, start, fields)
    record.read(*fields)
    return record


def _entry(f: Function, table: Value, index: Value) -> Value:
    """A 64-bit integer of a table."""
    b = f.builder
    return b.load(b.gep(f.pointer(table), [f.integer(index)], source_etype=I64), typ=I64)


def _emit_multiply(module: Value, machine: Machine) -> Value:
    """Tiles of a block from points to results of a panel: of a frame's address, block, panel,
    points of the first tile, products."""
    f = Function(module, "multiply", machine.lanes, [POINTER, I64, I64, POINTER, POINTER],
                 inner=True)  # fmt: skip
    b = f.builder
    number, panel, points, products = f.args[1:]
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    block = _record(f, frame.blocks, number, BLOCK)
    tile_step = f.mul(frame.product_count, machine.panel)
    panel_weights = f.mul(frame.channels, machine.panel)
    above_bottom = f.add(block.right, block.whole)
    left_of_corner = f.add(above_bottom, block.bottom)
    tiles = f.add(left_of_corner, block.corner)
    with f.loop(frame.product_count) as product:
        # Of all tiles, which stand by kinds, those that need this product.
        needed_by = _entry(f, frame.needed_by, product)
        in_right, in_bottom = (
            b.icmp_signed("!=", b.and_(needed_by, f.integer(bit)), f.integer(0))
            for bit in (IN_RIGHT, IN_BOTTOM)
        )
        first = b.select(in_right, f.integer(0), block.right)
        stop = b.select(in_bottom, b.select(in_right, tiles, left_of_corner), above_bottom)
        count = f.sub(stop, first)
        # As even as possible: a few tiles alone are slow.
        groups = f.ceil_div(count, machine.panel_tiles)
        size = f.div(count, f.most(groups, 1))
        larger = f.sub(count, f.mul(size, groups))
        weights = f.at(
            f.pointer(frame.weights),
            f.mul(f.add(f.mul(panel, frame.product_count), product), panel_weights),
        )
        with f.loop(groups) as group:
            tile = f.add(first, f.mul(group, size), f.least(group, larger))
            some = f.add(size, b.zext(f.less(group, larger), I64))
            samples = f.at(
                points, f.mul(tile, frame.points_tile), f.mul(product, frame.points_product)
            )
            made = f.at(products, f.mul(tile, tile_step), f.mul(product, machine.panel))
            function = b.inttoptr(_entry(f, frame.gemms, some), _GEMM.as_pointer())
            b.call(function, [samples, frame.points_tile, weights, made, tile_step, frame.channels])
    adds = b.select(b.icmp_signed("!=", frame.other, f.integer(0)), f.integer(KINDS), f.integer(0))
    with f.loop(block.segments) as index:
        segment = _record(f, frame.segments, f.add(block.first_segment, index), SEGMENT)
        address = _entry(f, frame.writes, f.add(adds, segment.kind))
        write = b.inttoptr(address, _WRITE.as_pointer())
        b.call(write, [f.args[0], segment.pointer, panel, products])
    return f.finish()


def _emit_blocks(module: Value, machine: Machine, multiply: Value) -> Value:
    """The only stage where there are many blocks: an item is a block, done by one thread."""
    f = Function(module, "blocks", machine.lanes, [POINTER], inner=True)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    with frame.taken() as (item, thread):
        block = _record(f, frame.blocks, item, BLOCK)
        strip, products = _own(f, frame, thread)
        points = f.at(f.pointer(frame.points), f.mul(thread, frame.points_thread))
        with f.loop(block.segments) as index:
            _read(f, frame, f.add(block.first_segment, index), strip, points)
        with f.loop(frame.panels) as panel:
            f.builder.call(multiply, [f.args[0], item, panel, points, products])
    return f.finish()


def _emit_shared_read(module: Value, machine: Machine) -> Value:
    """The first stage where threads work together: an item is a segment."""
    f = Function(module, "shared_read", machine.lanes, [POINTER], inner=True)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    with frame.taken() as (item, thread):
        strip, _ = _own(f, frame, thread)
        _read(f, frame, item, strip, f.pointer(frame.points))
    return f.finish()


def _emit_shared_multiply(module: Value, machine: Machine, multiply: Value) -> Value:
    """The second stage where threads work together: an item is a panel of a block."""
    f = Function(module, "shared_multiply", machine.lanes, [POINTER], inner=True)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    with frame.taken() as (item, thread):
        panel = f.div(item, frame.block_count)
        number = f.sub(item, f.mul(panel, frame.block_count))
        block = _record(f, frame.blocks, number, BLOCK)
        _, products = _own(f, frame, thread)
        points = f.at(f.pointer(frame.points), f.mul(block.place, frame.points_tile))
        f.builder.call(multiply, [f.args[0], number, panel, points, products])
    return f.finish()


def _read(f: Function, frame: Frame, index: Value, strip: Value, points: Value) -> None:
    """A segment's tiles from the map to points."""
    segment = _record(f, frame.segments, index, SEGMENT)
    function = f.builder.inttoptr(_entry(f, frame.reads, segment.kind), _READ.as_pointer())
    f.builder.call(function, [frame.pointer, segment.pointer, strip, points])


def _own(f: Function, frame: Frame, thread: Value) -> tuple[Value, Value]:
    """The strip and the products of a thread."""
    return (
        f.at(f.pointer(frame.strips), f.mul(thread, frame.strips_thread)),
        f.at(f.pointer(frame.products), f.mul(thread, frame.products_thread)),
    )
