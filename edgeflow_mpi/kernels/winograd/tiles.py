"""Tiles of one kind as code: from the map to points, and from products to results.

Tiles at the edges of a map may have fewer results: they are a variant of their own, made of some
of the products, and the others are neither made nor read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llvmlite import ir

from edgeflow_mpi.kernels.llvm.emit import F32, I64, POINTER, Function, Value
from edgeflow_mpi.kernels.llvm.frame import Frame
from edgeflow_mpi.kernels.llvm.machine import Machine
from edgeflow_mpi.kernels.winograd.code import FIELDS
from edgeflow_mpi.kernels.winograd.tables import SEGMENT
from edgeflow_mpi.kernels.winograd.transforms import input_transform, output_transform
from edgeflow_mpi.kernels.winograd.variant import Variant

READ: Final = "read_tiles"
WRITE: Final = ("write_tiles", "add_tiles")
"""Without and with a residual sum."""


@dataclass(frozen=True)
class _Parts:
    """What every function of a module is made with: tiles are a part of the variant's."""

    module: Value
    machine: Machine
    variant: Variant
    tiles: Variant

    def function(self, name: str, *parameters: Value, inner: bool = True) -> Function:
        return Function(self.module, name, self.machine.lanes, parameters, inner=inner)


def emit_tiles(machine: Machine, variant: Variant, tiles: Variant) -> str:
    """A module, as text, with :data:`READ` and :data:`WRITE`.

    ``tiles`` is the variant, or a part of it for tiles with fewer results.
    """
    parts = _Parts(ir.Module(name="tiles"), machine, variant, tiles)
    _emit_read(parts)
    for name, residual in zip(WRITE, (False, True), strict=True):
        _emit_write(parts, name, residual=residual)
    return str(parts.module)


def _emit_down(parts: _Parts) -> Value:
    """Transform along the height: rows, their length, strip, its row length."""
    filtering = parts.tiles.height
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
    """Transform a row of a strip along the width: the row, tiles, channels, first of the points of
    the first tile, float32 between tiles and between products."""
    width = parts.tiles.width
    f = parts.function("across", POINTER, I64, I64, POINTER, I64, I64)
    strip, tiles, channels, points, points_tile, points_product = f.args
    last = f.sub(channels, f.lanes)
    with f.loop(tiles) as tile:
        start = f.at(strip, f.mul(tile, width.results, channels))
        columns = [f.at(start, f.mul(j, channels)) for j in range(width.products)]
        made = f.at(points, f.mul(tile, points_tile))
        outs = [f.at(made, f.mul(j, points_product)) for j in width.kept]
        with f.loop(channels, f.lanes) as index:
            place = f.least(index, last)
            samples = [f.load(column, place) for column in columns]
            for out, value in zip(outs, input_transform(f, width, samples), strict=True):
                f.store(value, out, place)
    return f.finish()


def _emit_read(parts: _Parts) -> Value:
    """A segment of tiles from the map to points: of the addresses of the frame and the segment, a
    strip, which has room for it, and the points."""
    height, width = parts.tiles.height, parts.tiles.width
    down, across = _emit_down(parts), _emit_across(parts)
    f = parts.function(READ, POINTER, POINTER, POINTER, POINTER, inner=False)
    b = f.builder
    strip, points = f.args[2:]
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(
        "input", "input_image", "height", "width", "channels", "above", "left", "strip_row",
        "points_tile", "points_product", "zeros",
    )  # fmt: skip
    segment = Frame(f, f.args[1], SEGMENT)
    segment.read(*SEGMENT)
    row_length = f.mul(frame.width, frame.channels)
    top, left = f.sub(segment.top, frame.above), f.sub(segment.left, frame.left)
    columns = f.add(f.mul(segment.tiles, width.results), width.taps - 1)
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
            f.mul(segment.image, frame.input_image),
            f.mul(y, row_length),
            f.mul(inside_from, frame.channels),
        )
        there = b.and_(f.less(-1, y), f.less(y, frame.height))
        rows.append(b.select(there, f.at(source, place), f.pointer(frame.zeros)))
    b.call(down, [*rows, inside, f.at(strip, before), frame.strip_row])
    made = f.at(points, f.mul(segment.place, frame.points_tile))
    for i, kept in enumerate(height.kept):
        first = f.mul(kept * parts.variant.width.products, frame.points_product)
        b.call(
            across,
            [f.at(strip, f.mul(i, frame.strip_row)), segment.tiles, frame.channels,
             f.at(made, first), frame.points_tile, frame.points_product],
        )  # fmt: skip
    return f.finish()


def _emit_write(parts: _Parts, name: str, *, residual: bool) -> Value:
    """A segment of tiles of one panel from products to results: of the addresses of the frame and
    the segment, the panel, and the products of the block."""
    whole, height, width = parts.variant, parts.tiles.height, parts.tiles.width
    panel = parts.machine.panel
    f = parts.function(name, POINTER, POINTER, I64, POINTER, inner=False)
    b = f.builder
    frame = Frame(f, f.args[0], FIELDS)
    frame.read(
        "out", "out_image", "out_pixel", "out_width", "bias", "last_panel", "panel_channels",
        "low", "high",
    )  # fmt: skip
    if residual:
        frame.read("other", "other_image", "other_pixel")
    segment = Frame(f, f.args[1], SEGMENT)
    segment.read(*SEGMENT)
    low, high = (
        f.splat(b.bitcast(b.trunc(bits, ir.IntType(32)), F32)) for bits in (frame.low, frame.high)
    )
    channel = f.least(f.mul(f.args[2], panel), frame.last_panel)
    bias = f.at(f.pointer(frame.bias), channel)
    products = f.at(f.args[3], f.mul(segment.index, whole.products * panel))
    pixel = f.add(f.mul(segment.top, frame.out_width), segment.left)

    def map_at(name: str) -> Value:
        start, image, step = (getattr(frame, name + part) for part in ("", "_image", "_pixel"))
        return f.at(f.pointer(start), f.mul(segment.image, image), f.mul(pixel, step), channel)

    out = map_at("out")
    other = map_at("other") if residual else out
    last = f.sub(frame.panel_channels, f.lanes)
    with f.loop(segment.tiles) as tile:
        read = f.at(products, f.mul(tile, whole.products * panel))
        first = f.mul(tile, width.results)
        with f.loop(frame.panel_channels, f.lanes) as index:
            place = f.least(index, last)
            halves = []
            for j in width.kept:
                column = [
                    f.load(read, place, (i * whole.width.products + j) * panel) for i in height.kept
                ]
                halves.append(output_transform(f, height, column))
            offset = f.load(bias, place)
            for i in range(height.results):
                row = output_transform(f, width, [half[i] for half in halves])
                for j, result in enumerate(row):
                    at = f.add(f.mul(i, frame.out_width), first, j)
                    value = b.fadd(result, offset)
                    if residual:
                        step = f.mul(at, frame.other_pixel)
                        value = b.fadd(value, f.load(other, step, place))
                    f.store(f.clamp(value, low, high), out, f.mul(at, frame.out_pixel), place)
    return f.finish()
