"""One convolution as code: tiles are transformed, multiplied and transformed back, in blocks.

A block of tiles is done in two steps. ``transform`` reads the map: first along the height,
from rows to a strip of ``products`` rows, with zeros beside it where the map is padded; then
along the width, from the strip to the points of every tile. ``multiply`` takes a panel of output
channels: all products of all tiles of the block with that panel, then back to results, with
bias, residual sum and bounds, straight into the map. Where there are many blocks, every thread
does some of them by itself. Where there is one, all threads do its first step together, then the
second.

Everything a convolution depends on stands in a *frame* of 64-bit integers, :data:`FIELDS`.
Lengths and places are in float32, unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from llvmlite import ir

from edgeflow_mpi.kernels.llvm.emit import F32, I64, POINTER, Function, Value
from edgeflow_mpi.kernels.llvm.frame import SHARED, Frame
from edgeflow_mpi.kernels.llvm.machine import Machine
from edgeflow_mpi.kernels.winograd.points import Filtering
from edgeflow_mpi.kernels.winograd.transforms import input_transform, output_transform

FIELDS: Final = (
    # Addresses, and float32 from one image to the next; no other: address 0. From one pixel to
    # the next, which is more than its channels where these are some of a larger map's.
    "input", "input_image", "out", "out_image", "other", "other_image", "out_pixel", "other_pixel",
    # Maps. Above and left: rows and columns of padding.
    "height", "width", "channels", "out_height", "out_width", "above", "left",
    # Addresses of transformed weights and of the bias, by panels; the first channel of the last
    # panel; channels of a panel that are written; bit patterns of the bounds of the results.
    "weights", "bias", "panels", "last_panel", "panel_channels", "low", "high",
    # Tiles in a row, in an image, in all, in a block; and, of what is done at a time, in the first
    # step and in the second.
    "tiles_across", "tiles_image", "tiles", "block", "segment", "chunk",
    # Scratch memory: addresses, and float32 from thread to thread, from row to row of a strip, and
    # from tile to tile and product to product of the points. A row of zeros.
    "strips", "strips_thread", "strip_row", "points", "points_thread",
    "points_tile", "points_product",
    "products", "products_thread", "zeros",
    # The address of the table of gemm functions.
    "gemms",
    *SHARED,
)  # fmt: skip
ENTRY: Final = "convolve"


@dataclass(frozen=True)
class Variant:
    """The minimal filtering along height and width."""

    height: Filtering
    width: Filtering

    @property
    def products(self) -> int:
        return self.height.products * self.width.products

    def filter(self) -> torch.Tensor:
        """What the taps of a filter are multiplied with: products × taps, float64."""
        height, width = (
            torch.tensor([[float(c) for c in row] for row in f.filter], dtype=torch.float64)
            for f in (self.height, self.width)
        )
        return torch.kron(height, width)

    def __str__(self) -> str:
        h, w = self.height, self.width
        return f"F({h.results}x{w.results}, {h.taps}x{w.taps})"


def emit_convolution(machine: Machine, variant: Variant) -> str:
    """A module, as text, with the function :data:`ENTRY` of the address of a frame."""
    module = ir.Module(name="winograd")
    parts = _Parts(module, machine, variant)
    transform, multiply = _emit_transform(parts), _emit_multiply(parts)
    blocks = _emit_blocks(parts, transform, multiply)
    shared = _emit_shared_transform(parts, transform), _emit_shared_multiply(parts, multiply)
    f = Function(module, ENTRY, machine.lanes, [POINTER], inner=False)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    b = f.builder
    with b.if_else(f.less(frame.block, frame.tiles)) as (several, one):
        with several:
            frame.run(blocks, f.ceil_div(frame.tiles, frame.block))
        with one:
            segments = f.ceil_div(frame.tiles, frame.segment)
            chunks = f.mul(f.ceil_div(frame.tiles, frame.chunk), frame.panels)
            for stage, items in zip(shared, (segments, chunks), strict=True):
                frame.run(stage, items)
    f.finish()
    return str(module)


@dataclass(frozen=True)
class _Parts:
    """What every function of a module is made with."""

    module: Value
    machine: Machine
    variant: Variant

    def function(self, name: str, *parameters: Value) -> Function:
        return Function(self.module, name, self.machine.lanes, parameters, inner=True)


def _tile_at(f: Function, frame: Frame, tile: Value) -> tuple[Value, Value, Value]:
    """(image, row of tiles, tile in that row)."""
    image = f.div(tile, frame.tiles_image)
    rest = f.sub(tile, f.mul(image, frame.tiles_image))
    row = f.div(rest, frame.tiles_across)
    return image, row, f.sub(rest, f.mul(row, frame.tiles_across))


def _emit_down(parts: _Parts) -> Value:
    """Transform along the height: rows, their length, strip, its row length."""
    filtering = parts.variant.height
    count = filtering.products
    f = parts.function("down", *[POINTER] * count, I64, POINTER, I64)
    rows, (length, strip, strip_row) = f.args[:count], f.args[count:]
    strips = [f.at(strip, f.mul(i, strip_row)) for i in range(count)]
    last = f.sub(length, f.lanes)
    with f.loop(length, f.lanes) as index:
        # The last vector overlaps the one before where the length is no multiple.
        place = f.least(index, last)
        samples = [f.load(row, place) for row in rows]
        for out, value in zip(strips, input_transform(f, filtering, samples), strict=True):
            f.store(value, out, place)
    return f.finish()


def _emit_across(parts: _Parts) -> Value:
    """Transform along the width: strip, its row length, tiles, channels, points of the first
    tile, float32 between tiles and between products."""
    height, width = parts.variant.height, parts.variant.width
    count = width.products
    f = parts.function("across", POINTER, I64, I64, I64, POINTER, I64, I64)
    strip, strip_row, tiles, channels, points, points_tile, points_product = f.args
    last = f.sub(channels, f.lanes)
    with f.loop(tiles) as tile, f.loop(height.products) as row:
        start = f.at(strip, f.mul(row, strip_row), f.mul(tile, width.results, channels))
        columns = [f.at(start, f.mul(j, channels)) for j in range(count)]
        made = f.at(points, f.mul(tile, points_tile), f.mul(row, count, points_product))
        outs = [f.at(made, f.mul(j, points_product)) for j in range(count)]
        with f.loop(channels, f.lanes) as index:
            place = f.least(index, last)
            samples = [f.load(column, place) for column in columns]
            for out, value in zip(outs, input_transform(f, width, samples), strict=True):
                f.store(value, out, place)
    return f.finish()


def _emit_transform(parts: _Parts) -> Value:
    """Tiles from the map to points, row by row: of a frame's address, first tile, number, strip,
    points of the first tile. A strip has room for a segment of tiles."""
    height, width = parts.variant.height, parts.variant.width
    down, across = _emit_down(parts), _emit_across(parts)
    f = parts.function("transform", POINTER, I64, I64, POINTER, POINTER)
    b = f.builder
    first, number, strip, points = f.args[1:]
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    current = b.alloca(I64)
    row_length = f.mul(frame.width, frame.channels)
    b.store(f.integer(0), current)
    head, body, end = (b.append_basic_block(name) for name in ("row", "part", "stop"))
    b.branch(head)
    b.position_at_end(head)
    tile = b.load(current, typ=I64)
    b.cbranch(f.less(tile, number), body, end)
    b.position_at_end(body)
    image, tile_row, tile_column = _tile_at(f, frame, f.add(first, tile))
    tiles = f.least(f.sub(frame.tiles_across, tile_column), f.sub(number, tile))
    top = f.sub(f.mul(tile_row, height.results), frame.above)
    left = f.sub(f.mul(tile_column, width.results), frame.left)
    columns = f.add(f.mul(tiles, width.results), width.taps - 1)
    inside_from = f.most(left, 0)
    inside_to = f.least(f.add(left, columns), frame.width)
    # Zeros beside the map first: whole vectors of them, which what is inside then covers.
    before = f.mul(f.sub(inside_from, left), frame.channels)
    inside = f.mul(f.sub(inside_to, inside_from), frame.channels)
    behind = f.add(before, inside)
    after = f.sub(f.mul(columns, frame.channels), behind)
    with f.loop(height.products) as row:
        start = f.at(strip, f.mul(row, frame.strip_row))
        for place, length in ((0, before), (behind, after)):
            with f.loop(length, f.lanes) as index:
                f.store(f.constant(0), start, place, index)
    source = f.pointer(frame.input)
    rows = []
    for i in range(height.products):
        y = f.add(top, i)
        place = f.add(
            f.mul(image, frame.input_image),
            f.mul(y, row_length),
            f.mul(inside_from, frame.channels),
        )
        there = b.and_(f.less(-1, y), f.less(y, frame.height))
        rows.append(b.select(there, f.at(source, place), f.pointer(frame.zeros)))
    b.call(down, [*rows, inside, f.at(strip, before), frame.strip_row])
    made = f.at(points, f.mul(tile, frame.points_tile))
    b.call(
        across,
        [strip, frame.strip_row, tiles, frame.channels, made, frame.points_tile,
         frame.points_product],
    )  # fmt: skip
    b.store(f.add(tile, tiles), current)
    b.branch(head)
    b.position_at_end(end)
    return f.finish()


def _emit_back(parts: _Parts, *, residual: bool) -> Value:
    """One tile of one panel, from products to results: products, out and other, float32 between
    the pixels of each, pixels in a row, rows and columns to write, bias, bounds, channels."""
    height, width = parts.variant.height, parts.variant.width
    name = "back_and_add" if residual else "back"
    vector = ir.VectorType(F32, parts.machine.lanes)
    f = parts.function(
        name, POINTER, POINTER, I64, POINTER, I64, I64, I64, I64, POINTER, vector, vector, I64,
    )  # fmt: skip
    products, out, out_pixel, other, other_pixel, width_of_row = f.args[:6]
    rows, columns, bias, low, high, channels = f.args[6:]
    panel = parts.machine.panel
    last = f.sub(channels, f.lanes)
    b = f.builder
    with f.loop(channels, f.lanes) as index:
        place = f.least(index, last)
        halves = []
        for j in range(width.products):
            column = [
                f.load(products, place, (i * width.products + j) * panel)
                for i in range(height.products)
            ]
            halves.append(output_transform(f, height, column))
        results = [
            output_transform(f, width, [half[i] for half in halves]) for i in range(height.results)
        ]
        offset = f.load(bias, place)
        done = b.append_basic_block("written")
        for i in range(height.results):
            if i:
                row = b.append_basic_block("row")
                b.cbranch(f.less(i, rows), row, done)
                b.position_at_end(row)
            row_done = b.append_basic_block("row_written")
            for j in range(width.results):
                if j:
                    more = b.append_basic_block("column")
                    b.cbranch(f.less(j, columns), more, row_done)
                    b.position_at_end(more)
                pixel = f.add(f.mul(i, width_of_row), j)
                value = b.fadd(results[i][j], offset)
                if residual:
                    value = b.fadd(value, f.load(other, f.mul(pixel, other_pixel), place))
                f.store(f.clamp(value, low, high), out, f.mul(pixel, out_pixel), place)
            b.branch(row_done)
            b.position_at_end(row_done)
        b.branch(done)
        b.position_at_end(done)
    return f.finish()


def _emit_multiply(parts: _Parts) -> Value:
    """Tiles from points to results of a panel: of a frame's address, first tile, number, panel,
    points of the first tile, products."""
    machine, variant = parts.machine, parts.variant
    height, width, count = variant.height, variant.width, variant.products
    backs = [_emit_back(parts, residual=residual) for residual in (True, False)]
    f = parts.function("multiply", POINTER, I64, I64, I64, POINTER, POINTER)
    b = f.builder
    first, tiles, panel, points, products = f.args[1:]
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    low, high = (
        f.splat(b.bitcast(b.trunc(bits, ir.IntType(32)), F32)) for bits in (frame.low, frame.high)
    )
    tile_step = count * machine.panel
    panel_weights = f.mul(frame.channels, machine.panel)
    gemm = ir.FunctionType(ir.VoidType(), [POINTER, I64, POINTER, POINTER, I64, I64])
    gemms = f.pointer(frame.gemms)
    # As even as possible: a few tiles alone are slow.
    groups = f.ceil_div(tiles, machine.panel_tiles)
    size = f.div(tiles, groups)
    larger = f.sub(tiles, f.mul(size, groups))
    with f.loop(count) as product, f.loop(groups) as group:
        weights = f.at(
            f.pointer(frame.weights), f.mul(f.add(f.mul(panel, count), product), panel_weights)
        )
        tile = f.add(f.mul(group, size), f.least(group, larger))
        number = f.add(size, b.zext(f.less(group, larger), I64))
        samples = f.at(
            points,
            f.mul(tile, frame.points_tile),
            f.mul(product, frame.points_product),
        )
        made = f.at(products, f.mul(tile, tile_step), f.mul(product, machine.panel))
        entry = b.gep(gemms, [number], source_etype=I64)
        function = b.inttoptr(b.load(entry, typ=I64), gemm.as_pointer())
        step = f.integer(tile_step)
        b.call(function, [samples, frame.points_tile, weights, made, step, frame.channels])
    channel = f.least(f.mul(panel, machine.panel), frame.last_panel)
    bias = f.at(f.pointer(frame.bias), channel)
    with f.loop(tiles) as tile:
        image, tile_row, tile_column = _tile_at(f, frame, f.add(first, tile))
        y, x = f.mul(tile_row, height.results), f.mul(tile_column, width.results)
        pixel = f.add(f.mul(y, frame.out_width), x)
        out, other = (
            f.at(f.pointer(start), f.mul(image, image_step), f.mul(pixel, pixel_step), channel)
            for start, image_step, pixel_step in (
                (frame.out, frame.out_image, frame.out_pixel),
                (frame.other, frame.other_image, frame.other_pixel),
            )
        )
        arguments = [
            f.at(products, f.mul(tile, tile_step)), out, frame.out_pixel, other,
            frame.other_pixel, frame.out_width, f.sub(frame.out_height, y),
            f.sub(frame.out_width, x), bias, low, high, frame.panel_channels,
        ]  # fmt: skip
        with b.if_else(b.icmp_signed("!=", frame.other, f.integer(0))) as branches:
            for branch, back in zip(branches, backs, strict=True):
                with branch:
                    b.call(back, arguments)
    return f.finish()


def _emit_blocks(parts: _Parts, transform: Value, multiply: Value) -> Value:
    """The only stage where there are many blocks: an item is a block, done by one thread."""
    f = parts.function("blocks", POINTER)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    with frame.taken() as (item, thread):
        first = f.mul(item, frame.block)
        number = f.least(frame.block, f.sub(frame.tiles, first))
        strip, products = _own(f, frame, thread)
        points = f.at(f.pointer(frame.points), f.mul(thread, frame.points_thread))
        with f.loop(number, frame.segment) as begin:
            some = f.least(frame.segment, f.sub(number, begin))
            made = f.at(points, f.mul(begin, frame.points_tile))
            f.builder.call(transform, [f.args[0], f.add(first, begin), some, strip, made])
        with f.loop(frame.panels) as panel:
            f.builder.call(multiply, [f.args[0], first, number, panel, points, products])
    return f.finish()


def _emit_shared_transform(parts: _Parts, transform: Value) -> Value:
    """The first stage where there is one block for all threads: an item is a segment of it."""
    f = parts.function("shared_transform", POINTER)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    with frame.taken() as (item, thread):
        first = f.mul(item, frame.segment)
        number = f.least(frame.segment, f.sub(frame.tiles, first))
        strip, _ = _own(f, frame, thread)
        points = f.at(f.pointer(frame.points), f.mul(first, frame.points_tile))
        f.builder.call(transform, [f.args[0], first, number, strip, points])
    return f.finish()


def _emit_shared_multiply(parts: _Parts, multiply: Value) -> Value:
    """The second stage of one block: an item is a panel of a chunk of its tiles."""
    f = parts.function("shared_multiply", POINTER)
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(*FIELDS)
    chunks = f.ceil_div(frame.tiles, frame.chunk)
    with frame.taken() as (item, thread):
        panel = f.div(item, chunks)
        first = f.mul(f.sub(item, f.mul(panel, chunks)), frame.chunk)
        number = f.least(frame.chunk, f.sub(frame.tiles, first))
        _, products = _own(f, frame, thread)
        points = f.at(f.pointer(frame.points), f.mul(first, frame.points_tile))
        f.builder.call(multiply, [f.args[0], first, number, panel, points, products])
    return f.finish()


def _own(f: Function, frame: Frame, thread: Value) -> tuple[Value, Value]:
    """The strip and the products of a thread."""
    return (
        f.at(f.pointer(frame.strips), f.mul(thread, frame.strips_thread)),
        f.at(f.pointer(frame.products), f.mul(thread, frame.products_thread)),
    )
