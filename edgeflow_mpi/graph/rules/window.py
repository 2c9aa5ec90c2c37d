"""Convolutions and pools: operators whose window slides along the rows.

Row r of the result reads operand rows ``[s r - p, s r - p + d (k - 1) + 1)``, clipped to the
map; what is clipped is padding that the span applies itself, so only spans at the true
border ever see any.
"""

from __future__ import annotations

from dataclasses import dataclass

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
)
from edgeflow_mpi.graph.types import TensorSpec, Weight
from edgeflow_mpi.spans import Span


@dataclass(frozen=True)
class Window:
    """Kernel, stride, dilation and leading padding along the rows of a map."""

    kernel: int
    stride: int
    dilation: int
    before: int

    @property
    def reach(self) -> int:
        """Rows that one result row spans."""
        return self.dilation * (self.kernel - 1) + 1

    def unclipped(self, rows: Span) -> tuple[int, int]:
        """First and one past the last operand row, padding included."""
        start = self.stride * rows.start - self.before
        return start, self.stride * (rows.stop - 1) - self.before + self.reach

    def needs(self, rows: Span, height: int) -> Span:
        """Operand rows from the first to the last that the windows of ``rows`` touch.

        A dilated window that starts in the padding touches no row before its first tap inside.
        """
        if self.dilation > 1:
            starts = self.stride * np.arange(rows.start, rows.stop)[:, None] - self.before
            taps = starts + self.dilation * np.arange(self.kernel)
            inside = taps[(taps >= 0) & (taps < height)]
            if inside.size:
                return Span(int(inside.min()), int(inside.max()) + 1)
        return clip(*self.unclipped(rows), height)

    def padding(self, rows: Span, height: int) -> tuple[int, int]:
        """Rows to add before and after the needed ones (negative: to remove)."""
        start, stop = self.unclipped(rows)
        need = self.needs(rows, height)
        return settle(need.rows, need.start - start, stop - need.stop)

    def symmetric(self, rows: Span, height: int) -> int | None:
        """Padding p such that padding by p on both sides gives exactly ``rows``, if any.

        Padding too much behind is harmless where the extra rows make no further window.
        """
        before, after = self.padding(rows, height)
        if before < 0 or after < 0 or after > before:
            return None
        size = self.needs(rows, height).rows + 2 * before
        made = (size - self.reach) // self.stride + 1
        return before if made == rows.rows else None


def spatial(spec: TensorSpec, ndim: int) -> bool:
    """Whether ``spec`` is a batched map of ``ndim`` spatial dimensions divided by rows."""
    return len(spec.shape) == ndim + 2 and spec.axis == 2 and spec.shape[2] > 0


