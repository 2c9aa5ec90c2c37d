"""Operators that move elements without computing: the split axis moves with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from edgeflow_mpi.graph.rules.base import (
    Call,
    Compute,
    Rule,
    Tensor,
    Weights,
    clip,
    invoke,
    pad_rows,
    settle,
    shape_args,
)
from edgeflow_mpi.spans import Span


class Moves(Rule):
    """Row r of the operand becomes row r of the result, perhaps along another dimension.

    ``track`` tells where the split axis goes (None: nowhere).
    """

    follows = True

    def __init__(self, track: Callable[[Call, int], int | None]) -> None:
        self._track = track

    def axis(self, call: Call) -> int | None:
        axis = call.operands[0].axis if len(call.operands) == 1 else None
        made = None if axis is None else self._track(call, axis)
        if made is None or call.out.shape[made] != call.operands[0].rows:
            return None
        return made

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return (rows,)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        return invoke(call, weights)


class View(Rule):
    """Reshaping. The rows may stay, be cut into blocks, or be joined with what is inside them.

    Row r of the result is rows ``[f r, f (r + 1))`` of the operand where they are cut into
    blocks of f, and part of row ``r // f`` where each becomes f rows.
    """

    follows = True

    def axis(self, call: Call) -> int | None:
        place = self._place(call)
        return None if place is None else place[0]

    @staticmethod
    def _place(call: Call) -> tuple[int, int, int] | None:
        """(the dimension of the rows, operand rows in a block, result rows in an operand row)."""
        if len(call.operands) != 1 or call.operands[0].axis is None or 0 in call.out.shape:
            return None
        old, new, axis = call.operands[0].shape, call.out.shape, call.operands[0].axis
        inside = {math.prod(old[axis + 1 : end]) for end in range(axis + 1, len(old) + 1)}
        before = math.prod(old[:axis])
        candidates = [dim for dim in range(len(new)) if math.prod(new[:dim]) == before]
        for dim in candidates:
            if new[dim] == old[axis]:
                return dim, 1, 1
        for dim in candidates:
            joined = {math.prod(new[dim:end]) for end in range(dim + 1, len(new) + 1)}
            if new[dim] > 1 and old[axis] in joined:
                return dim, old[axis] // new[dim], 1
            if new[dim] % old[axis] == 0 and new[dim] // old[axis] in inside:
                return dim, 1, new[dim] // old[axis]
        return None

    def _factors(self, call: Call) -> tuple[int, int]:
        place = self._place(call)
        return (1, 1) if place is None else place[1:]

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        block, parts = self._factors(call)
        return (Span(rows.start * block // parts, -(-rows.stop * block // parts)),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        axis, (block, parts) = call.out.axis, self._factors(call)
        (need,) = self.needs(call, rows)
        shape = shape_args(call.out.shape, axis, need.rows * parts // block)
        first = rows.start - need.start * parts
        if parts == 1:
            return lambda tensor: tensor.reshape(shape)
        assert axis is not None
        return lambda tensor: tensor.reshape(shape).narrow(axis, first, rows.rows)


class Broadcast(Rule):
    """``expand`` and ``repeat``: rows stay as they are, or are copies of a single one.

    ``sizes`` names the argument with the extents or counts; ``counts`` tells which it is.
    """

    follows = True

    def __init__(self, sizes: str, *, counts: bool) -> None:
        self._sizes = sizes
        self._counts = counts

    def axis(self, call: Call) -> int | None:
        spec = call.operands[0]
        if spec.axis is None or len(call.operands) != 1:
            return None
        axis = spec.axis + len(call.out.shape) - len(spec.shape)
        return axis if call.out.shape[axis] == spec.rows or spec.rows == 1 else None

    def gains(self, call: Call, axis: int) -> bool:
        spec = call.operands[0]
        place = axis - (len(call.out.shape) - len(spec.shape))
        return len(call.operands) == 1 and (place < 0 or spec.shape[place] == 1)

    @staticmethod
    def _copies(call: Call) -> bool:
        return call.operands[0].rows == 1

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return (Span(0, 1) if self._copies(call) else rows,)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        axis = call.out.axis
        assert axis is not None
        sizes: Sequence[int] = call.out.shape
        if self._counts:
            sizes = call.ints(self._sizes, len(call.out.shape))
        if self._copies(call) or not self._counts:
            sizes = shape_args(sizes, axis, rows.rows)
        return invoke(call, weights, **{self._sizes: list(sizes)})


def _dims(call: Call, name: str) -> list[int]:
    value = call.args[name]
    ndim = len(call.operands[0].shape)
    items = value if isinstance(value, tuple) else (value,)
    return [int(item) % ndim for item in items]  # type: ignore[arg-type]


def _permute(call: Call, axis: int) -> int:
    return _dims(call, "dims").index(axis)


def _transpose(call: Call, axis: int) -> int:
    first, second = _dims(call, "dim0")[0], _dims(call, "dim1")[0]
    return {first: second, second: first}.get(axis, axis)


def _unsqueeze(call: Call, axis: int) -> int:
    dim = call.dim("dim", len(call.out.shape))
    return axis + 1 if dim <= axis else axis


def _select(call: Call, axis: int) -> int | None:
    dim = call.dim("dim", len(call.operands[0].shape))
    return None if dim == axis else axis - (1 if dim < axis else 0)


class Squeeze(Rule):
    """Removes dimensions of extent 1; a span of one row must not lose its rows."""

    follows = True

    @staticmethod
    def _removed(call: Call) -> tuple[int, ...]:
        shape = call.operands[0].shape
        named = _dims(call, "dim") if "dim" in call.args else range(len(shape))
        return tuple(dim for dim in named if shape[dim] == 1)

    def axis(self, call: Call) -> int | None:
        axis, removed = call.operands[0].axis, self._removed(call)
        if axis is None or axis in removed:
            return None
        return axis - sum(1 for dim in removed if dim < axis)

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return (rows,)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        removed = self._removed(call)
        return lambda tensor: tensor.squeeze(removed)


class Slice(Rule):
    """``x[start:end:step]`` along one dimension, the split axis included."""

    follows = True

    def axis(self, call: Call) -> int | None:
        return call.operands[0].axis if 0 not in call.out.shape else None

    def _along(self, call: Call) -> bool:
        return call.dim("dim", len(call.out.shape)) == call.out.axis

    def _origin(self, call: Call) -> tuple[int, int]:
        height = call.operands[0].rows
        start = call.args["start"] or 0
        assert isinstance(start, int)
        start = max(start + height, 0) if start < 0 else min(start, height)
        return start, call.integer("step")

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        if not self._along(call):
            return (rows,)
        start, step = self._origin(call)
        return (Span(start + step * rows.start, start + step * (rows.stop - 1) + 1),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        if not self._along(call):
            return invoke(call, weights)
        (need,) = self.needs(call, rows)
        return invoke(call, weights, start=0, end=need.rows)


class PixelShuffle(Rule):
    """Channels become pixels: row r of the result comes from row r // factor."""

    def axis(self, call: Call) -> int | None:
        spec = call.operands[0]
        return 2 if len(spec.shape) == 4 and spec.axis == 2 else None

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        factor = call.integer("upscale_factor")
        return (Span(rows.start // factor, -(-rows.stop // factor)),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        factor = call.integer("upscale_factor")
        run = invoke(call, weights)
        first = rows.start % factor
        return lambda tensor: run(tensor).narrow(2, first, rows.rows)


class PixelUnshuffle(Rule):
    """Pixels become channels: row r of the result comes from ``factor`` rows."""

    def axis(self, call: Call) -> int | None:
        spec = call.operands[0]
        return 2 if len(spec.shape) == 4 and spec.axis == 2 else None

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        factor = call.integer("downscale_factor")
        return (Span(rows.start * factor, rows.stop * factor),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        return invoke(call, weights)


class Pad(Rule):
    """Padding in any mode; negative amounts crop.

    Mirrored rows at the border come from inside the map, so a span near it needs the rows
    its mirror image lies on.
    """

    follows = True

    def _amounts(self, call: Call) -> list[tuple[int, int]]:
        """(before, after) of the last dimension first, as torch counts them."""
        flat = call.args["pad"]
        assert isinstance(flat, tuple)
        numbers = [int(item) for item in flat]  # type: ignore[arg-type]
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def _row_amounts(self, call: Call) -> tuple[int, int]:
        axis = call.operands[0].axis
        assert axis is not None
        amounts = self._amounts(call)
        place = len(call.operands[0].shape) - 1 - axis
        return amounts[place] if place < len(amounts) else (0, 0)

    def _mode(self, call: Call) -> str:
        return str(call.args.get("mode", "constant"))

    def axis(self, call: Call) -> int | None:
        spec = call.operands[0]
        if spec.axis is None or len(call.operands) != 1 or spec.rows == 0:
            return None
        rows_padded = any(self._row_amounts(call))
        if rows_padded and self._mode(call) == "circular":
            return None
        return spec.axis

    def _sources(self, call: Call) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Operand row that each result row copies, for mirroring modes."""
        height = call.operands[0].rows
        before, _ = self._row_amounts(call)
        index = np.arange(call.out.rows) - before
        if self._mode(call) == "reflect":
            index = np.abs(index)
            index = np.where(index >= height, 2 * (height - 1) - index, index)
        return np.clip(index, 0, height - 1)

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        height = call.operands[0].rows
        before, after = self._row_amounts(call)
        if self._mode(call) == "constant" or (before, after) == (0, 0):
            return (clip(rows.start - before, rows.stop - before, height),)
        sources = self._sources(call)[rows.start : rows.stop]
        return (Span(int(sources.min()), int(sources.max()) + 1),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        axis = call.out.axis
        assert axis is not None
        place = len(call.out.shape) - 1 - axis
        before, after = self._row_amounts(call)
        (need,) = self.needs(call, rows)
        mode = self._mode(call)
        others = list(self._amounts(call))
        if place < len(others):
            others[place] = (0, 0)
        flat = [amount for pair in others for amount in pair]
        if mode == "constant":
            value = call.args.get("value")
            fill = float(value) if isinstance(value, int | float) else 0.0
            start, stop = rows.start - before, rows.stop - before
            first, last = settle(need.rows, need.start - start, stop - need.stop)

            def compute(tensor: Tensor) -> Tensor:
                widened = torch.constant_pad_nd(tensor, flat, fill) if any(flat) else tensor
                return pad_rows(widened, axis, first, last, fill)

            return compute
        index: Tensor | None = None
        if (before, after) != (0, 0):
            local = self._sources(call)[rows.start : rows.stop] - need.start
            index = torch.from_numpy(local)
        run = invoke(call, weights, pad=flat)

        def mirrored(tensor: Tensor) -> Tensor:
            rowed = tensor if index is None else tensor.index_select(axis, index)
            return run(rowed) if any(flat) else rowed

        return mirrored


def shape_rules() -> dict[str, Rule]:
    """Operator name -> rule."""
    return {
        "aten.reshape.default": View(),
        "aten.flatten.using_ints": View(),
        "aten.unflatten.int": View(),
        "aten.permute.default": Moves(_permute),
        "aten.transpose.int": Moves(_transpose),
        "aten.squeeze.default": Squeeze(),
        "aten.squeeze.dim": Squeeze(),
        "aten.squeeze.dims": Squeeze(),
        "aten.unsqueeze.default": Moves(_unsqueeze),
        "aten.select.int": Moves(_select),
        "aten.unbind.int": Moves(_select),
        "aten.expand.default": Broadcast("size", counts=False),
        "aten.repeat.default": Broadcast("repeats", counts=True),
        "aten.slice.Tensor": Slice(),
        "aten.pad.default": Pad(),
        "aten.constant_pad_nd.default": Pad(),
        "aten.reflection_pad2d.default": _Mirror("reflect"),
        "aten.replication_pad2d.default": _Mirror("replicate"),
        "aten.pixel_shuffle.default": PixelShuffle(),
        "aten.pixel_unshuffle.default": PixelUnshuffle(),
    }


class _Mirror(Pad):
    """Padding operators whose mode is in their name and whose amounts are ``padding``."""

    def __init__(self, mode: str) -> None:
        self._fixed = mode

    def _mode(self, call: Call) -> str:
        return self._fixed

    def _amounts(self, call: Call) -> list[tuple[int, int]]:
        flat: Sequence[int] = call.ints("padding", 4)
        return list(zip(flat[::2], flat[1::2], strict=True))

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        axis = call.out.axis
        assert axis is not None
        (need,) = self.needs(call, rows)
        index = torch.from_numpy(self._sources(call)[rows.start : rows.stop] - need.start)
        (left, right), _ = self._amounts(call)
        run = invoke(call, weights, padding=[left, right, 0, 0])
        return lambda tensor: run(tensor.index_select(axis, index))
