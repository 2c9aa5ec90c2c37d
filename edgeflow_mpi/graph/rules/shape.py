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

    ``track`` tells where the split axis goes (None: nowhere); ``resize`` tells which
    arguments name the number of rows and must be replaced for a span.
    """

    follows = True

    def __init__(
        self,
        track: Callable[[Call, int], int | None],
        resize: Callable[[Call, int], dict[str, object]] = lambda call, rows: {},
    ) -> None:
        self._track = track
        self._resize = resize

    def axis(self, call: Call) -> int | None:
        axis = call.operands[0].axis if len(call.operands) == 1 else None
        made = None if axis is None else self._track(call, axis)
        if made is None or call.out.shape[made] != call.operands[0].rows:
            return None
        return made

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return (rows,)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        return invoke(call, weights, **self._resize(call, rows.rows))


def _view(call: Call, axis: int) -> int | None:
    """The dimension of the new shape that is exactly the old split axis, if any."""
    old, new = call.operands[0].shape, call.out.shape
    before = math.prod(old[:axis])
    for dim, size in enumerate(new):
        if size == old[axis] and math.prod(new[:dim]) == before:
            return dim
    return None


def _view_shape(name: str) -> Callable[[Call, int], dict[str, object]]:
    return lambda call, rows: {name: shape_args(call.out.shape, call.out.axis, rows)}


class View(Moves):
    """Reshaping that leaves the split axis whole. Pieces may be laid out in any order."""

    def __init__(self) -> None:
        super().__init__(_view)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        shape = shape_args(call.out.shape, call.out.axis, rows.rows)
        return lambda tensor: tensor.reshape(shape)


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


def _squeeze(call: Call, axis: int) -> int | None:
    removed = {dim for dim in _dims(call, "dim") if call.operands[0].shape[dim] == 1}
    return None if axis in removed else axis - sum(1 for dim in removed if dim < axis)


def _unsqueeze(call: Call, axis: int) -> int:
    dim = call.dim("dim", len(call.out.shape))
    return axis + 1 if dim <= axis else axis


def _select(call: Call, axis: int) -> int | None:
    dim = call.dim("dim", len(call.operands[0].shape))
    return None if dim == axis else axis - (1 if dim < axis else 0)


def _expand(call: Call, axis: int) -> int:
    return axis + len(call.out.shape) - len(call.operands[0].shape)


def _repeat(call: Call, axis: int) -> int | None:
    moved = _expand(call, axis)
    repeats = call.args["repeats"]
    assert isinstance(repeats, tuple)
    return moved if repeats[moved] == 1 else None


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
    its mirror image lies on: needs are made monotone to keep spans spans.
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
        sources = self._sources(call)
        start = int(sources[rows.start :].min())
        return (Span(start, int(sources[: rows.stop].max()) + 1),)

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
    squeeze = Moves(_squeeze)
    return {
        "aten.reshape.default": View(),
        "aten.flatten.using_ints": View(),
        "aten.unflatten.int": View(),
        "aten.permute.default": Moves(_permute),
        "aten.transpose.int": Moves(_transpose),
        "aten.squeeze.dim": squeeze,
        "aten.squeeze.dims": squeeze,
        "aten.unsqueeze.default": Moves(_unsqueeze),
        "aten.select.int": Moves(_select),
        "aten.unbind.int": Moves(_select),
        "aten.expand.default": Moves(_expand, _view_shape("size")),
        "aten.repeat.default": Moves(_repeat),
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
