"""One prepared computation by sliding windows: a frame, and the memory that it points into."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from edgeflow_mpi.kernels.channelwise.code import ENTRY, FIELDS, Variant, emit_slide
from edgeflow_mpi.kernels.llvm.frame import filled
from edgeflow_mpi.kernels.llvm.machine import Machine
from edgeflow_mpi.kernels.llvm.memory import (
    dense,
    float_bits,
    gomp_parallel,
    inner_strides,
    pixel_step,
)
from edgeflow_mpi.kernels.llvm.objects import Entry, loaded
from edgeflow_mpi.kernels.native import NativeCall

Tensor = torch.Tensor


@dataclass(frozen=True)
class Sliding:
    """Windows over a map, as far as code is not made for them.

    Attributes
    ----------
    images, channels, height, width : int
        The map that is read, as it is held: a span's rows.
    out_height, out_width : int
        The map that is made.
    above, left : int
        Rows and columns of padding before the map that is read; what lies behind it is padding.
    rows, row_dilation, row_stride : int
        Rows of a window, from one to the next, and from window to window.
    """

    images: int
    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    above: int
    left: int
    rows: int
    row_dilation: int
    row_stride: int

    def every_window_has_rows(self) -> bool:
        """Whether no window lies above or below the map that is read."""
        tops = [y * self.row_stride - self.above for y in range(self.out_height)]
        return all(
            any(0 <= top + k * self.row_dilation < self.height for k in range(self.rows))
            for top in tops
        )


@dataclass(frozen=True)
class Operands:
    """Constants of an operation: of a depthwise convolution the weights (taps × channels), bias
    and bounds of the results; of a mean the factors of its rows and columns."""

    weights: Tensor | None = None
    bias: Tensor | None = None
    low: float = -math.inf
    high: float = math.inf
    row_factors: Sequence[float] = ()
    column_factors: Sequence[float] = ()


@cache
def code(machine: Machine, variant: Variant) -> Entry | None:
    """The code, of the address of a frame; None if LLVM fails."""
    try:
        (entry,) = loaded(machine, str(variant), lambda: emit_slide(machine, variant), [ENTRY])
    except RuntimeError:
        return None
    return Entry(entry)


@cache
def _outside(variant: Variant, channels: int) -> Tensor:
    """What a column beside the map is read as; nobody may write to it."""
    return torch.full((channels,), -math.inf if variant.operation == "max" else 0.0)


class Windows:
    """One operation on windows of channels-last maps.

    Maps may be some channels of larger ones, and images may lie apart from each other. It must not
    be run by two threads at a time, since both would write to its frame.
    """

    def __init__(
        self, variant: Variant, run: Entry, sliding: Sliding, operands: Operands,
        threads: int = 1,
    ) -> None:  # fmt: skip
        self.sliding = sliding
        channels = sliding.channels
        self._inner = inner_strides(sliding.height, sliding.width, channels)
        self._out_inner = inner_strides(sliding.out_height, sliding.out_width, channels)
        parallel = gomp_parallel() if threads > 1 else 0
        bias = operands.bias if operands.bias is not None else torch.zeros(channels)
        self._kept = {
            "weights": operands.weights,
            "bias": bias,
            "row_factors": torch.tensor(operands.row_factors),
            "column_factors": torch.tensor(operands.column_factors),
            "outside": _outside(variant, channels),
        }
        self._code = run
        self._frame = filled(FIELDS, {
            "images": sliding.images, "height": sliding.height, "width": sliding.width,
            "channels": channels, "out_height": sliding.out_height,
            "out_width": sliding.out_width, "above": sliding.above, "left": sliding.left,
            "rows": sliding.rows, "row_dilation": sliding.row_dilation,
            "row_stride": sliding.row_stride,
            "low": float_bits(operands.low), "high": float_bits(operands.high),
            "threads": threads if parallel else 1, "parallel": parallel,
            **{name: kept.data_ptr() for name, kept in self._kept.items() if kept is not None},
        })  # fmt: skip
        self._address = self._frame.buffer_info()[0]

    def run(self, tensor: Tensor) -> Tensor:
        """A new map."""
        made = self.sliding
        size = (made.images, made.out_height, made.out_width, made.channels)
        out = torch.empty(size).permute(0, 3, 1, 2)
        self.into(out, tensor)
        return out

    def into(self, out: Tensor, tensor: Tensor) -> None:
        """Fill ``out``, which shares no memory with the input."""
        channels = self.sliding.channels
        pixel = channels if tensor.stride()[1:] == self._inner else pixel_step(tensor)
        out_pixel = channels if out.stride()[1:] == self._out_inner else pixel_step(out)
        if not out_pixel:
            out.copy_(self.run(tensor))
            return
        if not pixel:
            tensor = dense(tensor)
            pixel = pixel_step(tensor)
        _fill(self._frame, out, out_pixel, tensor, pixel)
        self._code.run(self._address)

    def bind(self, out: Tensor, tensor: Tensor) -> NativeCall | None:
        """The call that does what :meth:`into` would."""
        pixel, out_pixel = pixel_step(tensor), pixel_step(out)
        if not (pixel and out_pixel):
            return None
        frame = self._frame[:]
        _fill(frame, out, out_pixel, tensor, pixel)
        return NativeCall(self._code.address, frame, keeps=self)


def _fill(frame: array[int], out: Tensor, out_pixel: int, tensor: Tensor, pixel: int) -> None:
    frame[0] = tensor.data_ptr()
    frame[1] = tensor.stride(0)
    frame[2] = out.data_ptr()
    frame[3] = out.stride(0)
    frame[4] = pixel
    frame[5] = out_pixel