@dataclass(frozen=True)
class Convolution(Rule):
    """Convolution over ``ndim`` spatial dimensions, padding given or ``same``/``valid``."""

    ndim: int

    def axis(self, call: Call) -> int | None:
        fits = call.weight("weight") is not None and len(call.operands) == 1
        return 2 if fits and spatial(call.operands[0], self.ndim) else None

    def _kernel(self, call: Call) -> tuple[int, ...]:
        weight = call.weight("weight")
        assert weight is not None
        return weight.shape[2:]

    def _pads(self, call: Call) -> list[tuple[int, int]]:
        """Padding before and after along each spatial dimension."""
        padding = call.args["padding"]
        if padding == "valid":
            return [(0, 0)] * self.ndim
        if padding == "same":
            dilation = call.ints("dilation", self.ndim)
            total = [d * (k - 1) for k, d in zip(self._kernel(call), dilation, strict=True)]
            return [(t // 2, t - t // 2) for t in total]
        return [(p, p) for p in call.ints("padding", self.ndim)]

    def window(self, call: Call) -> Window:
        return Window(
            self._kernel(call)[0],
            call.ints("stride", self.ndim)[0],
            call.ints("dilation", self.ndim)[0],
            self._pads(call)[0][0],
        )

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return (self.window(call).needs(rows, call.operands[0].rows),)

    def geometry(self, call: Call, rows: Span) -> tuple[list[int], list[int]]:
        """How to pad for ``rows``: by the operator itself, and by hand before it.

        Returns the symmetric padding per dimension, and the amounts of ``constant_pad_nd``
        (last dimension first) where the operator's own padding cannot express it.
        """
        window, height = self.window(call), call.operands[0].rows
        across = self._pads(call)[1:]
        even = window.symmetric(rows, height)
        before, after = window.padding(rows, height) if even is None else (0, 0)
        lopsided = any(a != b for a, b in across)
        outer: list[int] = []
        for first, last in reversed(across):
            outer += [first, last] if lopsided else [0, 0]
        padding = [even or 0, *([0] * len(across) if lopsided else [a for a, _ in across])]
        return padding, [*outer, before, after]

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        padding, outer = self.geometry(call, rows)
        weight, bias = call.args["weight"], call.args["bias"]
        assert isinstance(weight, Weight)
        kernel = weights[weight.name]
        offset = weights[bias.name] if isinstance(bias, Weight) else None
        stride = call.ints("stride", self.ndim)
        dilation = call.ints("dilation", self.ndim)
        groups = call.integer("groups")
        convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[self.ndim - 1]

        def run(tensor: Tensor) -> Tensor:
            return convolve(tensor, kernel, offset, stride, padding, dilation, groups)

        if not any(outer):
            return run
        return lambda tensor: run(torch.constant_pad_nd(tensor, outer, 0.0))


@dataclass(frozen=True)
class TransposedConvolution(Rule):
    """Result row r gets ``w[j]`` of operand row i wherever ``r = i s - p + d j``."""

    ndim: int

    def axis(self, call: Call) -> int | None:
        fits = call.weight("weight") is not None and len(call.operands) == 1
        return 2 if fits and spatial(call.operands[0], self.ndim) else None

    def _row_geometry(self, call: Call) -> tuple[int, int, int]:
        weight = call.weight("weight")
        assert weight is not None
        dilation = call.ints("dilation", self.ndim)[0]
        reach = dilation * (weight.shape[2] - 1) + 1
        return call.ints("stride", self.ndim)[0], call.ints("padding", self.ndim)[0], reach

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        stride, padding, reach = self._row_geometry(call)
        start = -((reach - 1 - padding - rows.start) // stride)
        stop = (rows.stop - 1 + padding) // stride + 1
        return (clip(start, stop, call.operands[0].rows),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        stride, padding, reach = self._row_geometry(call)
        (need,) = self.needs(call, rows)
        paddings = [0, *call.ints("padding", self.ndim)[1:]]
        extras = [0, *call.ints("output_padding", self.ndim)[1:]]
        run = invoke(call, weights, bias=None, padding=paddings, output_padding=extras)
        made = (need.rows - 1) * stride + reach
        first = rows.start + padding - need.start * stride
        before, after = settle(made, -first, first + rows.rows - made)
        bias = call.args["bias"]
        offset = None
        if isinstance(bias, Weight):
            offset = weights[bias.name].reshape(-1, *[1] * self.ndim)

        def compute(tensor: Tensor) -> Tensor:
            result = pad_rows(run(tensor), 2, before, after)
            return result if offset is None else result + offset

        return compute


class _Pool(Rule):
    """What maximum and average pools share."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def axis(self, call: Call) -> int | None:
        return 2 if spatial(call.operands[0], self.ndim) and call.step.select in (None, 0) else None

    def window(self, call: Call) -> Window:
        kernel = call.ints("kernel_size", self.ndim)[0]
        stride = call.ints("stride", self.ndim)[0] if call.args["stride"] else kernel
        dilation = call.ints("dilation", self.ndim)[0] if "dilation" in call.args else 1
        return Window(kernel, stride, dilation, call.ints("padding", self.ndim)[0])

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return (self.window(call).needs(rows, call.operands[0].rows),)


class MaxPool(_Pool):
    """Maximum over windows; padding counts as minus infinity."""

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        window, height = self.window(call), call.operands[0].rows
        across = call.ints("padding", self.ndim)[1:]
        if rows.rows == call.out.rows and self.needs(call, rows)[0].rows == height:
            return invoke(call, weights)
        even = window.symmetric(rows, height)
        if even is not None and even <= window.kernel // 2 and not call.args["ceil_mode"]:
            return invoke(call, weights, padding=[even, *across])
        before, after = window.padding(rows, height)
        run = invoke(call, weights, padding=[0, *across])
        dtype = getattr(torch, call.out.dtype)
        lowest = float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min
        return lambda tensor: run(pad_rows(tensor, 2, before, after, lowest))


class AveragePool(_Pool):
    """Mean over windows. How many rows count depends on where the window lies.

    Rows along another dimension than the first are allowed where the window leaves them
    alone, as in a local response normalisation, which pools over channels.
    """

    def axis(self, call: Call) -> int | None:
        axis = call.operands[0].axis
        if axis is None or axis <= 2 or len(call.operands[0].shape) != self.ndim + 2:
            return super().axis(call)
        return axis if self._passes(call, axis) else None

    def _passes(self, call: Call, axis: int) -> bool:
        sizes = [call.ints(name, self.ndim)[axis - 2] for name in ("kernel_size", "padding")]
        stride = call.ints("stride", self.ndim)[axis - 2] if call.args["stride"] else 1
        return (*sizes, stride) == (1, 0, 1)

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return super().needs(call, rows) if call.out.axis == 2 else (rows,)

    def _counts(self, call: Call, rows: Span) -> list[int]:
        """Rows of the window that count in the divisor, per result row."""
        window, height = self.window(call), call.operands[0].rows
        padded = bool(call.args["count_include_pad"])
        low, high = (-window.before, height + window.before) if padded else (0, height)
        counts = []
        for row in range(rows.start, rows.stop):
            start = window.stride * row - window.before
            counts.append(min(start + window.kernel, high) - max(start, low))
        return counts

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        window, height = self.window(call), call.operands[0].rows
        whole = rows.rows == call.out.rows and self.needs(call, rows)[0].rows == height
        if whole or call.out.axis != 2:
            return invoke(call, weights)
        across = call.ints("padding", self.ndim)[1:]
        before, after = window.padding(rows, height)
        run = invoke(call, weights, padding=[0, *across])
        counts = self._counts(call, rows)
        if call.args.get("divisor_override") is not None or set(counts) == {window.kernel}:
            return lambda tensor: run(pad_rows(tensor, 2, before, after))
        dtype = getattr(torch, call.out.dtype)
        factor = torch.tensor([window.kernel / count for count in counts], dtype=dtype)
        factor = factor.reshape(-1, *[1] * (self.ndim - 1))
        return lambda tensor: run(pad_rows(tensor, 2, before, after)).mul_(factor)


class AdaptivePool(Rule):
    """Row r of h pools operand rows ``[floor(r H / h), ceil((r + 1) H / h))``."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def axis(self, call: Call) -> int | None:
        return 2 if spatial(call.operands[0], self.ndim) and call.step.select in (None, 0) else None

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        height, made = call.operands[0].rows, call.out.rows
        return (Span(rows.start * height // made, -(-rows.stop * height // made)),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        height, made = call.operands[0].rows, call.out.rows
        across = list(call.out.shape[3:])
        if height % made == 0 or rows.rows == made:
            return invoke(call, weights, output_size=[rows.rows, *across])
        run = invoke(call, weights, output_size=[1, *across])
        (need,) = self.needs(call, rows)
        windows = [self.needs(call, Span(row, row + 1))[0] for row in range(rows.start, rows.stop)]

        def compute(tensor: Tensor) -> Tensor:
            return torch.cat(
                [run(tensor.narrow(2, w.start - need.start, w.rows)) for w in windows], dim=2
            )

        return compute


def window_rules() -> dict[str, Rule]:
    """Operator name -> rule."""
    rules: dict[str, Rule] = {}
    for ndim in (1, 2, 3):
        rules[f"aten.conv{ndim}d.default"] = Convolution(ndim)
        rules[f"aten.conv{ndim}d.padding"] = Convolution(ndim)
        for overload in ("input", "default"):
            rules[f"aten.conv_transpose{ndim}d.{overload}"] = TransposedConvolution(ndim)
        rules[f"aten.max_pool{ndim}d.default"] = MaxPool(ndim)
        rules[f"aten.avg_pool{ndim}d.default"] = AveragePool(ndim)
        rules[f"aten.adaptive_avg_pool{ndim}d.default"] = AdaptivePool(ndim)
        rules[f"aten.adaptive_max_pool{ndim}d.default"] = AdaptivePool(ndim)
    rules["aten.max_pool2d_with_indices.default"] = MaxPool(2)
    rules["aten.max_pool3d_with_indices.default"] = MaxPool(3)
    rules["aten._adaptive_avg_pool2d.default"] = AdaptivePool(2)
    rules["aten._adaptive_avg_pool3d.default"] = AdaptivePool(3)
    return rules
